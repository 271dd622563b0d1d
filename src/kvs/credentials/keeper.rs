//! Fetches and holds the credentials that all calls are signed with.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::file::CredentialFile;
use super::iot::Iot;
use super::refresh::{Now, Refresh, Settings};
use super::{Provider, is_open_to_all};
use crate::chain;
use crate::clock::Clock;
use crate::detail;
use crate::kvs::failure::{Failure, FailureKind};
use crate::kvs::service_clock::ServiceClock;

/// For one try in the background, from the name's look-up to the last byte of the answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether a credential file is another one.
const LOOK_AT_FILE_EVERY: Duration = Duration::from_secs(5);

/// Who has credentials.
#[derive(Debug)]
pub enum Source {
    /// The AWS crates know how.
    Chain(SharedCredentialsProvider),
    /// AWS IoT Core.
    Iot(Box<Iot>),
    /// A file.
    File(CredentialFile),
}

impl Source {
    /// Who a `provider` is that the AWS crates do not have.
    pub fn own(
        provider: &Provider,
        tls: &rustls::ClientConfig,
        clock: &ServiceClock,
    ) -> Option<Self> {
        match provider {
            Provider::Chain => None,
            Provider::Iot(options) => {
                let iot = Iot::new(options.clone(), tls, clock.clone());
                Some(Self::Iot(Box::new(iot)))
            }
            Provider::File(path) => Some(Self::File(CredentialFile::new(path.clone()))),
        }
    }

    /// Fails where it is clear from the start that nothing will come, and warns of files that any user can read.
    ///
    /// # Errors
    /// When what AWS IoT needs cannot be read, or does not go together.
    pub fn check(&self) -> Result<(), super::iot::Error> {
        let secret = match self {
            Self::Chain(_) => return Ok(()),
            Self::Iot(iot) => {
                iot.options().identity()?;
                iot.options().key()
            }
            Self::File(file) => file.path(),
        };
        if is_open_to_all(secret) {
            let path = secret.display();
            warn!(
                "{path} has a secret in it, and every user of this machine can read it: chmod 600 {path}"
            );
        }
        Ok(())
    }

    async fn fetch(&self) -> Result<Credentials, Failure> {
        match self {
            Self::Chain(provider) => provider.provide_credentials().await.map_err(of_chain),
            Self::Iot(iot) => iot.fetch().await,
            Self::File(file) => file
                .read()
                .map_err(|error| Failure::new(FailureKind::NoCredentials, error.to_string())),
        }
    }

    fn has_changed(&self) -> bool {
        matches!(self, Self::File(file) if file.has_changed())
    }

    fn name(&self) -> String {
        match self {
            Self::Chain(_) => "whoever has the AWS credentials".to_owned(),
            Self::Iot(iot) => format!("--iot-endpoint {}", iot.options().endpoint()),
            Self::File(file) => format!("the credential file {}", file.path().display()),
        }
    }
}

fn of_chain(error: CredentialsError) -> Failure {
    match error {
        CredentialsError::CredentialsNotLoaded(_) => Failure::new(
            FailureKind::NoCredentials,
            "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give --iot-endpoint or \
             --credential-file",
        ),
        // Whoever has them does not answer now.
        CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_) => Failure::new(
            FailureKind::Network,
            format!("cannot get AWS credentials: {}", chain(&error)),
        ),
        error => Failure::new(
            FailureKind::NoCredentials,
            format!("no AWS credentials: {}", chain(&error)),
        ),
    }
}

#[derive(Debug)]
struct Held {
    credentials: Option<Credentials>,
    /// Whether anything was signed with them.
    used: bool,
    refresh: Refresh,
}

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    source: Source,
    /// The service's clock, and ours for waiting.
    clock: ServiceClock,
    waiting: Clock,
    look_every: Duration,
    held: Mutex<Held>,
    /// One fetches, the others take what it has got.
    fetching: tokio::sync::Mutex<()>,
}

impl Keeper {
    /// A keeper that holds nothing yet.
    pub fn new(source: Source, settings: Settings, clock: ServiceClock, waiting: Clock) -> Self {
        Self {
            source,
            clock,
            waiting,
            look_every: settings.look_every,
            held: Mutex::new(Held {
                credentials: None,
                used: false,
                refresh: Refresh::new(settings),
            }),
            fetching: tokio::sync::Mutex::default(),
        }
    }

    /// The credentials at hand, to sign with.
    pub fn use_them(&self) -> Option<Credentials> {
        let mut held = self.held();
        held.used = true;
        held.credentials.clone()
    }

    /// When those at hand end, since the Unix epoch; `None` where that is not known.
    pub fn end(&self) -> Option<Duration> {
        end(self.held().credentials.as_ref()?)
    }

