//! What the command line asks for.

use std::path::PathBuf;

pub const USAGE: &str = "usage: slowfs SOURCE MOUNT [--latency-ms N] [--request-mb-per-s N] \
[--total-mb-per-s N] [--fail-at BYTE]

Shows the folder SOURCE at MOUNT. Each read waits the latency and its bytes over the request's rate; all
together move at most the total rate. A read of the byte of this offset, in any file, fails with EIO.
Reading MOUNT/.slowfs tells the reads since it was last read, as JSON.";

/// Waits in seconds, rates in bytes a second; a rate that is absent is no limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub source: PathBuf,
    pub mount: PathBuf,
    pub latency: f64,
    pub request_rate: Option<f64>,
    pub total_rate: Option<f64>,
    pub fail_at: Option<u64>,
}

impl Options {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut paths = Vec::new();
        while let Some(word) = words.next() {
            if !word.starts_with("--") {
                paths.push(PathBuf::from(word));
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a number\n{USAGE}"))?;
            let number = positive(&word, &value)?;
            match word.as_str() {
                "--latency-ms" => options.latency = number / 1e3,
                "--request-mb-per-s" => options.request_rate = Some(number * 1e6),
                "--total-mb-per-s" => options.total_rate = Some(number * 1e6),
                "--fail-at" => options.fail_at = Some(value.parse().map_err(|_| format!("{word} {value}"))?),
                _ => return Err(format!("{word} is no option\n{USAGE}")),
            }
        }
        [options.source, options.mount] = paths.try_into().map_err(|_| USAGE.to_owned())?;
        Ok(options)
    }
}

fn positive(word: &str, value: &str) -> Result<f64, String> {
    let number = value.parse().unwrap_or(f64::NAN);
    if number > 0.0 && number < 1e18 {
        Ok(number)
    } else {
        Err(format!("{word} {value}: not a number above 0"))
    }
}
