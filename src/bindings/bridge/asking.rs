//! What a load is asked for: a selection of an open model, and how to read it.

use super::{
    CxxString, CxxVector, Load, Tagged, check_counts,
    ffi::{GivenTensor, LoadOptions},
    guarded, strings,
};
use crate::{
    error::{Error, Result},
    jobs::load,
    model::{SEPARATOR, opened},
    plan::{Cut, Ignore, Place, Selection},
};

const fn choice(value: i8) -> Option<bool> {
    match value {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn wanted(options: &LoadOptions) -> load::Options {
    let place = match (options.in_place, options.on_cuda) {
        (false, false) => Place::Host,
        (false, true) => Place::Device,
        (true, false) => Place::GivenHost,
        (true, true) => Place::GivenDevice,
    };
    load::Options { eager: choice(options.eager), verify: choice(options.verify), place }
}

fn load(model: i64, selection: Selection<'_>, options: &LoadOptions) -> Result<Box<Load>> {
    let prepared = load::prepare(&*opened::find(model)?, selection, wanted(options))?;
    Ok(Box::new(Load::new(prepared)))
}

/// A load of all tensors if `names`, which [`SEPARATOR`] divides, are theirs, or with `partly` of those that have one
/// of the names; else of none.
pub(super) fn load_fitting(
    model: i64,
    names: &str,
    partly: bool,
    options: &LoadOptions,
) -> std::result::Result<Box<Load>, Tagged> {
    guarded(|| {
        let names: Vec<&str> = names.split(SEPARATOR).collect();
        let model = opened::find(model)?;
        let (prepared, fit) = load::prepare_fitting(&model, &names, partly, wanted(options))?;
        Ok(Box::new(prepared.map_or_else(Load::default, Load::new).fitting(&fit, &model.index)))
    })
}

/// `cuts` are four numbers each: of a name, of a dimension, the first index and the one after the last.
pub(super) fn load_names(
    model: i64,
    names: &CxxVector<CxxString>,
    cuts: &[i64],
    options: &LoadOptions,
) -> std::result::Result<Box<Load>, Tagged> {
    guarded(|| {
        let (quadruples, []) = cuts.as_chunks::<4>() else {
            return Err(Error::argument(
                "slices are not a list of tensor, dimension, start and stop in turn",
            ));
        };
        let cut = |&[tensor, dim, start, stop]: &[i64; 4]| {
            let place = usize::try_from(tensor).ok().zip(usize::try_from(dim).ok());
            let range = u64::try_from(start).ok().zip(u64::try_from(stop).ok());
            match (place, range) {
                (Some((tensor, dim)), Some((start, stop))) => Ok(Cut { tensor, dim, range: start..stop }),
                _ => Err(Error::argument(format!(
                    "a slice has a negative number: tensor {tensor}, dimension {dim}, {start}..{stop}"
                ))),
            }
        };
        let cuts = quadruples.iter().map(cut).collect::<Result<Vec<_>>>()?;
        load(model, Selection::Slices { names: &strings(names), cuts: &cuts }, options)
    })
}

/// For each tensor, of bytes, those from its offset on.
pub(super) fn load_payload(
    model: i64,
    offsets: &[i64],
    tensors: &[GivenTensor],
    options: &LoadOptions,
) -> std::result::Result<Box<Load>, Tagged> {
    guarded(|| {
        check_counts(offsets.len(), "offsets", tensors.len())?;
        let range = |(&offset, tensor): (&i64, &GivenTensor)| {
            let end = offset.checked_add(tensor.sizes.iter().product());
            let end = end.ok_or_else(|| Error::argument("an offset is larger than any file"))?;
            let bounds = u64::try_from(offset).ok().zip(u64::try_from(end).ok());
            let (start, end) =
                bounds.ok_or_else(|| Error::argument("a range begins or ends before the file"))?;
            Ok(start..end)
        };
        let ranges = offsets.iter().zip(tensors).map(range).collect::<Result<Vec<_>>>()?;
        load(model, Selection::Payload(&ranges), options)
    })
}

pub(super) fn load_except(
    model: i64,
    names: &CxxVector<CxxString>,
    prefixes: &CxxVector<CxxString>,
    suffixes: &CxxVector<CxxString>,
    options: &LoadOptions,
) -> std::result::Result<Box<Load>, Tagged> {
    guarded(|| {
        let (names, prefixes, suffixes) = (strings(names), strings(prefixes), strings(suffixes));
        let ignore = Ignore { names: &names, prefixes: &prefixes, suffixes: &suffixes };
        load(model, Selection::Except(&ignore), options)
    })
}

pub(super) fn load_blocks(model: i64, options: &LoadOptions) -> std::result::Result<Box<Load>, Tagged> {
    guarded(|| load(model, Selection::Blocks, options))
}
