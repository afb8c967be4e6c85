//! When a read is done.

use crate::options::Options;
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub struct Pace {
    latency: Duration,
    request_rate: Option<f64>,
    total_rate: Option<f64>,
    /// When all bytes asked for so far have gone through what all requests share.
    busy_until: Mutex<Instant>,
}

impl Pace {
    pub fn new(options: &Options) -> Self {
        Self {
            latency: Duration::from_secs_f64(options.latency),
            request_rate: options.request_rate,
            total_rate: options.total_rate,
            busy_until: Mutex::new(Instant::now()),
        }
    }

    /// When a read of so many bytes that arrives now is done.
    pub fn due(&self, arrived: Instant, bytes: usize) -> Instant {
        let over = |rate: Option<f64>| {
            rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate))
        };
        let alone = arrived + over(self.request_rate);
        let mut busy_until = self.busy_until.lock().unwrap();
        *busy_until = arrived.max(*busy_until) + over(self.total_rate);
        alone.max(*busy_until) + self.latency
    }
}
