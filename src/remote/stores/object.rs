//! An object that is read by ranges.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use http::{HeaderMap, Method, Response, StatusCode, header::CONTENT_RANGE};
use ureq::Body;

use super::{
    address::Address,
    client::Client,
    exchange::{Exchange, Fault, Meter, Scatter, changed},
    message::Ask,
    range::{Pin, content_range, length},
    stored::{self, Stored},
};
use crate::{
    error::{Error, ErrorKind, Result},
    remote::{Object, Opening, Traffic},
    sync::Unpoisoned as _,
};

/// Bytes that come with the opening: the footer or the header of most models.
const OPENING_BYTES: u64 = 64 << 10;

/// One version of an object of a store.
#[derive(Debug)]
pub(super) struct Ranged {
    client: Arc<Client>,
    address: Arc<dyn Address>,
    shown: PathBuf,
    len: u64,
    pin: Pin,
    /// Those that came with the opening, and where they begin.
    first: Mutex<Option<(u64, Arc<[u8]>)>>,
    meter: Arc<Meter>,
}

/// How a store answers when an object is opened.
enum First {
    /// With these of so many bytes.
    Range(Response<Body>, Range<u64>, u64),
    /// With all bytes, which are too many to be kept.
    Whole(Response<Body>),
}

/// Opens the object at `address`, which errors call `shown`. With it comes the name of its version, if that has one and
/// is not on this machine already.
pub(super) fn open(
    client: &Arc<Client>,
    address: &Arc<dyn Address>,
    shown: &Path,
    opening: &Opening,
) -> Result<(Arc<dyn Object>, Option<String>)> {
    let meter = Arc::new(Meter::default());
    let mut exchange = Exchange::new(client, address.as_ref(), &meter);
    let from_start = opening.begins_with_header || !address.has_suffix_ranges();
    let (start, end) = (format!("bytes=0-{}", OPENING_BYTES - 1), format!("bytes=-{OPENING_BYTES}"));
    let ask = Ask::range(if from_start { &start } else { &end });
    let (answer, range, len) = match first(&mut exchange, &ask)? {
        First::Range(answer, range, len) => (answer, range, len),
        First::Whole(answer) => {
            address.pin(answer.headers());
            let file = stored::copy(&mut exchange, answer)?;
            let stored = Stored::copied(file, Arc::clone(&meter), shown, address.pinned())?;
            return Ok((Arc::new(stored), None));
        }
    };
    let object = Ranged {
        client: Arc::clone(client),
        address: Arc::clone(address),
        shown: shown.to_owned(),
        len,
        pin: address.pin(answer.headers()),
        first: Mutex::new(None),
        meter: Arc::clone(&meter),
    };
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    object.receive(&mut exchange, Some(answer), &mut Scatter::new(&mut [&mut bytes]), range.start)?;
    *object.first.lock().unpoisoned() = Some((range.start, bytes.into()));
    let version = object.pin.version.clone();
    Ok((Arc::new(object), version))
}

/// The first answer to `ask`, or to a question for the length if the object has no such range.
fn first(exchange: &mut Exchange<'_>, ask: &Ask<'_>) -> Result<First> {
    let answer = exchange.answer(ask)?;
    let headers = answer.headers();
    if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        let answer = exchange.answer(&Ask::new(Method::HEAD))?;
        let len = length(answer.headers()).ok_or_else(no_length)?;
        return Ok(First::Range(answer, 0..0, len));
    }
    if is_partial(&answer) {
        let (range, len) = content_range(headers).ok_or_else(|| wrong_range(headers))?;
        let is_kept = range.end - range.start <= OPENING_BYTES; // or it is not what was asked for
        let range = if is_kept { range } else { range.start..range.start };
        return Ok(First::Range(answer, range, len));
    }
    Ok(match length(headers).filter(|len| *len <= OPENING_BYTES) {
        Some(len) => First::Range(answer, 0..len, len),
        None => First::Whole(answer),
    })
}

