//! An explanation, for people.

use std::fmt;

use super::{Bound, Explanation};
use crate::text::{duration, rate, size};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> =
            self.lines().into_iter().map(|(label, text)| format!("{label:<12}{text}")).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Explanation {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("in short", self.in_short()),
            ("load", self.load()),
            ("file", format!("{}, {}{}", self.path, size(self.file_bytes), self.cached())),
            ("reads", self.way()),
        ];
        if !self.codecs.is_empty() {
            lines.push(("stored", self.storage()));
        }
        lines.extend(self.note.clone().map(|note| ("note", note)));
        if self.chunks > 0 {
            lines.push(("work", self.work()));
        }
        lines.push(("checksums", self.checksums()));
        if self.memory_bytes > 0 {
            lines.push(("memory", format!("{} for the tensors", size(self.memory_bytes))));
        }
        if let Some(each) = self.staging_bytes.checked_div(self.staging_buffers) {
            let (each, all) = (size(each as u64), size(self.staging_bytes as u64));
            lines.push(("staging", format!("{} buffers of {each}: {all}", self.staging_buffers)));
        }
        if let Some((ahead, why)) = self.read_ahead {
            lines.push(("read-ahead", format!("{}: {why}", if ahead { "yes" } else { "no" })));
        }
        lines.push(("bound", self.least()));
        lines.extend(self.bound.measured().into_iter().map(|line| ("", line)));
        lines
    }

    /// For who does not know how files are read.
    fn in_short(&self) -> String {
        let Some(limit) = self.bound.limit else {
            return if self.mapped_bytes > 0 {
                "the tensors are there at once; each part of the file is read when it is first used"
            } else {
                "there is nothing to read"
            }
            .to_owned();
        };
        let why = match limit {
            "disk" => "the disk gives the file no faster",
            "network" => "the network brings the file no faster",
            "page cache" => "the file is in memory already, and to copy it takes that long",
            "checksums" => "to check every byte takes longer than to read it",
            _ => "nothing here is faster",
        };
        let time = duration(self.bound.seconds);
        if self.mode == "map" && self.read_bytes == 0 {
            return format!("the tensors are there at once; to use all of them takes {time} or more: {why}");
        }
        format!("the load takes {time} or more: {why}")
    }

    fn load(&self) -> String {
        let what = match self.mode {
            "map" => "map the file",
            "read" => "read into memory",
            _ => "stage to the device",
        };
        format!("{} tensors of {} to {}: {what}", self.tensors, size(self.tensor_bytes), self.device)
    }

    fn storage(&self) -> String {
        let (all, stored, codecs) =
            (size(self.payload_bytes), size(self.stored_bytes), self.codecs.join(", "));
        format!("{all} in {stored}, by {codecs}: decoded as it is read, and never mapped")
    }

    fn cached(&self) -> String {
        match self.cached_part {
            _ if self.traffic.is_some() => String::new(),
            None => ", page-cache residency unknown".to_owned(),
            Some(part) => format!(", about {:.0}% of it in the page cache", part * 100.0),
        }
    }

    fn way(&self) -> String {
        let Some(traffic) = self.traffic else {
            let way = if self.direct { "past" } else { "through" };
            return format!("{way} the page cache: {}", self.why);
        };
        let mut words = vec![format!(
            "by requests to the store: {} until one is answered",
            duration(traffic.latency.as_secs_f64())
        )];
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        if let (Some(all), 1..) = (self.bound.source_rate, traffic.connections) {
            let (each, count) = (rate(all / traffic.connections as f64), traffic.connections);
            words.push(format!("{each} for each of {count} at a time"));
        }
        if traffic.retries > 0 {
            words.push(format!("{} of {} were repeated", traffic.retries, traffic.requests));
        }
        if traffic.cached_bytes > 0 {
            words.push(format!("{} came from the local copy", size(traffic.cached_bytes)));
        }
        words.join(", ")
    }

    fn work(&self) -> String {
        let grows = self.max_threads > self.threads;
        let more = if grows { format!(" to {}", self.max_threads) } else { String::new() };
        format!(
            "{} in {} chunks of up to {}, by {}{more} threads that take {} at a time",
            size(self.read_bytes),
            self.chunks,
            size(self.chunk_bytes),
            self.threads,
            size(self.task_bytes)
        )
    }

    fn checksums(&self) -> String {
        match &self.algorithm {
            None => "the file has none this library knows: nothing can be verified".to_owned(),
            Some(name) if self.verified_chunks == 0 => format!("{name}, not looked at by this load"),
            Some(name) => format!("{name}: {} of {} chunks verified", self.verified_chunks, self.chunks),
        }
    }

    fn least(&self) -> String {
        let Some(limit) = self.bound.limit else {
            let mapped = self.mapped_bytes > 0;
            return if mapped { "none: nothing is read before a tensor is touched" } else { "none" }
                .to_owned();
        };
        let touched = self.mode == "map" && self.read_bytes == 0;
        let until = if touched { "to touch every page" } else { "to load" };
        let link = if self.mode == "stage" { "; the link to the device is not measured" } else { "" };
        format!("at least {} {until}, for the {limit}{link}", duration(self.bound.seconds))
    }
}

impl Bound {
    fn measured(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(measured) = self.source_rate {
            let what = self.limit.filter(|limit| ["disk", "network"].contains(limit)).unwrap_or("reading");
            let (seconds, sample) = (duration(self.source_seconds), size(self.sample_bytes));
            lines.push(format!("{what}: {seconds} at {}, measured on {sample} of the file", rate(measured)));
        }
        if let Some(measured) = self.checksum_rate {
            let seconds = duration(self.checksum_seconds);
            lines.push(format!("checksums: {seconds} at {}, measured in memory", rate(measured)));
        }
        lines.push(format!("(a copy in memory: {})", rate(self.copy_rate)));
        lines
    }
}
