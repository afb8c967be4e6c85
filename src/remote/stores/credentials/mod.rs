//! Credentials, found and used by reqsign over this module's own files, commands and connections. None of those waits
//! for an executor, so no runtime is needed.

mod aws;
mod places;

use std::{
    fmt, fs,
    future::Future,
    pin::pin,
    process::Command,
    sync::{Arc, Mutex},
    task::{Context as TaskContext, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use reqsign_core::{
    CommandExecute, CommandOutput, Context, Error as Failure, FileRead, HttpSend, ProvideCredential,
    SignRequest, SigningCredential,
};
use reqsign_google::ServiceAccountTokenCredentialProvider;
use ureq::http::Response;

use self::places::Places;
use super::{agents::Agents, settings::Settings};
use crate::{error::Error, sync::Unpoisoned as _};

/// What machines that have no service for metadata may take to say so.
const METADATA_WAIT: Duration = Duration::from_secs(1);
/// For any other service that gives credentials.
const SERVICE_WAIT: Duration = Duration::from_secs(30);

/// Credentials of one kind, and where they are found.
pub(super) struct Keys<P: ProvideCredential> {
    settings: Settings,
    provider: P,
    context: Context,
    held: Mutex<Search<P::Credential>>,
}

/// Whether credentials were looked for, and what was found.
enum Search<C> {
    Ahead,
    InVain,
    Found(C),
}

/// Those that are used by all objects of a kind.
pub(super) type Kept<P> = Mutex<Option<Arc<Keys<P>>>>;

/// Of AWS, and of what speaks S3.
pub(super) type Aws = Places<reqsign_aws_v4::Credential>;

/// Of Azure.
pub(super) type Azure = Places<reqsign_azure_storage::Credential>;

/// Of Google. A service account is exchanged for a token that lasts, and not at each request.
#[derive(Debug, Default)]
pub(super) struct Google(Places<reqsign_google::Credential>);

impl ProvideCredential for Google {
    type Credential = reqsign_google::Credential;

    async fn provide_credential(&self, context: &Context) -> Result<Option<Self::Credential>, Failure> {
        match self.0.provide_credential(context).await? {
            Some(Self::Credential { service_account: Some(account), .. }) => {
                ServiceAccountTokenCredentialProvider::new(account).provide_credential(context).await
            }
            found => Ok(found),
        }
    }
}

impl<P: ProvideCredential<Credential: SigningCredential>> Keys<P> {
    fn new(settings: Settings, provider: P, agents: Arc<Agents>) -> Self {
        let context = Context::new()
            .with_env(settings.env())
            .with_file_read(Files)
            .with_command_execute(Commands)
            .with_http_send(Sender(agents));
        Self { settings, provider, context, held: Mutex::new(Search::Ahead) }
    }

    /// The variables that they were looked for by.
    fn settings(&self) -> &Settings {
        &self.settings
    }

    /// `request` with what grants access by `signer`, if there are credentials; errors say that they are looked for in
    /// these `places`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) with `EACCES`.
    pub(super) fn sign(
        &self,
        request: Request<()>,
        signer: &impl SignRequest<Credential = P::Credential>,
        places: &str,
    ) -> crate::error::Result<Request<()>> {
        let Some(credential) = self.credential(places)? else {
            return Ok(request);
        };
        let (mut parts, ()) = request.into_parts();
        block_on(signer.sign_request(&self.context, &mut parts, Some(&credential), None))
            .map_err(|error| Error::refused(format!("its request cannot be signed: {error}")))?;
        Ok(Request::from_parts(parts, ()))
    }

    /// [`Keys::current`], with errors that say where credentials are looked for.
    ///
    /// # Errors
    /// As [`Keys::sign`].
    pub(super) fn credential(&self, places: &str) -> crate::error::Result<Option<P::Credential>> {
        self.current()
            .map_err(|error| Error::refused(format!("credentials cannot be had ({error}): {places}")))
    }

    /// Those that are valid; they are looked for at the first call and when the last ones expire. None if there are none.
    fn current(&self) -> Result<Option<P::Credential>, Failure> {
        let mut held = self.held.lock().unpoisoned();
        match &*held {
            Search::InVain => return Ok(None),
            Search::Found(credential) if credential.is_valid() => return Ok(Some(credential.clone())),
            _ => {}
        }
        let found = block_on(self.provider.provide_credential(&self.context))?;
        *held = found.clone().map_or(Search::InVain, Search::Found);
        Ok(found)
    }

    /// Looks again at the next call of [`Keys::current`].
    pub(super) fn forget(&self) {
        *self.held.lock().unpoisoned() = Search::Ahead;
    }
}

impl<P: ProvideCredential> fmt::Debug for Keys<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// The credentials by these settings: those that are `kept` if they were told the same, else ones to be looked for.
pub(super) fn keys<P>(kept: &Kept<P>, settings: &Settings, agents: &Arc<Agents>) -> Arc<Keys<P>>
where
    P: ProvideCredential<Credential: SigningCredential> + Default,
{
    let mut kept = kept.lock().unpoisoned();
    match &*kept {
        Some(keys) if keys.settings() == settings => Arc::clone(keys),
        _ => Arc::clone(kept.insert(Arc::new(Keys::new(settings.clone(), P::default(), Arc::clone(agents))))),
    }
}

/// Runs `future` on this thread, which waits where it does.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut task = TaskContext::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut task) {
            return output;
        }
        thread::park();
    }
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> Result<Vec<u8>, Failure> {
        fs::read(path).map_err(|error| Failure::config_invalid(format!("cannot read {path}: {error}")))
    }
}

#[derive(Debug)]
struct Commands;

impl CommandExecute for Commands {
    async fn command_execute(&self, program: &str, args: &[&str]) -> Result<CommandOutput, Failure> {
        let done = Command::new(program).args(args).output();
        let done = done.map_err(|error| Failure::config_invalid(format!("cannot run {program}: {error}")))?;
        Ok(CommandOutput {
            status: done.status.code().unwrap_or(-1),
            stdout: done.stdout,
            stderr: done.stderr,
        })
    }
}

#[derive(Debug)]
struct Sender(Arc<Agents>);

impl HttpSend for Sender {
    async fn http_send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Failure> {
        let uri = request.uri().clone();
        let failed =
            |error: ureq::Error| Failure::unexpected(format!("no answer of {:?}: {error}", uri.host()));
        let agent = self.0.agent(request.uri()).map_err(failed)?;
        let is_metadata = is_metadata(uri.host().unwrap_or_default());
        let wait = if is_metadata { METADATA_WAIT } else { SERVICE_WAIT };
        let request = request.map(|body| body.to_vec());
        let mut config =
            agent.configure_request(request).timeout_connect(Some(wait)).timeout_per_read(Some(wait));
        if is_metadata {
            config = config.proxy(None);
        }
        let mut response = agent.run(config.build()).map_err(failed)?;
        let body = response.body_mut().read_to_vec().map_err(failed)?;
        Ok(response.map(|_| Bytes::from(body)))
    }
}

/// Whether it is where a cloud's machines ask about themselves.
fn is_metadata(host: &str) -> bool {
    host.starts_with("169.254.") || host == "[fd00:ec2::254]" || host == "metadata.google.internal"
}