    /// Sees to it that credentials are at hand that nobody has used, fetching them where the ones at hand have been: whoever
    /// asks has none, finds them near their end, or was refused with them. Those at hand stay where no others are to be had
    /// and they are good.
    ///
    /// # Errors
    /// When there are none within `limit`.
    pub async fn renew(&self, limit: Duration) -> Result<(), Failure> {
        let deadline = (self.waiting.now() + limit).into();
        let Ok(_one_at_a_time) = timeout_at(deadline, self.fetching.lock()).await else {
            return if self.has_good() {
                Ok(())
            } else {
                Err(self.late(limit))
            };
        };
        let now = self.now();
        let is_new = |held: &Held| !held.used && held.refresh.has_good(now);
        if is_new(&self.held()) {
            return Ok(());
        }
        match self.fetch(limit, deadline).await {
            Err((failure, failures)) if self.has_good() => {
                self.tell(&failure, failures);
                Ok(())
            }
            result => result.map_err(|(failure, _)| failure),
        }
    }

    /// Keeps them fresh, for ever.
    pub async fn keep(&self) {
        let look_every = match self.source {
            Source::File(_) => self.look_every.min(LOOK_AT_FILE_EVERY),
            _ => self.look_every,
        };
        loop {
            let wait = self.held().refresh.wait(self.now());
            if self.is_due() {
                let _one_at_a_time = self.fetching.lock().await;
                let deadline = (self.waiting.now() + FETCH_TIMEOUT).into();
                // Somebody else may have been first.
                if self.is_due()
                    && let Err((failure, failures)) = self.fetch(FETCH_TIMEOUT, deadline).await
                {
                    self.tell(&failure, failures);
                }
            } else {
                tokio::time::sleep(wait.unwrap_or(look_every).min(look_every)).await;
            }
        }
    }

    fn is_due(&self) -> bool {
        let wait = self.held().refresh.wait(self.now());
        wait == Some(Duration::ZERO) || self.source.has_changed()
    }

    /// Returns how many tries have failed in a row beside what went wrong.
    async fn fetch(&self, limit: Duration, deadline: Instant) -> Result<(), (Failure, u32)> {
        let fetched = timeout_at(deadline, self.source.fetch()).await;
        let fetched = fetched.unwrap_or_else(|_| Err(self.late(limit)));
        let now = self.now();
        let fetched = fetched.and_then(|credentials| {
            let over = end(&credentials)
                .zip(now.wall)
                .is_some_and(|(end, wall)| end <= wall);
            if over {
                let name = self.source.name();
                let message = format!(
                    "the credentials from {name} had expired when they came; is it kept up to date?"
                );
                Err(Failure::new(FailureKind::NoCredentials, message))
            } else {
                Ok(credentials)
            }
        });
        let mut held = self.held();
        match fetched {
            Ok(credentials) => {
                let failures = held.refresh.granted(end(&credentials), now);
                let good_for_s = held.refresh.left(now).map(|left| left.as_secs());
                held.credentials = Some(credentials);
                held.used = false;
                drop(held);
                if failures > 0 {
                    info!(failures, good_for_s, "new credentials, at last");
                } else {
                    detail!(good_for_s, "new credentials");
                }
                Ok(())
            }
            Err(failure) => {
                let failures = held.refresh.failed(now);
                Err((failure, failures))
            }
        }
    }

    fn late(&self, limit: Duration) -> Failure {
        let (name, time) = (self.source.name(), limit.as_secs_f32());
        let message = format!("credentials: no answer from {name} for {time} s");
        Failure::new(FailureKind::Network, message)
    }

    fn has_good(&self) -> bool {
        self.held().refresh.has_good(self.now())
    }

    /// Of failures in a row the first is told, the second, the fourth, the eighth ..: seven lines for an hour.
    fn tell(&self, failure: &Failure, failures: u32) {
        if !failures.is_power_of_two() {
            return;
        }
        let now = self.now();
        let mut left = String::new();
        if self.has_good()
            && let Some(time) = self.held().refresh.left(now)
        {
            // A String takes everything.
            let _ = write!(left, " for {} s", time.as_secs());
        }
        let outlook = if self.has_good() {
            "those at hand are good"
        } else {
            "there are none that are good"
        };
        warn!(
            failures,
            "no new credentials, {outlook}{left}: {}", failure.message
        );
    }

    fn now(&self) -> Now {
        Now {
            at: self.waiting.now(),
            wall: self.clock.has_heard().then(|| self.clock.now()),
            jitter: self.waiting.jitter(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(credentials: &Credentials) -> Option<Duration> {
    let end = credentials.expiry()?;
    Some(end.duration_since(UNIX_EPOCH).unwrap_or_default())
}
