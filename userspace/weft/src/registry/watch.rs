use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, Inotify, InotifyEvent},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{self, Instant, MissedTickBehavior},
};

use super::{Inner, LOOK, Registry, RegistryError, cgroup, during, entry::Phase};

/// What tokio wants to see of an inotify instance.
struct Readable<'a>(&'a Inotify);

impl AsRawFd for Readable<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Registry {
    /// Follows the cgroups of all workloads: removes those whose last process ended, and those that nobody entered.
    /// Runs until it is dropped; the daemon has one such task.
    ///
    /// # Errors
    ///
    /// If inotify itself fails; no more changes are seen then.
    pub async fn watch(&self) -> Result<(), RegistryError> {
        let broken = |error| during("watch cgroups below", &self.root)(error);
        let readable = register(&self.inotify).map_err(broken)?;
        self.check_all();
        let mut looks = time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let grace_ends = self.next_grace();
            let unwatched = self.has_unwatched();
            tokio::select! {
                guard = readable.readable() => {
                    let mut guard = guard.map_err(broken)?;
                    match self.inotify.read_events() {
                        Ok(events) => self.on_events(&events),
                        Err(Errno::EAGAIN) => guard.clear_ready(),
                        Err(Errno::EINTR) => {}
                        Err(errno) => return Err(broken(errno.into())),
                    }
                }
                () = self.registered.notified() => {}
                () = sleep_until(grace_ends) => self.on_grace_over(),
                _ = looks.tick(), if unwatched => self.look_at_unwatched(),
            }
        }
    }

    fn on_events(&self, events: &[InotifyEvent]) {
        if events
            .iter()
            .any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW))
        {
            return self.check_all();
        }
        let mut inner = self.lock();
        let names: Vec<_> = events
            .iter()
            .filter_map(|event| inner.watched.get(&event.wd).cloned())
            .collect();
        // Any news from an empty cgroup means that it has been entered and left, however short that was.
        let removed = names.iter().filter(|name| self.check(&mut inner, name, true)).count();
        drop(inner);
        if removed > 0 {
            self.changed();
        }
    }

    fn check_all(&self) {
        let mut inner = self.lock();
        let names: Vec<_> = inner.live.keys().cloned().collect();
        let removed = names.iter().filter(|name| self.check(&mut inner, name, false)).count();
        drop(inner);
        if removed > 0 {
            self.changed();
        }
    }

    /// Looks at one workload; true if that removed it.
    fn check(&self, inner: &mut Inner, name: &str, entered: bool) -> bool {
        let Some(entry) = inner.live.get_mut(name) else {
            return false;
        };
        if cgroup::is_populated(&entry.record.cgroup) {
            entry.phase = Phase::Running;
            return false;
        }
        let over = match entry.phase {
            Phase::Running => true,
            Phase::Starting { until } => entered || until <= Instant::now(),
        };
        over && self.remove(inner, name)
    }

    fn on_grace_over(&self) {
        self.check_all();
    }

    fn has_unwatched(&self) -> bool {
        let inner = self.lock();
        inner.watched.len() < inner.live.len()
    }

    /// They are watched from now on, if that can be had by now.
    fn look_at_unwatched(&self) {
        let mut inner = self.lock();
        let Inner { live, watched, .. } = &mut *inner;
        for (name, entry) in live.iter_mut().filter(|(_, entry)| entry.watch.is_none()) {
            entry.watch = self.add_watch(&entry.record).ok();
            watched.extend(entry.watch.map(|watch| (watch, name.clone())));
        }
        drop(inner);
        self.check_all();
    }

    fn next_grace(&self) -> Option<Instant> {
        let inner = self.lock();
        let ends = inner.live.values().filter_map(|entry| match entry.phase {
            Phase::Starting { until } => Some(until),
            Phase::Running => None,
        });
        ends.min()
    }
}

#[allow(
    deprecated,
    reason = "its successor is unsafe to call; the descriptor is borrowed, so it outlives the registration"
)]
fn register(inotify: &Inotify) -> io::Result<AsyncFd<Readable<'_>>> {
    AsyncFd::with_interest(Readable(inotify), Interest::READABLE)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
