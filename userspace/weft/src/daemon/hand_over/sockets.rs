//! Descriptors by name: what one daemon passes to the next.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// What the descriptors are for. A listener of another network namespace gets a name of its own, `outbound@<place>`.
pub mod names {
    /// The proxy's outbound listeners, any number.
    pub const OUTBOUND: &str = "outbound";
    /// The proxy's inbound listeners.
    pub const INBOUND: &str = "inbound";
    pub const DNS_TCP: &str = "dns-tcp";
    pub const DNS_UDP: &str = "dns-udp";
    pub const METRICS: &str = "metrics";
    pub const ADMIN: &str = "admin";
    pub const STATE_LOCK: &str = "lock-state";
    pub const BPFFS_LOCK: &str = "lock-bpffs";
    pub const CGROUP_LOCK: &str = "lock-cgroup";

    /// A name for the same in another network namespace, by its cookie.
    pub fn at(name: &str, cookie: u64) -> String {
        format!("{name}@{cookie}")
    }
}

/// Named descriptors; several may have one name.
#[derive(Debug, Default)]
pub struct Sockets(Vec<(String, OwnedFd)>);

// === impl Sockets ===

impl Sockets {
    pub fn add(&mut self, name: &str, descriptor: impl Into<OwnedFd>) {
        self.0.push((name.to_owned(), descriptor.into()));
    }

    /// A copy of something that stays where it is.
    ///
    /// # Errors
    ///
    /// No descriptor is free.
    pub fn add_copy(&mut self, name: &str, of: &impl AsFd) -> io::Result<()> {
        self.add(name, of.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// Copies of all of another's.
    ///
    /// # Errors
    ///
    /// No descriptor is free.
    pub fn extend_copies(&mut self, others: &Self) -> io::Result<()> {
        for (name, descriptor) in &others.0 {
            self.0.push((name.clone(), descriptor.try_clone()?));
        }
        Ok(())
    }

    /// All of one name, in their order; they are no longer in here.
    pub fn take<T: From<OwnedFd>>(&mut self, name: &str) -> Vec<T> {
        let (found, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(known, _)| known == name);
        self.0 = rest;
        found.into_iter().map(|(_, descriptor)| descriptor.into()).collect()
    }

    /// The one of a name.
    pub fn take_one<T: From<OwnedFd>>(&mut self, name: &str) -> Option<T> {
        self.take(name).pop()
    }

    /// Names and descriptors, in parts of at most `size`.
    pub fn parts(&self, size: usize) -> impl Iterator<Item = (Vec<String>, Vec<BorrowedFd<'_>>)> {
        self.0.chunks(size).map(|part| {
            part.iter()
                .map(|(name, descriptor)| (name.clone(), descriptor.as_fd()))
                .unzip()
        })
    }

    /// Copies of all of one name; they stay in here, too.
    ///
    /// # Errors
    ///
    /// No descriptor is free.
    pub fn copies<T: From<OwnedFd>>(&self, name: &str) -> io::Result<Vec<T>> {
        let found = self.0.iter().filter(|(known, _)| known == name);
        found
            .map(|(_, descriptor)| Ok(descriptor.try_clone()?.into()))
            .collect()
    }

    /// Names of what is in here.
    pub fn left(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Sockets of a name, else opened anew; a copy of each goes to `ours`, for the next successor.
    ///
    /// # Errors
    ///
    /// What `open` says, or no descriptor is free.
    pub fn or_open<S: From<OwnedFd> + AsFd>(
        &mut self,
        name: &str,
        ours: &mut Self,
        open: impl FnOnce() -> anyhow::Result<Vec<S>>,
    ) -> anyhow::Result<Vec<S>> {
        let sockets = match self.take(name) {
            found if found.is_empty() => open()?,
            found => found,
        };
        for socket in &sockets {
            ours.add_copy(name, socket)?;
        }
        Ok(sockets)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_is_there_is_used_and_what_is_not_is_opened() {
        let open = || Ok(vec![TcpListener::bind("127.0.0.1:0")?]);
        let (mut none, mut first, mut second) = (Sockets::default(), Sockets::default(), Sockets::default());
        let opened = none.or_open("a", &mut first, open).expect("opened");
        first.add_copy("b@pod", &opened[0]).expect("a copy");
        let taken = first
            .or_open("a", &mut second, || anyhow::bail!("there is one"))
            .expect("taken");
        let address = |listeners: &[TcpListener]| listeners[0].local_addr().expect("bound");
        assert_eq!(address(&taken), address(&opened));
        assert_eq!(first.left(), ["b@pod"]);
        assert_eq!(second.left(), ["a"]);
    }
}
