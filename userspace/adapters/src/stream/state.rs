//! What filters tell each other about a stream.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::StreamInfo;

/// Values by name, which the filters of a stream set for each other: Envoy's filter state. Where none sets any, nothing is made.
///
/// They all run on the thread of the stream's worker: nobody waits for the lock.
#[derive(Debug, Default)]
pub struct FilterState {
    set: OnceLock<Mutex<Vec<Arc<Entry>>>>,
    /// Of a filter that must not change the stream: what the others set, it sees too.
    beneath: Option<Arc<StreamInfo>>,
}

/// What was set at some time.
#[derive(Debug)]
pub(crate) struct Saved(Vec<Arc<Entry>>);

/// What a value takes up, given back when it is dropped with it.
pub(crate) type Room = Box<dyn fmt::Debug + Send + Sync>;

#[derive(Debug)]
struct Entry {
    name: Box<[u8]>,
    value: Box<[u8]>,
    _room: Room,
}

// === impl FilterState ===

impl FilterState {
    /// Of a filter beside those of `stream`: it sees what they set, and they nothing of what it sets.
    pub(super) fn over(stream: &Arc<StreamInfo>) -> Self {
        Self {
            set: OnceLock::new(),
            beneath: Some(Arc::clone(stream)),
        }
    }

    /// All that is seen here now. `room` gives what a value of so many bytes takes up; what there is none for is left out.
    pub(super) fn copy(&self, room: impl Fn(usize) -> Option<Room>) -> Self {
        let mut seen = self.save().0;
        if let Some(stream) = &self.beneath {
            let beneath = stream.state.save().0;
            seen.extend(beneath.into_iter().filter(|entry| !self.has(&entry.name)));
        }
        let copy = Self::default();
        for entry in seen {
            if let Some(room) = room(entry.name.len() + entry.value.len()) {
                copy.set(&entry.name, &entry.value, room);
            }
        }
        copy
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<Vec<u8>> {
        let own = self.lock().and_then(|set| Some(find(&set, name)?.value.to_vec()));
        own.or_else(|| self.beneath.as_ref()?.state.get(name))
    }

    /// Whether [`FilterState::set`] would replace a value.
    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.lock().is_some_and(|set| find(&set, name).is_some())
    }

    /// `room` is what whoever sets it has for it.
    pub(crate) fn set(&self, name: &[u8], value: &[u8], room: Room) {
        let entry = Arc::new(Entry {
            name: name.into(),
            value: value.into(),
            _room: room,
        });
        let mut set = lock(self.set.get_or_init(Mutex::default));
        match set.iter_mut().find(|old| *old.name == *name) {
            Some(old) => *old = entry,
            None => set.push(entry),
        }
    }

    pub(crate) fn save(&self) -> Saved {
        Saved(self.lock().map_or_else(Vec::new, |set| set.to_vec()))
    }

    /// What was set since then has never been.
    pub(crate) fn restore(&self, saved: &Saved) {
        if let Some(mut set) = self.lock() {
            set.clone_from(&saved.0);
        }
    }

    /// `None`: nobody has set anything.
    fn lock(&self) -> Option<MutexGuard<'_, Vec<Arc<Entry>>>> {
        self.set.get().map(lock)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find<'a>(set: &'a [Arc<Entry>], name: &[u8]) -> Option<&'a Arc<Entry>> {
    set.iter().find(|entry| *entry.name == *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(state: &FilterState, name: &str, value: &str) {
        state.set(name.as_bytes(), value.as_bytes(), Box::new(()));
    }

    fn get(state: &FilterState, name: &str) -> Option<String> {
        let value = state.get(name.as_bytes())?;
        Some(String::from_utf8(value).unwrap())
    }

    #[test]
    fn the_last_value_counts_and_what_it_replaces_gives_back_its_room() {
        let state = FilterState::default();
        assert_eq!((get(&state, "user"), state.has(b"user")), (None, false));
        let room = Arc::new(());
        state.set(b"user", b"alice", Box::new(Arc::clone(&room)));
        set(&state, "path", "/");
        assert_eq!(
            (get(&state, "user").as_deref(), state.has(b"user")),
            (Some("alice"), true)
        );
        set(&state, "user", "bob");
        assert_eq!(get(&state, "user").as_deref(), Some("bob"));
        assert_eq!(get(&state, "path").as_deref(), Some("/"));
        assert_eq!(Arc::strong_count(&room), 1);
    }

    #[test]
    fn what_was_set_since_is_taken_back() {
        let state = FilterState::default();
        let nothing = state.save();
        set(&state, "user", "alice");
        let saved = state.save();
        set(&state, "user", "bob");
        set(&state, "path", "/");
        state.restore(&saved);
        assert_eq!(
            (get(&state, "user").as_deref(), get(&state, "path")),
            (Some("alice"), None)
        );
        state.restore(&nothing);
        assert_eq!(get(&state, "user"), None);
    }
}
