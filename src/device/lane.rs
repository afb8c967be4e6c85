//! A thread's way to a device and back: a stream, and the staging buffers whose copies are queued on it.

use std::{collections::VecDeque, ops::Deref};

use super::{
    Device, Staging,
    pool::{Lease, Pool},
};
use crate::error::Result;

/// Buffers of one lane: one is filled while the other is copied. A third only costs: the more memory reads go through,
/// the less of it a processor's cache still holds.
pub const DEPTH: usize = 2;

type StagingOf<R> = <<R as Deref>::Target as Device>::Staging;
type StreamOf<R> = <<R as Deref>::Target as Device>::Stream;

/// One thread's stream and buffers, on the device that `R` refers to. However the thread's work ends, by an error or a
/// panic too, nothing reads or writes a buffer any more when the pool gives it to the next load. Whoever calls it, or
/// drops it, has entered the device.
pub(super) struct Lane<'p, R: Deref<Target: Device>> {
    device: R,
    pool: &'p Pool<StagingOf<R>>,
    stream: StreamOf<R>,
    /// Bytes of each buffer.
    capacity: usize,
    /// The longest queued first; the last is the one in hand.
    ring: VecDeque<Lease<'p, StagingOf<R>>>,
    /// Whether the buffers know of all that was queued.
    marked: bool,
}

impl<'p, R: Deref<Target: Device>> Lane<'p, R> {
    pub(super) fn new(device: R, pool: &'p Pool<StagingOf<R>>, capacity: usize) -> Result<Self> {
        let (ring, stream) = (VecDeque::with_capacity(DEPTH), device.stream()?);
        Ok(Self { device, pool, stream, capacity, ring, marked: false })
    }

    /// Takes one more buffer in hand, from the pool: the first in any case, a further one if it is to be had at once.
    /// Returns whether there was one.
    pub(super) fn take_fresh(&mut self) -> Result<bool> {
        let fresh = match self.ring.len() {
            0 => Some(self.pool.acquire(&*self.device, self.capacity)?),
            1..DEPTH => self.pool.try_acquire(&*self.device, self.capacity)?,
            _ => None,
        };
        let taken = fresh.is_some();
        self.ring.extend(fresh);
        Ok(taken)
    }

    /// The buffer that was queued first, once its copies are done; none if the lane has no buffer.
    pub(super) fn finish_oldest(&mut self) -> Result<Option<&mut StagingOf<R>>> {
        let Some(oldest) = self.ring.front_mut() else {
            return Ok(None);
        };
        oldest.wait_idle()?;
        Ok(Some(oldest))
    }

    /// Takes the buffer in hand that was queued first, and is finished.
    pub(super) fn reuse_oldest(&mut self) {
        self.ring.rotate_left(1);
    }

    /// Gives the buffer that was queued first, and is finished, back to the pool.
    pub(super) fn release_oldest(&mut self) {
        self.ring.pop_front();
    }

    /// Device, stream and the buffer in hand.
    ///
    /// # Panics
    /// If no buffer was taken.
    pub(super) fn in_hand(&mut self) -> (&R::Target, &StreamOf<R>, &mut StagingOf<R>) {
        (&*self.device, &self.stream, self.ring.back_mut().expect("a buffer was taken"))
    }

    pub(super) fn stream(&self) -> &StreamOf<R> {
        &self.stream
    }

    /// Ends the lane's work; copies may still run, of which the buffers know.
    pub(super) fn finish(mut self) {
        self.marked = true;
    }
}

impl<R: Deref<Target: Device>> Drop for Lane<'_, R> {
    fn drop(&mut self) {
        if !self.marked && !self.ring.is_empty() && self.device.drain(&self.stream).is_err() {
            self.ring.drain(..).for_each(Lease::abandon);
        }
    }
}
