//! Saves of a model as one file or, of a bounded size, as several and their index, which appear together.

mod set;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
};

use self::set::{Set, remove, sweep};
use crate::{
    codec::Level,
    error::Result,
    format::{
        checksum::Algorithm,
        join::SET_KEY,
        layout::{Layout, Order, TensorSpec},
    },
    io::write::Growing,
    jobs::pack::Packer,
    model::folder::index_path,
    progress::Progress,
    remote,
};

/// What to write, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    /// The file, or what shards are saved as.
    pub destination: PathBuf,
    /// Order of the tensors in each file.
    pub order: Order,
    /// Alignment of records.
    pub align_bytes: u64,
    /// Strings for each footer.
    pub metadata: BTreeMap<String, String>,
    /// The checksum algorithm.
    pub algorithm: Algorithm,
    /// Bytes of tensors in a file, unless one alone has more; `None` makes one file.
    pub shard_bytes: Option<u64>,
    /// How hard to compress, if at all.
    pub compress: Option<Level>,
}

/// A save in the making. Its caller provides the bytes of each tensor of [`order`](Self::order), in that order.
///
/// Until all files are written, what was at the destination stays. Then the shards are put in place, then their index;
/// both name their save, so that a load refuses a mixture of two. Then the files of earlier saves go.
pub struct Save<'a> {
    request: Request,
    progress: Progress<'a>,
    order: Vec<usize>,
    packer: Packer<'a>,
    waiting: VecDeque<(PathBuf, Layout)>,
    /// `None` for one file.
    set: Option<Set>,
}

impl<'a> Save<'a> {
    /// Plans the save of `tensors`, and begins it.
    ///
    /// # Errors
    /// Those of [`Packer::create`]; [`ErrorKind::Argument`](crate::ErrorKind::Argument) for shards of a name that is not
    /// UTF-8.
    pub fn begin(tensors: &[TensorSpec], request: Request, progress: Progress<'a>) -> Result<Self> {
        let Request { ref destination, order, align_bytes, ref metadata, .. } = request;
        let whole = Layout::new(tensors, order, align_bytes, metadata.clone())?;
        let parts = split(tensors, request.shard_bytes.unwrap_or(u64::MAX));
        let mut waiting = VecDeque::new();
        let mut sequence = Vec::new();
        let mut set = None;
        if parts.len() == 1 {
            sequence.extend(whole.writes().iter().map(|write| write.tensor));
            waiting.push_back((destination.to_owned(), whole));
        } else {
            let new = Set::begin(destination, tensors, &parts)?;
            let metadata = || {
                let own = (SET_KEY.to_owned(), new.name.clone());
                metadata.clone().into_iter().chain([own]).collect::<BTreeMap<_, _>>()
            };
            for (part, place) in parts.iter().zip(&new.places) {
                let layout = Layout::new(&specs_of(tensors, part), order, align_bytes, metadata())?;
                sequence.extend(layout.writes().iter().map(|write| part[write.tensor]));
                waiting.push_back((place.clone(), layout));
            }
            set = Some(new);
        }
        progress.start(waiting.iter().map(|(_, layout)| layout.payload_bytes()).sum());
        let (path, layout) = waiting.pop_front().expect("a layout has tensors");
        let packer = begin(&path, layout, &request, progress, set.as_mut())?;
        Ok(Self { request, progress, order: sequence, packer, waiting, set })
    }

    /// Numbers of the tensors whose bytes are wanted. Tied tensors appear once, tensors without elements never.
    #[must_use]
    pub fn order(&self) -> &Vec<usize> {
        &self.order
    }

