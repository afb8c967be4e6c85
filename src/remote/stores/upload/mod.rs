//! Objects that are written in parts, several at a time, and appear whole or not at all.

mod azure;
mod google;
mod ring;
mod s3;

use std::{fmt::Debug, mem, path::PathBuf, process, sync::Arc};

use self::ring::Ring;
use super::{
    address::{Address, Resource},
    client::Client,
};
use crate::{
    error::{At as _, Error, ErrorKind, Result},
    progress::Progress,
    remote::Upload,
};

const MIB: u64 = 1 << 20;
/// Least bytes of a part: S3 takes no less than 5 MiB, Google's are multiples of 256 KiB.
const LEAST_PART_BYTES: u64 = 8 * MIB;
/// Most parts, which is S3's bound.
const MOST_PARTS: u64 = 10_000;
/// Most memory of the parts of one object, those apart that are larger than that.
const MOST_HELD_BYTES: u64 = 256 * MIB;
/// Most parts that are sent at a time.
const MOST_SENDERS: u64 = 16;

/// How a kind of store takes an object.
trait Parts: Debug + Send + Sync {
    /// Puts an object of these bytes.
    fn whole(&self, bytes: &[u8]) -> Result<()>;

    /// Begins an object in parts.
    fn begin(&self) -> Result<()>;

    /// Sends the part of that `number`, from 0 on, whose bytes begin at `offset`. What [`Parts::finish`] is to tell of it.
    fn send(&self, number: usize, offset: u64, bytes: &[u8]) -> Result<String>;

    /// Sends the `last` bytes, which begin at `offset`, unless there are none, and makes an object of all parts, of which
    /// `sent` tells.
    fn finish(&self, sent: Vec<String>, offset: u64, last: &[u8]) -> Result<()>;

    /// Gives up what was begun.
    fn abandon(&self);

    /// Whether parts may be sent several at a time.
    fn is_parallel(&self) -> bool {
        true
    }

    /// How many of so many `last` bytes can only be sent by [`Parts::finish`].
    fn held_back(&self, _last: usize) -> usize {
        0
    }
}

/// Begins an object of about `expected_bytes` in a store of `scheme`, which has these addresses; errors call it `shown`.
///
/// # Errors
/// Those of `address`.
pub(super) fn create(
    client: &Arc<Client>,
    scheme: &str,
    address: impl Fn(Resource) -> Result<Arc<dyn Address>>,
    expected_bytes: u64,
    shown: &str,
) -> Result<Box<dyn Upload>> {
    let (client, address) = (Arc::clone(client), address(Resource::New)?);
    let store: Arc<dyn Parts> = match scheme {
        "s3" => Arc::new(s3::S3::new(client, address)),
        "gs" => Arc::new(google::Google::new(client, address)),
        _ => Arc::new(azure::Azure::new(client, address)),
    };
    Ok(Box::new(InParts::new(store, part_bytes(expected_bytes), shown)))
}

/// Bytes of each part of so many: there may be a twentieth more than was expected.
fn part_bytes(expected: u64) -> u64 {
    let least = (expected / (MOST_PARTS / 20 * 19)).max(LEAST_PART_BYTES);
    least.next_multiple_of(MIB)
}

#[derive(Debug)]
struct InParts {
    store: Arc<dyn Parts>,
    part_bytes: usize,
    /// What comes next.
    buffer: Vec<u8>,
    /// Parts that were passed on, and their bytes.
    passed: usize,
    passed_bytes: u64,
    ring: Option<Ring>,
    /// What is to be told of all parts that were passed on, once they have been sent.
    sent: Option<Vec<String>>,
    /// Begun, and neither finished nor given up.
    is_open: bool,
    shown: PathBuf,
    /// A child that was forked leaves it alone.
    process: u32,
}

