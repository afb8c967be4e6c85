//! The way back: a device's bytes, in order, through staging buffers while the ones before are used.

use std::ops::Range;

use super::{Device, Staging, lane::Lane, pool::Pool, transfer};
use crate::error::Result;

/// A device whose memory can be copied back.
pub trait ReadBack: Device {
    /// Queues a copy of `range.len()` bytes from `offset` in the memory of number `memory` to `range` of `staging`.
    ///
    /// # Errors
    /// As for [`Device::stream`].
    fn copy_back(
        &self,
        stream: &Self::Stream,
        staging: &mut Self::Staging,
        range: Range<usize>,
        memory: usize,
        offset: u64,
    ) -> Result<()>;
}

/// Hands the first `bytes` of the memory of number `memory` to `sink`, in pieces, as they are when all that was queued
/// on the caller's stream is done.
///
/// # Errors
/// Those of the device, and the first of `sink`. No copy runs any more then.
pub fn fetch<D: ReadBack>(
    device: &D,
    pool: &Pool<D::Staging>,
    memory: usize,
    bytes: u64,
    sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let piece = bytes.clamp(1, transfer::MAX_TASK_BYTES);
    let capacity = to_usize(piece.next_multiple_of(transfer::STAGING_STEP_BYTES));
    let mut lane = Lane::new(device, pool, capacity)?;
    let mut sink = InOrder { sink, piece, bytes, done: 0 };
    let mut queued = 0;
    while queued < bytes {
        let length = piece.min(bytes - queued);
        if !lane.take_fresh()? {
            sink.take_oldest(&mut lane)?;
            lane.reuse_oldest();
        }
        let (device, stream, buffer) = lane.in_hand();
        device.copy_back(stream, buffer, 0..to_usize(length), memory, queued)?;
        device.mark_busy(stream, buffer)?;
        queued += length;
    }
    while sink.take_oldest(&mut lane)? {
        lane.release_oldest();
    }
    Ok(())
}

/// What takes the pieces, in the order in which they were queued.
struct InOrder<F> {
    sink: F,
    /// Bytes of each piece but the last.
    piece: u64,
    /// Bytes of all pieces, and of those that were taken.
    bytes: u64,
    done: u64,
}

impl<F: FnMut(&[u8]) -> Result<()>> InOrder<F> {
    /// Uses the bytes of the buffer that was queued first, after they have arrived; returns whether there is one.
    fn take_oldest<D: Device>(&mut self, lane: &mut Lane<'_, D>) -> Result<bool> {
        let Some(buffer) = lane.finish_oldest()? else {
            return Ok(false);
        };
        let length = self.piece.min(self.bytes - self.done);
        (self.sink)(&buffer.bytes()[..to_usize(length)])?;
        self.done += length;
        Ok(true)
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a few MiB")
}
