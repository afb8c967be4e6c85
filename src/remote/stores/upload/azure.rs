//! Azure's block blobs.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use http::{HeaderName, Method};
use reqsign_core::hash::base64_encode;

use super::Parts;
use crate::{
    error::Result,
    remote::stores::{
        address::{Address, encoded_whole},
        client::Client,
        exchange::{Exchange, Meter},
        message::Ask,
    },
};

#[derive(Debug)]
pub(super) struct Azure {
    client: Arc<Client>,
    address: Arc<dyn Address>,
    /// Begins the names of blocks: those of two uploads to one blob are not mixed up.
    own: u64,
    meter: Meter,
}

impl Azure {
    pub(super) fn new(client: Arc<Client>, address: Arc<dyn Address>) -> Self {
        Self { client, address, own: RandomState::new().hash_one(0), meter: Meter::default() }
    }

    fn put(&self, ask: &Ask<'_>) -> Result<()> {
        Exchange::new(&self.client, &*self.address, &self.meter).text(ask).map(drop)
    }
}

impl Parts for Azure {
    fn whole(&self, bytes: &[u8]) -> Result<()> {
        let kind = HeaderName::from_static("x-ms-blob-type");
        self.put(&Ask::new(Method::PUT).with(kind, "BlockBlob").sending(bytes))
    }

    fn begin(&self) -> Result<()> {
        Ok(())
    }

    fn send(&self, number: usize, _: u64, bytes: &[u8]) -> Result<String> {
        let name = base64_encode(format!("{:016x}-{number:05}", self.own).as_bytes());
        self.put(
            &Ask::query(Method::PUT, format!("comp=block&blockid={}", encoded_whole(&name))).sending(bytes),
        )?;
        Ok(name)
    }

    fn finish(&self, mut sent: Vec<String>, offset: u64, last: &[u8]) -> Result<()> {
        if !last.is_empty() {
            sent.push(self.send(sent.len(), offset, last)?);
        }
        let names: String = sent.iter().flat_map(|name| ["<Latest>", name, "</Latest>"]).collect();
        let body = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{names}</BlockList>");
        self.put(&Ask::query(Method::PUT, "comp=blocklist").sending(body.as_bytes()))
    }

    fn abandon(&self) {
        // Blocks that no blob has go by themselves after a week.
    }
}
