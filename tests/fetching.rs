//! The way back from a device, on one that notes what it is asked.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use flashpack::{
    Error, ErrorKind, Result,
    device::{
        Device, Staging,
        fetch::{Fetcher, ReadBack},
        pool::Pool,
    },
};

/// Bytes of a staging buffer.
const BUFFER: usize = 2 << 20;

type Notes = Arc<Mutex<Vec<&'static str>>>;

/// A device with a memory, whose addresses begin at 0.
struct Noting {
    memory: Vec<u8>,
    notes: Notes,
}

struct Buffer {
    bytes: Vec<u8>,
    is_busy: bool,
    notes: Notes,
}

impl Noting {
    fn note(&self, what: &'static str) {
        self.notes.lock().unwrap().push(what);
    }
}

impl Device for Noting {
    type Staging = Buffer;
    type Stream = ();
    type Entered = ();

    fn enter(&self) -> Result<()> {
        Ok(())
    }

    fn stage(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer { bytes: vec![0; bytes], is_busy: false, notes: self.notes.clone() })
    }

    fn stream(&self) -> Result<()> {
        Ok(())
    }

    fn copy(&self, (): &(), _: &Buffer, _: Range<usize>, _: usize, _: u64) -> Result<()> {
        unreachable!("nothing goes to the device")
    }

    fn mark_busy(&self, (): &(), staging: &mut Buffer) -> Result<()> {
        staging.is_busy = true;
        Ok(())
    }

    fn drain(&self, (): &()) -> Result<()> {
        self.note("drain");
        Ok(())
    }

    fn join(&self) -> Result<()> {
        self.note("join");
        Ok(())
    }
}

impl ReadBack for Noting {
    fn follow(&self, (): &()) -> Result<()> {
        self.note("follow");
        Ok(())
    }

    fn copy_back(&self, (): &(), staging: &mut Buffer, range: Range<usize>, source: u64) -> Result<()> {
        self.note("copy");
        assert!(!staging.is_busy, "a buffer is filled only when what it held was used");
        let source = usize::try_from(source).unwrap();
        let bytes = &self.memory[source..source + range.len()];
        staging.bytes[range].copy_from_slice(bytes);
        Ok(())
    }
}

impl Staging for Buffer {
    fn bytes(&mut self) -> &mut [u8] {
        assert!(!self.is_busy, "the bytes are used only after they have arrived");
        &mut self.bytes
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn is_idle(&mut self) -> Result<bool> {
        Ok(!self.is_busy)
    }

    fn wait_idle(&mut self) -> Result<()> {
        self.notes.lock().unwrap().push("wait");
        self.is_busy = false;
        Ok(())
    }
}

fn fetcher(bytes: usize) -> (Fetcher<Noting>, Vec<u8>, Notes) {
    let memory: Vec<u8> = (0..=250).cycle().take(bytes).collect();
    let notes = Notes::default();
    let device = Noting { memory: memory.clone(), notes: notes.clone() };
    let pool = Box::leak(Box::new(Pool::new(64 << 20)));
    (Fetcher::new(device, pool).unwrap(), memory, notes)
}

#[test]
fn many_small_pieces_share_a_buffer_and_each_is_ordered_with_the_callers_stream() {
    let (mut fetcher, memory, notes) = fetcher(300_000);
    let mut got = Vec::new();
    let mut sink = |bytes: &[u8]| {
        got.push(bytes.to_vec());
        Ok(())
    };
    for number in 0..300 {
        // SAFETY: the device checks.
        unsafe { fetcher.fetch(number * 1000, 1000, &mut sink) }.unwrap();
    }
    fetcher.finish(&mut sink).unwrap();
    assert_eq!(got, memory.chunks(1000).collect::<Vec<_>>());
    let notes = notes.lock().unwrap();
    let each = ["follow", "copy", "join"];
    assert_eq!(notes[..900], each.repeat(300));
    assert_eq!(notes[900..], ["wait"]);
}

#[test]
fn large_pieces_go_through_in_order_and_buffers_are_used_again() {
    let (mut fetcher, memory, _) = fetcher(7 * BUFFER + 5);
    let mut got = Vec::new();
    let mut sink = |bytes: &[u8]| {
        got.extend_from_slice(bytes);
        Ok(())
    };
    let (first, all) = (5 * BUFFER as u64 + 3, memory.len() as u64);
    for (from, to) in [(0, first), (first, first + 1), (first + 1, first + 1), (first + 1, all)] {
        // SAFETY: the device checks.
        unsafe { fetcher.fetch(from, to - from, &mut sink) }.unwrap();
    }
    fetcher.finish(&mut sink).unwrap();
    fetcher.finish(&mut sink).unwrap();
    assert!(got == memory);
}

#[test]
fn a_sink_that_fails_leaves_no_copy_behind() {
    let (mut fetcher, _, notes) = fetcher(4 * BUFFER);
    let mut sink = |_: &[u8]| Err(Error::new(ErrorKind::Io, "the disk is full"));
    // SAFETY: the device checks.
    let outcome = unsafe { fetcher.fetch(0, 4 * BUFFER as u64, &mut sink) };
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Io);
    drop(fetcher);
    assert_eq!(notes.lock().unwrap().last(), Some(&"drain"));
}
