//! Other network namespaces of this machine: sockets of a pod's connections are opened inside the pod's.
//!
//! A socket belongs to the namespace its maker stood in, and works from any thread afterwards. So whoever opens one
//! enters the namespace (setns), makes the socket and returns; nothing else happens inside. The endpoint then sees
//! the pod's address, and routes and policies of the pod's namespace hold.
//!
//! A worker does that on its own thread, without an await in between. A thread that makes sockets for the workers was
//! measured too (Linux 6.18.44, two busy cores, release, 20,000 sockets each): see this folder's README, Decisions.

use std::{
    collections::HashMap,
    fs::File,
    hash::{Hash, Hasher},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::time::Instant;

use crate::limits::{SOURCE_LOSSES, SOURCE_PAUSE};

/// The calling thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace beside the one that the daemon was started in ("home"). Equal if the cookies are.
#[derive(Debug)]
pub struct Netns {
    cookie: u64,
    inside: OwnedFd,
    home: OwnedFd,
    sources: Sources,
}

/// Whether servers in a namespace see their clients' addresses.
#[derive(Debug, Default)]
struct Sources {
    /// SO_MARK of sockets with a client's address, by family; 0: they have none.
    marks: [AtomicU32; 2],
    lost: OnceLock<String>,
    /// Endpoints that were not reached in time with a client's address: how often in a row, and when last.
    losses: Mutex<HashMap<SocketAddr, (u32, Instant)>>,
    /// One more for each such socket.
    held: Arc<()>,
}

/// Kept as long as a socket with a client's address is open: [`Netns::keeps_sources`].
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "held for its count")] Arc<()>);

/// Runs `work` on a thread of its own that stands in the namespace, and waits for it.
///
/// # Errors
/// The descriptor is of no network namespace, or the process lacks CAP_SYS_ADMIN; no thread can be had.
pub fn visit<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let visitor = thread::Builder::new()
            .name("weft-netns".to_owned())
            .spawn_scoped(scope, || setns(netns, CloneFlags::CLONE_NEWNET).map(|()| work()))?;
        match visitor.join() {
            Ok(done) => done.map_err(io::Error::from),
            Err(_panic) => Err(io::Error::other("the thread in the namespace had panicked")),
        }
    })
}

// === impl Netns ===

impl Netns {
    /// `cookie` is the namespace's number (SO_NETNS_COOKIE). To be called from a thread at home.
    ///
    /// # Errors
    /// /proc is not there, or no descriptor is free.
    pub fn new(cookie: u64, inside: OwnedFd) -> io::Result<Arc<Self>> {
        let home = File::open(OWN)?.into();
        Ok(Arc::new(Self {
            cookie,
            inside,
            home,
            sources: Sources::default(),
        }))
    }

    /// Its number.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The namespace's file.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.inside.as_fd()
    }

    /// Runs `work` on a thread that stands in it: [`visit`].
    ///
    /// # Errors
    /// As [`visit`].
    pub fn visit<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        visit(self.inside.as_fd(), work)
    }

    /// From now on servers in this namespace see their clients' addresses, in the families given: the proxy's sockets to them
    /// have the address and `mark`, by which the namespace's routes lead their answers back.
    pub fn keep_sources(&self, mark: u32, v4: bool, v6: bool) {
        for (family, works) in self.sources.marks.iter().zip([v4, v6]) {
            family.store(if works { mark } else { 0 }, Ordering::Relaxed);
        }
    }

    /// Whether connections with a client's address are open: what [`Netns::keep_sources`] relies on must stay.
    pub fn keeps_sources(&self) -> bool {
        Arc::strong_count(&self.sources.held) > 1
    }

    /// Why a server saw the proxy's address nevertheless; `None`: none did.
    pub fn source_lost(&self) -> Option<&str> {
        self.sources.lost.get().map(String::as_str)
    }

    /// Notes that a server was reached with its client's address.
    pub(crate) fn keep_source(&self, endpoint: SocketAddr) {
        self.losses().remove(&endpoint);
    }

    /// Notes that a server does not see `source`; logged once.
    pub(crate) fn lose_source(&self, source: IpAddr, endpoint: SocketAddr, error: &io::Error) {
        let now = Instant::now();
        if error.kind() == io::ErrorKind::TimedOut {
            let mut losses = self.losses();
            losses.retain(|_, (_, last)| now.duration_since(*last) < SOURCE_PAUSE);
            let (times, last) = losses.entry(endpoint).or_insert((0, now));
            (*times, *last) = (*times + 1, now);
        }
        let mut first = false;
        self.sources.lost.get_or_init(|| {
            first = true;
            format!("a connection as {source}: {error}")
        });
        if first {
            tracing::warn!(netns = self.cookie, %source, %error, "a server sees the proxy's address instead of its client's");
        }
    }

    /// Whether servers see clients' addresses of this one's family.
    pub(crate) fn has_sources(&self, client: IpAddr) -> bool {
        self.mark(client) != 0
    }

    /// Mark of a socket to `endpoint` with that address, and what to keep as long as it is open; `None`: it cannot have it.
    pub(crate) fn source(&self, source: IpAddr, endpoint: SocketAddr) -> Option<(u32, Held)> {
        let mark = self.mark(source);
        let pauses = mark != 0
            && self
                .losses()
                .get(&endpoint)
                .is_some_and(|(times, last)| *times >= SOURCE_LOSSES && last.elapsed() < SOURCE_PAUSE);
        (mark != 0 && !pauses).then(|| (mark, Held(Arc::clone(&self.sources.held))))
    }

    fn mark(&self, source: IpAddr) -> u32 {
        self.sources.marks[usize::from(source.is_ipv6())].load(Ordering::Relaxed)
    }

    fn losses(&self) -> MutexGuard<'_, HashMap<SocketAddr, (u32, Instant)>> {
        self.sources.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `make` inside on the calling thread, which is home again afterwards. `make` must do nothing but make a
    /// socket. Costs two system calls.
    ///
    /// # Errors
    /// The namespace could not be entered; `make` did not run.
    pub(crate) fn inside<T>(&self, make: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.inside, CloneFlags::CLONE_NEWNET)?;
        let _back = Back(self.home.as_fd());
        Ok(make())
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.cookie == other.cookie
    }
}

