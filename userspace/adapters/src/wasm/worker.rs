//! An instance at work on its thread: callbacks, the calls they order, ticks and queues.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    pin::pin,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use tracing::warn;

use super::{
    callout::{self, Event, Order},
    host::{Host, ROOT, Wish},
    inbox::Inbox,
    plugin::{self, Inner},
    vm::{Vm, reason},
};

/// Answers to calls that wait for a held stream, up to 1 MiB each; beyond, it is reset.
const MAX_WAITING: usize = 64;

/// Calls of an instance that are under way at the same time.
pub(super) const MAX_CALLS: usize = 1024;

/// Ticks take one part in so many of a worker's time at most: the next one comes after so many times what the last one took.
const TICK_SHARE: u32 = 10;

/// How long the instance of a plugin that is gone may go on after its last request: until its own context is done (it may have
/// something to flush), contexts that wait for `proxy_done` are, and its own calls are over.
const LINGER: Duration = Duration::from_secs(5);

/// Of one plugin and one thread, or of one stream.
pub(super) struct Worker {
    pub plugin: Arc<Inner>,
    /// `None`: it has failed.
    vm: RefCell<Option<Vm>>,
    inbox: Arc<Inbox>,
    /// The instance trapped: nothing runs in it any more.
    failed: Cell<bool>,
    /// A task looks after it, and after its end.
    tended: Cell<bool>,
    /// The plugin is gone: that task is told of whatever may be the last.
    ends: Cell<bool>,
    last_context: Cell<u32>,
    /// Calls under way, by token: whose they are, and how to end them.
    calls: RefCell<HashMap<u32, (u32, AbortHandle)>>,
    /// Of streams, what a failed instance has said of their end.
    wishes: RefCell<HashMap<u32, Wish>>,
}

// === impl Worker ===

impl Worker {
    /// Puts an instance to work. What it wants beside streams (ticks, queues, answers to calls) needs tokio's
    /// `LocalRuntime`, in which a worker of the proxy runs; outside a runtime nothing of that comes.
    pub fn new(plugin: Arc<Inner>, vm: Vm) -> Rc<Self> {
        let worker = Rc::new(Self::of(plugin, vm));
        if has_tasks() {
            worker.plugin.tell_when_gone(&worker.inbox);
            worker.tended.set(true);
            tokio::task::spawn_local(tend(Rc::downgrade(&worker), worker.inbox.clone(), worker.plugin.id()));
        }
        worker.begin();
        worker
    }

    /// Puts an instance to work for one stream: nothing comes to it but that stream and the answers to its calls.
    pub fn alone(plugin: Arc<Inner>, vm: Vm) -> Rc<Self> {
        let worker = Rc::new(Self::of(plugin, vm));
        worker.begin();
        worker
    }

    fn of(plugin: Arc<Inner>, vm: Vm) -> Self {
        Self {
            plugin,
            inbox: vm.store.data().inbox.clone(),
            vm: RefCell::new(Some(vm)),
            failed: Cell::new(false),
            tended: Cell::new(false),
            ends: Cell::new(false),
            last_context: Cell::new(ROOT),
            calls: RefCell::default(),
            wishes: RefCell::default(),
        }
    }

    /// Does what the start ordered.
    fn begin(self: &Rc<Self>) {
        self.enter(|_| Ok(()));
    }

    pub fn runs(&self) -> bool {
        !self.failed.get()
    }

    /// Whether it may stay where it is when its plugin goes: a task will take it away.
    pub fn is_tended(&self) -> bool {
        self.tended.get()
    }

    /// What the instance said of a stream's end, before it failed.
    pub fn last_wish(&self, context: u32) -> Option<Wish> {
        self.wishes.borrow_mut().remove(&context)
    }

    pub fn next_context(&self) -> u32 {
        let next = self.last_context.get().checked_add(1).unwrap_or(ROOT + 1);
        self.last_context.set(next);
        next
    }

    /// Looks at or changes what the host knows, without running anything in the instance. `None`: it has failed.
    pub fn with_host<R>(&self, look: impl FnOnce(&mut Host) -> R) -> Option<R> {
        let mut vm = self.vm.try_borrow_mut().ok()?;
        Some(look(vm.as_mut()?.host()))
    }

