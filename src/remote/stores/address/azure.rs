//! `az://container/key`: Azure's blobs, of the account that the environment names, or that the host does of
//! `az://account.blob.core.windows.net/container/key`: a dot tells it, as names of containers have none.

use std::{fmt, sync::Arc};

use http::{HeaderValue, Request, Uri, header::CONTENT_LENGTH};
use reqsign_azure_storage::{Credential, RequestSigner};

use super::{Address, Resource, advice, bucket_and_key, encoded, links::parsed};
use crate::{
    error::{Error, Result},
    remote::stores::{
        client::Client,
        credentials::{self, Keys, keys},
        message::{Ask, Refusal},
        settings::Settings,
    },
};

/// Where credentials are looked for, as errors say.
const PLACES: &str = "set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, run \
                      `az login`, or give this machine an identity";
/// The version of the interface that is spoken, which azurite knows too.
const VERSION: &str = "2023-11-03";
/// How the hosts of Azure's clouds end, of accounts that have a DNS zone of their own, and of OneLake.
const SUFFIXES: [&str; 5] = [
    ".core.windows.net",
    ".core.chinacloudapi.cn",
    ".core.usgovcloudapi.net",
    ".storage.azure.net",
    ".fabric.microsoft.com",
];
/// What all emulators have: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
const EMULATED_ACCOUNT: &str = "devstoreaccount1";
const EMULATED_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// An object of a container, or with an empty key the container.
pub(in crate::remote::stores) struct Azure {
    client: Arc<Client>,
    settings: Settings,
    /// The server, container and key.
    target: String,
    is_anonymous: bool,
    /// Whether the host is neither Azure's nor named by the settings: a URL alone must not decide who is told secrets.
    is_foreign: bool,
}

impl Azure {
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument): `url` names no container, no account is known, or the endpoint
    /// is no URL.
    pub(in crate::remote::stores) fn new(
        url: &str,
        resource: Resource,
        settings: &Settings,
        client: Arc<Client>,
    ) -> Result<Self> {
        let (host, container, key) = split(url).ok_or_else(wrong)?;
        let key = resource.key(key).ok_or_else(wrong)?;
        let account = Account::of(settings, host)?;
        let Ok(place) = parsed(&account.endpoint) else {
            return Err(Error::argument("cannot be asked for: AZURE_STORAGE_ENDPOINT is not http(s)://host"));
        };
        let is_foreign = host.is_some() && !place.host().is_some_and(|host| is_trusted(host, settings));
        let target = format!("{}/{container}/{}", account.endpoint, encoded(key));
        let target = target.trim_end_matches('/').to_owned();
        let is_anonymous = is_foreign || settings.is_on("AZURE_SKIP_SIGNATURE");
        Ok(Self { client, settings: account.settings(settings), target, is_anonymous, is_foreign })
    }

    fn uri(&self, query: &str) -> Result<Uri> {
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}{mark}{query}", self.target).parse().map_err(|_| wrong())
    }

    fn keys(&self) -> Arc<Keys<credentials::Azure>> {
        let process = self.client.process();
        keys(&process.azure, &self.settings, &process.agents)
    }

    /// What differs between credentials that were found one after the other.
    fn token(&self) -> Result<Option<String>> {
        let token = |credential| match credential {
            Credential::SharedKey { account_key, .. } => account_key,
            Credential::SasToken { token, .. } | Credential::BearerToken { token, .. } => token,
        };
        if self.is_anonymous { Ok(None) } else { Ok(self.keys().credential(PLACES)?.map(token)) }
    }
}

impl Address for Azure {
    fn signed(&self, ask: &Ask<'_>) -> Result<Request<()>> {
        let mut request = ask.at(self.uri(&ask.query)?);
        request.headers_mut().insert("x-ms-version", HeaderValue::from_static(VERSION));
        if !ask.body.is_empty() {
            // It is signed, so it has to be there before.
            request.headers_mut().insert(CONTENT_LENGTH, ask.body.len().into());
        }
        if self.is_anonymous {
            return Ok(request);
        }
        self.keys().sign(request, &RequestSigner::new(), PLACES)
    }

    fn learn(&self, refusal: &Refusal) -> Result<bool> {
        if self.is_anonymous || !matches!(refusal.status.as_u16(), 401 | 403) {
            return Ok(false);
        }
        let before = self.token()?;
        self.keys().forget();
        Ok(self.token()? != before)
    }

    fn place(&self) -> Result<Uri> {
        self.uri("")
    }

    fn advice(&self, refusal: &Refusal) -> Option<String> {
        let has_token = self.token().is_ok_and(|token| token.is_some());
        // Without credentials a container that is not public is said not to exist.
        let is_hidden = refusal.status.as_u16() == 404 && !has_token;
        let is_refused = matches!(refusal.status.as_u16(), 401 | 403 | 409) || is_hidden;
        let foreign = "credentials go to hosts of Azure alone, and to the one that AZURE_STORAGE_ENDPOINT names: \
                       set it to https://host if this one may have them";
        is_refused.then(|| if self.is_foreign { foreign.to_owned() } else { advice(has_token, PLACES) })
    }

