//! Credentials, found and used by reqsign over this module's own files, commands and connections. None of those waits
//! for an executor, so no runtime is needed.

use std::{
    fmt, fs,
    future::Future,
    pin::pin,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    task::{Context as TaskContext, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use bytes::Bytes;
use reqsign_aws_v4::{Credential, DefaultCredentialProvider};
use reqsign_core::{
    CommandExecute, CommandOutput, Context, Error as Failure, FileRead, HttpSend, ProvideCredential,
    SigningCredential,
};
use ureq::http::{Request, Response};

use super::{agents::Agents, settings::Settings};

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

/// Those of AWS, and of what speaks S3.
pub(super) type Aws = Keys<DefaultCredentialProvider>;

impl<P: ProvideCredential<Credential: SigningCredential>> Keys<P> {
    pub(super) fn new(settings: Settings, provider: P, agents: Arc<Agents>) -> Self {
        let context = Context::new()
            .with_env(settings.env())
            .with_file_read(Files)
            .with_command_execute(Commands)
            .with_http_send(Sender(agents));
        Self { settings, provider, context, held: Mutex::new(Search::Ahead) }
    }

    /// The variables that they were looked for by.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// Those that are valid; they are looked for at the first call and when the last ones expire. None if there are none.
    pub(super) fn current(&self) -> Result<Option<P::Credential>, Failure> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
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
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Search::Ahead;
    }
}

impl<P: ProvideCredential> fmt::Debug for Keys<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// The credentials by these settings: those that `kept` has if it was told the same, else ones to be looked for.
pub(super) fn aws(kept: &Mutex<Option<Arc<Aws>>>, settings: &Settings, agents: &Arc<Agents>) -> Arc<Aws> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    match &*kept {
        Some(keys) if keys.settings() == settings => Arc::clone(keys),
        _ => {
            let provider = DefaultCredentialProvider::new();
            let keys = Arc::new(Keys::new(settings.clone(), provider, Arc::clone(agents)));
            Arc::clone(kept.insert(keys))
        }
    }
}

pub(super) type AwsCredential = Credential;

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
