//! A request and its answer, over as many tries as it takes.

mod fault;
mod meter;
mod retry;
mod scatter;

use std::{
    io::Read as _,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Request, Response, StatusCode};
use ureq::Body;

use self::retry::Tries;
pub(super) use self::{
    fault::{Fault, changed, refused},
    meter::Meter,
    scatter::Scatter,
};
use super::{
    address::Address,
    agents::Patience,
    client::Client,
    message::{Ask, Refusal},
    watched,
};
use crate::{error::Result, progress};

/// A server that sends less than this within the time that it may be silent is taken for silent: 8 MiB may take a quarter of
/// an hour.
const LEAST_BYTES: usize = 256 << 10;
/// Answers in a row that lead elsewhere.
const MOST_REDIRECTS: u32 = 10;

/// Longest answer that is read at once: a thousand names are a tenth of it at the most.
const MOST_TEXT_BYTES: u64 = 64 << 20;

/// What one thread asks of one object: one request at a time.
pub(super) struct Exchange<'a> {
    client: &'a Client,
    address: &'a dyn Address,
    meter: &'a Meter,
    tries: Tries<'a>,
    redirects: u32,
    /// Whether a refusal has led to other credentials, or to another address.
    is_renewed: bool,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(client: &'a Client, address: &'a dyn Address, meter: &'a Meter) -> Self {
        meter.begin();
        Self {
            client,
            address,
            meter,
            tries: Tries::new(&client.patience, !meter.is_answered()),
            redirects: 0,
            is_renewed: false,
        }
    }

    /// The answer to `ask`: a success, or what it says to be an answer.
    ///
    /// # Errors
    /// The server refuses, or all tries failed.
    pub(super) fn answer(&mut self, ask: &Ask<'_>) -> Result<Response<Body>> {
        loop {
            let request = self.address.signed(ask)?;
            let uri = request.uri().clone();
            match self.send(request, ask.body) {
                Err(fault) => self.failed(fault)?,
                Ok(answer) if answer.status().is_success() || ask.also == Some(answer.status()) => {
                    return Ok(answer);
                }
                Ok(answer) => self.refused(Refusal::read(uri, ask, answer))?,
            }
        }
    }

    /// The whole answer to `ask`, of which no more than 64 MiB are read.
    ///
    /// # Errors
    /// As [`Exchange::answer`].
    pub(super) fn text(&mut self, ask: &Ask<'_>) -> Result<(HeaderMap, String)> {
        self.whole(ask).map(|(_, headers, text)| (headers, text))
    }

    /// Status and headers of the answer to `ask`.
    ///
    /// # Errors
    /// As [`Exchange::answer`].
    pub(super) fn status(&mut self, ask: &Ask<'_>) -> Result<(StatusCode, HeaderMap)> {
        self.whole(ask).map(|(status, headers, _)| (status, headers))
    }

    fn whole(&mut self, ask: &Ask<'_>) -> Result<(StatusCode, HeaderMap, String)> {
        loop {
            let (parts, mut body) = self.answer(ask)?.into_parts();
            let mut text = Vec::new();
            match body.as_reader().take(MOST_TEXT_BYTES).read_to_end(&mut text) {
                Ok(_) => {
                    return Ok((parts.status, parts.headers, String::from_utf8_lossy(&text).into_owned()));
                }
                Err(error) => self.failed(error.into())?,
            }
        }
    }

    fn send(&self, request: Request<()>, body: &[u8]) -> std::result::Result<Response<Body>, Fault> {
        let begun = Instant::now();
        let agent = self.client.process().agents.agent(request.uri())?;
        self.meter.sent(self.has_failed());
        let takes_body = matches!(*request.method(), Method::PUT | Method::POST);
        let answer = if takes_body { agent.run(request.map(|()| body)) } else { agent.run(request) }?;
        self.meter.answered(begun.elapsed());
        Ok(answer)
    }

    /// Lets the address learn from `refusal`, or waits if it may pass by itself.
    fn refused(&mut self, refusal: Refusal) -> Result<()> {
        let is_redirect = refusal.status.is_redirection();
        let may_learn = if is_redirect { self.redirects < MOST_REDIRECTS } else { !self.is_renewed };
        if may_learn && self.address.learn(&refusal)? {
            self.redirects += u32::from(is_redirect);
            self.is_renewed |= !is_redirect;
            return Ok(());
        }
        if fault::may_pass(refusal.status) {
            return self.failed(Fault::Busy(Box::new(refusal)));
        }
        Err(refused(&refusal, self.address.advice(&refusal).as_deref()))
    }

    /// Whether a try has failed since the last bytes of an object came: the server may have carried it out.
    pub(super) fn has_failed(&self) -> bool {
        self.tries.made().0 > 0
    }

    /// Waits until it is time for another try.
    ///
    /// # Errors
    /// There is to be none: what `fault` was, or that the work is cancelled.
    pub(super) fn failed(&mut self, fault: Fault) -> Result<()> {
        progress::check()?;
        if let Some(wait) = self.tries.failed(fault.is_unlikely_to_pass(), fault.wait()) {
            return watched::sleep(wait);
        }
        let (tries, over) = self.tries.made();
        Err(fault.into_error(tries, over))
    }

    /// Fills `target` with the next `bytes` of the body. What ended it before, if anything did.
    pub(super) fn fill(
        &mut self,
        body: &mut Body,
        target: &mut Scatter<'_, '_>,
        bytes: usize,
    ) -> Option<Fault> {
        let (mut reader, before) = (body.as_reader(), target.left());
        let mut missing = bytes.min(before);
        let mut pace = Pace::new(&self.client.patience);
        let fault = loop {
            if missing == 0 {
                // The connection is free for another request when the end is seen.
                let _ = reader.read(&mut [0]);
                break None;
            }
            match reader.read(target.next(missing)) {
                Ok(0) => break Some(Fault::Cut(format!("{missing} bytes are missing"))),
                Ok(bytes) => {
                    target.advance(bytes);
                    missing -= bytes;
                    if missing > 0 && pace.is_too_slow(bytes) {
                        break Some(Fault::Stalled);
                    }
                }
                Err(error) => break Some(error.into()),
            }
        };
        let came = before - target.left();
        self.fetched(came);
        let is_stalled = matches!(fault, Some(Fault::Stalled));
        if came >= LEAST_BYTES || (came > 0 && !is_stalled) {
            self.tries.progressed();
            (self.redirects, self.is_renewed) = (0, false);
        }
        fault
    }

    /// Counts bytes that came.
    pub(super) fn fetched(&self, bytes: usize) {
        self.meter.fetched(bytes);
    }
}

/// How fast a body comes.
struct Pace {
    stall: Duration,
    since: Instant,
    bytes: usize,
}

impl Pace {
    fn new(patience: &Patience) -> Self {
        Self { stall: patience.stall, since: Instant::now(), bytes: 0 }
    }

    /// Counts bytes that came; whether there were too few in the time that a server may be silent.
    fn is_too_slow(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let is_over = self.since.elapsed() >= self.stall;
        let is_slow = is_over && self.bytes < LEAST_BYTES;
        if is_over {
            (self.since, self.bytes) = (Instant::now(), 0);
        }
        is_slow
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.meter.end();
    }
}
