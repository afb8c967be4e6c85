//! What is kept of one version of an object: its bytes in a sparse file, and beside them a digest of each block.
//!
//! A block counts only with the digest that its bytes have. What a power loss, a kill, a full disk or two writers at once
//! leave behind is then at worst a block that is not there, and nobody who writes waits for anybody. The digests are read
//! anew each time, so that processes profit from each other at once.

use std::{io, ops::Range, os::unix::fs::FileExt as _};

use sha2::{Digest as _, Sha256};

use super::{
    blocks::{Aligned, Blocks, DIRECT_BYTES, digest, part, to_usize},
    folder::{Files, Folder, allocated},
};
use crate::remote::shown;

/// Begins a map.
const MAGIC: &[u8; 8] = b"FPCACHE1";
/// Where the digests begin, one page on.
const HEADER_BYTES: u64 = 4096;
const DIGEST_BYTES: u64 = size_of::<u64>() as u64;
/// Bytes that are there and are fetched nevertheless if what lies before and behind them is not: they cost less than
/// another request.
const BRIDGE_BYTES: u64 = 1 << 20;

/// An open entry.
#[derive(Debug)]
pub(super) struct Entry {
    files: Files,
    pub(super) blocks: Blocks,
}

/// Blocks that follow each other.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) blocks: Range<u64>,
    pub(super) memory: Aligned,
    digests: Vec<u8>,
}

impl Piece {
    /// Copies the bytes of `blocks`, which are those of `all`, from `parts` to `memory`.
    pub(super) fn copy(all: Blocks, blocks: Range<u64>, parts: &[&mut [u8]], mut memory: Aligned) -> Self {
        memory.resize(parts.iter().map(|part| part.len()).sum());
        let mut rest = memory.as_mut_slice();
        for part in parts {
            let (now, later) = rest.split_at_mut(part.len());
            now.copy_from_slice(part);
            rest = later;
        }
        let mut digests = Vec::new();
        let mut rest = memory.as_slice();
        for range in blocks.clone().map(|block| all.range(block)) {
            let (block, later) = rest.split_at(to_usize(range.end - range.start));
            digests.extend_from_slice(&digest(block).to_le_bytes());
            rest = later;
        }
        Self { blocks, memory, digests }
    }
}

