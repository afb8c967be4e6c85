//! The tensors that a selection names, each with the bytes of the file it shows.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use super::{
    Selection, View,
    slices::{self, Cut, Rows},
};
use crate::{
    error::{Error, Result},
    format::{DType, Index, Shape},
};

/// A view that is not placed yet.
pub(super) struct Wanted {
    pub(super) view: View,
    /// From the first byte it shows to the last.
    pub(super) file: Range<u64>,
    /// The bytes among these, if there are others between them.
    pub(super) rows: Option<Rows>,
    pub(super) block: usize,
    /// Views of one layer show either the same bytes or none in common.
    pub(super) layer: usize,
}

pub(super) fn select(index: &Index, selection: Selection<'_>) -> Result<Vec<Wanted>> {
    let mut views = select_each(index, selection)?;
    for (number, wanted) in views.iter_mut().enumerate() {
        wanted.view.same_as = number;
    }
    find_same(&mut views);
    if selection.is_sliced() {
        find_layers(index, &mut views);
    }
    Ok(views)
}

fn select_each(index: &Index, selection: Selection<'_>) -> Result<Vec<Wanted>> {
    match selection {
        Selection::Names(names) => select_names(index, names, &[]),
        Selection::Slices { names, cuts } => select_names(index, names, cuts),
        Selection::Except(ignore) => {
            let records = index.records().iter().enumerate();
            let kept = records.filter(|(_, record)| !ignore.matches(record.name()));
            let mut wanted = Vec::with_capacity(index.records().len());
            wanted.extend(kept.map(|(source, _)| whole_record(index, source)));
            Ok(wanted)
        }
        Selection::Blocks => {
            let blocks = index.blocks().iter().enumerate();
            Ok(blocks
                .map(|(number, it)| whole(number, number, it.dtype(), [it.elems()].into(), it.file_range()))
                .collect())
        }
        Selection::Payload(ranges) => select_payload(index, ranges),
    }
}

fn select_names(index: &Index, names: &[String], cuts: &[Cut]) -> Result<Vec<Wanted>> {
    let mut cuts_of: BTreeMap<usize, Vec<&Cut>> = BTreeMap::new();
    for cut in cuts {
        if cut.tensor >= names.len() {
            return Err(Error::argument(format!(
                "a slice of tensor {} of the {} names given",
                cut.tensor,
                names.len()
            )));
        }
        cuts_of.entry(cut.tensor).or_default().push(cut);
    }
    let select = |(number, name): (usize, &String)| {
        let unknown = || Error::argument(unknown(index, name));
        let source = index.find(name).ok_or_else(unknown)?;
        match cuts_of.get(&number) {
            None => Ok(whole_record(index, source)),
            Some(cuts) => sliced(index, source, cuts),
        }
    };
    names.iter().enumerate().map(select).collect()
}

/// What to say of a name that no record has.
pub(crate) fn unknown(index: &Index, name: &str) -> String {
    let meant = index.closest(name).map(|meant| format!("; did you mean {meant:?}?"));
    format!("holds no tensor named {name:?}{}", meant.unwrap_or_default())
}

/// Tells each of `views` which is the first that shows the same bytes.
fn find_same(views: &mut [Wanted]) {
    let mut order: Vec<usize> = (0..views.len()).filter(|&number| !views[number].file.is_empty()).collect();
    order.sort_by_key(|&number| views[number].file.start); // stable: of equal ones the first stays first
    let same_start = |&one: &usize, &other: &usize| views[one].file.start == views[other].file.start;
    let groups: Vec<_> = order.chunk_by(same_start).filter(|same| same.len() > 1).collect();
    for same in groups {
        let mut first = HashMap::new();
        let shown = |&number: &usize| {
            let Wanted { file, rows, .. } = &views[number];
            (*first.entry((file.clone(), rows.clone())).or_insert(number), number)
        };
        for (first, number) in same.iter().map(shown).collect::<Vec<_>>() {
            views[number].view.same_as = first;
        }
    }
}

/// Different slices of tied tensors are read one after the other, each in a layer of its own.
fn find_layers(index: &Index, views: &mut [Wanted]) {
    let mut shown: HashMap<u64, Vec<usize>> = HashMap::new();
    for wanted in views.iter_mut().filter(|wanted| !wanted.file.is_empty()) {
        let record = index.file_range(&index.records()[wanted.view.source]).start;
        let shown = shown.entry(record).or_default();
        let first = wanted.view.same_as;
        wanted.layer = shown.iter().position(|&known| known == first).unwrap_or_else(|| {
            shown.push(first);
            shown.len() - 1
        });
    }
}

fn whole_record(index: &Index, source: usize) -> Wanted {
    let record = &index.records()[source];
    let dtype = index.blocks()[record.block()].dtype();
    whole(source, record.block(), dtype, record.shape().clone(), index.file_range(record))
}

fn sliced(index: &Index, source: usize, cuts: &[&Cut]) -> Result<Wanted> {
    let record = &index.records()[source];
    let ranges = slices::apply(record.name(), record.shape(), cuts.iter().copied())?;
    let shape = ranges.iter().map(|range| range.end - range.start).collect();
    let dtype = index.blocks()[record.block()].dtype();
    let start = index.file_range(record).start;
    let rows = Rows::new(start, dtype.size(), record.shape(), &ranges);
    let file = rows.as_ref().map_or(0..0, Rows::span);
    let rows = rows.filter(|rows| !rows.is_contiguous());
    Ok(Wanted { rows, ..whole(source, record.block(), dtype, shape, file) })
}

fn select_payload(index: &Index, ranges: &[Range<u64>]) -> Result<Vec<Wanted>> {
    let mut end = 0;
    let mut select = |(source, range): (usize, &Range<u64>)| {
        if range.start < end || range.end < range.start || range.end > index.payload_bytes() {
            return Err(Error::argument(format!(
                "bytes {}..{} are out of order, or not within the payload of {} bytes",
                range.start,
                range.end,
                index.payload_bytes()
            )));
        }
        end = range.end;
        Ok(whole(source, 0, DType::Uint8, [range.end - range.start].into(), range.clone()))
    };
    ranges.iter().enumerate().map(&mut select).collect()
}

fn whole(source: usize, block: usize, dtype: DType, shape: Shape, file: Range<u64>) -> Wanted {
    let view = View { source, dtype, memory: 0, offset: 0, shape, same_as: 0 };
    Wanted { view, file, rows: None, block, layer: 0 }
}