impl Eq for Netns {}

impl Hash for Netns {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.cookie.hash(state);
    }
}

/// Brings the thread home when dropped.
struct Back<'a>(BorrowedFd<'a>);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            // Only a kernel without memory for a few hundred bytes refuses this. A worker that stayed would open other
            // workloads' connections in this namespace; without a daemon, the kernel side at least does what was declared.
            tracing::error!(%error, "a thread cannot leave a pod's network namespace");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A namespace of the test's own: a thread that made one, and waits.
    fn unshared() -> Option<(OwnedFd, std::sync::mpsc::Sender<()>)> {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        thread::spawn(move || {
            let made = nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .and_then(|()| File::open(OWN));
            let _ = tell.send(made);
            let _ = ended.recv();
        });
        match told.recv().expect("the thread answers") {
            Ok(file) => Some((file.into(), end)),
            Err(error) => {
                println!("skipped: needs root to make a network namespace ({error})");
                None
            }
        }
    }

    #[test]
    fn sockets_are_made_inside_and_the_thread_is_home_again() {
        let Some((file, _end)) = unshared() else { return };
        let netns = Netns::new(7, file).unwrap();
        let at_home = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = at_home.local_addr().unwrap();
        // The same port is free in another namespace, and only there.
        let inside = netns.inside(|| TcpListener::bind(port)).unwrap();
        assert_eq!(inside.unwrap().local_addr().unwrap(), port);
        assert!(TcpListener::bind(port).is_err(), "home again");
        let visited = netns.visit(|| TcpListener::bind(port)).unwrap();
        visited.unwrap();
        assert!(TcpListener::bind(port).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_answers_no_client_in_time_gets_the_proxys_address_for_a_while() {
        let netns = Netns::new(7, File::open("/dev/null").unwrap().into()).unwrap();
        let (client, endpoint) = (IpAddr::from([10, 0, 0, 1]), SocketAddr::from(([10, 0, 0, 2], 80)));
        assert!(!netns.has_sources(client) && netns.source(client, endpoint).is_none());
        netns.keep_sources(1, true, false);
        let late = || netns.lose_source(client, endpoint, &io::ErrorKind::TimedOut.into());
        late();
        netns.keep_source(endpoint);
        late();
        assert!(
            netns.source(client, endpoint).is_some(),
            "once may be a port that the client had"
        );
        netns.lose_source(client, endpoint, &io::ErrorKind::AddrInUse.into());
        assert!(netns.source(client, endpoint).is_some(), "that cost nobody a second");
        late();
        assert!(netns.source(client, endpoint).is_none());
        assert!(netns.source(client, SocketAddr::new(endpoint.ip(), 81)).is_some());
        tokio::time::advance(SOURCE_PAUSE).await;
        assert!(netns.source(client, endpoint).is_some());
    }

    #[test]
    fn what_is_no_namespace_is_not_entered() {
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        assert!(visit(file.as_fd(), || ()).is_err());
        let netns = Netns::new(7, file).unwrap();
        let mut ran = false;
        assert!(netns.inside(|| ran = true).is_err());
        assert!(!ran);
    }
}
