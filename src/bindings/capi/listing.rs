//! What a model holds, as a list.

use std::{cmp::Ordering, collections::BTreeMap, path::Path};

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
    tensors: Vec<Listed<'a>>,
    metadata: &'a BTreeMap<String, String>,
    /// The algorithms of the files' digests, if any has some.
    checksums: Option<String>,
}

/// Name, dtype, shape, bytes, number of the file, and the first byte in it.
type Listed<'a> = (&'a str, &'static str, &'a [u64], u64, usize, u64);

/// The tensors of the model at `path`, by their names in natural order, as JSON.
pub(super) fn tensors(path: &Path) -> Result<String> {
    let model = Model::open(path)?;
    let index = &model.index;
    let listed = |record| {
        let range = index.file_range(record);
        let file = index.parts().partition_point(|part| part.range().start <= range.start).max(1) - 1;
        let (dtype, start) =
            (index.blocks()[record.block()].dtype().name(), index.parts()[file].range().start);
        (record.name(), dtype, &record.shape()[..], range.end - range.start, file, range.start - start)
    };
    let mut tensors: Vec<Listed<'_>> = index.records().iter().map(listed).collect();
    tensors.sort_unstable_by(|one, other| in_natural_order(one.0, other.0));
    let file = |((file, _), part): ((&Input, _), &Part)| {
        (file.path().display().to_string(), file.len(), part.encoding().is_some())
    };
    let listing = Listing {
        files: model.files.iter().zip(index.parts()).map(file).collect(),
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
