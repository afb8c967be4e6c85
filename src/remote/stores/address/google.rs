//! `gs://bucket/key`: Google Cloud Storage by its JSON interface, or an emulator of it.

use std::{fmt, sync::Arc};

use http::{HeaderMap, Request, Uri};
use reqsign_google::{Credential, RequestSigner};

use super::{Address, Resource, advice, bucket_and_key, encoded_whole, links::parsed};
use crate::{
    error::{Error, Result},
    remote::stores::{
        client::Client,
        credentials::{self, Keys, keys},
        message::{Ask, Refusal},
        range::Pin,
        settings::Settings,
    },
};

/// Where credentials are looked for, as errors say.
const PLACES: &str = "set GOOGLE_APPLICATION_CREDENTIALS to a file with some, run `gcloud auth application-default \
                      login`, or give this machine a service account";

/// A part of a bucket.
pub(in crate::remote::stores) struct Google {
    client: Arc<Client>,
    settings: Settings,
    /// The server, path and first fields of the query.
    target: String,
    is_emulated: bool,
    is_anonymous: bool,
}

impl Google {
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument): `url` names no bucket, or the emulator's address is no URL.
    pub(in crate::remote::stores) fn new(
        url: &str,
        resource: Resource,
        settings: Settings,
        client: Arc<Client>,
    ) -> Result<Self> {
        let wrong = || Error::argument("is not gs://bucket/key");
        let (bucket, key) = bucket_and_key(url).ok_or_else(wrong)?;
        let key = encoded_whole(resource.key(key).ok_or_else(wrong)?);
        let emulator = settings.get("STORAGE_EMULATOR_HOST").map(|host| {
            let scheme = if host.contains("://") { "" } else { "http://" };
            format!("{scheme}{}", host.trim_end_matches('/'))
        });
        if let Some(Err(_)) = emulator.as_deref().map(parsed) {
            return Err(Error::argument("cannot be asked for: STORAGE_EMULATOR_HOST is not http(s)://host"));
        }
        let is_emulated = emulator.is_some();
        let host = emulator.unwrap_or_else(|| "https://storage.googleapis.com".to_owned());
        let target = match resource {
            Resource::Bytes => format!("{host}/download/storage/v1/b/{bucket}/o/{key}?alt=media"),
            Resource::Object => format!("{host}/storage/v1/b/{bucket}/o/{key}"),
            Resource::List => format!("{host}/storage/v1/b/{bucket}/o"),
            Resource::New => format!("{host}/upload/storage/v1/b/{bucket}/o?name={key}"),
        };
        let is_anonymous = is_emulated || settings.is_on("GOOGLE_SKIP_SIGNATURE");
        Ok(Self { client, settings, target, is_emulated, is_anonymous })
    }

    fn uri(&self, query: &str) -> Result<Uri> {
        let mark = match () {
            () if query.is_empty() => "",
            () if self.target.contains('?') => "&",
            () => "?",
        };
        format!("{}{mark}{query}", self.target).parse().map_err(|_| Error::argument("is not gs://bucket/key"))
    }

    fn keys(&self) -> Arc<Keys<credentials::Google>> {
        let process = self.client.process();
        keys(&process.google, &self.settings, &process.agents)
    }

    fn token(&self) -> Result<Option<String>> {
        let token = |credential: Credential| credential.token.map(|token| token.access_token);
        if self.is_anonymous { Ok(None) } else { Ok(self.keys().credential(PLACES)?.and_then(token)) }
    }
}

impl Address for Google {
    fn signed(&self, ask: &Ask<'_>) -> Result<Request<()>> {
        let request = ask.at(self.uri(&ask.query)?);
        if self.is_anonymous {
            return Ok(request);
        }
        self.keys().sign(request, &RequestSigner::new("storage"), PLACES)
    }

    fn learn(&self, refusal: &Refusal) -> Result<bool> {
        if self.is_anonymous || refusal.status.as_u16() != 401 {
            return Ok(false);
        }
        let before = self.token()?;
        self.keys().forget();
        Ok(self.token()? != before)
    }

    fn pin(&self, headers: &HeaderMap) -> Pin {
        let generation = headers.get("x-goog-generation").and_then(|value| value.to_str().ok());
        generation.map_or_else(
            || Pin::of(headers),
            |number| Pin { query: format!("ifGenerationMatch={number}"), ..Pin::fixed(number) },
        )
    }

    fn place(&self) -> Result<Uri> {
        self.uri("")
    }

