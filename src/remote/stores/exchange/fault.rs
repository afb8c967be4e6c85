//! How requests fail, and the words for it.

use std::{
    fmt, io,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use ureq::{Error as Failure, Timeout};

use super::retry::retry_after;
use crate::{
    error::{Error, ErrorKind},
    remote::stores::message::Refusal,
};

/// What may pass when the request is made again.
#[derive(Debug)]
pub(in crate::remote::stores) enum Fault {
    /// The host has no address.
    Name,
    /// What is set as the proxy is none.
    Proxy,
    /// No connection stands.
    Connection(String),
    /// The other side is not who it should be, or speaks no TLS.
    Tls(String),
    /// The connection ended, or what came over it is no HTTP.
    Cut(String),
    /// No byte for that long.
    Stalled,
    /// The server says that it cannot just now.
    Busy(Box<Refusal>),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::HostNotFound => Self::Name,
            Failure::InvalidProxyUrl => Self::Proxy,
            Failure::Timeout(Timeout::Connect) => Self::Connection("it does not answer".into()),
            Failure::Timeout(_) => Self::Stalled,
            Failure::Tls(what) => Self::Tls(what.into()),
            Failure::Rustls(error) => Self::Tls(error.to_string()),
            Failure::Other(error) => Self::Tls(error.to_string()),
            Failure::ConnectionFailed => Self::Connection("connection failed".into()),
            Failure::ConnectProxyFailed(why) => Self::Connection(format!("its proxy refuses: {why}")),
            Failure::BadUri(_) => Self::Cut("its address is no URL".into()), // and may have secrets
            Failure::Io(error) => error.into(),
            other => Self::Cut(other.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        let text = error.to_string();
        match error.kind() {
            _ if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Failure>) => {
                Failure::from(error).into()
            }
            // What the standard library says of getaddrinfo, which has no kind.
            _ if text.starts_with("failed to lookup address") => Self::Name,
            io::ErrorKind::InvalidData => Self::Tls(text),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Stalled,
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable => Self::Connection(text),
            _ => Self::Cut(text),
        }
    }
}

impl Fault {
    /// Whether another try is unlikely to help.
    pub(super) fn is_unlikely_to_pass(&self) -> bool {
        matches!(self, Self::Name | Self::Proxy | Self::Tls(_) | Self::Connection(_))
    }

    /// How long the server asks to wait.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self {
            Self::Busy(refusal) => retry_after(refusal.header("retry-after")?, SystemTime::now()),
            _ => None,
        }
    }

    /// What to do about it.
    fn advice(&self) -> &'static str {
        match self {
            Self::Name => "check the address, and that this machine resolves names",
            Self::Proxy => {
                "set https_proxy, http_proxy or all_proxy to a URL such as http://host:8080, or unset it"
            }
            Self::Connection(_) => "check the address, the endpoint and the proxy",
            Self::Tls(_) => "set SSL_CERT_FILE to the certificates of its authority, or check the endpoint",
            Self::Cut(_) | Self::Stalled => "check the network, and try again",
            Self::Busy(_) => "try again later, with fewer reads at a time (FLASHPACK_READ_THREADS)",
        }
    }

    /// The error of so many tries that ended with this.
    pub(super) fn into_error(self, tries: u32, over: Duration) -> Error {
        let tries = match tries {
            0 | 1 => String::new(),
            _ => format!(", in {tries} tries over {}", crate::text::duration(over.as_secs_f64())),
        };
        Error::new(ErrorKind::Io, format!("{self}{tries}: {}", self.advice()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("its host has no address that is known here"),
            Self::Proxy => f.write_str("what the environment names as the proxy is no URL of a proxy"),
            Self::Connection(why) => write!(f, "its server cannot be reached ({why})"),
            Self::Tls(why) => write!(f, "there is no secure connection to its server ({why})"),
            Self::Cut(why) => write!(f, "its server broke off the answer ({why})"),
            Self::Stalled => f.write_str("its server sent nothing for too long"),
            Self::Busy(refusal) => write!(f, "its server answered {}", refusal.said()),
        }
    }
}

/// Whether a server that answers so may do better the next time.
pub(super) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// The error of an answer that will not change; `advice` is what to do about it.
pub(in crate::remote::stores) fn refused(refusal: &Refusal, advice: Option<&str>) -> Error {
    let said = refusal.said();
    let advised = |what: String| advice.map_or(what.clone(), |advice| format!("{what}: {advice}"));
    match refusal.status.as_u16() {
        401 | 403 | 407 => Error::refused(advised(format!("its server refuses access, with {said}"))),
        404 | 410 => {
            Error::not_found(advised(format!("there is no such object: its server answered {said}")))
        }
        412 => changed(),
        _ => Error::new(ErrorKind::Io, advised(format!("its server answered {said}"))),
    }
}

/// The error of an object that is not what it was when it was opened.
pub(in crate::remote::stores) fn changed() -> Error {
    Error::new(ErrorKind::Io, "was changed while it was read: open it again")
}
