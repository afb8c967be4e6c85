//! Where credentials of AWS are looked for, in the order that its own tools keep. A profile has credentials of its own, or
//! names a role, which is assumed with those of another place.

use reqsign_aws_v4 as aws;
use reqsign_core::{Context, Error, ProvideCredential, Signer};

use super::places::{Place, Places};
use crate::remote::stores::{profile, settings::Settings};

impl Default for Places<aws::Credential> {
    fn default() -> Self {
        Self {
            asked: vec![Box::new(aws::EnvCredentialProvider), Box::new(Profile { is_named: true })],
            set_up: vec![
                Box::new(Profile { is_named: false }),
                Box::new(aws::AssumeRoleWithWebIdentityCredentialProvider::default()),
                Box::new(aws::ECSCredentialProvider::default()),
            ],
            tried: vec![Box::new(aws::IMDSv2CredentialProvider::default())],
        }
    }
}

/// The profile that `AWS_PROFILE` names, or if it names none the default one.
#[derive(Debug)]
struct Profile {
    is_named: bool,
}

impl ProvideCredential for Profile {
    type Credential = aws::Credential;

    async fn provide_credential(&self, context: &Context) -> Result<Option<aws::Credential>, Error> {
        let settings: Settings = context.env_vars().into_iter().collect();
        if settings.get("AWS_PROFILE").is_some() != self.is_named {
            return Ok(None);
        }
        let (roles, source) = chain(&settings)?;
        let mut found = source.provide_credential_dyn(context).await?;
        for role in roles.into_iter().rev() {
            let credential =
                found.ok_or_else(|| role.wrong("has a role, but there are no credentials to ask for it"))?;
            found = role.provider(context, &credential).provide_credential(context).await?;
        }
        Ok(found)
    }
}

/// The roles to assume for the chosen profile, its own first, and where the credentials for the last one are.
fn chain(settings: &Settings) -> Result<(Vec<Role>, Place<aws::Credential>), Error> {
    let mut roles: Vec<Role> = Vec::new();
    let mut name = profile::chosen(settings).to_owned();
    while let Some(role) = Role::of(settings, &name)? {
        if roles.iter().any(|earlier| earlier.profile == name) {
            return Err(role.wrong("is reached by its own source_profile"));
        }
        let Some(next) = profile::setting(settings, &name, "source_profile") else {
            let place = role.place(settings)?;
            roles.push(role);
            return Ok((roles, place));
        };
        let is_its_own_source = next == name;
        roles.push(role);
        name = next;
        if is_its_own_source {
            break;
        }
    }
    Ok((roles, own(settings, &name)))
}

/// Where a profile has credentials of its own.
fn own(settings: &Settings, name: &str) -> Place<aws::Credential> {
    let setting = |key| profile::setting(settings, name, key);
    let mut places: Vec<Place<_>> = vec![
        Box::new(aws::ProfileCredentialProvider::default().with_profile(name)),
        Box::new(aws::SSOCredentialProvider::default().with_profile(name)),
        Box::new(aws::ProcessCredentialProvider::default().with_profile(name)),
    ];
    if let (Some(arn), Some(file)) = (setting("role_arn"), setting("web_identity_token_file")) {
        let web =
            aws::AssumeRoleWithWebIdentityCredentialProvider::with_config(arn, settings.expanded(&file));
        let web = web.with_role_session_name(session(settings, name)).with_region(region(settings, name));
        places.insert(0, Box::new(web));
    }
    Box::new(Places { asked: places, ..Places::nowhere() })
}

/// Where the role of `profile` is asked for.
fn region(settings: &Settings, profile: &str) -> String {
    let told = settings.first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).map(ToOwned::to_owned);
    told.or_else(|| profile::setting(settings, profile, "region"))
        .or_else(|| profile::setting(settings, profile::chosen(settings), "region"))
        .unwrap_or_else(|| "us-east-1".to_owned())
}

/// The name by which AWS's logs know a session of the role of `profile`.
fn session(settings: &Settings, profile: &str) -> String {
    profile::setting(settings, profile, "role_session_name").unwrap_or_else(|| "flashpack".to_owned())
}