impl Ranged {
    /// Fills `target` from `offset`, at first by `answer` if there is one already.
    fn receive(
        &self,
        exchange: &mut Exchange<'_>,
        mut answer: Option<Response<Body>>,
        target: &mut Scatter<'_, '_>,
        offset: u64,
    ) -> Result<()> {
        let end = offset + target.left() as u64;
        while target.left() > 0 {
            let offset = end - target.left() as u64;
            let mut current = match answer.take() {
                Some(answer) => answer,
                None => exchange.answer(&self.ask(offset..end))?,
            };
            let fault = match self.check(&current, offset)? {
                Some(bytes) => {
                    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                    exchange.fill(current.body_mut(), target, bytes)
                }
                None => Some(Fault::Cut("it sent the whole object for a range of it".to_owned())),
            };
            if let Some(fault) = fault {
                exchange.failed(fault)?;
            }
        }
        Ok(())
    }

    fn ask(&self, range: Range<u64>) -> Ask<'static> {
        let mut ask = Ask::range(&format!("bytes={}-{}", range.start, range.end - 1));
        ask.headers.extend(self.pin.conditions.iter().cloned());
        ask.query.clone_from(&self.pin.query);
        ask
    }

    /// How many bytes from `offset` on an answer brings; none if the server has ignored the range this time.
    ///
    /// # Errors
    /// They are of another version, or of another range.
    fn check(&self, answer: &Response<Body>, offset: u64) -> Result<Option<u64>> {
        let headers = answer.headers();
        if self.pin.is_other(headers) || answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(changed());
        }
        if !is_partial(answer) {
            let is_whole = offset == 0 && length(headers) == Some(self.len);
            return Ok(is_whole.then_some(self.len));
        }
        let (range, len) = content_range(headers).ok_or_else(|| wrong_range(headers))?;
        match (range.start == offset, len == self.len) {
            (_, false) => Err(changed()),
            (false, _) => Err(wrong_range(headers)),
            _ => Ok(Some(range.end - range.start)),
        }
    }

    /// Fills with what came with the opening, if that is the beginning or the end of the `target` at `offset`. Where
    /// that begins now.
    fn remembered(&self, target: &mut Scatter<'_, '_>, offset: u64) -> u64 {
        let held = self.first.lock().unpoisoned().clone();
        let Some((start, bytes)) = held else { return offset };
        let end = offset + target.left() as u64;
        let (from, to) = (offset.max(start), end.min(start + bytes.len() as u64));
        let at = |position: u64| usize::try_from(position - start).unwrap_or(usize::MAX);
        if from >= to || (from > offset && to < end) {
            return offset;
        }
        if from == offset {
            target.put(&bytes[at(from)..at(to)]);
            return to;
        }
        target.put_last(&bytes[at(from)..at(to)]);
        offset
    }
}

impl Object for Ranged {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        let mut target = Scatter::new(buffers);
        let end = offset.saturating_add(target.left() as u64);
        if end > self.len {
            let what = format!("has {} bytes, and bytes up to {end} were asked for", self.len);
            return Err(Error::new(ErrorKind::Io, what).at(&self.shown));
        }
        let offset = self.remembered(&mut target, offset);
        if target.left() == 0 {
            return Ok(());
        }
        let mut exchange = Exchange::new(&self.client, self.address.as_ref(), &self.meter);
        let read = self.receive(&mut exchange, None, &mut target, offset);
        read.map_err(|error| error.at(&self.shown).from_byte(offset))
    }

    fn distrust(&self, offset: u64, bytes: u64) {
        let mut first = self.first.lock().unpoisoned();
        let is_there = first.as_ref().is_some_and(|(start, held)| {
            offset < start + held.len() as u64 && *start < offset.saturating_add(bytes)
        });
        if is_there {
            *first = None;
        }
    }

    fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    fn pinned(&self) -> Option<String> {
        self.address.pinned()
    }
}

/// Whether it brings a part of the object: some servers (rclone's) say 200 even so.
fn is_partial(answer: &Response<Body>) -> bool {
    answer.status() == StatusCode::PARTIAL_CONTENT || answer.headers().contains_key(CONTENT_RANGE)
}

fn no_length() -> Error {
    Error::new(ErrorKind::Io, "its server does not say how long it is")
}

fn wrong_range(headers: &HeaderMap) -> Error {
    let said = headers.get("content-range").and_then(|value| value.to_str().ok()).unwrap_or("none");
    Error::new(
        ErrorKind::Io,
        format!("its server sent another range than was asked for (Content-Range: {said})"),
    )
}
