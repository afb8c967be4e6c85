//! Processors that the calling thread may run on.

use std::{collections::BTreeSet, io};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// The one that it runs on.
#[expect(clippy::unnecessary_wraps, reason = "elsewhere nobody tells")]
pub(crate) fn current_processor() -> Option<usize> {
    Some(sched_getcpu())
}

/// All of them, by the kernel's numbers.
pub(crate) fn allowed_processors() -> Option<BTreeSet<usize>> {
    let allowed = sched_getaffinity(None).ok()?;
    Some((0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)).collect())
}

/// Keeps the thread, and those that it starts from now on, on these.
pub(crate) fn allow_processors(numbers: &BTreeSet<usize>) -> io::Result<()> {
    let mut allowed = CpuSet::new();
    numbers.iter().filter(|number| **number < CpuSet::MAX_CPU).for_each(|number| allowed.set(*number));
    Ok(sched_setaffinity(None, &allowed)?)
}
