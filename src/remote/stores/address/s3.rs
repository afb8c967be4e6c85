//! `s3://bucket/key`: AWS, and what speaks its protocol.

use std::{
    fmt,
    sync::{Arc, RwLock},
};

use http::{Request, StatusCode, Uri};
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::SigningCredential as _;

use super::{Address, Resource, bucket_and_key, encoded, links::parsed};
use crate::{
    error::{Error, Result},
    remote::stores::{
        client::Client,
        credentials::{Aws, Keys, keys},
        message::{Ask, Refusal},
        profile,
        settings::Settings,
    },
    sync::Unpoisoned as _,
};

/// Where credentials are looked for, as errors say.
const PLACES: &str =
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give this machine a role";

/// An object of a bucket, or with an empty key the bucket.
pub(in crate::remote::stores) struct S3 {
    client: Arc<Client>,
    settings: Settings,
    bucket: String,
    key: String,
    /// Where the bucket is asked for, unless that is AWS.
    endpoint: Option<String>,
    is_virtual: bool,
    region: RwLock<String>,
    /// Without credentials, whether there are some or not.
    is_anonymous: bool,
}

impl S3 {
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument): `url` names no bucket, or the endpoint is no URL.
    pub(in crate::remote::stores) fn new(
        url: &str,
        resource: Resource,
        settings: Settings,
        client: Arc<Client>,
    ) -> Result<Self> {
        let wrong = || Error::argument("is not s3://bucket/key");
        let (bucket, key) = bucket_and_key(url).ok_or_else(wrong)?;
        let key = resource.key(key).ok_or_else(wrong)?;
        let profile = profile::chosen(&settings);
        let set = |names: &[&str], key| {
            settings.first(names).map(ToOwned::to_owned).or_else(|| profile::setting(&settings, profile, key))
        };
        let endpoint = set(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], "endpoint_url");
        let endpoint = endpoint.map(|url| url.trim_end_matches('/').to_owned());
        if let Some(Err(_)) = endpoint.as_deref().map(parsed) {
            return Err(Error::argument("cannot be asked for: AWS_ENDPOINT_URL is not http(s)://host"));
        }
        let region = set(&["AWS_REGION", "AWS_DEFAULT_REGION"], "region");
        let is_anonymous = settings.is_on("AWS_NO_SIGN_REQUEST") || settings.is_on("AWS_SKIP_SIGNATURE");
        let is_virtual = match endpoint {
            Some(_) => settings.is_on("AWS_VIRTUAL_HOSTED_STYLE_REQUEST"),
            None => is_name_of_host(bucket),
        };
        Ok(Self {
            client,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            endpoint,
            is_virtual,
            region: RwLock::new(region.unwrap_or_else(|| "us-east-1".to_owned())),
            is_anonymous,
            settings,
        })
    }

    /// Where requests with this query go.
    fn uri(&self, query: &str) -> Result<Uri> {
        let endpoint = self.endpoint.clone().unwrap_or_else(|| {
            let region = self.region();
            let country = if region.starts_with("cn-") { ".cn" } else { "" };
            format!("https://s3.{region}.amazonaws.com{country}")
        });
        let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", &endpoint));
        let (bucket, key, mark) = (&self.bucket, encoded(&self.key), if query.is_empty() { "" } else { "?" });
        let whole = if self.is_virtual {
            format!("{scheme}://{bucket}.{host}/{key}{mark}{query}")
        } else {
            format!("{scheme}://{host}/{bucket}/{key}{mark}{query}")
        };
        whole.parse().map_err(|_| Error::argument("is not s3://bucket/key"))
    }

    fn region(&self) -> String {
        self.region.read().unpoisoned().clone()
    }

    fn keys(&self) -> Arc<Keys<Aws>> {
        let process = self.client.process();
        keys(&process.aws, &self.settings, &process.agents)
    }

    fn credential(&self) -> Result<Option<Credential>> {
        if self.is_anonymous { Ok(None) } else { self.keys().credential(PLACES) }
    }
}

impl Address for S3 {
    fn signed(&self, ask: &Ask<'_>) -> Result<Request<()>> {
        let request = ask.at(self.uri(&ask.query)?);
        if self.is_anonymous {
            return Ok(request);
        }
        self.keys().sign(request, &RequestSigner::new("s3", &self.region()), PLACES)
    }

