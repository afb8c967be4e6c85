//! What is read: chunks of the file, and where their bytes go.

use std::{ops::Range, sync::Arc};

use super::Rows;

/// Consecutive bytes of the file, read in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the file.
    pub offset: u64,
    /// Where they go.
    pub parts: Vec<ChunkPart>,
    /// The number of the digest over exactly these bytes among those of their [`Part`](crate::format::Part) of the
    /// index, if they are to be verified.
    pub digest: Option<usize>,
}

impl Chunk {
    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// The byte after the last.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.bytes()
    }

    /// What memory wants of it, in the order of the file.
    pub fn moves(&self) -> impl Iterator<Item = Move<'_>> {
        let mut end = self.offset;
        self.parts.iter().filter_map(move |part| {
            let file = end..end + part.bytes;
            end = file.end;
            Some(match part.target.as_ref()? {
                &Target::Bytes(memory, offset) => {
                    Move { place: offset..offset + part.bytes, file, memory, rows: None }
                }
                Target::Rows(memory, rows) => {
                    Move { place: rows.gathered(&file), file, memory: *memory, rows: Some(rows) }
                }
            })
        })
    }
}

/// Part of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkPart {
    /// Length.
    pub bytes: u64,
    /// Where they go; `None`: only the digest wants them, or they lie between others that are wanted.
    pub target: Option<Target>,
}

/// Where bytes of the file go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All of them to this memory, from this offset on.
    Bytes(usize, u64),
    /// Those that are in the runs to this memory, one run after another from its first byte on.
    Rows(usize, Arc<Rows>),
}

impl Target {
    /// The same for bytes that lie `bytes` further on in the file.
    pub(super) fn advanced(self, bytes: u64) -> Self {
        match self {
            Self::Bytes(memory, offset) => Self::Bytes(memory, offset + bytes),
            rows @ Self::Rows(..) => rows,
        }
    }
}

/// Bytes of the file that a memory wants, and where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move<'a> {
    /// The bytes.
    pub file: Range<u64>,
    /// Number of the memory.
    pub memory: usize,
    /// Where in it those that are wanted go.
    pub place: Range<u64>,
    /// The runs of bytes that are wanted, if not all are.
    pub rows: Option<&'a Arc<Rows>>,
}

impl Move<'_> {
    /// The bytes that are wanted, run by run, and where each goes.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        let all = self.rows.is_none().then(|| (self.file.clone(), self.place.start));
        let runs = self.rows.map(|rows| rows.within(self.file.clone()));
        all.into_iter().chain(runs.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_what_is_wanted_in_the_order_of_the_file() {
        // Columns 1 and 2 of 3 rows of 4 bytes that begin at byte 100.
        let rows = Arc::new(Rows::new(100, 1, &[3, 4], &[0..3, 1..3]).unwrap());
        let part = |bytes, target| ChunkPart { bytes, target };
        let parts = vec![
            part(10, Some(Target::Bytes(7, 50))),
            part(5, None),
            part(9, Some(Target::Rows(2, Arc::clone(&rows)))),
        ];
        let chunk = Chunk { offset: 85, parts, digest: None };
        let moves: Vec<_> = chunk.moves().collect();
        let whole = Move { file: 85..95, memory: 7, place: 50..60, rows: None };
        let sliced = Move { file: 100..109, memory: 2, place: 0..4, rows: Some(&rows) };
        assert_eq!(moves, [whole, sliced]);
        assert_eq!(moves[0].runs().collect::<Vec<_>>(), [(85..95, 50)]);
        assert_eq!(moves[1].runs().collect::<Vec<_>>(), [(101..103, 0), (105..107, 2)]);
        let later = Chunk { offset: 106, parts: vec![part(6, Some(Target::Rows(2, rows)))], digest: None };
        let runs: Vec<_> = later.moves().flat_map(|it| it.runs().collect::<Vec<_>>()).collect();
        assert_eq!(runs, [(106..107, 3), (109..111, 4)], "the rest of a run, and the next");
    }
}
