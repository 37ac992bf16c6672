//! Listening sockets of one network namespace.
//!
//! Whoever builds them stands in that namespace (the host's, or a pod's after `setns`); afterwards the sockets work
//! from any thread.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{error::ProxyError, io::keep_alive, limits::LISTEN_BACKLOG};

/// For every worker one listener an address, all sharing their ports (SO_REUSEPORT), or one listener that all workers have.
#[derive(Debug)]
pub struct NetnsListeners {
    addresses: Vec<SocketAddr>,
    workers: Vec<Vec<TcpListener>>,
}

// === impl NetnsListeners ===

impl NetnsListeners {
    /// Opens `addresses` for `workers` workers in the network namespace of the calling thread. An address of a family
    /// that the namespace lacks is left out; port 0 becomes the same free port for all workers.
    ///
    /// # Errors
    /// One line that names the port. Nothing stays bound.
    pub fn open(addresses: &[SocketAddr], workers: usize) -> Result<Self, ProxyError> {
        Self::open_as(Kind::EachItsOwn, addresses, workers)
    }

    /// As [`NetnsListeners::open`], but all workers have the same listener, without SO_REUSEPORT: what arrives wakes them
    /// all, and the first takes it. Before Linux 6.6 `bpf_sk_assign` takes no other.
    ///
    /// # Errors
    /// As [`NetnsListeners::open`].
    pub fn open_single(addresses: &[SocketAddr], workers: usize) -> Result<Self, ProxyError> {
        Self::open_as(Kind::OneForAll, addresses, workers)
    }

    fn open_as(kind: Kind, addresses: &[SocketAddr], workers: usize) -> Result<Self, ProxyError> {
        let mut opened = Self {
            addresses: Vec::new(),
            workers: (0..workers.max(1)).map(|_| Vec::new()).collect(),
        };
        for &address in addresses {
            opened.add(kind, address)?;
        }
        if opened.addresses.is_empty() {
            return Err(ProxyError::NoAddress {
                addresses: addresses.to_vec(),
            });
        }
        Ok(opened)
    }

    /// Sockets that listen already, spread over `workers` workers: those that an earlier process opened, with what waits in
    /// their queues. Every one is served by somebody, whatever the number of workers was there.
    ///
    /// # Errors
    /// A socket that does not say where it listens.
    pub fn of_sockets(sockets: Vec<TcpListener>, workers: usize) -> io::Result<Self> {
        let mut opened = Self {
            addresses: Vec::new(),
            workers: (0..workers.max(1)).map(|_| Vec::new()).collect(),
        };
        // By address, so that each worker gets its share of each.
        let mut by_address: Vec<(SocketAddr, usize)> = Vec::new();
        for socket in sockets {
            socket.set_nonblocking(true)?;
            // That process may not have. What waits in its queue then keeps what it began with.
            SockRef::from(&socket).set_tcp_nodelay(true)?;
            keep_alive(&socket)?;
            let address = socket.local_addr()?;
            let worker = match by_address.iter_mut().find(|(known, _)| *known == address) {
                Some((_, count)) => {
                    *count += 1;
                    *count - 1
                }
                None => {
                    by_address.push((address, 1));
                    opened.addresses.push(address);
                    0
                }
            };
            let count = opened.workers.len();
            opened.workers[worker % count].push(socket);
        }
        Ok(opened)
    }

    /// The sockets alone, for [`NetnsListeners::of_sockets`]: of this process, or of another that they are passed to.
    pub fn into_sockets(self) -> Vec<TcpListener> {
        self.workers.into_iter().flatten().collect()
    }

    /// Addresses in use, with real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Number of workers these were opened for.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// One listener of each address: by it the kernel finds all that share its port.
    pub fn first(&self) -> impl Iterator<Item = (SocketAddr, BorrowedFd<'_>)> {
        let listeners = self.workers.first().into_iter().flatten();
        self.addresses.iter().copied().zip(listeners.map(AsFd::as_fd))
    }

    /// The listeners, worker by worker.
    pub(crate) fn into_workers(self) -> Vec<Vec<TcpListener>> {
        self.workers
    }

