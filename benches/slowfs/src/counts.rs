//! How much was read, and how many reads waited at the same time.

use std::sync::Mutex;

#[derive(Default)]
pub struct Counts(Mutex<State>);

#[derive(Default)]
struct State {
    requests: u64,
    bytes: u64,
    in_flight: u64,
    most_in_flight: u64,
}

impl Counts {
    pub fn begin(&self) {
        let mut state = self.0.lock().unwrap();
        state.requests += 1;
        state.in_flight += 1;
        state.most_in_flight = state.most_in_flight.max(state.in_flight);
    }

    pub fn end(&self, bytes: usize) {
        let mut state = self.0.lock().unwrap();
        state.in_flight -= 1;
        state.bytes += bytes as u64;
    }

    /// All since this was last asked, as JSON.
    pub fn take(&self) -> String {
        let mut state = self.0.lock().unwrap();
        let State { requests, bytes, in_flight, most_in_flight } = *state;
        *state = State { in_flight, most_in_flight: in_flight, ..State::default() };
        format!(r#"{{"requests": {requests}, "bytes": {bytes}, "most_in_flight": {most_in_flight}}}"#)
    }
}
