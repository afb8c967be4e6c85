//! A device whose copies are done as soon as they are queued.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use flashpack::{
    Result,
    device::{Device, Staging},
};

/// Memories in this process.
pub struct Immediate(Mutex<Vec<Vec<u8>>>);

impl Immediate {
    #[must_use]
    pub fn new(memories: Vec<Vec<u8>>) -> Self {
        Self(Mutex::new(memories))
    }

    #[must_use]
    pub fn into_memories(self) -> Vec<Vec<u8>> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Immediate {
    type Staging = Buffer;
    type Stream = ();
    type Entered = ();

    fn enter(&self) -> Result<()> {
        Ok(())
    }

    fn stage(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer(vec![0; bytes]))
    }

    fn stream(&self) -> Result<()> {
        Ok(())
    }

    fn copy(&self, (): &(), staging: &Buffer, range: Range<usize>, memory: usize, offset: u64) -> Result<()> {
        let offset = crate::to_usize(offset);
        let mut memories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memories[memory][offset..offset + range.len()].copy_from_slice(&staging.0[range]);
        Ok(())
    }

    fn mark_busy(&self, (): &(), _: &mut Buffer) -> Result<()> {
        Ok(())
    }

    fn drain(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn join(&self) -> Result<()> {
        Ok(())
    }
}

pub struct Buffer(Vec<u8>);

impl Staging for Buffer {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_idle(&mut self) -> Result<bool> {
        Ok(true)
    }

    fn wait_idle(&mut self) -> Result<()> {
        Ok(())
    }
}
