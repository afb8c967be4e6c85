//! Memory that loads fill: the host's, directly; a device's, through staging buffers and copies in the background.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod fetch;
mod lane;
pub mod pool;
pub mod transfer;

use std::ops::Range;

use crate::{error::Result, numa::Node};

/// Memory elsewhere, filled by copies that are queued and run while the host goes on.
pub trait Device: Sync + Sized {
    /// Host memory that copies start from.
    type Staging: Staging;
    /// Where copies are queued; they run in order. Several lanes may share one.
    type Stream;
    /// What readies a thread for the calls below.
    type Entered;

    /// The NUMA node that it is attached to; none where all are as near.
    fn node(&self) -> Option<Node> {
        None
    }

    /// The NUMA node on which the calling thread's new staging memory comes to lie; none where it may be any.
    fn staging_node(&self) -> Option<Node> {
        None
    }

    /// Readies this thread for the calls below, until it drops what it gets.
    ///
    /// # Errors
    /// As for [`Device::stream`].
    fn enter(&self) -> Result<Self::Entered>;

    /// New staging memory.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    fn stage(&self, bytes: usize) -> Result<Self::Staging>;

    /// A stream for one lane, whose work from here on starts after all that was queued on the caller's stream before the
    /// load: the allocation of the memory to fill.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) for what the driver refuses; so too below.
    fn stream(&self) -> Result<Self::Stream>;

    /// Queues a copy of `range` of `staging` to `offset` in the memory of number `memory`.
    ///
    /// # Errors
    /// As for [`Device::stream`].
    fn copy(
        &self,
        stream: &Self::Stream,
        staging: &Self::Staging,
        range: Range<usize>,
        memory: usize,
        offset: u64,
    ) -> Result<()>;

    /// Marks `staging` busy until all that `stream` has queued so far is done.
    ///
    /// # Errors
    /// As for [`Device::stream`].
    fn mark_busy(&self, stream: &Self::Stream, staging: &mut Self::Staging) -> Result<()>;

    /// Waits until nothing that was queued on `stream` runs any more, whatever became of it.
    ///
    /// # Errors
    /// As for [`Device::stream`], if that cannot be known.
    fn drain(&self, stream: &Self::Stream) -> Result<()>;

    /// Makes the caller's stream wait for all that has been queued, or else waits itself. On the thread that made the
    /// device, where the caller's stream is what it was then; it needs no [`Device::enter`].
    ///
    /// # Errors
    /// As for [`Device::stream`].
    fn join(&self) -> Result<()>;
}

/// Host memory that copies start from. It must not be dropped before they are done, or else stay where it is.
pub trait Staging: Send {
    /// The bytes, starting at a multiple of [`DIRECT_ALIGN_BYTES`](crate::plan::DIRECT_ALIGN_BYTES). Call only while idle.
    fn bytes(&mut self) -> &mut [u8];

    /// Length of [`Staging::bytes`].
    fn len(&self) -> usize;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no queued copy reads the bytes any more.
    ///
    /// # Errors
    /// What became of the copies, if they failed.
    fn is_idle(&mut self) -> Result<bool>;

    /// Waits for that. After an error the bytes are as busy as before.
    ///
    /// # Errors
    /// What became of the copies, if they failed.
    fn wait_idle(&mut self) -> Result<()>;

    /// The NUMA node that the bytes lie on, if that is known.
    fn node(&self) -> Option<Node> {
        None
    }

    /// Whether later loads are better off with these bytes than with new ones.
    fn is_reusable(&self) -> bool {
        true
    }
}
