//! Questions over TCP (RFC 7766): each behind its length, answered in order.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::{MAX_CONNECTIONS, Server, TCP_IDLE, Transport};

/// After a failed accept (no descriptors left, mostly) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
pub async fn serve(server: Arc<Server>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    if let Err(error) = connection(&server, stream).await {
                        tracing::debug!(%error, "DNS over TCP");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "DNS over TCP: accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    let asked = stream.local_addr()?.ip();
    if !asked.to_canonical().is_loopback() {
        return Ok(());
    }
    loop {
        let question = match timeout(TCP_IDLE, read(&mut stream)).await {
            Ok(Ok(Some(question))) => question,
            Ok(Ok(None)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        };
        let Some(answer) = server.answer(&question, asked, Transport::Tcp).await else {
            return Ok(());
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return Ok(());
        };
        let mut message = Vec::with_capacity(2 + answer.len());
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(&answer);
        timeout(TCP_IDLE, stream.write_all(&message)).await??;
    }
}

/// The next message; `None` at the end.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}
