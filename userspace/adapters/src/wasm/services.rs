//! What filters share beyond an instance: data and queues by [`PluginConfig::shares`](super::PluginConfig::shares), metrics by the
//! adapter's name, so that a new generation finds what the old one left.
//!
//! Their locks are held for a look-up or a copy, by the filters that use them only.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{abi::Status, inbox::Inbox, metric::Metrics};

/// Keys and values of shared data, in bytes together.
pub const MAX_SHARED_BYTES: usize = 16 << 20;

/// Messages in a queue.
pub const MAX_QUEUE_LENGTH: usize = 1024;

/// Bytes of the messages in a queue.
pub const MAX_QUEUE_BYTES: usize = 4 << 20;

/// Bytes of the messages in all queues that are shared with each other.
pub const MAX_QUEUED_BYTES: usize = 16 << 20;

/// Queues that are shared with each other.
pub const MAX_QUEUES: usize = 64;

/// Of all adapters of a process.
#[derive(Debug, Default)]
pub struct Services {
    shared: Named<Shared>,
    metrics: Named<Metrics>,
}

/// Data and queues: of one adapter, or of several that say that they share them.
#[derive(Debug, Default)]
pub(super) struct Shared {
    data: Mutex<Data>,
    queues: Mutex<Queues>,
}

/// What lives by its name as long as somebody uses it.
#[derive(Debug)]
struct Named<T>(Mutex<HashMap<Arc<str>, Weak<T>>>);

#[derive(Debug, Default)]
struct Data {
    entries: HashMap<Box<[u8]>, Entry>,
    bytes: usize,
    /// Of the last change: no two have the same, not even of a key that was set anew.
    version: u32,
}

#[derive(Debug)]
struct Entry {
    value: Arc<[u8]>,
    version: u32,
}

#[derive(Debug, Default)]
struct Queues {
    all: Vec<Queue>,
    /// Of all messages.
    bytes: usize,
}

#[derive(Debug)]
struct Queue {
    /// Vm id of the plugin that registered it, and its name there.
    vm_id: Box<[u8]>,
    name: Box<[u8]>,
    messages: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Instances that asked to be told; the first that lives and runs is.
    registered: Vec<Weak<Inbox>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Services ===

impl Services {
    /// What is shared under `name`; made if no plugin that shares it lives.
    pub(super) fn shared(&self, name: &Arc<str>) -> Arc<Shared> {
        self.shared.of(name)
    }

    /// The metrics of the adapter `name`; made if no plugin of it lives.
    pub(super) fn metrics(&self, name: &Arc<str>) -> Arc<Metrics> {
        self.metrics.of(name)
    }
}

// === impl Shared ===

impl Shared {
    /// Value and version of `key`.
    pub(super) fn get(&self, key: &[u8]) -> Option<(Arc<[u8]>, u32)> {
        let data = lock(&self.data);
        data.entries.get(key).map(|entry| (entry.value.clone(), entry.version))
    }

    /// Sets `key`; where `expected` is not 0, only if that is the version it has.
    pub(super) fn set(&self, key: &[u8], value: &[u8], expected: u32) -> Result<(), Status> {
        let mut data = lock(&self.data);
        let old = data.entries.get(key);
        let found = old.map_or(0, |entry| entry.version);
        if expected != 0 && expected != found {
            return Err(Status::CasMismatch);
        }
        let freed = old.map_or(0, |entry| key.len() + entry.value.len());
        let bytes = data.bytes - freed + key.len() + value.len();
        if bytes > MAX_SHARED_BYTES {
            return Err(Status::InternalFailure);
        }
        data.bytes = bytes;
        // 0 means `none` in a later call.
        data.version = data.version.checked_add(1).unwrap_or(1);
        let version = data.version;
        let entry = Entry {
            value: value.into(),
            version,
        };
        match data.entries.get_mut(key) {
            Some(old) => *old = entry,
            None => drop(data.entries.insert(key.into(), entry)),
        }
        Ok(())
    }

    /// The queue `name` of `vm_id`, made if there is none; `inbox` is told when something comes.
    pub(super) fn register_queue(&self, vm_id: &[u8], name: &[u8], inbox: &Arc<Inbox>) -> Result<u32, Status> {
        let mut queues = lock(&self.queues);
        let at = match queues.position(vm_id, name) {
            Some(at) => at,
            None if queues.all.len() >= MAX_QUEUES => return Err(Status::InternalFailure),
            None => {
                queues.all.push(Queue {
                    vm_id: vm_id.into(),
                    name: name.into(),
                    messages: VecDeque::new(),
                    bytes: 0,
                    registered: Vec::new(),
                });
                queues.all.len() - 1
            }
        };
        let registered = &mut queues.all[at].registered;
        registered.retain(|other| other.strong_count() > 0);
        let inbox = Arc::downgrade(inbox);
        if !registered.iter().any(|other| other.ptr_eq(&inbox)) {
            registered.push(inbox);
        }
        Ok(token(at))
    }

    pub(super) fn resolve_queue(&self, vm_id: &[u8], name: &[u8]) -> Option<u32> {
        lock(&self.queues).position(vm_id, name).map(token)
    }

    pub(super) fn enqueue(&self, queue: u32, message: &[u8]) -> Result<(), Status> {
        let mut queues = lock(&self.queues);
        let all = queues.bytes + message.len();
        let found = queues.get(queue)?;
        let bytes = found.bytes + message.len();
        if found.messages.len() >= MAX_QUEUE_LENGTH || bytes > MAX_QUEUE_BYTES || all > MAX_QUEUED_BYTES {
            return Err(Status::InternalFailure);
        }
        found.bytes = bytes;
        found.messages.push_back(message.into());
        let mut living = found.registered.iter().filter_map(Weak::upgrade);
        if let Some(inbox) = living.find(|inbox| inbox.is_read()) {
            inbox.queue_ready(queue);
        }
        queues.bytes = all;
        Ok(())
    }

