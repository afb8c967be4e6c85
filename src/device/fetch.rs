//! The way back: a device's bytes, in order, through staging buffers while the ones before are used.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::{Device, Staging, lane::Lane, pool::Pool, transfer};
use crate::error::Result;

/// Bytes of each buffer.
#[expect(clippy::cast_possible_truncation, reason = "a few MiB")]
const CAPACITY: usize = transfer::NEAR_TASK_BYTES as usize;

/// A device whose memory can be copied back.
pub trait ReadBack: Device {
    /// Makes `stream` wait for all that the caller's stream has queued by now. On the thread that made the device.
    ///
    /// # Errors
    /// As for [`Device::stream`].
    fn follow(&self, stream: &Self::Stream) -> Result<()>;

    /// Queues a copy of `range.len()` bytes at the address `source` of the device to `range` of `staging`.
    ///
    /// # Errors
    /// As for [`Device::stream`].
    fn copy_back(
        &self,
        stream: &Self::Stream,
        staging: &mut Self::Staging,
        range: Range<usize>,
        source: u64,
    ) -> Result<()>;
}

/// Copies memory of a device back, one piece after the other, in buffers that are used when they are full.
pub struct Fetcher<D: ReadBack + 'static> {
    device: Arc<D>,
    /// Gone only when this is dropped.
    lane: Option<Lane<'static, Arc<D>>>,
    /// Bytes of each piece in each buffer that the lane holds, the longest queued first.
    queued: VecDeque<Vec<usize>>,
}

impl<D: ReadBack> Fetcher<D> {
    /// For memory that is used on the caller's stream of `device`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: D, pool: &'static Pool<D::Staging>) -> Result<Self> {
        let device = Arc::new(device);
        let _entered = device.enter()?;
        let lane = Some(Lane::new(Arc::clone(&device), pool, CAPACITY)?);
        Ok(Self { device, lane, queued: VecDeque::new() })
    }

    /// Queues copies of the `bytes` at the address `source`, as they are when all that is queued on the caller's stream is
    /// done; that waits for the copies, so that the memory may be freed in its order. `sink` gets what comes before, as
    /// far as there is no room.
    ///
    /// # Errors
    /// Those of the device, and the first of `sink`. No copy may be queued any more then.
    ///
    /// # Safety
    /// The bytes may be read on the device.
    pub unsafe fn fetch(
        &mut self,
        mut source: u64,
        bytes: u64,
        sink: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let device = Arc::clone(&self.device);
        let _entered = device.enter()?;
        let end = source + bytes;
        device.follow(self.lane().stream())?;
        while source < end {
            let from = self.make_room(sink)?;
            let to = usize::try_from(end - source).map_or(CAPACITY, |left| CAPACITY.min(from + left));
            let (device, stream, buffer) = self.lane().in_hand();
            device.copy_back(stream, buffer, from..to, source)?;
            self.queued.back_mut().expect("there is room").push(to - from);
            source += (to - from) as u64;
        }
        device.join()
    }

    /// Hands `sink` all that has been queued.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub fn finish(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let device = Arc::clone(&self.device);
        let _entered = device.enter()?;
        self.close()?;
        while self.take_oldest(sink)? {
            self.lane().release_oldest();
        }
        Ok(())
    }

    /// Where the buffer in hand has room; if it has none, the next is taken in hand.
    fn make_room(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<usize> {
        let filled = |pieces: &Vec<usize>| pieces.iter().sum::<usize>();
        if let Some(filled) = self.queued.back().map(filled).filter(|filled| *filled < CAPACITY) {
            return Ok(filled);
        }
        self.close()?;
        if !self.lane().take_fresh()? {
            self.take_oldest(sink)?;
            self.lane().reuse_oldest();
        }
        self.queued.push_back(vec![]);
        Ok(0)
    }

    /// Marks the buffer in hand: nothing is queued on it any more.
    fn close(&mut self) -> Result<()> {
        if self.queued.is_empty() {
            return Ok(());
        }
        let (device, stream, buffer) = self.lane().in_hand();
        device.mark_busy(stream, buffer)
    }

    /// Uses the bytes of the buffer that was queued first, after they have arrived; returns whether there is one.
    fn take_oldest(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let Some(pieces) = self.queued.pop_front() else {
            return Ok(false);
        };
        let lane = self.lane.as_mut().expect("it goes with the fetcher");
        let mut bytes = &*lane.finish_oldest()?.expect("a buffer for its pieces").bytes();
        for length in pieces {
            let (piece, rest) = bytes.split_at(length);
            sink(piece)?;
            bytes = rest;
        }
        Ok(true)
    }

    fn lane(&mut self) -> &mut Lane<'static, Arc<D>> {
        self.lane.as_mut().expect("it goes with the fetcher")
    }
}

impl<D: ReadBack> Drop for Fetcher<D> {
    fn drop(&mut self) {
        let _entered = self.device.enter();
        self.lane = None;
    }
}
