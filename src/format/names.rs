//! Names: found among those of an index's records, and matched with them.

use super::checksum::xxh3;
use crate::error::Error;

/// How some names and those of an index's records fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// The number of each record whose name is among the names, and its place there, in the order of the file.
    pub pairs: Vec<(usize, usize)>,
    /// The numbers of the other records.
    pub unnamed: Vec<usize>,
    /// The places of the other names; of a name that is there twice, the second.
    pub unknown: Vec<usize>,
}

/// Longer names are compared with no others: each pair takes as long as the product of their lengths.
const MAX_COMPARED: usize = 200;

/// The one of `known` that `name` differs least from, if that is by no more than one letter of five.
pub(super) fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = if name.len() <= MAX_COMPARED { name.len() / 5 } else { return None };
    let near = known.filter(|other| other.len().abs_diff(name.len()) <= most);
    let found =
        near.map(|other| (edits(name.as_bytes(), other.as_bytes()), other)).min_by_key(|&(edits, _)| edits);
    found.filter(|&(edits, _)| edits <= most).map(|(_, other)| other)
}

/// How many letters have to be exchanged, added or taken away to make one of the two of the other.
fn edits(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (number, letter) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], number + 1);
        for (column, other) in other.iter().enumerate() {
            let exchanged = diagonal + usize::from(letter != other);
            diagonal = row[column + 1];
            row[column + 1] = exchanged.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// The numbers of named things in the order of their names' digests, then of the names: integers sort and are searched
/// several times faster than strings, and names made to have equal digests cost no more than the strings would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameOrder(Box<[(u64, usize)]>);

impl NameOrder {
    /// Orders what has the names `named`, or finds two, the earlier first, with the same name.
    pub(super) fn new(named: &[impl AsRef<str>]) -> Result<Self, (usize, usize)> {
        let order = ordered(named.len(), |number| named[number].as_ref());
        let same = |(one, other): &(&(u64, usize), &(u64, usize))| {
            one.0 == other.0 && named[one.1].as_ref() == named[other.1].as_ref()
        };
        match order.iter().zip(order.iter().skip(1)).find(same) {
            Some((one, other)) => Err((one.1, other.1)),
            None => Ok(Self(order)),
        }
    }

    /// How `names` fit those of `named`: both lists of names are in one order, so one walk finds what they have in common.
    pub(super) fn fit(&self, names: &[&str], named: &[impl AsRef<str>]) -> Fit {
        let mut places = vec![None; named.len()];
        let mut unknown = Vec::new();
        let mut own = self.0.iter().peekable();
        for &(digest, place) in &ordered(names.len(), |place| names[place]) {
            let order = |&&(other, number): &&(u64, usize)| {
                other.cmp(&digest).then_with(|| named[number].as_ref().cmp(names[place]))
            };
            while own.next_if(|record| order(record).is_lt()).is_some() {}
            match own.next_if(|record| order(record).is_eq()) {
                Some(&(_, number)) => places[number] = Some(place),
                None => unknown.push(place),
            }
        }
        unknown.sort_unstable();
        let unnamed = (0..named.len()).filter(|&number| places[number].is_none()).collect();
        let pairs = places.into_iter().enumerate().filter_map(|(number, place)| Some((number, place?)));
        Fit { pairs: pairs.collect(), unnamed, unknown }
    }

    pub(super) fn find(&self, name: &str, named: &[impl AsRef<str>]) -> Option<usize> {
        let wanted = xxh3(name.as_bytes());
        let found = self.0.binary_search_by(|&(digest, number)| {
            digest.cmp(&wanted).then_with(|| named[number].as_ref().cmp(name))
        });
        found.ok().map(|position| self.0[position].1)
    }
}

/// The numbers up to `count` in the order of the digests of their names, then of the names, then their own.
fn ordered<'a>(count: usize, name: impl Fn(usize) -> &'a str) -> Box<[(u64, usize)]> {
    let mut order: Box<[_]> = (0..count).map(|number| (xxh3(name(number).as_bytes()), number)).collect();
    order.sort_unstable_by(|one, other| {
        let by_name = || name(one.1).cmp(name(other.1));
        one.0.cmp(&other.0).then_with(by_name).then(one.1.cmp(&other.1))
    });
    order
}

/// The error of two records with the same `name`.
pub(super) fn duplicate(name: &str, one: usize, other: usize) -> Error {
    Error::format(format!("duplicate name {name:?}: records {one} and {other} of the index both have it"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::format::{
        DType, Index,
        checksum::{Algorithm, Digest},
        layout::{Layout, Order, TensorSpec},
    };

    fn index(names: &[&str]) -> Index {
        let spec = |name: &&str| TensorSpec {
            name: (*name).to_owned(),
            dtype: DType::Uint8,
            shape: vec![1],
            tied_to: None,
        };
        let specs: Vec<_> = names.iter().map(spec).collect();
        Layout::new(&specs, Order::Given, 0, BTreeMap::new())
            .unwrap()
            .into_index(Algorithm::Xxh3, vec![Digest::Xxh3(0)])
    }

    #[test]
    fn misspellings_are_told_from_other_names() {
        let index = index(&["encoder.bias", "encoder.weight", "head.weight", "x"]);
        for (name, meant) in [
            ("encoder-weight", Some("encoder.weight")),
            ("encoder_bias", Some("encoder.bias")),
            ("encoder.bia", Some("encoder.bias")),
            ("decoder.layer.1", None),
            ("y", None),
            ("", None),
        ] {
            assert_eq!(index.closest(name), meant, "{name}");
        }
        assert_eq!(index.closest(&"x".repeat(1 << 20)), None);
    }

    #[test]
    fn names_in_any_order_find_their_records() {
        let names: Vec<String> = (0..300).map(|number| format!("layers.{number}.weight")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let index = index(&names);
        for step in [1, 7, 299] {
            let given: Vec<&str> = (0..300).map(|place| names[place * step % 300]).collect();
            let fit = index.fit(&given);
            let found: Vec<_> = fit.pairs.iter().map(|&(number, place)| (number, given[place])).collect();
            assert_eq!(found, names.iter().copied().enumerate().collect::<Vec<_>>());
            assert_eq!((fit.unnamed, fit.unknown), (vec![], vec![]));
        }
        let mut given = names.clone();
        let mut misfits = |place: usize, name| {
            given[place] = name;
            let fit = index.fit(&given);
            assert!(fit.pairs.iter().all(|&(number, place)| names[number] == given[place]));
            assert_eq!(fit.pairs.len() + fit.unknown.len(), given.len());
            assert_eq!(fit.pairs.len() + fit.unnamed.len(), names.len());
            (fit.unnamed, fit.unknown)
        };
        assert_eq!(misfits(5, "another"), (vec![5], vec![5]));
        let (unnamed, unknown) = misfits(5, names[6]);
        assert_eq!((unnamed, unknown.len()), (vec![5], 1), "one name twice");
        assert_eq!(index.fit(&names[1..]).unnamed, [0]);
        assert_eq!(index.fit(&[&names[..], &["another"]].concat()).unknown, [300]);
        assert_eq!(index.fit(&[]).unnamed.len(), 300);
    }
}