/// A role, as `profile` describes it.
struct Role {
    profile: String,
    arn: String,
    session: String,
    external_id: Option<String>,
    seconds: Option<u32>,
    region: String,
}

impl Role {
    /// That of the profile `name`; `None` if it has none, or one that a token is exchanged for.
    fn of(settings: &Settings, name: &str) -> Result<Option<Self>, Error> {
        let setting = |key| profile::setting(settings, name, key);
        let Some(arn) = setting("role_arn").filter(|_| setting("web_identity_token_file").is_none()) else {
            return Ok(None);
        };
        let mut role = Self {
            profile: name.to_owned(),
            arn,
            session: session(settings, name),
            external_id: setting("external_id"),
            seconds: None,
            region: region(settings, name),
        };
        if let Some(text) = setting("duration_seconds") {
            role.seconds =
                Some(text.parse().map_err(|_| role.wrong("has duration_seconds that are no number"))?);
        }
        if setting("mfa_serial").is_some() {
            return Err(role.wrong(
                "has mfa_serial: its role needs a code of MFA, for which FlashPack does not ask; set \
                 AWS_ACCESS_KEY_ID and the like to what `aws configure export-credentials` prints",
            ));
        }
        Ok(Some(role))
    }

    /// Where the credentials to ask for it are, if no other profile has them.
    fn place(&self, settings: &Settings) -> Result<Place<aws::Credential>, Error> {
        Ok(match profile::setting(settings, &self.profile, "credential_source").as_deref() {
            Some("Environment") => Box::new(aws::EnvCredentialProvider),
            Some("Ec2InstanceMetadata") => Box::new(aws::IMDSv2CredentialProvider::default()),
            Some("EcsContainer") => Box::new(aws::ECSCredentialProvider::default()),
            _ => return Err(self.wrong("has a role, but no source_profile or known credential_source")),
        })
    }

    /// What gives credentials of the role to those who have `credential`.
    fn provider(self, context: &Context, credential: &aws::Credential) -> aws::AssumeRoleCredentialProvider {
        let mut source =
            aws::StaticCredentialProvider::new(&credential.access_key_id, &credential.secret_access_key);
        if let Some(token) = &credential.session_token {
            source = source.with_session_token(token);
        }
        let signer = Signer::new(context.clone(), source, aws::RequestSigner::new("sts", &self.region));
        let mut provider = aws::AssumeRoleCredentialProvider::new(self.arn, signer)
            .with_role_session_name(self.session)
            .with_region(self.region)
            .with_regional_sts_endpoint();
        if let Some(id) = self.external_id {
            provider = provider.with_external_id(id);
        }
        if let Some(seconds) = self.seconds {
            provider = provider.with_duration_seconds(seconds);
        }
        provider
    }

    fn wrong(&self, what: &str) -> Error {
        Error::config_invalid(format!("profile {} {what}", self.profile))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use http::{Request, Response};
    use reqsign_core::HttpSend;

    use super::*;
    use crate::remote::stores::credentials::{Files, block_on};

    /// AWS's token service: it answers with keys that are named after the role's last letter.
    #[derive(Debug, Default)]
    struct Service(Arc<Mutex<Vec<String>>>);

    impl HttpSend for Service {
        async fn http_send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
            let uri = request.uri().to_string();
            let signed = request.headers()["authorization"].to_str().unwrap().to_owned();
            let id = signed.split("Credential=").nth(1).unwrap().split('/').next().unwrap();
            self.0.lock().unwrap().push(format!("{id} {uri}"));
            let role = uri.split("RoleArn=").nth(1).unwrap().split('&').next().unwrap();
            let letter = role.chars().last().unwrap();
            Ok(Response::new(Bytes::from(format!(
                "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIA00000000000{letter}\
                 </AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>\
                 <Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
            ))))
        }
    }