    fn has_suffix_ranges(&self) -> bool {
        false
    }
}

impl fmt::Debug for Azure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Azure").field("target", &self.target).finish_non_exhaustive()
    }
}

fn wrong() -> Error {
    Error::argument("is not az://container/key, nor az://account.blob.core.windows.net/container/key")
}

/// The host, if there is one, the container and the key of a URL.
pub(in crate::remote::stores) fn split(url: &str) -> Option<(Option<&str>, &str, &str)> {
    let (first, rest) = bucket_and_key(url)?;
    if !first.contains('.') {
        return Some((None, first, rest));
    }
    let (container, key) = rest.split_once('/').unwrap_or((rest, ""));
    (!container.is_empty()).then_some((Some(first), container, key))
}

/// Whether a `host` that a URL names may be sent credentials: it is Azure's, or the settings name it.
fn is_trusted(host: &str, settings: &Settings) -> bool {
    let connection = connection(settings);
    let own =
        field(connection, "EndpointSuffix").map(|suffix| format!(".{}", suffix.trim_start_matches('.')));
    let own = own.as_deref().filter(|suffix| *suffix != ".");
    let host = host.to_ascii_lowercase();
    let is_azure = SUFFIXES.into_iter().chain(own).any(|suffix| host.ends_with(&suffix.to_ascii_lowercase()));
    let named = endpoint(settings, connection).and_then(|endpoint| parsed(endpoint).ok());
    is_azure || named.is_some_and(|named| named.host().is_some_and(|named| named.eq_ignore_ascii_case(&host)))
}

fn connection(settings: &Settings) -> &str {
    settings.get("AZURE_STORAGE_CONNECTION_STRING").unwrap_or_default()
}