    /// Takes the next bytes: those of a tensor, or a part of them.
    ///
    /// # Errors
    /// As [`Packer::write`] and [`Packer::complete`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        while self.packer.is_complete() && !self.waiting.is_empty() {
            self.next_file()?;
        }
        self.packer.write(bytes)
    }

    /// Puts everything in place, and sweeps what earlier saves have left; returns the bytes of all files.
    ///
    /// # Errors
    /// As [`Packer::finish`]. What was at the destination is then still there, unless putting the new in place failed.
    pub fn finish(self) -> Result<u64> {
        self.finish_if(|| Ok(()))
    }

    /// [`Save::finish`], unless `may` says otherwise when all is written.
    ///
    /// # Errors
    /// That of `may`, and as `finish`.
    pub fn finish_if(mut self, may: impl FnOnce() -> Result<()>) -> Result<u64> {
        while !self.waiting.is_empty() {
            self.next_file()?;
        }
        let destination = &self.request.destination;
        let Some(mut set) = self.set else {
            let bytes = self.packer.complete()?.commit_if(may)?;
            // A store's whole object is found before any index.
            if self.request.shard_bytes.is_some() && remote::url(destination).is_none() {
                remove(&index_path(destination))?;
                sweep(destination, &[])?;
            }
            return Ok(bytes);
        };
        set.take(self.packer)?;
        let (bytes, places) = (set.bytes, set.places.clone());
        may()?;
        set.put_in_place()?;
        if let Some(url) = remote::url(destination) {
            remote::stores()?.remove(url)?;
        } else {
            remove(destination)?;
            sweep(destination, &places)?;
        }
        Ok(bytes)
    }

    fn next_file(&mut self) -> Result<()> {
        let (path, layout) = self.waiting.pop_front().expect("the caller has looked");
        let next = begin(&path, layout, &self.request, self.progress, self.set.as_mut())?;
        let done = std::mem::replace(&mut self.packer, next);
        self.set.as_mut().expect("several files are a set").take(done)
    }
}

/// Begins the file for `path`, a shard of `set` if there is one.
fn begin<'a>(
    path: &Path,
    layout: Layout,
    request: &Request,
    progress: Progress<'a>,
    set: Option<&mut Set>,
) -> Result<Packer<'a>> {
    let bytes = layout.payload_bytes();
    let file = match set {
        Some(set) => set.stage.begin(path, bytes)?,
        None => Growing::create(path, bytes)?,
    };
    Packer::begin(file, layout, progress)?.digested_by(request.algorithm).compressed(request.compress)
}

/// The tensors of each file, in order: as many as fit in `limit` bytes, but at least one. Tied tensors stay together.
fn split(tensors: &[TensorSpec], limit: u64) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = vec![vec![]];
    let mut home: Vec<usize> = Vec::with_capacity(tensors.len());
    let mut filled = 0_u64;
    for (number, tensor) in tensors.iter().enumerate() {
        let bytes = bytes_of(tensor);
        let tied = tensor.tied_to.map(|other| home[other]);
        if tied.is_none() {
            if number > 0 && filled.saturating_add(bytes) > limit {
                parts.push(vec![]);
                filled = 0;
            }
            filled = filled.saturating_add(bytes);
        }
        let part = tied.unwrap_or(parts.len() - 1);
        home.push(part);
        parts[part].push(number);
    }
    parts
}

fn bytes_of(tensor: &TensorSpec) -> u64 {
    tensor.shape.iter().fold(tensor.dtype.size(), |bytes, &size| bytes.saturating_mul(size))
}

/// The tensors of one file, tied to each other by their numbers in it.
fn specs_of(tensors: &[TensorSpec], part: &[usize]) -> Vec<TensorSpec> {
    let within = |tensor: usize| part.binary_search(&tensor).expect("tied tensors are in one file");
    let spec = |&tensor: &usize| {
        let spec = tensors[tensor].clone();
        TensorSpec { tied_to: spec.tied_to.map(within), ..spec }
    };
    part.iter().map(spec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::DType;

    fn bytes(sizes: &[u64]) -> Vec<TensorSpec> {
        let spec = |(number, &size): (usize, &u64)| TensorSpec {
            name: number.to_string(),
            dtype: DType::Uint8,
            shape: vec![size],
            tied_to: None,
        };
        sizes.iter().enumerate().map(spec).collect()
    }

    #[test]
    fn a_file_has_at_least_one_tensor_and_tied_ones_stay_together() {
        let mut tensors = bytes(&[5, 50, 1, 9, 1]);
        assert_eq!(split(&tensors, 10), [vec![0], vec![1], vec![2, 3], vec![4]]);
        tensors[4].tied_to = Some(0);
        assert_eq!(split(&tensors, 10), [vec![0, 4], vec![1], vec![2, 3]]);
        assert_eq!(specs_of(&tensors, &[0, 4])[1].tied_to, Some(0));
        tensors[4].tied_to = Some(2);
        assert_eq!(specs_of(&tensors, &[2, 3, 4])[2].tied_to, Some(0));
        assert_eq!(split(&bytes(&[50, 0, u64::MAX, 1]), 10), [[0], [1], [2], [3]]);
        assert_eq!(split(&tensors, u64::MAX), [[0, 1, 2, 3, 4]]);
    }
}
