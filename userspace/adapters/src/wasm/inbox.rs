//! What reaches an instance from other threads, and what wakes its task.

use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Waker,
};

/// Of one instance.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<Mail>);

#[derive(Debug, Default)]
struct Mail {
    /// Queues that got a message, each once.
    queues: Vec<u32>,
    /// The plugin is gone.
    closed: bool,
    /// The instance runs nothing more.
    failed: bool,
    waker: Option<Waker>,
}

impl Inbox {
    /// Something is in this queue.
    pub fn queue_ready(&self, queue: u32) {
        let mut mail = self.lock();
        if !mail.queues.contains(&queue) {
            mail.queues.push(queue);
        }
        wake(mail);
    }

    pub fn take_queues(&self) -> Vec<u32> {
        mem::take(&mut self.lock().queues)
    }

    pub fn close(&self) {
        let mut mail = self.lock();
        mail.closed = true;
        wake(mail);
    }

    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The instance has failed: nobody reads what comes.
    pub fn fail(&self) {
        let mut mail = self.lock();
        mail.failed = true;
        wake(mail);
    }

    /// Whether somebody reads what comes.
    pub fn is_read(&self) -> bool {
        let mail = self.lock();
        !mail.closed && !mail.failed
    }

    /// Whom to wake when something comes, or when [`Self::wake`] is called.
    pub fn listen(&self, waker: &Waker) {
        let mut mail = self.lock();
        match &mut mail.waker {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    pub fn wake(&self) {
        wake(self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes without the lock.
fn wake(mut mail: MutexGuard<'_, Mail>) {
    let waker = mail.waker.take();
    drop(mail);
    if let Some(waker) = waker {
        waker.wake();
    }
}
