//! Writing a file: lay out, stream the payload with digests on the way, footer, commit.

use std::{collections::BTreeMap, path::Path};

use crate::{
    codec::Level,
    error::{At, Error, ErrorKind, Result},
    format::{
        checksum::{Algorithm, CHUNK_BYTES, Chunker},
        footer,
        layout::{Layout, Order, TensorSpec, Write},
    },
    io::write::{Finished, Growing},
    jobs::encode::Encoder,
    progress::Progress,
};

/// Bytes digested at a time: those of a piece are still in the core's second-level cache when it is written.
const PIECE_BYTES: usize = 256 << 10;

/// A FlashPack file, or an object of a store, in the making. Its caller provides the bytes of each of [`Packer::writes`] in that order.
pub struct Packer<'a> {
    file: Growing,
    layout: Layout,
    next: usize,
    /// Bytes still missing of the piece in progress.
    missing: u64,
    position: u64,
    chunker: Chunker,
    /// If the payload is not stored as it is.
    encoder: Option<Encoder>,
    progress: Progress<'a>,
}

impl<'a> Packer<'a> {
    /// Lays out `tensors` and begins the file.
    ///
    /// # Errors
    /// Those of [`Layout::new`] and [`Growing::create`].
    pub fn create(
        destination: &Path,
        tensors: &[TensorSpec],
        order: Order,
        align_bytes: u64,
        metadata: BTreeMap<String, String>,
        progress: Progress<'a>,
    ) -> Result<Self> {
        let layout = Layout::new(tensors, order, align_bytes, metadata)?;
        progress.start(layout.payload_bytes());
        Self::begin(Growing::create(destination, layout.payload_bytes())?, layout, progress)
    }

    /// Begins what is laid out in `file`, which has no bytes yet, as a part of what `progress` counts.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn begin(file: Growing, layout: Layout, progress: Progress<'a>) -> Result<Self> {
        let chunker = Chunker::new(Algorithm::default(), CHUNK_BYTES);
        let mut this =
            Self { file, layout, next: 0, missing: 0, position: 0, chunker, encoder: None, progress };
        this.begin_piece()?;
        Ok(this)
    }

    /// Makes the digests by `algorithm` instead of XXH3. For a file without any bytes yet.
    #[must_use]
    pub fn digested_by(self, algorithm: Algorithm) -> Self {
        assert!(self.position == 0, "the digests are of all bytes");
        Self { chunker: Chunker::new(algorithm, CHUNK_BYTES), ..self }
    }

    /// Compresses the payload, if there is a `level`. For a file without any bytes yet.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] for a malformed environment variable.
    pub fn compressed(self, level: Option<Level>) -> Result<Self> {
        assert!(self.position == 0, "all bytes are encoded");
        Ok(Self { encoder: level.map(Encoder::new).transpose()?, ..self })
    }

    /// Which tensors' bytes are wanted, in which order. Tied tensors appear once, tensors without elements never.
    #[must_use]
    pub fn writes(&self) -> &[Write] {
        self.layout.writes()
    }

    /// Takes the next bytes, whole tensors or parts of them.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if there are more than the layout has room for; [`ErrorKind::Io`];
    /// [`ErrorKind::Cancelled`].
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.missing == 0 {
                return Err(Error::new(ErrorKind::Internal, "more bytes than the layout has room for"));
            }
            let take = bytes.len().min(usize::try_from(self.missing).unwrap_or(usize::MAX)).min(PIECE_BYTES);
            let (now, rest) = bytes.split_at(take);
            self.put(now)?;
            self.missing -= take as u64;
            bytes = rest;
            if self.missing == 0 {
                self.next += 1;
                self.begin_piece()?;
            }
        }
        Ok(())
    }

    /// Whether it has all its bytes.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.next == self.layout.writes().len()
    }

    /// Writes the footer and puts the file in its destination's place; returns its length in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if bytes are missing; [`ErrorKind::Unsupported`] for more names and digests than a footer
    /// may hold; [`ErrorKind::Io`].
    pub fn finish(self) -> Result<u64> {
        self.complete()?.commit()
    }

    /// Writes the footer; what is written is to be put in place.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn complete(mut self) -> Result<Finished> {
        if !self.is_complete() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{} bytes of the payload are missing", self.missing),
            ));
        }
        self.pad_to(self.layout.payload_bytes())?;
        let encoder = self.encoder.take();
        let encoding = encoder.map(|it| it.finish(self.layout.index(), &mut self.file)).transpose()?;
        let index = self.layout.into_index(self.chunker.algorithm(), self.chunker.finish()).stored(encoding);
        let json = footer::render(&index);
        footer::check_length(&json).at(self.file.destination())?;
        self.file.write(json.as_bytes())?;
        self.file.write(&footer::trailer(json.as_bytes()))?;
        self.file.finish()
    }

    fn begin_piece(&mut self) -> Result<()> {
        if let Some(&Write { offset, bytes, .. }) = self.layout.writes().get(self.next) {
            self.missing = bytes;
            self.pad_to(offset)?;
        }
        Ok(())
    }

    fn pad_to(&mut self, offset: u64) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < offset {
            let step =
                usize::try_from(offset - self.position).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.put(&ZEROS[..step])?;
        }
        Ok(())
    }

    /// Digests and writes at most [`PIECE_BYTES`].
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.chunker.update(bytes);
        match &mut self.encoder {
            Some(encoder) => encoder.write(bytes, self.layout.index(), &mut self.file)?,
            None => self.file.write(bytes)?,
        }
        self.position += bytes.len() as u64;
        self.progress.advance(bytes.len() as u64)
    }
}
