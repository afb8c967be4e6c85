//! Open models, by the numbers that callers in other languages hold in their place.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    iter, process,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    error::{Error, Result},
    model::Model,
    sync::Unpoisoned as _,
};

static OPEN: Mutex<BTreeMap<i64, Arc<Model>>> = Mutex::new(BTreeMap::new());

/// Keeps `model` open, and gives it a number that no other has, neither here nor in another process: who was sent one from
/// there gets an error, and not another model.
pub(crate) fn keep(model: Model) -> i64 {
    let mut open = OPEN.lock().unpoisoned();
    let number = iter::repeat_with(random).find(|number| !open.contains_key(number)).expect("without end");
    open.insert(number, Arc::new(model));
    number
}

/// A child process has its parent's state, but an id of its own.
fn random() -> i64 {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    let bits = STATE.hash_one((process::id(), GIVEN.fetch_add(1, Ordering::Relaxed)));
    (bits >> 1).cast_signed()
}

/// Lets go of a model, which closes it once no load uses it any more.
pub(crate) fn close(number: i64) {
    let model = OPEN.lock().unpoisoned().remove(&number);
    drop(model); // not under the lock
}

/// The model of that number. Anybody can make up a number, so none is trusted.
///
/// # Errors
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument): no open model has it.
pub(crate) fn find(number: i64) -> Result<Arc<Model>> {
    let open = OPEN.lock().unpoisoned();
    let unknown = || Error::argument("this is no open model: it was closed, or comes from another process");
    open.get(&number).cloned().ok_or_else(unknown)
}
