//! Queries over TCP: any number on a connection, answered in the order they are ready.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    forward::Transport,
    limits::{MAX_QUERY, MAX_TCP_CONNECTIONS, TCP_IDLE, TCP_PIPELINE},
    message::HEADER,
    metrics::QueryResult,
    server::{PAUSE, Server, Verdict},
};

pub(super) async fn serve(listener: TcpListener, server: Arc<Server>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: a pause keeps us from spinning.
                debug!(%error, "accept of a DNS connection failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(room) = room.clone().try_acquire_owned() else {
            server.metrics.count(QueryResult::Dropped);
            continue;
        };
        let connection = connection(stream, server.clone(), stop.clone());
        server.tasks.spawn(async move {
            connection.await;
            drop(room);
        });
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>, stop: CancellationToken) {
    let Some(local) = stream
        .local_addr()
        .ok()
        .filter(|local| local.ip().to_canonical().is_loopback())
    else {
        server.metrics.count(QueryResult::Dropped);
        return;
    };
    let (reader, writer) = stream.into_split();
    let (answers, ready) = mpsc::channel(TCP_PIPELINE);
    let writing = server.tasks.spawn(write(writer, ready));
    let reading = read(reader, server.clone(), server.namespace_of(local.ip()), answers);
    tokio::select! {
        () = stop.cancelled() => {}
        () = reading => {}
        // The client reads no more: nothing to answer for.
        _ = writing => {}
    }
}

/// Reads queries until the client ends, is silent for too long, or sends what is no DNS.
async fn read(mut reader: OwnedReadHalf, server: Arc<Server>, namespace: String, answers: mpsc::Sender<Vec<u8>>) {
    let room = Arc::new(Semaphore::new(TCP_PIPELINE));
    loop {
        let Ok(Some(query)) = timeout(TCP_IDLE, read_query(&mut reader)).await else {
            return;
        };
        match server.judge(&query, &namespace) {
            Verdict::Drop => return,
            Verdict::Reply(response) => {
                if answers.send(response).await.is_err() {
                    return;
                }
            }
            Verdict::Forward(decoded) => {
                // Never closed, hence never an error.
                let Ok(room) = room.clone().acquire_owned().await else {
                    return;
                };
                let (forwarding, answers) = (server.clone(), answers.clone());
                server.tasks.spawn(async move {
                    let response = forwarding.forward(&query, &decoded, Transport::Tcp).await;
                    // The client may be gone.
                    let _ = answers.send(response).await;
                    drop(room);
                });
            }
        }
    }
}

/// One query; `None`: the end, or no query.
async fn read_query(reader: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let size = usize::from(reader.read_u16().await.ok()?);
    if !(HEADER..=MAX_QUERY).contains(&size) {
        return None;
    }
    let mut query = vec![0; size];
    reader.read_exact(&mut query).await.ok()?;
    Some(query)
}

/// Ends when nobody can send an answer any more, or the client does not take it.
async fn write(mut writer: OwnedWriteHalf, mut ready: mpsc::Receiver<Vec<u8>>) {
    while let Some(response) = ready.recv().await {
        let Ok(size) = u16::try_from(response.len()) else {
            return;
        };
        let mut framed = Vec::with_capacity(2 + response.len());
        framed.extend_from_slice(&size.to_be_bytes());
        framed.extend_from_slice(&response);
        if !matches!(timeout(TCP_IDLE, writer.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}