    fn add(&mut self, kind: Kind, mut address: SocketAddr) -> Result<(), ProxyError> {
        for worker in 0..self.workers.len() {
            let opened = match (kind, self.workers[0].last()) {
                (Kind::OneForAll, Some(first)) if worker > 0 => first.try_clone().map(|listener| (listener, address)),
                _ => listen(kind, address),
            };
            match opened {
                Ok((listener, bound)) => {
                    address = bound;
                    self.workers[worker].push(listener);
                }
                Err(error) if worker == 0 && family_is_missing(&error) => {
                    tracing::warn!(%address, %error, "address family not available, not listening there");
                    return Ok(());
                }
                Err(source) => {
                    return Err(ProxyError::Bind {
                        port: address.port(),
                        address,
                        source,
                    });
                }
            }
        }
        self.addresses.push(address);
        Ok(())
    }
}

/// How workers come by a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    EachItsOwn,
    OneForAll,
}

fn listen(kind: Kind, address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(kind == Kind::EachItsOwn)?;
    socket.set_nonblocking(true)?;
    // Without Nagle's delay, as connections to endpoints: what is accepted has it from its listener.
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    let listener = TcpListener::from(socket);
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

fn family_is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// The kernel was built or booted without this address family (errno.h, all architectures but MIPS, SPARC).
const EAFNOSUPPORT: i32 = 97;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::limits::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES};

    #[test]
    fn all_workers_share_one_free_port() {
        let listeners = NetnsListeners::open(&[(Ipv4Addr::LOCALHOST, 0).into()], 3).unwrap();
        let port = listeners.addresses()[0].port();
        assert_ne!(port, 0);
        let workers = listeners.into_workers();
        assert_eq!(workers.len(), 3);
        assert!(
            workers
                .iter()
                .all(|w| w.len() == 1 && w[0].local_addr().unwrap().port() == port)
        );
    }

    #[test]
    fn all_workers_have_one_listener() {
        let listeners = NetnsListeners::open_single(&[(Ipv4Addr::LOCALHOST, 0).into()], 3).unwrap();
        let address = listeners.addresses()[0];
        assert!(
            NetnsListeners::open(&[address], 1).is_err(),
            "it does not share its port"
        );
        let client = std::net::TcpStream::connect(address).unwrap();
        let workers = listeners.into_workers();
        assert!(workers.iter().all(|w| w.len() == 1));
        let (_, peer) = workers[2][0].accept().expect("every worker can take it");
        assert_eq!(peer, client.local_addr().unwrap());
        let nothing = workers[0][0].accept().unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock, "and one has");
    }

    #[test]
    fn every_inherited_socket_has_a_worker() {
        let opened = NetnsListeners::open(&[(Ipv4Addr::LOCALHOST, 0).into()], 3).unwrap();
        let address = opened.addresses()[0];
        let copies: Vec<TcpListener> = opened
            .into_sockets()
            .iter()
            .map(|socket| socket.try_clone().unwrap())
            .collect();
        std::net::TcpStream::connect(address).expect("the copies still listen");
        let taken = NetnsListeners::of_sockets(copies, 2).unwrap();
        assert_eq!(taken.addresses(), [address]);
        let counts: Vec<usize> = taken.into_workers().iter().map(Vec::len).collect();
        assert_eq!(counts, [2, 1]);
    }

    #[test]
    fn what_is_accepted_is_probed_and_without_nagles_delay() {
        let inherited = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for listeners in [
            NetnsListeners::open(&[(Ipv4Addr::LOCALHOST, 0).into()], 1).unwrap(),
            NetnsListeners::of_sockets(vec![inherited], 1).unwrap(),
        ] {
            let _client = std::net::TcpStream::connect(listeners.addresses()[0]).unwrap();
            let listener = listeners.into_workers().remove(0).remove(0);
            // The connection may still be on its way.
            listener.set_nonblocking(false).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert!(accepted.nodelay().unwrap());
            let accepted = SockRef::from(&accepted);
            assert!(accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
            assert_eq!(accepted.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(accepted.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        }
    }

    #[test]
    fn a_port_in_use_is_named_in_one_line() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let error = NetnsListeners::open(&[address], 1).unwrap_err().to_string();
        assert!(
            error.contains(&format!("port {}", address.port())) && !error.contains('\n'),
            "{error}"
        );
    }
}
