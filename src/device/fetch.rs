//! The way back: a device's bytes, in order, through staging buffers while the ones before are used.

use std::{collections::VecDeque, ops::Range};

use super::{Device, Staging, pool::Pool, transfer};
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
    let capacity = usize::try_from(piece.next_multiple_of(transfer::STAGING_STEP_BYTES)).expect("a few MiB");
    let mut lane = Lane { device, pool, stream: device.stream()?, capacity, ring: VecDeque::new(), sink };
    let mut carry = || {
        let mut offset = 0;
        while offset < bytes {
            let length = usize::try_from((bytes - offset).min(piece)).expect("a few MiB");
            lane.queue(memory, offset, length)?;
            offset += length as u64;
        }
        while !lane.ring.is_empty() {
            let buffer = lane.take_oldest()?;
            pool.release(buffer);
        }
        Ok(())
    };
    let outcome = carry();
    if outcome.is_err() {
        device.drain(&lane.stream);
    }
    lane.ring.into_iter().for_each(|(buffer, _)| pool.release(buffer));
    outcome
}

/// A stream and its buffers.
struct Lane<'a, D: Device, F> {
    device: &'a D,
    pool: &'a Pool<D::Staging>,
    stream: D::Stream,
    /// Bytes of each buffer.
    capacity: usize,
    /// The buffers that are being filled, the longest first, and how many bytes will be in them.
    ring: VecDeque<(D::Staging, usize)>,
    sink: F,
}

impl<D: ReadBack, F: FnMut(&[u8]) -> Result<()>> Lane<'_, D, F> {
    fn queue(&mut self, memory: usize, offset: u64, length: usize) -> Result<()> {
        let mut buffer = self.next_buffer()?;
        let queued = self
            .device
            .copy_back(&self.stream, &mut buffer, 0..length, memory, offset)
            .and_then(|()| self.device.mark_busy(&self.stream, &mut buffer));
        if queued.is_err() {
            // Nothing may be writing to the buffer when the pool gives it to the next.
            self.device.drain(&self.stream);
        }
        self.ring.push_back((buffer, length));
        queued
    }

    fn next_buffer(&mut self) -> Result<D::Staging> {
        if self.ring.is_empty() {
            return self.pool.acquire(self.device, self.capacity);
        }
        if self.ring.len() < transfer::DEPTH
            && let Some(buffer) = self.pool.try_acquire(self.device, self.capacity)?
        {
            return Ok(buffer);
        }
        self.take_oldest()
    }

    /// The buffer that was queued first, after its bytes have arrived and been used.
    fn take_oldest(&mut self) -> Result<D::Staging> {
        let (mut buffer, length) = self.ring.pop_front().expect("the ring is not empty");
        match buffer.wait_idle().and_then(|()| (self.sink)(&buffer.bytes()[..length])) {
            Ok(()) => Ok(buffer),
            Err(error) => {
                self.ring.push_front((buffer, length));
                Err(error)
            }
        }
    }
}
