//! What a connection remembers of its last request, for most go where the last one went.
//!
//! None of it outlives what it was found under: a route and an endpoint are others once something else is in force, and they are
//! remembered weakly. So are idle connections, which go with the namespace that they were opened in.

use std::{
    cell::{RefCell, RefMut},
    ptr,
    rc::{Rc, Weak},
    sync::Arc,
};

use weft_policy::ObjectRef;

use crate::{
    pick::{Picked, Route},
    upstream::{Home, HomeRef},
};

/// One connection's.
#[derive(Default)]
pub(crate) struct Last {
    /// Where what was dialled leads.
    pub(crate) route: RefCell<Weak<Route>>,
    there: RefCell<There>,
}

/// Of the endpoint that it went to.
#[derive(Default)]
struct There {
    picked: Weak<Picked>,
    home: HomeRef,
    judged: Judged,
}

/// What rules say of requests there.
#[derive(Default)]
enum Judged {
    /// It is not known, or depends on what is asked.
    #[default]
    Each,
    /// All may pass, by this object.
    AllAllowed(Option<Arc<ObjectRef>>),
}

// === impl Last ===

impl Last {
    /// Where idle connections to `picked` are; `find`: if that is not remembered.
    pub(crate) fn home(&self, picked: &Rc<Picked>, find: impl FnOnce() -> Home) -> Home {
        let mut there = self.there(picked);
        if let Some(home) = there.home.upgrade() {
            return home;
        }
        let home = find();
        there.home = home.downgrade();
        home
    }

    /// By what all requests to `picked` may pass. `None`: they are to be judged.
    pub(crate) fn allowed(&self, picked: &Rc<Picked>) -> Option<Option<Arc<ObjectRef>>> {
        match &self.there(picked).judged {
            Judged::Each => None,
            Judged::AllAllowed(rule) => Some(rule.clone()),
        }
    }

    /// All requests to `picked` may pass, by `rule`.
    pub(crate) fn all_allowed(&self, picked: &Rc<Picked>, rule: Option<Arc<ObjectRef>>) {
        self.there(picked).judged = Judged::AllAllowed(rule);
    }

    /// What is remembered of `picked`; nothing, if the last request went elsewhere.
    fn there(&self, picked: &Rc<Picked>) -> RefMut<'_, There> {
        let mut there = self.there.borrow_mut();
        // It is the same for as long as it is remembered: another one lies elsewhere.
        if !ptr::eq(there.picked.as_ptr(), Rc::as_ptr(picked)) {
            *there = There {
                picked: Rc::downgrade(picked),
                ..There::default()
            };
        }
        there
    }
}
