//! The knobs of a plan, as the way to the bytes and the environment set them.

use std::sync::LazyLock;

use crate::{
    device::{pool, transfer},
    environment::Environment,
    io,
    plan::{Place, Readers, Settings, Verify},
    ram::Ram,
};

/// Bytes that a reader takes at a time on the way to the host: four huge pages, so that readers seldom meet on one, and
/// small against any file worth several.
const HOST_TASK_BYTES: u64 = 8 << 20;

/// Gaps up to this are fetched from a store along with their neighbours: that takes less time than the 20 to 100 ms of
/// another request.
const BRIDGED_BYTES: u64 = 512 << 10;
/// Bytes that a reader fetches at a time when parts of tensors are loaded from a store. What lies between the parts needs
/// memory of its own: with 128 readers 256 MiB.
pub(super) const REMOTE_PART_BYTES: u64 = 2 << 20;

/// Bytes of payload that a reader takes at a time where reads wait and bytes are decoded: it needs memory for as many that
/// are stored, with 128 readers 512 MiB.
const ENCODED_TASK_BYTES: u64 = 4 << 20;

/// The memory of this process, asked for once: the dozen files that tell it take longer than a small load.
static RAM_BYTES: LazyLock<u64> = LazyLock::new(|| Ram::now().total);

/// The threads that read: reads from the page cache keep a processor busy; those that wait for a disk or a network do not.
pub(super) fn readers(waits: bool, environment: &Environment) -> Readers {
    if !waits {
        return Readers::fixed(environment.read_threads.get());
    }
    // Each may need memory of its own.
    let room = *RAM_BYTES / 16 / io::read::MAX_READER_BYTES;
    waiting_readers(environment).at_most(usize::try_from(room).unwrap_or(usize::MAX).max(1))
}

/// The settings for objects of stores: a task is a request, with a connection of its own.
pub(super) fn far(settings: Settings, in_parts: bool, environment: &Environment) -> Settings {
    let Settings { place, readers, read_chunk_bytes, .. } = settings;
    let first = environment.remote_threads.get().min(readers.most);
    let most = if in_parts && !place.is_staged() { REMOTE_PART_BYTES } else { u64::MAX };
    Settings {
        readers: Readers { first, ..readers },
        read_chunk_bytes: read_chunk_bytes.min(most),
        bridged_bytes: BRIDGED_BYTES,
        ..settings
    }
}

/// The settings for payloads that are stored in frames of chunks: who wants parts of a chunk takes them together. A thread
/// that keeps a processor busy takes a chunk at a time, which then is in its cache when its digest is computed.
pub(super) fn encoded(settings: Settings, waits: bool, chunk_bytes: u64) -> Settings {
    let Settings { place, read_chunk_bytes, bridged_bytes, .. } = settings;
    let most = match (place.is_staged(), waits) {
        (true, _) => read_chunk_bytes,
        (false, true) => ENCODED_TASK_BYTES,
        (false, false) => chunk_bytes,
    };
    Settings {
        read_chunk_bytes: read_chunk_bytes.min(most).max(chunk_bytes),
        bridged_bytes: bridged_bytes.max(chunk_bytes),
        ..settings
    }
}

pub(super) fn waiting_readers(environment: &Environment) -> Readers {
    let Environment { waiting_threads, max_waiting_threads, .. } = environment;
    Readers { first: waiting_threads.get(), most: max_waiting_threads.get() }
}

/// The settings for files whose reads go past the page cache if `direct`, and keep no processor busy if they wait.
pub(super) fn settings(
    place: Place,
    verify: Option<bool>,
    direct: bool,
    waits: bool,
    environment: Environment,
) -> Settings {
    let verify = match (verify, place) {
        (Some(true), _) => Verify::Everything,
        (Some(false), _) | (None, Place::Mapping) => Verify::Never,
        (None, _) => Verify::Whole,
    };
    let suitable = match (place.is_staged(), waits) {
        (false, _) => HOST_TASK_BYTES,
        (true, false) => transfer::NEAR_TASK_BYTES,
        (true, true) => transfer::FAR_TASK_BYTES,
    };
    let (readers, bytes) = (readers(waits, &environment), environment.read_chunk_bytes.unwrap_or(suitable));
    let (readers, read_chunk_bytes) = if place.is_staged() {
        transfer::within(pool::limit(environment.pinned_bytes), readers, bytes)
    } else {
        (readers, bytes)
    };
    Settings { place, verify, readers, read_chunk_bytes, direct, bridged_bytes: 0 }
}
