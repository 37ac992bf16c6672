//! A connection of hyper's that runs in the task of whoever uses it.
//!
//! hyper hands requests and answers between its connection and its users through channels, and expects the connection to be
//! a task: each hand-over wakes the other task, and the head of an answer reaches the client's connection, and is written,
//! before its body does. Here the user polls the connection itself, so that both are there at once. What either side wakes
//! meanwhile is the other side, which is polled next in the same turn; only what wakes later wakes the user's task.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{self, Context, Poll, Waker},
};

use futures_util::task::AtomicWaker;

/// Turns of one poll before others on the thread get theirs.
const TURNS: usize = 16;

/// `connection`, polled by its user.
pub(super) struct Driven<C> {
    /// `None`: it has ended.
    connection: Option<Box<C>>,
    wake: Arc<Wake>,
    waker: Waker,
}

/// What the connection and its user wake.
struct Wake {
    state: AtomicU8,
    /// The task that waits for either.
    task: AtomicWaker,
}

/// Nobody polls: waking wakes the task.
const RESTING: u8 = 0;
/// They are being polled.
const POLLED: u8 = 1;
/// They are being polled, and one of them wants it again.
const AGAIN: u8 = 2;

// === impl Driven ===

impl<C: Future + Unpin> Driven<C> {
    pub(super) fn new(connection: C) -> Self {
        let wake = Arc::new(Wake {
            state: AtomicU8::new(RESTING),
            task: AtomicWaker::new(),
        });
        Self {
            connection: Some(Box::new(connection)),
            waker: Waker::from(Arc::clone(&wake)),
            wake,
        }
    }

    /// Polls `user`, which waits for the connection, and the connection, until neither can go on. The context given to `user`
    /// must not be used after this returned.
    pub(super) fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        user: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.wake.task.register(cx.waker());
        self.turns(user)
    }

    /// What wakes from now on wakes nobody: the connection idles.
    pub(super) fn rest(&self) {
        self.wake.task.take();
    }

    /// Lets an idle connection see what came meanwhile: its end, mostly. Nobody is woken for it.
    pub(super) fn look(&mut self) {
        self.rest();
        let _pending = self.turns(|_| Poll::<()>::Pending);
    }

    /// For a task of its own; `None`: it has ended.
    pub(super) fn into_connection(self) -> Option<C> {
        self.connection.map(|connection| *connection)
    }

    fn turns<T>(&mut self, mut user: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let mut cx = Context::from_waker(&self.waker);
        for _ in 0..TURNS {
            self.wake.state.store(POLLED, Ordering::Relaxed);
            let done = user(&mut cx);
            if done.is_ready() {
                self.wake.state.store(RESTING, Ordering::Relaxed);
                return done;
            }
            if let Some(connection) = &mut self.connection
                && Pin::new(connection).poll(&mut cx).is_ready()
            {
                // Its end tells the user why.
                self.connection = None;
                self.wake.state.store(AGAIN, Ordering::Relaxed);
            }
            if self.wake.rests() {
                return Poll::Pending;
            }
        }
        self.wake.state.store(RESTING, Ordering::Release);
        self.wake.task.wake();
        Poll::Pending
    }
}

// === impl Wake ===

impl Wake {
    /// Goes to rest, unless one wants to be polled again.
    fn rests(&self) -> bool {
        self.state
            .compare_exchange(POLLED, RESTING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl task::Wake for Wake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let polled = self
            .state
            .compare_exchange(POLLED, AGAIN, Ordering::AcqRel, Ordering::Acquire);
        if polled == Err(RESTING) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, rc::Rc};

    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Count(AtomicU8);

    impl task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_the_connection_gives_its_user_is_taken_in_the_same_poll_and_wakes_nobody() {
        let (count, given) = (Arc::new(Count::default()), Rc::new(Cell::new(0)));
        let waiting: Rc<Cell<Option<Waker>>> = Rc::default();
        let (giving, wakes) = (Rc::clone(&given), Rc::clone(&waiting));
        let mut driven = Driven::new(poll_fn(move |_| {
            giving.set(giving.get() + 1);
            if let Some(user) = wakes.take() {
                user.wake();
            }
            Poll::<()>::Pending
        }));
        let waker = Waker::from(Arc::clone(&count));
        let taken = driven.poll_with(&mut Context::from_waker(&waker), |cx| {
            if given.get() > 0 {
                return Poll::Ready(given.get());
            }
            waiting.set(Some(cx.waker().clone()));
            Poll::Pending
        });
        assert_eq!((taken, count.0.load(Ordering::Relaxed)), (Poll::Ready(1), 0));
    }

    #[test]
    fn what_comes_between_two_polls_wakes_the_task_that_polled_last() {
        let kept: Rc<Cell<Option<Waker>>> = Rc::default();
        let keep = Rc::clone(&kept);
        let mut driven = Driven::new(poll_fn(move |cx| {
            keep.set(Some(cx.waker().clone()));
            Poll::<()>::Pending
        }));
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        for count in [&first, &second] {
            let waker = Waker::from(Arc::clone(count));
            let polled = driven.poll_with(&mut Context::from_waker(&waker), |_| Poll::<()>::Pending);
            assert!(polled.is_pending());
        }
        kept.take().unwrap().wake();
        assert_eq!(
            (first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)),
            (0, 1)
        );
        driven.rest();
        driven.look();
        kept.take().unwrap().wake();
        assert_eq!(second.0.load(Ordering::Relaxed), 1, "an idle connection wakes nobody");
    }

    #[test]
    fn a_connection_that_never_rests_lets_others_run() {
        let count = Arc::new(Count::default());
        let mut driven = Driven::new(poll_fn(|cx: &mut Context<'_>| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let waker = Waker::from(Arc::clone(&count));
        let polled = driven.poll_with(&mut Context::from_waker(&waker), |_| Poll::<()>::Pending);
        assert!(polled.is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_end_of_the_connection_is_told_to_its_user_in_the_same_poll() {
        let ended = Rc::new(Cell::new(false));
        let ends = Rc::clone(&ended);
        let mut driven = Driven::new(Box::pin(async move { ends.set(true) }));
        let told = driven.poll_with(&mut Context::from_waker(Waker::noop()), |_| {
            if ended.get() { Poll::Ready(()) } else { Poll::Pending }
        });
        assert!(told.is_ready());
    }
}
