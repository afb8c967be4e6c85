//! What a model holds, as a list.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde::Serialize;

use crate::{
    error::{Error, ErrorKind, Result},
    format::Part,
    io::{Input, Source as _},
    model::Model,
};

#[derive(Serialize)]
struct Listing<'a> {
    /// Each file as errors call it, its length in bytes, and whether it is compressed: tensors have no place in it then.
    files: Vec<(String, u64, bool)>,
    /// What tensors have in common; of many tensors few differ.
    kinds: Vec<Kind<'a>>,
    tensors: Columns<'a>,
    metadata: &'a BTreeMap<String, String>,
    /// The algorithms of the files' digests, if any has some.
    checksums: Option<String>,
}

/// Dtype, shape, bytes.
type Kind<'a> = (&'static str, &'a [u64], u64);

/// The tensors by columns, which are decoded faster: names, kinds, numbers of files, and first bytes in them.
type Columns<'a> = (Vec<&'a str>, Vec<usize>, Vec<usize>, Vec<u64>);

/// The tensors of the model at `path`, by their names in natural order, as JSON.
pub(super) fn tensors(path: &Path) -> Result<String> {
    let model = Model::open(path)?;
    let index = &model.index;
    let mut numbers = HashMap::new();
    let mut kinds = Vec::new();
    let mut number = |kind| {
        *numbers.entry(kind).or_insert_with(|| {
            kinds.push(kind);
            kinds.len() - 1
        })
    };
    let mut records: Vec<_> = index.records().iter().collect();
    records.sort_unstable_by(|one, other| in_natural_order(one.name(), other.name()));
    let listed = records.into_iter().map(|record| {
        let range = index.file_range(record);
        let file = index.parts().partition_point(|part| part.range().start <= range.start).max(1) - 1;
        let dtype = index.blocks()[record.block()].dtype().name();
        let kind = number((dtype, &record.shape()[..], range.end - range.start));
        (record.name(), kind, file, range.start - index.parts()[file].range().start)
    });
    let tensors = listed.collect();
    let file = |((file, _), part): ((&Input, _), &Part)| {
        (file.path().display().to_string(), file.len(), part.encoding().is_some())
    };
    let listing = Listing {
        files: model.files.iter().zip(index.parts()).map(file).collect(),
        kinds,
        tensors,
        metadata: index.metadata(),
        checksums: index.algorithms(),
    };
    serde_json::to_string(&listing).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

/// Digits count as the numbers that they are: `layers.2` stands before `layers.10`.
fn in_natural_order(one: &str, other: &str) -> Ordering {
    let (mut first, mut second) = (one.as_bytes(), other.as_bytes());
    loop {
        let pairs = first.iter().zip(second);
        let same = pairs.take_while(|(one, other)| one == other && !one.is_ascii_digit()).count();
        (first, second) = (&first[same..], &second[same..]);
        let numbers = [digits(first), digits(second)];
        if numbers.iter().any(|digits| digits.is_empty()) {
            return first.cmp(second).then_with(|| one.cmp(other));
        }
        let [number, other_number] = numbers.map(without_zeros);
        let order = number.len().cmp(&other_number.len()).then_with(|| number.cmp(other_number));
        if order.is_ne() {
            return order;
        }
        (first, second) = (&first[numbers[0].len()..], &second[numbers[1].len()..]);
    }
}

/// The digits that `text` begins with.
fn digits(text: &[u8]) -> &[u8] {
    &text[..text.iter().take_while(|byte| byte.is_ascii_digit()).count()]
}

fn without_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|&&digit| digit == b'0').count()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count() {
        let mut names =
            ["b.1", "a.10.w", "a.2.w", "a.02.w", "a", "a.2", "a.x", "a.123456789012345678901", "2"];
        names.sort_unstable_by(|one, other| in_natural_order(one, other));
        let sorted = ["2", "a", "a.2", "a.02.w", "a.2.w", "a.10.w", "a.123456789012345678901", "a.x", "b.1"];
        assert_eq!(names, sorted);
    }
}
