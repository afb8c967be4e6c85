//! Waiting that ends when whoever watches the work cancels it.

use std::{io, thread, time::Duration};

use ureq::{
    Error as Failure,
    unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport},
};

use crate::{
    error::Result,
    progress::{self, LOOK},
};

/// Waits for so long.
///
/// # Errors
/// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
pub(super) fn sleep(mut time: Duration) -> Result<()> {
    while !time.is_zero() {
        progress::check()?;
        let step = time.min(LOOK);
        thread::sleep(step);
        time -= step;
    }
    progress::check()
}

/// Makes connections [`Watched`].
#[derive(Debug)]
pub(super) struct Watching;

impl<T: Transport> Connector<T> for Watching {
    type Out = Watched<T>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        made: Option<T>,
    ) -> std::result::Result<Option<Watched<T>>, Failure> {
        Ok(made.map(Watched))
    }
}

/// A connection that does not wait for a server once the work is cancelled.
#[derive(Debug)]
pub(super) struct Watched<T>(T);

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> std::result::Result<(), Failure> {
        check()?;
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, Failure> {
        let timeout = timeout.for_read();
        let mut left = *timeout.after;
        loop {
            check()?;
            let (step, mut now) = (left.min(LOOK), timeout);
            now.after = step.into();
            match self.0.await_input(now) {
                Err(Failure::Timeout(_)) if step < left => left -= step,
                came => return came,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

fn check() -> std::result::Result<(), Failure> {
    progress::check().map_err(|error| Failure::Io(io::Error::other(error)))
}