    fn learn(&self, refusal: &Refusal) -> Result<bool> {
        let region = refusal.header("x-amz-bucket-region").map(ToOwned::to_owned);
        let region = region.or_else(|| refusal.element("Region"));
        let may_be_elsewhere = matches!(refusal.status.as_u16(), 301 | 307 | 400 | 403);
        if let Some(region) = region.filter(|region| may_be_elsewhere && *region != self.region()) {
            *self.region.write().unpoisoned() = region;
            return Ok(true);
        }
        let may_have_expired = matches!(refusal.status.as_u16(), 400 | 401 | 403)
            && refusal.element("Code").is_none_or(|code| code.contains("Expired") || code == "AccessDenied");
        if self.is_anonymous || !may_have_expired {
            return Ok(false);
        }
        let (keys, before) = (self.keys(), self.credential()?);
        // Temporary credentials that have not expired are denied for good: others of the same role get the same answer.
        let is_expired = refusal.element("Code").is_some_and(|code| code.contains("Expired"));
        if !is_expired && before.as_ref().is_some_and(|it| it.expires_in.is_some() && it.is_valid()) {
            return Ok(false);
        }
        keys.forget();
        let id = |credential: Option<Credential>| credential.map(|it| (it.access_key_id, it.session_token));
        Ok(id(self.credential()?) != id(before))
    }

    fn place(&self) -> Result<Uri> {
        self.uri("")
    }

    fn advice(&self, refusal: &Refusal) -> Option<String> {
        let has_credentials = self.credential().is_ok_and(|credential| credential.is_some());
        match refusal.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !has_credentials => {
                Some(format!("no credentials were found: {PLACES}"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Some("check that there is such an object, and that these credentials may read it".to_owned())
            }
            StatusCode::MOVED_PERMANENTLY | StatusCode::BAD_REQUEST => Some(format!(
                "check the region ({}) and the endpoint ({})",
                self.region(),
                self.endpoint.as_deref().map_or_else(|| "AWS".to_owned(), crate::remote::shown)
            )),
            _ => None,
        }
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("bucket", &self.bucket).field("key", &self.key).finish_non_exhaustive()
    }
}

/// Whether a certificate of AWS is for hosts with that name in front: dots would make it one of a deeper domain.
fn is_name_of_host(bucket: &str) -> bool {
    let is_plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    (3..=63).contains(&bucket.len()) && bucket.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(url: &str, pairs: &[(&str, &str)]) -> String {
        let settings = [("AWS_CONFIG_FILE", "/nowhere")].iter().chain(pairs).copied().collect();
        let address = S3::new(url, Resource::Bytes, settings, Arc::default()).unwrap();
        address.uri("").unwrap().to_string()
    }

    #[test]
    fn buckets_are_in_the_host_or_in_the_path() {
        let region = [("AWS_REGION", "eu-west-1")];
        assert_eq!(uri("s3://bucket/a b/c", &[]), "https://bucket.s3.us-east-1.amazonaws.com/a%20b/c");
        assert_eq!(
            uri("s3://bucket/c%2Fd?e", &region),
            "https://bucket.s3.eu-west-1.amazonaws.com/c%252Fd%3Fe"
        );
        assert_eq!(uri("s3://my.bucket/c", &region), "https://s3.eu-west-1.amazonaws.com/my.bucket/c");
        let china = [("AWS_DEFAULT_REGION", "cn-north-1")];
        assert_eq!(uri("s3://bucket/c", &china), "https://bucket.s3.cn-north-1.amazonaws.com.cn/c");
        let minio = [("AWS_ENDPOINT_URL", "http://minio:9000/")];
        assert_eq!(uri("s3://bucket/c", &minio), "http://minio:9000/bucket/c");
        let host =
            [("AWS_ENDPOINT_URL_S3", "https://oss"), ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true"), minio[0]];
        assert_eq!(uri("s3://bucket/c", &host), "https://bucket.oss/c");
    }

    #[test]
    fn what_names_no_bucket_is_refused() {
        for wrong in [
            "s3:///key",
            "s3://",
            "s3://bucket",
            "s3://bucket/",
            "s3://user@bucket/key",
            "s3://host:9000/bucket/key",
        ] {
            let error = S3::new(wrong, Resource::Object, Settings::default(), Arc::default()).unwrap_err();
            assert!(error.to_string().contains("s3://bucket/key"), "{error}");
        }
        let settings = [("AWS_ENDPOINT_URL", "minio:9000")].into_iter().collect();
        let error = S3::new("s3://bucket/key", Resource::Bytes, settings, Arc::default()).unwrap_err();
        assert!(error.to_string().contains("AWS_ENDPOINT_URL"), "{error}");
    }
}