    /// What profile `it` of this configuration gives: the id of its key, or an error; and what the service was asked.
    fn found(config: &str, more: &[(&str, &str)]) -> (Result<Option<String>, String>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, config).unwrap();
        let variables =
            [("AWS_PROFILE", "it"), ("AWS_CONFIG_FILE", path.to_str().unwrap()), ("HOME", "/none")];
        let settings: Settings = variables.iter().chain(more).copied().collect();
        let service = Service::default();
        let asked = Arc::clone(&service.0);
        let context = Context::new().with_env(settings.env()).with_file_read(Files).with_http_send(service);
        let found = block_on(Profile { is_named: true }.provide_credential(&context));
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        (found.map(|found| found.map(|it| it.access_key_id)).map_err(|error| error.to_string()), asked)
    }

    const KEYS: &str = "aws_access_key_id = AKIA\naws_secret_access_key = secret\n";

    #[test]
    fn a_role_is_asked_for_with_the_keys_of_its_source() {
        let config = format!(
            "[profile it]\nrole_arn = arn:aws:iam::123456789012:role/a\nsource_profile = base\nregion = eu-west-1\n\
             external_id = outside\nrole_session_name = me\nduration_seconds = 900\n[profile base]\n{KEYS}"
        );
        let (found, asked) = found(&config, &[]);
        assert_eq!(found, Ok(Some("ASIA00000000000a".to_owned())));
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert!(
            asked[0].starts_with("AKIA https://sts.eu-west-1.amazonaws.com/?Action=AssumeRole&"),
            "{asked:?}"
        );
        for part in ["RoleSessionName=me", "ExternalId=outside", "DurationSeconds=900"] {
            assert!(asked[0].contains(part), "{part}: {asked:?}");
        }
    }

    #[test]
    fn a_role_may_be_asked_for_by_another() {
        let config = format!(
            "[profile it]\nrole_arn = arn:aws:iam::123456789012:role/a\nsource_profile = b\nregion = eu-west-1\n\
             [profile b]\nrole_arn = arn:aws:iam::123456789012:role/b\nsource_profile = b\n{KEYS}"
        );
        let (found, asked) = found(&config, &[]);
        assert_eq!(found, Ok(Some("ASIA00000000000a".to_owned())));
        let by: Vec<_> = asked.iter().map(|asked| asked.split(' ').next().unwrap()).collect();
        assert_eq!(by, ["AKIA", "ASIA00000000000b"]);
        assert!(asked.iter().all(|asked| asked.contains("//sts.eu-west-1.")), "{asked:?}");
    }

    #[test]
    fn the_environment_may_have_the_keys_of_a_role() {
        let config =
            "[profile it]\nrole_arn = arn:aws:iam::123456789012:role/a\ncredential_source = Environment\n";
        let variables = [("AWS_ACCESS_KEY_ID", "AKIAENV"), ("AWS_SECRET_ACCESS_KEY", "secret")];
        let (found, asked) = found(config, &variables);
        assert_eq!(found, Ok(Some("ASIA00000000000a".to_owned())));
        assert!(asked[0].starts_with("AKIAENV https://sts.us-east-1.amazonaws.com/"), "{asked:?}");
    }

    #[test]
    fn a_profile_without_a_role_has_its_own_keys() {
        assert_eq!(found(&format!("[profile it]\n{KEYS}"), &[]), (Ok(Some("AKIA".to_owned())), vec![]));
        assert_eq!(found("[profile other]\n", &[]), (Ok(None), vec![]));
    }

    #[test]
    fn a_role_that_cannot_be_asked_for_is_an_error() {
        let role = "role_arn = arn:aws:iam::123456789012:role/a\n";
        for (config, expected) in [
            (format!("[profile it]\n{role}"), "no source_profile or known credential_source"),
            (format!("[profile it]\n{role}credential_source = Moon\n"), "known credential_source"),
            (format!("[profile it]\n{role}source_profile = none\n"), "no credentials to ask for it"),
            (format!("[profile it]\n{role}source_profile = it\nduration_seconds = x\n{KEYS}"), "no number"),
            (
                format!("[profile it]\n{role}source_profile = b\n[profile b]\n{role}source_profile = it\n"),
                "is reached by its own source_profile",
            ),
            (format!("[profile it]\n{role}source_profile = it\nmfa_serial = x\n{KEYS}"), "has mfa_serial"),
        ] {
            let (found, asked) = found(&config, &[]);
            let message = found.unwrap_err();
            assert!(message.contains("profile it ") && message.contains(expected), "{message}");
            assert!(asked.is_empty(), "{asked:?}");
        }
    }
}