    fn advice(&self, refusal: &Refusal) -> Option<String> {
        let has_token = self.token().is_ok_and(|token| token.is_some());
        matches!(refusal.status.as_u16(), 401 | 403).then(|| advice(has_token, PLACES))
    }

    fn has_suffix_ranges(&self) -> bool {
        !self.is_emulated
    }
}

impl fmt::Debug for Google {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Google").field("target", &self.target).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::TcpListener,
        thread,
    };

    use super::*;

    fn google(url: &str, resource: Resource, pairs: &[(&str, &str)]) -> Result<Google> {
        Google::new(url, resource, pairs.iter().copied().collect(), Arc::default())
    }

    #[test]
    fn each_part_of_a_bucket_has_its_path() {
        for (resource, target) in [
            (Resource::Bytes, "/download/storage/v1/b/bucket/o/a%20b%2Fc?alt=media&x=1"),
            (Resource::Object, "/storage/v1/b/bucket/o/a%20b%2Fc?x=1"),
            (Resource::List, "/storage/v1/b/bucket/o?x=1"),
            (Resource::New, "/upload/storage/v1/b/bucket/o?name=a%20b%2Fc&x=1"),
        ] {
            let address = google("gs://bucket/a b/c", resource, &[]).unwrap();
            assert_eq!(address.uri("x=1").unwrap(), *format!("https://storage.googleapis.com{target}"));
        }
    }

    #[test]
    fn an_emulator_is_asked_without_credentials() {
        for host in ["localhost:9023", "http://localhost:9023/"] {
            let address = google("gs://b/k", Resource::Object, &[("STORAGE_EMULATOR_HOST", host)]).unwrap();
            let request = address.signed(&Ask::new(http::Method::GET)).unwrap();
            assert_eq!(*request.uri(), "http://localhost:9023/storage/v1/b/b/o/k");
            assert!(request.headers().is_empty());
        }
        let error =
            google("gs://b/k", Resource::Object, &[("STORAGE_EMULATOR_HOST", "ftp://x")]).unwrap_err();
        assert!(error.to_string().contains("STORAGE_EMULATOR_HOST"), "{error}");
    }

    #[test]
    fn what_names_no_object_is_refused() {
        for wrong in ["gs://", "gs:///key", "gs://user@bucket/key", "gs://bucket", "gs://bucket/"] {
            let error = google(wrong, Resource::Bytes, &[]).unwrap_err().to_string();
            assert!(error.contains("gs://bucket/key"), "{error}");
        }
        google("gs://bucket", Resource::List, &[]).unwrap();
    }

    #[test]
    fn a_generation_pins_the_version() {
        let address = google("gs://bucket/key", Resource::Bytes, &[]).unwrap();
        let pin = address
            .pin(&[("x-goog-generation".parse().unwrap(), "17".parse().unwrap())].into_iter().collect());
        assert_eq!((&*pin.query, pin.version.as_deref()), ("ifGenerationMatch=17", Some("17")));
    }

    /// A service for metadata that gives a token to so many requests.
    fn metadata(requests: usize) -> (String, thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let serve = move || {
            for number in 0..requests {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines =
                    BufReader::new(stream.try_clone().unwrap()).lines().map_while(std::io::Result::ok);
                assert!(
                    lines.next().unwrap().starts_with("GET /computeMetadata/v1/instance/service-accounts/")
                );
                assert!(lines.by_ref().take_while(|line| !line.is_empty()).count() > 0);
                let token = format!(r#"{{"access_token": "token-{number}", "expires_in": 3600}}"#);
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
                write!(stream, "{head}: {}\r\n\r\n{token}", token.len()).unwrap();
            }
        };
        (host, thread::spawn(serve))
    }

    #[test]
    fn tokens_last_until_they_are_refused() {
        let (host, server) = metadata(2);
        let pairs = [("GCE_METADATA_HOST", &*host), ("HOME", "/nowhere")];
        let address = google("gs://bucket/key", Resource::Bytes, &pairs).unwrap();
        let token = || {
            let request = address.signed(&Ask::new(http::Method::GET)).unwrap();
            request.headers()["authorization"].to_str().unwrap().to_owned()
        };
        assert_eq!([token(), token()], ["Bearer token-0"; 2]);
        let refused = |status| Refusal {
            status,
            headers: HeaderMap::new(),
            uri: address.place().unwrap(),
            query: String::new(),
            text: String::new(),
        };
        assert!(!address.learn(&refused(http::StatusCode::FORBIDDEN)).unwrap());
        assert!(address.learn(&refused(http::StatusCode::UNAUTHORIZED)).unwrap());
        assert_eq!(token(), "Bearer token-1");
        server.join().unwrap();
    }
}