    /// Runs something in the instance, then does what the module ordered. `None`: the instance has failed, now or before.
    pub fn enter<R>(self: &Rc<Self>, run: impl FnOnce(&mut Vm) -> wasmtime::Result<R>) -> Option<R> {
        let mut place = self.vm.try_borrow_mut().ok()?;
        let vm = place.as_mut()?;
        let done = run(vm).and_then(|done| self.obey(vm).map(|()| done));
        vm.host().count_time();
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                self.fail(vm, &error);
                // Its streams may stay for long: its memory goes now.
                let failed = place.take();
                drop(place);
                drop(failed);
                None
            }
        }
    }

    /// Runs something of the plugin's own context: no request learns of a failure there.
    fn enter_own(self: &Rc<Self>, run: impl FnOnce(&mut Vm) -> wasmtime::Result<()>) {
        let ran = self.runs();
        self.enter(run);
        if ran && !self.runs() {
            self.plugin.failed_beside.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Does what was ordered during a callback.
    fn obey(self: &Rc<Self>, vm: &mut Vm) -> wasmtime::Result<()> {
        while let Some(context) = vm.host().done.pop() {
            // Said twice, or where the host ended it already.
            if vm.host().streams.contains_key(&context) {
                vm.end_context(context)?;
            }
        }
        if vm.host().tick_changed {
            self.inbox.wake();
        }
        for order in std::mem::take(&mut vm.host().outbox) {
            self.start(vm, order);
        }
        let host = vm.host();
        while let Some(token) = host.cancelled.pop() {
            host.calls.remove(&token);
            if let Some((_, call)) = self.calls.borrow_mut().remove(&token) {
                call.abort();
            }
        }
        if self.ends.get() {
            self.inbox.wake();
        }
        Ok(())
    }

    /// Nothing runs here any more; whoever is held is woken, to get what the failure policy says.
    fn fail(&self, vm: &mut Vm, error: &wasmtime::Error) {
        self.failed.set(true);
        let reason = reason(error);
        let host = vm.host();
        let plugin = &*self.plugin.config.name;
        match host.words.take() {
            Some(words) => warn!(plugin, "ended: {reason}; the module says: {words}"),
            None => warn!(plugin, "ended: {reason}"),
        }
        for (context, stream) in &mut host.streams {
            if let Some(wish) = stream.wish() {
                self.wishes.borrow_mut().insert(*context, wish);
            }
            stream.wake();
        }
        self.calls.borrow_mut().drain().for_each(|(_, (_, call))| call.abort());
        self.inbox.fail();
    }

    fn start(self: &Rc<Self>, vm: &mut Vm, order: Order) {
        let (context, token) = (order.context, order.token);
        if has_tasks() {
            let call = callout::spawn(self, order);
            self.calls.borrow_mut().insert(token, (context, call));
            return;
        }
        let host = vm.host();
        host.calls.remove(&token);
        if let Some(stream) = host.streams.get_mut(&context) {
            stream.events.push_back(order.refused());
        }
    }

    /// Tells the module of an answer: at once if what the answer is for flows, else when it is lent again.
    pub fn answered(self: &Rc<Self>, context: u32, event: Event) {
        if !self.calls.borrow().contains_key(&event.token()) {
            // Cancelled while it told of what came before.
            return;
        }
        if context == ROOT {
            self.enter_own(|vm| vm.deliver(context, event));
            return;
        }
        self.enter(|vm| {
            let Some(stream) = vm.host().streams.get_mut(&context) else {
                return Ok(());
            };
            if stream.flows() && stream.events.is_empty() {
                return vm.deliver(context, event);
            }
            if stream.events.len() >= MAX_WAITING {
                // A stream of messages that nobody takes.
                stream.close();
                return Ok(());
            }
            stream.events.push_back(event);
            stream.wake();
            Ok(())
        });
    }

    /// A call is over.
    pub fn call_ended(&self, token: u32) {
        if self.calls.borrow_mut().remove(&token).is_none() {
            // Cancelled while it told of its answer.
            return;
        }
        self.with_host(|host| host.calls.remove(&token));
        if self.ends.get() {
            self.inbox.wake();
        }
    }

    /// Whether all requests in here are over.
    fn is_drained(&self) -> bool {
        self.known(Host::is_drained)
    }

    /// Whether nothing is left to be done, after all requests.
    fn is_done(&self) -> bool {
        let calls = self.calls.borrow();
        let own_calls = calls.values().any(|(context, _)| *context == ROOT);
        !own_calls && self.known(|host| host.root_done == Some(true) && host.waiting().is_none())
    }

    /// Ends the calls of a context that is gone.
    pub fn cancel_calls(&self, context: u32) {
        let calls = self.calls.borrow();
        if calls.is_empty() {
            return;
        }
        let of = calls.iter().filter(|(_, (of, _))| *of == context);
        let tokens: Vec<u32> = of.map(|(token, _)| *token).collect();
        drop(calls);
        self.with_host(|host| host.cancelled.extend(tokens));
    }

    /// Time between ticks; asked after a change.
    fn tick(&self) -> Option<Duration> {
        self.with_host(|host| {
            host.tick_changed = false;
            host.tick
        })?
    }

    fn tick_changed(&self) -> bool {
        self.known(|host| host.tick_changed)
    }

    /// Whether the host knows that; not where the instance has failed.
    fn known(&self, ask: impl FnOnce(&Host) -> bool) -> bool {
        let vm = self.vm.try_borrow();
        vm.is_ok_and(|vm| vm.as_ref().is_some_and(|vm| ask(vm.store.data())))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Their tasks know the worker weakly: they would go on for nobody.
        self.calls.get_mut().drain().for_each(|(_, (_, call))| call.abort());
    }
}

/// Whether local tasks can be had here. Whatever runs filters on one thread is a `LocalRuntime`.
fn has_tasks() -> bool {
    Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

/// What wakes an instance's task.
enum News {
    /// The plugin is gone.
    Closed,
    /// And so are the requests.
    Drained,
    /// Nothing is left to be done, or can be.
    Over,
    Queues(Vec<u32>),
    TickChanged,
    Tick,
}

/// How far the end of an instance has come.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Works,
    /// Its plugin is gone; requests are in it.
    Drains,
    /// These are gone too, and its own context was asked whether it is done. When it has to be.
    Ends(Instant),
}

/// Ticks and queues of an instance, until it fails, its thread drops it, or the plugin goes; then its end.
async fn tend(worker: Weak<Worker>, inbox: Arc<Inbox>, plugin: u64) {
    let mut phase = Phase::Works;
    // From the plugin's end on.
    let mut kept: Option<Rc<Worker>> = None;
    let mut next_tick: Option<Instant> = None;
    // No tick before that, whatever the module asks for.
    let mut rests_until = Instant::now();
    loop {
        let news = poll_fn(|context| {
            inbox.listen(context.waker());
            let Some(worker) = worker.upgrade().filter(|worker| worker.runs()) else {
                return Poll::Ready(News::Over);
            };
            if phase == Phase::Works && inbox.is_closed() {
                return Poll::Ready(News::Closed);
            }
            let queues = inbox.take_queues();
            if !queues.is_empty() {
                return Poll::Ready(News::Queues(queues));
            }
            if worker.tick_changed() {
                return Poll::Ready(News::TickChanged);
            }
            match phase {
                Phase::Drains if worker.is_drained() => Poll::Ready(News::Drained),
                Phase::Ends(_) if worker.is_done() => Poll::Ready(News::Over),
                _ => Poll::Pending,
            }
        });
        let at_last = match phase {
            Phase::Ends(at) => Some(at),
            _ => None,
        };
        let news = tokio::select! {
            () = pin!(sleep_to(at_last)) => News::Over,
            news = pin!(news) => news,
            () = pin!(sleep_to(next_tick)) => News::Tick,
        };
        let Some(worker) = worker.upgrade() else { break };
        match news {
            News::Closed => {
                phase = Phase::Drains;
                worker.ends.set(true);
                kept = Some(worker);
                plugin::forget(plugin);
            }
            News::Drained => {
                phase = Phase::Ends(Instant::now() + LINGER);
                worker.enter(Vm::ask_root);
            }
            News::Over => break,
            News::Queues(queues) => {
                for queue in queues {
                    worker.enter_own(|vm| vm.on_queue_ready(queue));
                }
                // Should that have filled them again, it is others' turn first.
                drop(worker);
                tokio::task::yield_now().await;
            }
            News::TickChanged => next_tick = worker.tick().map(|period| rests_until.max(Instant::now() + period)),
            News::Tick => {
                let began = Instant::now();
                worker.enter_own(Vm::on_tick);
                let now = Instant::now();
                rests_until = now + (now - began) * TICK_SHARE;
                next_tick = worker.tick().map(|period| rests_until.max(now + period));
            }
        }
    }
    if let (Phase::Ends(_), Some(worker)) = (phase, &kept) {
        worker.enter(Vm::end);
    }
    if inbox.is_closed() {
        plugin::forget(plugin);
    }
    if let Some(worker) = worker.upgrade() {
        worker.tended.set(false);
    }
}

/// For ever, without a time.
async fn sleep_to(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