    pub(super) fn dequeue(&self, queue: u32) -> Result<Box<[u8]>, Status> {
        let mut queues = lock(&self.queues);
        let found = queues.get(queue)?;
        let message = found.messages.pop_front().ok_or(Status::Empty)?;
        found.bytes -= message.len();
        queues.bytes -= message.len();
        Ok(message)
    }
}

// === impl Named ===

impl<T: Default> Named<T> {
    fn of(&self, name: &Arc<str>) -> Arc<T> {
        let mut all = lock(&self.0);
        if let Some(found) = all.get(name).and_then(Weak::upgrade) {
            return found;
        }
        all.retain(|_, other| other.strong_count() > 0);
        let made = Arc::new(T::default());
        all.insert(name.clone(), Arc::downgrade(&made));
        made
    }
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

// === impl Queues ===

impl Queues {
    fn position(&self, vm_id: &[u8], name: &[u8]) -> Option<usize> {
        self.all
            .iter()
            .position(|queue| *queue.vm_id == *vm_id && *queue.name == *name)
    }

    fn get(&mut self, queue: u32) -> Result<&mut Queue, Status> {
        let at = (queue as usize).checked_sub(1);
        at.and_then(|at| self.all.get_mut(at)).ok_or(Status::NotFound)
    }
}

/// Number of the queue at this place; 0 is none.
fn token(at: usize) -> u32 {
    u32::try_from(at + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_between_is_a_mismatch() {
        let shared = Shared::default();
        assert!(shared.get(b"k").is_none());
        shared.set(b"k", b"1", 0).expect("set");
        let (value, version) = shared.get(b"k").expect("there");
        assert_eq!(&value[..], b"1");
        shared.set(b"k", b"2", version).expect("the version it has");
        assert_eq!(shared.set(b"k", b"3", version), Err(Status::CasMismatch));
        assert_eq!(shared.set(b"new", b"3", version), Err(Status::CasMismatch));
        shared.set(b"k", b"4", 0).expect("whatever it has");
        assert_eq!(&shared.get(b"k").expect("there").0[..], b"4");
    }

    #[test]
    fn shared_data_is_bounded_and_what_is_replaced_counts_once() {
        let shared = Shared::default();
        let half = vec![0; MAX_SHARED_BYTES / 2];
        for _ in 0..4 {
            shared.set(b"a", &half, 0).expect("in place of the last");
        }
        assert_eq!(shared.set(b"b", &half, 0), Err(Status::InternalFailure));
        shared.set(b"a", b"", 0).expect("shrinks");
        shared.set(b"b", &half, 0).expect("now it fits");
    }

    #[test]
    fn queues_keep_order_and_are_bounded() {
        let shared = Shared::default();
        let inbox = Arc::new(Inbox::default());
        let queue = shared.register_queue(b"vm", b"q", &inbox).expect("a queue");
        assert_eq!(shared.register_queue(b"vm", b"q", &inbox), Ok(queue));
        assert_eq!(shared.resolve_queue(b"vm", b"q"), Some(queue));
        assert_eq!(shared.resolve_queue(b"other", b"q"), None);
        assert_eq!(shared.dequeue(queue), Err(Status::Empty));
        assert_eq!(shared.dequeue(queue + 1), Err(Status::NotFound));
        for number in 0..MAX_QUEUE_LENGTH {
            shared.enqueue(queue, number.to_string().as_bytes()).expect("room");
        }
        assert_eq!(shared.enqueue(queue, b"x"), Err(Status::InternalFailure));
        assert_eq!(shared.dequeue(queue).as_deref(), Ok(&b"0"[..]));
        assert_eq!(shared.dequeue(queue).as_deref(), Ok(&b"1"[..]));
        assert_eq!(inbox.take_queues(), [queue]);
    }

    #[test]
    fn who_registers_often_is_kept_once() {
        let shared = Shared::default();
        let inboxes = [(); 2].map(|()| Arc::new(Inbox::default()));
        for _ in 0..1000 {
            for inbox in &inboxes {
                shared.register_queue(b"vm", b"q", inbox).expect("a queue");
            }
        }
        assert_eq!(lock(&shared.queues).all[0].registered.len(), 2);
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let shared = Shared::default();
        let inbox = Arc::new(Inbox::default());
        let message = vec![0; MAX_QUEUE_BYTES];
        let queues: Vec<u32> = (0..MAX_QUEUES)
            .map(|number| shared.register_queue(b"", number.to_string().as_bytes(), &inbox))
            .collect::<Result<_, _>>()
            .expect("queues");
        let taken = queues
            .iter()
            .take_while(|queue| shared.enqueue(**queue, &message).is_ok());
        assert_eq!(taken.count() * MAX_QUEUE_BYTES, MAX_QUEUED_BYTES);
        assert_eq!(shared.enqueue(queues[9], b"x"), Err(Status::InternalFailure));
        shared.dequeue(queues[0]).expect("a message");
        shared.enqueue(queues[9], &message).expect("room again");
    }

    #[test]
    fn an_instance_that_failed_or_whose_plugin_is_gone_is_not_told() {
        let shared = Shared::default();
        let inboxes = [(); 3].map(|()| Arc::new(Inbox::default()));
        let queues = inboxes.each_ref().map(|inbox| shared.register_queue(b"", b"q", inbox));
        let queue = queues[0].expect("a queue");
        inboxes[0].fail();
        inboxes[1].close();
        shared.enqueue(queue, b"m").expect("room");
        let told = inboxes.map(|inbox| inbox.take_queues().len());
        assert_eq!(told, [0, 0, 1]);
    }
}
