//! Processors that the calling thread may run on.

use std::{collections::BTreeSet, io, num::NonZeroUsize, sync::LazyLock, thread};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// How many threads can run at once: as the calling thread may use processors now, and as the quota of the container was at
/// first. Every load asks, and the files that tell the quota take longer than a small load.
pub(crate) fn parallelism() -> NonZeroUsize {
    static QUOTA: LazyLock<NonZeroUsize> = LazyLock::new(|| {
        let now = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        // The smaller of the two.
        if allowed() == Some(now) { NonZeroUsize::MAX } else { now }
    });
    allowed().map_or_else(|| *QUOTA, |allowed| allowed.min(*QUOTA))
}

fn allowed() -> Option<NonZeroUsize> {
    NonZeroUsize::new(sched_getaffinity(None).ok()?.count() as usize)
}

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
