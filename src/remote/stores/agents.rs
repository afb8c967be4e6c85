//! Connections that stay open between requests.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{proxy::proxy, settings::Settings, watched::Watching};
use http::Uri;
use ureq::{
    Agent, Error as Failure, Proxy,
    tls::{Certificate, RootCerts, TlsConfig},
    unversioned::{
        resolver::DefaultResolver,
        transport::{ConnectProxyConnector, Connector as _, RustlsConnector, SocksConnector, TcpConnector},
    },
};

/// Connections that stay open between requests: more than a load has reads in flight.
const IDLE_CONNECTIONS: usize = 512;
/// Bytes that one read of a socket may give. They pass through a buffer that should stay in the processor's cache: of sizes
/// from 32 KiB to 1 MiB this took the least time on a virtual machine with two processors.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes that one write may take: of requests, and of uploads.
const OUTPUT_BYTES: usize = 32 << 10;

/// How long requests may take, and how often they are made.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Until a connection stands.
    pub connect: Duration,
    /// Without a byte.
    pub stall: Duration,
    /// Before the second try; each later one waits twice as long, up to `longest_wait`.
    pub first_wait: Duration,
    /// Between two tries.
    pub longest_wait: Duration,
    /// Tries in a row that bring no byte.
    pub tries: u32,
    /// From the last byte that came to the last try.
    pub in_all: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(10),
            tries: 8,
            in_all: Duration::from_secs(120),
        }
    }
}

/// Keeps connections; the certificates that TLS needs are read when it is first used.
#[derive(Debug, Default)]
pub(super) struct Agents {
    patience: Patience,
    plain: OnceLock<Agent>,
    secure: OnceLock<Agent>,
}

impl Agents {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// The one for `uri`.
    ///
    /// # Errors
    /// The proxy that the environment names is none, or the certificates that `SSL_CERT_FILE` or `SSL_CERT_DIR` name cannot
    /// be read.
    pub(super) fn agent(&self, uri: &Uri) -> Result<&Agent, Failure> {
        let is_secure = uri.scheme_str() == Some("https");
        let kept = if is_secure { &self.secure } else { &self.plain };
        if let Some(agent) = kept.get() {
            return Ok(agent);
        }
        let settings = Settings::now();
        let proxy = proxy(if is_secure { "https" } else { "http" }, &settings)?;
        let roots = if is_secure { roots(&settings)? } else { RootCerts::WebPki };
        Ok(kept.get_or_init(|| self.build(proxy, roots)))
    }

    fn build(&self, proxy: Option<Proxy>, roots: RootCerts) -> Agent {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("flashpack/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(self.patience.connect))
            .timeout_per_read(Some(self.patience.stall))
            .timeout_per_write(Some(self.patience.stall))
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(OUTPUT_BYTES);
        let connector =
            ().chain(SocksConnector::default())
                .chain(ConnectProxyConnector::default())
                .chain(TcpConnector::default())
                .chain(Watching)
                .chain(RustlsConnector::default());
        Agent::with_parts(config.build(), connector, DefaultResolver::default())
    }
}

/// The system's authorities, those of `SSL_CERT_FILE` and `SSL_CERT_DIR` if these are set; where there are none (containers
/// without certificates) those of Mozilla's program.
fn roots(settings: &Settings) -> Result<RootCerts, Failure> {
    let found = rustls_native_certs::load_native_certs();
    let is_named = settings.first(&["SSL_CERT_FILE", "SSL_CERT_DIR"]).is_some();
    if let Some(error) = found.errors.first().filter(|_| is_named) {
        return Err(Failure::Other(error.to_string().into()));
    }
    if found.certs.is_empty() {
        return Ok(RootCerts::WebPki);
    }
    let certs: Vec<_> = found.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect();
    Ok(RootCerts::Specific(Arc::new(certs)))
}