/// The server that the settings name.
fn endpoint<'a>(settings: &'a Settings, connection: &'a str) -> Option<&'a str> {
    settings
        .first(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"])
        .or_else(|| field(connection, "BlobEndpoint"))
}

/// The account that variables name, by themselves or in a connection string.
struct Account {
    name: Option<String>,
    key: Option<String>,
    signature: Option<String>,
    endpoint: String,
}

impl Account {
    /// That of `host`, if the URL has one.
    fn of(settings: &Settings, host: Option<&str>) -> Result<Self> {
        let connection = connection(settings);
        let is_emulated = settings.is_on("AZURE_STORAGE_USE_EMULATOR")
            || field(connection, "UseDevelopmentStorage")
                .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let set = |names: &[&str], name| settings.first(names).or_else(|| field(connection, name));
        let name = host.and_then(|host| host.split('.').next());
        let name =
            name.or_else(|| set(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"], "AccountName"));
        let keys = ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCESS_KEY"];
        let key = set(&keys, "AccountKey");
        let (name, key) =
            (name.or(is_emulated.then_some(EMULATED_ACCOUNT)), key.or(is_emulated.then_some(EMULATED_KEY)));
        let signature = set(&["AZURE_STORAGE_SAS_TOKEN"], "SharedAccessSignature");
        let named = endpoint(settings, connection);
        let of_host = host.map(|host| format!("https://{host}"));
        let endpoint = match (of_host.as_deref().or(named), name) {
            (Some(endpoint), _) => endpoint.trim_end_matches('/').to_owned(),
            (None, Some(name)) if is_emulated => format!("http://127.0.0.1:10000/{name}"),
            (None, Some(name)) => {
                let suffix = field(connection, "EndpointSuffix").unwrap_or("core.windows.net");
                let scheme = field(connection, "DefaultEndpointsProtocol").unwrap_or("https");
                format!("{scheme}://{name}.blob.{suffix}")
            }
            (None, None) => {
                let what = "is of no account that is known: set AZURE_STORAGE_ACCOUNT_NAME or \
                            AZURE_STORAGE_CONNECTION_STRING, or write az://account.blob.core.windows.net/container/key";
                return Err(Error::argument(what));
            }
        };
        let text = |text: Option<&str>| text.map(ToOwned::to_owned);
        let signature = signature.map(|token| token.trim_start_matches('?'));
        Ok(Self { name: text(name), key: text(key), signature: text(signature), endpoint })
    }

    /// `settings` under the names that reqsign knows.
    fn settings(self, settings: &Settings) -> Settings {
        settings.clone().with([
            ("AZURE_STORAGE_ACCOUNT_NAME", self.name),
            ("AZURE_STORAGE_ACCOUNT_KEY", self.key),
            ("AZURE_STORAGE_SAS_TOKEN", self.signature),
        ])
    }
}

/// A field of a connection string: `Name=value;Name=value`.
fn field<'a>(connection: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = connection.split(';').filter_map(|field| field.split_once('='));
    fields.find(|(found, _)| found.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn azure(url: &str, pairs: &[(&str, &str)]) -> Result<Azure> {
        Azure::new(url, Resource::Bytes, &pairs.iter().copied().collect(), Arc::default())
    }

    #[test]
    fn containers_are_of_the_account_that_is_named() {
        let name = ("AZURE_STORAGE_ACCOUNT_NAME", "me");
        let connection =
            "DefaultEndpointsProtocol=http;AccountName=you;AccountKey=a2V5==;EndpointSuffix=core.local";
        for (pairs, uri) in [
            (&[name][..], "https://me.blob.core.windows.net/box/a%20b/c?x=1"),
            (&[("AZURE_STORAGE_ACCOUNT", "it")], "https://it.blob.core.windows.net/box/a%20b/c?x=1"),
            (&[name, ("AZURE_STORAGE_ENDPOINT", "http://h:1/me/")], "http://h:1/me/box/a%20b/c?x=1"),
            (
                &[("AZURE_STORAGE_USE_EMULATOR", "1")],
                "http://127.0.0.1:10000/devstoreaccount1/box/a%20b/c?x=1",
            ),
            (
                &[("AZURE_STORAGE_CONNECTION_STRING", connection)],
                "http://you.blob.core.local/box/a%20b/c?x=1",
            ),
        ] {
            assert_eq!(azure("az://box/a b/c", pairs).unwrap().uri("x=1").unwrap(), *uri);
        }
        let host = "az://it.blob.core.windows.net/box/a b/c";
        for pairs in [&[][..], &[name, ("AZURE_STORAGE_ENDPOINT", "http://h:1/me/")]] {
            let address = azure(host, pairs).unwrap();
            assert_eq!(address.uri("").unwrap(), "https://it.blob.core.windows.net/box/a%20b/c");
            assert_eq!(address.settings.get("AZURE_STORAGE_ACCOUNT_NAME"), Some("it"));
        }
        let error = azure("az://box/key", &[]).unwrap_err().to_string();
        assert!(error.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
        for wrong in ["az://", "az://box@me/key", "az://box", "az://it.blob.core.windows.net"] {
            assert!(azure(wrong, &[name]).unwrap_err().to_string().contains("az://container/key"));
        }
        let error =
            azure("az://box/key", &[name, ("AZURE_STORAGE_ENDPOINT", "h:1")]).unwrap_err().to_string();
        assert!(error.contains("AZURE_STORAGE_ENDPOINT"), "{error}");
    }

    #[test]
    fn keys_and_signatures_grant_access() {
        let name = ("AZURE_STORAGE_ACCOUNT_NAME", "me");
        let request =
            |pairs: &[_]| azure("az://box/key", pairs).unwrap().signed(&Ask::range("bytes=0-9")).unwrap();
        let by_key = request(&[name, ("AZURE_STORAGE_KEY", "a2V5")]);
        let header = by_key.headers()["authorization"].to_str().unwrap();
        assert!(header.starts_with("SharedKey me:"), "{header}");
        assert!(by_key.headers()["x-ms-version"] == VERSION && by_key.headers()["range"] == "bytes=0-9");
        let by_signature = request(&[name, ("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=x")]);
        assert_eq!(by_signature.uri().query(), Some("sv=1&sig=x"));
        let public = request(&[name, ("AZURE_STORAGE_KEY", "a2V5"), ("AZURE_SKIP_SIGNATURE", "true")]);
        assert!(!public.headers().contains_key("authorization"));
    }

    #[test]
    fn credentials_go_to_hosts_of_azure_and_of_the_settings_alone() {
        let connection = |text| ("AZURE_STORAGE_CONNECTION_STRING", text);
        for (host, pair, is_trusted) in [
            ("me.blob.core.windows.net", None, true),
            ("Me.Blob.Core.Windows.Net", None, true),
            ("me.blob.core.chinacloudapi.cn", None, true),
            ("me.blob.core.usgovcloudapi.net", None, true),
            ("me.z1.blob.storage.azure.net", None, true),
            ("onelake.blob.fabric.microsoft.com", None, true),
            ("evil.example.com", None, false),
            ("core.windows.net.example.com", None, false),
            ("evilcore.windows.net", None, false),
            ("evil.example.com", Some(("AZURE_STORAGE_ENDPOINT", "https://blobs.example.com/me")), false),
            ("blobs.example.com", Some(("AZURE_STORAGE_ENDPOINT", "https://Blobs.example.com/me")), true),
            ("blobs.example.com", Some(connection("BlobEndpoint=https://blobs.example.com/me")), true),
            ("me.blob.core.example", Some(connection("EndpointSuffix=core.example")), true),
            ("evilcore.example", Some(connection("EndpointSuffix=core.example")), false),
            ("evil.example.", Some(connection("EndpointSuffix=")), false),
        ] {
            let url = format!("az://{host}/box/key");
            for secret in [("AZURE_STORAGE_SAS_TOKEN", "sig=x"), ("AZURE_STORAGE_KEY", "a2V5")] {
                let pairs: Vec<_> = pair.into_iter().chain([secret]).collect();
                let request = azure(&url, &pairs).unwrap().signed(&Ask::range("bytes=0-9")).unwrap();
                let is_signed =
                    request.uri().query().is_some() || request.headers().contains_key("authorization");
                assert_eq!(is_signed, is_trusted, "{url} {pair:?}");
            }
        }
    }
}
