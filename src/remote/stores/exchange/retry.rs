//! When a request is made again.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant, SystemTime},
};

use reqsign_core::time::Timestamp;

use crate::remote::stores::agents::Patience;

/// Tries for what is unlikely to pass: a name that is unknown, a certificate that is not trusted, a closed port.
const FEW_TRIES: u32 = 3;

/// The tries of one read.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    patience: &'a Patience,
    /// In a row that brought no byte.
    in_vain: u32,
    /// Since the first of those.
    since: Instant,
    /// Of an object that nobody has answered for yet.
    is_new: bool,
}

impl<'a> Tries<'a> {
    pub(super) fn new(patience: &'a Patience, is_new: bool) -> Self {
        Self { patience, in_vain: 0, since: Instant::now(), is_new }
    }

    /// Bytes came.
    pub(super) fn progressed(&mut self) {
        *self = Self::new(self.patience, false);
    }

    /// How many failed in a row, and over what time.
    pub(super) fn made(&self) -> (u32, Duration) {
        (self.in_vain, self.since.elapsed())
    }

    /// Counts one more that failed. How long to wait before the next; none if there is none. `is_unlikely` to pass are
    /// some failures until something was answered, and a server may say how long to wait `at_least`.
    pub(super) fn failed(&mut self, is_unlikely: bool, at_least: Option<Duration>) -> Option<Duration> {
        self.in_vain += 1;
        let most =
            if is_unlikely && self.is_new { FEW_TRIES.min(self.patience.tries) } else { self.patience.tries };
        let wait = backoff(self.patience, self.in_vain, random()).max(at_least.unwrap_or_default());
        (self.in_vain < most && self.since.elapsed().saturating_add(wait) < self.patience.in_all)
            .then_some(wait)
    }
}

/// Before the try after `failed` ones: twice as long each time, of which `random` (0 to 1) takes up to a half away.
fn backoff(patience: &Patience, failed: u32, random: f64) -> Duration {
    let doubled = patience.first_wait.saturating_mul(1 << (failed - 1).min(20));
    doubled.min(patience.longest_wait).mul_f64(1.0 - random / 2.0)
}

/// From 0 to 1, by the keys that the standard library draws for its tables.
fn random() -> f64 {
    f64::from(u16::try_from(RandomState::new().hash_one(0) >> 48).unwrap_or(0)) / f64::from(u16::MAX)
}

/// What a `Retry-After` header says: seconds, or a date.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = Timestamp::parse_rfc2822(value).ok()?.as_system_time();
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_with_jitter() {
        let patience = Patience::default();
        let waits = |random| [1, 2, 3, 8, 40].map(|failed| backoff(&patience, failed, random).as_millis());
        assert_eq!(waits(0.0), [100, 200, 400, 10_000, 10_000]);
        assert_eq!(waits(1.0), [50, 100, 200, 5_000, 5_000]);
        let drawn: Vec<_> = (0..64).map(|_| random()).collect();
        assert!(drawn.iter().all(|it| (0.0..=1.0).contains(it)));
        assert!(drawn.iter().any(|it| *it < 0.5) && drawn.iter().any(|it| *it > 0.5));
    }

    #[test]
    fn tries_end_by_number_and_by_time() {
        let patience = Patience { first_wait: Duration::ZERO, ..Patience::default() };
        let tries = |is_unlikely, tries: &mut Tries<'_>| {
            1 + (0..20).take_while(|_| tries.failed(is_unlikely, None).is_some()).count()
        };
        assert_eq!(tries(false, &mut Tries::new(&patience, true)), 8);
        assert_eq!(tries(true, &mut Tries::new(&patience, true)), 3);
        let mut answered = Tries::new(&patience, true);
        answered.failed(false, None);
        answered.progressed();
        assert_eq!(tries(true, &mut answered), 8);
        let long = Some(Duration::from_secs(119));
        assert_eq!(Tries::new(&patience, true).failed(false, long), long);
        assert_eq!(Tries::new(&patience, true).failed(false, Some(Duration::from_secs(121))), None);
        let since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        let mut later = Tries { since, ..Tries::new(&patience, true) };
        assert_eq!(later.failed(false, retry_after(&u64::MAX.to_string(), SystemTime::now())), None);
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }
}