impl InParts {
    fn new(store: Arc<dyn Parts>, part_bytes: u64, shown: &str) -> Self {
        Self {
            store,
            part_bytes: usize::try_from(part_bytes).unwrap_or(usize::MAX),
            buffer: Vec::new(),
            passed: 0,
            passed_bytes: 0,
            ring: None,
            sent: None,
            is_open: false,
            shown: shown.into(),
            process: process::id(),
        }
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.buffer.len() == self.part_bytes {
                if self.passed as u64 + 1 == MOST_PARTS {
                    let what = "is much larger than it was said to be: it would have too many parts";
                    return Err(Error::new(ErrorKind::Internal, what));
                }
                self.pass_on()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.part_bytes - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Hands the buffer to a thread that sends it. The last one stays for [`Parts::finish`], unless the upload is sealed.
    fn pass_on(&mut self) -> Result<()> {
        if self.ring.is_none() {
            self.store.begin()?;
            self.is_open = true;
            let most = if self.store.is_parallel() { MOST_SENDERS } else { 1 };
            // One more is filled.
            let senders = (MOST_HELD_BYTES / self.part_bytes as u64).saturating_sub(1).clamp(1, most);
            self.ring = Some(Ring::start(&self.store, senders)?);
        }
        let Some(ring) = &self.ring else { return Ok(()) };
        let mut next = ring.idle()?;
        next.reserve_exact(self.part_bytes);
        let (bytes, offset) = (self.buffer.len() as u64, self.passed_bytes);
        ring.pass(self.passed, offset, mem::replace(&mut self.buffer, next))?;
        self.passed += 1;
        self.passed_bytes += bytes;
        Ok(())
    }

    /// Passes on all that the store takes before the end, and ends the threads. What fits a part stays, and is put at once.
    fn send_all(&mut self) -> Result<()> {
        if self.ring.is_some() {
            let held_back = self.store.held_back(self.buffer.len());
            let rest = self.buffer.split_off(self.buffer.len() - held_back);
            if !self.buffer.is_empty() {
                self.pass_on()?;
            }
            self.buffer = rest;
            self.end_ring()?;
        }
        self.buffer.shrink_to_fit();
        Ok(())
    }

    /// Waits for all parts that were passed on.
    fn end_ring(&mut self) -> Result<()> {
        if let Some(ring) = self.ring.take() {
            self.sent = Some(ring.finish()?);
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        self.end_ring()?;
        match self.sent.take() {
            Some(sent) => self.store.finish(sent, self.passed_bytes, &self.buffer)?,
            None if self.is_open => return Err(Error::new(ErrorKind::Internal, "was not sent to its end")),
            None => self.store.whole(&self.buffer)?,
        }
        self.is_open = false;
        Ok(())
    }
}

impl Upload for InParts {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.append(bytes).at(&self.shown)
    }

    fn seal(&mut self) -> Result<()> {
        self.send_all().at(&self.shown)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.complete().at(&self.shown)
    }
}

impl Drop for InParts {
    fn drop(&mut self) {
        let ring = self.ring.take();
        if self.process != process::id() {
            mem::forget(ring);
            return;
        }
        if let Some(ring) = ring {
            ring.give_up();
        }
        if self.is_open {
            Progress::SILENT.watch(|| self.store.abandon());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Remembers what it is told.
    #[derive(Debug, Default)]
    struct Fake {
        told: Mutex<Vec<String>>,
        fails_at: Option<usize>,
        held_back: usize,
    }

    impl Fake {
        fn tell(&self, what: String) {
            self.told.lock().unwrap().push(what);
        }
    }

    impl Parts for Fake {
        fn whole(&self, bytes: &[u8]) -> Result<()> {
            self.tell(format!("whole {bytes:?}"));
            Ok(())
        }

        fn begin(&self) -> Result<()> {
            self.tell("begin".to_owned());
            Ok(())
        }

        fn send(&self, number: usize, offset: u64, bytes: &[u8]) -> Result<String> {
            if self.fails_at == Some(number) {
                return Err(Error::argument("refused"));
            }
            Ok(format!("{number} at {offset} {bytes:?}"))
        }

        fn finish(&self, sent: Vec<String>, offset: u64, last: &[u8]) -> Result<()> {
            self.tell(format!("{} last at {offset} {last:?}", sent.join(" ")));
            Ok(())
        }

        fn abandon(&self) {
            self.tell("abandoned".to_owned());
        }

        fn held_back(&self, _last: usize) -> usize {
            self.held_back
        }
    }

    fn upload(store: &Arc<Fake>) -> Box<InParts> {
        Box::new(InParts::new(Arc::clone(store) as _, 3, "s3://bucket/key"))
    }

    #[test]
    fn parts_are_sent_in_any_order_and_told_in_theirs() {
        for pieces in [&[8][..], &[1; 8], &[3, 3, 2], &[0, 7, 1]] {
            let store = Arc::new(Fake::default());
            let mut upload = upload(&store);
            let mut bytes = 0..8;
            for piece in pieces {
                upload.write(&bytes.by_ref().take(*piece).collect::<Vec<u8>>()).unwrap();
            }
            upload.finish().unwrap();
            assert_eq!(
                *store.told.lock().unwrap(),
                ["begin", "0 at 0 [0, 1, 2] 1 at 3 [3, 4, 5] last at 6 [6, 7]"]
            );
        }
    }

    #[test]
    fn what_is_sealed_has_neither_threads_nor_buffers() {
        for (held_back, told) in [
            (0, "0 at 0 [0, 1, 2] 1 at 3 [3, 4, 5] 2 at 6 [6, 7] last at 8 []"),
            (1, "0 at 0 [0, 1, 2] 1 at 3 [3, 4, 5] 2 at 6 [6] last at 7 [7]"),
            (2, "0 at 0 [0, 1, 2] 1 at 3 [3, 4, 5] last at 6 [6, 7]"),
        ] {
            let store = Arc::new(Fake { held_back, ..Fake::default() });
            let mut waiting = [(); 3].map(|()| upload(&store));
            for upload in &mut waiting {
                upload.write(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
                upload.seal().unwrap();
                assert!(upload.ring.is_none() && upload.buffer.capacity() <= held_back);
            }
            assert_eq!(Arc::strong_count(&store), 1 + waiting.len(), "threads have it, too");
            for upload in waiting {
                upload.finish().unwrap();
            }
            assert_eq!(store.told.lock().unwrap()[3..], [told; 3]);
        }
        let store = Arc::new(Fake { fails_at: Some(1), ..Fake::default() });
        let mut failing = upload(&store);
        failing.write(&[0; 5]).unwrap();
        assert_eq!(failing.seal().unwrap_err().to_string(), "s3://bucket/key: refused");
        failing.finish().unwrap_err();
        assert_eq!(*store.told.lock().unwrap(), ["begin", "abandoned"]);
    }

    #[test]
    fn what_fits_a_part_is_put_at_once() {
        for bytes in [&[][..], &[1, 2, 3]] {
            let store = Arc::new(Fake::default());
            let mut upload = upload(&store);
            upload.write(bytes).unwrap();
            upload.seal().unwrap();
            upload.finish().unwrap();
            assert_eq!(*store.told.lock().unwrap(), [format!("whole {bytes:?}")]);
        }
    }

    #[test]
    fn what_fails_or_is_dropped_is_given_up() {
        let store = Arc::new(Fake { fails_at: Some(1), ..Fake::default() });
        let mut failing = upload(&store);
        let written = failing.write(&[0; 100]).and_then(|()| failing.finish());
        assert_eq!(written.unwrap_err().to_string(), "s3://bucket/key: refused");
        assert_eq!(*store.told.lock().unwrap(), ["begin", "abandoned"]);
        let store = Arc::new(Fake::default());
        let mut dropped = upload(&store);
        dropped.write(&[0; 7]).unwrap();
        drop(dropped);
        assert_eq!(*store.told.lock().unwrap(), ["begin", "abandoned"]);
        drop(upload(&store));
        assert_eq!(store.told.lock().unwrap().len(), 2, "nothing was begun");
        let mut forked = upload(&store);
        forked.write(&[0; 7]).unwrap();
        forked.process = 0; // as in a child
        drop(forked);
        assert_eq!(store.told.lock().unwrap()[2..], ["begin"]);
    }

    #[test]
    fn parts_are_as_many_as_stores_take_at_the_most() {
        for expected in [0, 1, 80_000 * MIB, 1 << 40, 5 << 40] {
            let part = part_bytes(expected);
            assert!(part.is_multiple_of(MIB) && part >= LEAST_PART_BYTES);
            assert!((expected + expected / 25).div_ceil(part) <= MOST_PARTS, "{expected}");
        }
        assert_eq!(part_bytes(70_000 * MIB), 8 * MIB);
    }
}
