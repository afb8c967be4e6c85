//! The stores against a server on loopback: what they ask, what they make of every answer, and what errors say.
#![cfg(feature = "remote")]

mod azure;
mod cache;
mod faults;
mod google;
mod hub;
mod lists;
mod opening;
mod s3;
mod server;
mod uploads;
mod web;

use std::{sync::Arc, time::Duration};

use flashpack::{
    Result,
    remote::{
        Object, Opening, Stores as _,
        stores::{AllStores, Patience, Settings},
    },
};

/// More than comes with an opening.
const BYTES: usize = 200_000;

fn object() -> Vec<u8> {
    (0..BYTES).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
}

/// Tries that follow at once, and wait no longer than a busy machine may need.
fn hasty() -> Patience {
    Patience {
        stall: Duration::from_secs(2),
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(2),
        ..Patience::default()
    }
}

fn stores(settings: &[(&str, &str)]) -> AllStores {
    let nowhere = [("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")];
    let nowhere = nowhere.into_iter().chain([("AWS_EC2_METADATA_DISABLED", "true")]);
    AllStores::new(hasty(), nowhere.chain(settings.iter().copied()).collect::<Settings>())
}

fn open(url: &str) -> Result<Arc<dyn Object>> {
    stores(&[]).open(url, &Opening::default())
}

fn read(object: &Arc<dyn Object>, offset: usize, bytes: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    object.read_exact_at(&mut [&mut buffer], offset as u64)?;
    Ok(buffer)
}
