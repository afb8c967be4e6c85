//! Open models, by the numbers that callers in other languages hold in their place.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use crate::{
    error::{Error, Result},
    model::Model,
    sync::Unpoisoned as _,
};

static OPEN: Mutex<BTreeMap<i64, Arc<Model>>> = Mutex::new(BTreeMap::new());
static LAST: AtomicI64 = AtomicI64::new(0);

/// Keeps `model` open, and gives it a number that no other has had.
pub(crate) fn keep(model: Model) -> i64 {
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    OPEN.lock().unpoisoned().insert(number, Arc::new(model));
    number
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
