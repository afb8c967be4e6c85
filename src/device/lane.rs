//! A thread's way to a device and back: a stream, and the staging buffers whose copies are queued on it.

use std::collections::VecDeque;

use super::{
    Device, Staging,
    pool::{Lease, Pool},
};
use crate::error::Result;

/// Buffers of one lane: one is filled while the other is copied. A third only costs: the more memory reads go through,
/// the less of it a processor's cache still holds.
pub const DEPTH: usize = 2;

/// One thread's stream and buffers. However the thread's work ends, by an error or a panic too, nothing reads or writes
/// a buffer any more when the pool gives it to the next load.
pub(super) struct Lane<'a, D: Device> {
    device: &'a D,
    pool: &'a Pool<D::Staging>,
    stream: D::Stream,
    /// Bytes of each buffer.
    capacity: usize,
    /// The longest queued first; the last is the one in hand.
    ring: VecDeque<Lease<'a, D::Staging>>,
    joined: bool,
}

impl<'a, D: Device> Lane<'a, D> {
    pub(super) fn new(device: &'a D, pool: &'a Pool<D::Staging>, capacity: usize) -> Result<Self> {
        let ring = VecDeque::with_capacity(DEPTH);
        Ok(Self { device, pool, stream: device.stream()?, capacity, ring, joined: false })
    }

    /// Takes one more buffer in hand, from the pool: the first in any case, a further one if it is to be had at once.
    /// Returns whether there was one.
    pub(super) fn take_fresh(&mut self) -> Result<bool> {
        let fresh = match self.ring.len() {
            0 => Some(self.pool.acquire(self.device, self.capacity)?),
            1..DEPTH => self.pool.try_acquire(self.device, self.capacity)?,
            _ => None,
        };
        let taken = fresh.is_some();
        self.ring.extend(fresh);
        Ok(taken)
    }

    /// The buffer that was queued first, once its copies are done; none if the lane has no buffer.
    pub(super) fn finish_oldest(&mut self) -> Result<Option<&mut D::Staging>> {
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
    pub(super) fn in_hand(&mut self) -> (&'a D, &D::Stream, &mut D::Staging) {
        (self.device, &self.stream, self.ring.back_mut().expect("a buffer was taken"))
    }

    /// Makes the caller's stream wait for all copies; the host need not.
    pub(super) fn join(&mut self) -> Result<()> {
        self.device.join(&self.stream)?;
        self.joined = true;
        Ok(())
    }
}

impl<D: Device> Drop for Lane<'_, D> {
    fn drop(&mut self) {
        if !self.joined && !self.ring.is_empty() && self.device.drain(&self.stream).is_err() {
            self.ring.drain(..).for_each(Lease::abandon);
        }
    }
}