impl Entry {
    /// Opens, in `folder`, what is there of `version` of the object at `address`, which is `bytes` long.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(folder: &Folder, address: &str, version: &str, bytes: u64) -> io::Result<Self> {
        let header = header(address, version, bytes);
        let name: String =
            Sha256::digest(&header).iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hexadecimal).collect();
        let blocks = Blocks { bytes };
        let files = folder.entry(&name)?;
        let map_bytes = HEADER_BYTES + blocks.count() * DIGEST_BYTES;
        let mut found = vec![0; header.len()];
        let is_whole = files.map.metadata()?.len() == map_bytes;
        if !is_whole || files.map.read_exact_at(&mut found, 0).is_err() || found != header {
            // New, or damaged. All who open it write the same, and a map without digests is a sound one.
            files.map.set_len(0)?;
            files.map.set_len(map_bytes)?;
            files.map.write_all_at(&header, 0)?;
        }
        if files.data.metadata()?.len() != bytes {
            files.data.set_len(bytes)?;
        }
        Ok(Self { files, blocks })
    }

    /// Fills `buffers`, which are the `wanted` bytes of the object, with what is there, and says what is not.
    pub(super) fn read(&self, buffers: &mut [&mut [u8]], wanted: &Range<u64>) -> Vec<Range<u64>> {
        let touched = self.blocks.touched(wanted);
        let digests = self.digests(&touched);
        let mut scratch = Aligned::default();
        let mut missing: Vec<Range<u64>> = Vec::new();
        for (block, digest) in touched.zip(digests) {
            let block = self.blocks.range(block);
            let file = block.start.max(wanted.start)..block.end.min(wanted.end);
            if digest != 0 && self.read_block(&block, &mut scratch).is_ok_and(|found| found == digest) {
                let mut rest = &scratch.as_slice()[to_usize(file.start - block.start)..];
                for memory in part(buffers, &(file.start - wanted.start..file.end - wanted.start)) {
                    let (now, later) = rest.split_at(memory.len());
                    memory.copy_from_slice(now);
                    rest = later;
                }
                continue;
            }
            match missing.last_mut().filter(|last| file.start - last.end <= BRIDGE_BYTES) {
                Some(last) => last.end = file.end,
                None => missing.push(file),
            }
        }
        missing
    }

    /// Reads the bytes of a block to `memory`, past the page cache if that can be. Their digest.
    fn read_block(&self, block: &Range<u64>, memory: &mut Aligned) -> io::Result<u64> {
        let bytes = to_usize(block.end - block.start);
        memory.resize(bytes.next_multiple_of(DIRECT_BYTES));
        let direct = self.files.direct.as_ref().map(|file| file.read_at(memory.as_mut_slice(), block.start));
        let is_read = direct.is_some_and(|read| read.is_ok_and(|read| read == bytes));
        memory.resize(bytes);
        if !is_read {
            self.files.data.read_exact_at(memory.as_mut_slice(), block.start)?;
        }
        Ok(digest(memory.as_slice()))
    }

    /// The digests of `blocks`: 0 where there is none.
    fn digests(&self, blocks: &Range<u64>) -> Vec<u64> {
        let mut bytes = vec![0; to_usize((blocks.end - blocks.start) * DIGEST_BYTES)];
        if self.files.map.read_exact_at(&mut bytes, place(blocks.start)).is_err() {
            bytes.fill(0);
        }
        bytes.as_chunks().0.iter().map(|digest| u64::from_le_bytes(*digest)).collect()
    }

    /// Keeps `piece`, past the page cache if that can be.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn write(&self, piece: &Piece) -> io::Result<()> {
        let (bytes, offset) = (piece.memory.as_slice(), self.blocks.range(piece.blocks.start).start);
        let direct = self.files.direct.as_ref().filter(|_| bytes.len().is_multiple_of(DIRECT_BYTES));
        // A direct write may also be refused when it comes to it.
        if direct.is_none_or(|direct| direct.write_all_at(bytes, offset).is_err()) {
            self.files.data.write_all_at(bytes, offset)?;
        }
        self.files.map.write_all_at(&piece.digests, place(piece.blocks.start))
    }

    /// Forgets `blocks`.
    ///
    /// # Errors
    /// The system's: they may be there still.
    pub(super) fn forget(&self, blocks: &Range<u64>) -> io::Result<()> {
        let nothing = vec![0; to_usize((blocks.end - blocks.start) * DIGEST_BYTES)];
        self.files.map.write_all_at(&nothing, place(blocks.start))
    }

    #[cfg(test)]
    pub(super) const fn files(&mut self) -> &mut Files {
        &mut self.files
    }

    /// The bytes that are not there, about.
    pub(super) fn missing_bytes(&self) -> u64 {
        let there = self.files.data.metadata().map_or(0, |found| allocated(&found));
        self.blocks.bytes.saturating_sub(there)
    }
}

fn hexadecimal(digit: u8) -> char {
    char::from_digit(digit.into(), 16).unwrap_or_default()
}

/// Where in a map the digest of `block` is.
const fn place(block: u64) -> u64 {
    HEADER_BYTES + block * DIGEST_BYTES
}

/// What a map begins with, which names its entry, too: nothing else in it is trusted.
fn header(address: &str, version: &str, bytes: u64) -> Vec<u8> {
    let object = Sha256::digest(address);
    let mut header = [&MAGIC[..], &bytes.to_le_bytes(), &*object, &*Sha256::digest(version)].concat();
    // For people who look into it.
    let mut text = format!("\n{}\n{version}\n", shown(address));
    text.truncate((0..=text.len().min(1024)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0));
    header.extend(text.bytes());
    header.resize(to_usize(HEADER_BYTES), 0);
    header
}
