//! Loads drawn from bytes.

use arbitrary::{Arbitrary, Unstructured};
use flashpack::{
    format::Index,
    io::memory::Faults,
    plan::{Cut, Ignore, Place, Readers, Selection, Settings, Verify},
};

/// Bytes at the front of an input that a [`Wish`] is drawn from. Zeros wish for an eager load of everything.
pub const WISH_BYTES: usize = 32;

const PLACES: [Place; 5] = [Place::Host, Place::Mapping, Place::Device, Place::GivenHost, Place::GivenDevice];
const VERIFICATIONS: [Verify; 3] = [Verify::Whole, Verify::Never, Verify::Everything];
const CHUNKS: [u64; 6] = [4096, 100, 1, 8192, 1 << 20, 1 << 62];
const EVERYTHING: Ignore<'_> = Ignore { names: &[], prefixes: &[], suffixes: &[] };

/// A load to try, and what goes wrong in it.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    place: u8,
    verify: u8,
    chunk: u8,
    threads: u8,
    selection: u8,
    picks: [u8; 8],
    short_reads: u8,
    interrupt_every: u8,
    fail_read: u8,
    truncate_at: u16,
    pub cast: u8,
}

impl<'a> Arbitrary<'a> for Wish {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            place: u.arbitrary()?,
            verify: u.arbitrary()?,
            chunk: u.arbitrary()?,
            threads: u.arbitrary()?,
            selection: u.arbitrary()?,
            picks: u.arbitrary()?,
            short_reads: u.arbitrary()?,
            interrupt_every: u.arbitrary()?,
            fail_read: u.arbitrary()?,
            truncate_at: u.arbitrary()?,
            cast: u.arbitrary()?,
        })
    }
}

impl Wish {
    /// The wish at the front of `input`, and the rest; `None` if it is too short for one.
    #[must_use]
    pub fn split(input: &[u8]) -> Option<(Self, &[u8])> {
        let (control, rest) = input.split_at_checked(WISH_BYTES)?;
        Some((Unstructured::new(control).arbitrary().ok()?, rest))
    }

    /// How to load.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            place: of(&PLACES, self.place),
            verify: of(&VERIFICATIONS, self.verify),
            // A second thread costs more than a hundred inputs without.
            readers: Readers::fixed(1 + usize::from(self.threads % 32 == 31)),
            read_chunk_bytes: of(&CHUNKS, self.chunk),
            direct: false,
            bridged_bytes: u64::from(self.threads / 64) * 1000,
        }
    }

    /// The names that may be wanted: some of the file's, in any order, some twice.
    #[must_use]
    pub fn names(&self, index: &Index) -> Vec<String> {
        let records = index.records();
        let pick = |pick: &u8| records.get(usize::from(*pick) % records.len().max(1));
        self.picks.iter().filter_map(pick).map(|record| record.name().to_owned()).collect()
    }

    /// What of `names` may be wanted: of every other tensor that has dimensions, a part of one of them.
    #[must_use]
    pub fn cuts(&self, index: &Index, names: &[String]) -> Vec<Cut> {
        let cut = |(tensor, name): (usize, &String)| {
            let shape = index.records()[index.find(name)?].shape();
            let dim = usize::from(self.cast) % shape.len().max(1);
            let size = *shape.get(dim)?;
            let start = u64::from(self.picks[tensor] / 4) % (size + 1);
            let range = start..start + u64::from(self.selection / 4) % (size - start + 1);
            Some(Cut { tensor, dim, range })
        };
        names.iter().enumerate().step_by(2).filter_map(cut).collect()
    }

    /// What to load, given [`Wish::names`] and [`Wish::cuts`].
    #[must_use]
    pub fn selection<'n>(&self, names: &'n [String], cuts: &'n [Cut]) -> Selection<'n> {
        match self.selection % 4 {
            0 => Selection::Except(&EVERYTHING),
            1 => Selection::Names(names),
            2 => Selection::Blocks,
            _ => Selection::Slices { names, cuts },
        }
    }

    /// What goes wrong, in a source of about `bytes`.
    #[must_use]
    pub fn faults(&self, bytes: usize) -> Faults {
        let part = |of: usize| usize::from(self.truncate_at) * of / usize::from(u16::MAX);
        Faults {
            short_reads: usize::from(self.short_reads),
            // A source that is interrupted each time never gives a byte.
            interrupt_every: [0, 2, 3, 7][usize::from(self.interrupt_every % 4)],
            fail_read: u64::from(self.fail_read),
            truncate_at: (self.truncate_at > 0).then(|| part(bytes)),
        }
    }
}

fn of<T: Copy>(choices: &[T], number: u8) -> T {
    choices[usize::from(number) % choices.len()]
}
