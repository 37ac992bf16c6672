//! Kernel TLS without a handshake: both ends know the keys.

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        setsockopt,
        sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo},
    },
};

use super::side::Side;

/// The keys of the direction from the server, or to it.
fn keys(from_server: bool) -> TlsCryptoInfo {
    let fill = 1 + u8::from(from_server);
    TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info {
            version: libc::TLS_1_2_VERSION,
            cipher_type: libc::TLS_CIPHER_AES_GCM_128,
        },
        iv: [fill; 8],
        key: [fill; 16],
        salt: [fill; 4],
        rec_seq: [0; 8],
    })
}

/// Switches it on: `on`; `refused`, by us (EPERM: what is short-circuited both ways cannot have it) or by a kernel that gives
/// no keys to a socket in a sockmap (EINVAL), after which a program encrypts by itself; or `absent`: no such kernel.
pub fn begin(side: &Side) -> Result<String> {
    match setsockopt(side, TcpUlp::default(), b"tls") {
        Ok(()) => {}
        Err(Errno::ENOENT | Errno::ENOPROTOOPT) => return Ok("absent".to_owned()),
        Err(Errno::EPERM) => return Ok("refused".to_owned()),
        Err(error) => return Err(error).context("set TCP_ULP"),
    }
    match setsockopt(side, TcpTlsTx, &keys(side.serves)) {
        Ok(()) => {}
        Err(Errno::EINVAL) => return Ok("refused".to_owned()),
        Err(error) => return Err(error).context("set the key to send with"),
    }
    setsockopt(side, TcpTlsRx, &keys(!side.serves)).context("set the key to receive with")?;
    Ok("on".to_owned())
}
