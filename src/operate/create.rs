//! `create`: a stream that is there, ACTIVE, and kept long enough.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::app::{self, Config, Exit};
use crate::clock::Clock;
use crate::codes::Code;
use crate::frame::Codec;
use crate::kvs::aws::{self, Aws, StreamInfo};
use crate::kvs::failure::{Failure, FailureKind};
use crate::kvs::session::Call;
use crate::kvs::tls;

/// A stream is ACTIVE within seconds; one that is not after this needs somebody to look.
const ACTIVE_WITHIN: Duration = Duration::from_mins(1);

/// A call that fails for a reason that passes is made again so often.
const TRIES: u32 = 4;

/// Why there is no such stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not start.
    #[error(transparent)]
    App(#[from] app::Error),
    /// The CA file is of no use.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Region or endpoint make no sense.
    #[error(transparent)]
    Aws(#[from] aws::Error),
    /// A call failed.
    #[error("{}", .0.message)]
    Failed(Failure),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Error {
    /// What the exit code says of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::App(error) => error.exit(),
            Self::Tls(_) | Self::Aws(_) => Exit::Usage,
            Self::Failed(failure) => Exit::of_failure(failure.kind),
        }
    }

    /// For `explain`.
    pub fn code(&self) -> Code {
        match self {
            Self::App(error) => error.code(),
            Self::Tls(_) | Self::Aws(_) => Code::USAGE,
            Self::Failed(failure) => failure.code,
        }
    }
}

/// What was found, or made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Name of the stream.
    pub channel: String,
    /// Whether it was not there.
    pub created: bool,
    /// What it was, if that was changed.
    pub raised_from: Option<u32>,
    /// What was asked for, if that is less than it has and so was left alone.
    pub not_lowered_to: Option<u32>,
    /// Another KMS key than it has was asked for: a stream keeps its own.
    pub other_key: bool,
    /// Tags that were set.
    pub tags: usize,
    /// What it is now.
    pub stream: StreamInfo,
}

/// Finds the stream or makes it, and waits until it is ACTIVE. The retention is raised when `retention` asks for more.
///
/// # Errors
/// When there is none at the end.
pub fn run(config: &Config, retention: Option<u32>) -> Result<Created, Error> {
    app::block_on(create(config, retention))?
}

async fn create(config: &Config, retention: Option<u32>) -> Result<Created, Error> {
    let tls = tls::client_config(config.ca_file.as_deref())?;
    let aws = Aws::load(config.aws.clone(), &tls, Clock).await?;
    let work = Work { aws, config };
    work.call(Call::Credentials).await?;
    let mut created = false;
    let mut found = match work.look().await {
        Err(failure) if failure.kind == FailureKind::NotFound => {
            created = match work.call(Call::Create).await {
                Ok(()) => true,
                // Somebody else was faster.
                Err(failure) if failure.kind == FailureKind::NotActive => false,
                Err(failure) => return Err(failure.into()),
            };
            work.wait_until_active().await?
        }
        found => found?,
    };
    if !found.is_active() {
        found = work.wait_until_active().await?;
    }
    let has = found.retention_hours;
    let mut raised_from = None;
    let more = retention.and_then(|wanted| wanted.checked_sub(has));
    if let Some(more) = more.filter(|more| *more > 0) {
        work.aws.raise_retention(&found, more).await?;
        raised_from = Some(has);
        found = work.wait_until_active().await?;
    }
    let tags = &config.aws.tags;
    // CreateStream has set them.
    if !tags.is_empty() && !created {
        work.call(Call::Tag).await?;
    }
    let wanted_key = config.aws.kms_key.as_deref();
    Ok(Created {
        channel: config.aws.stream.clone(),
        created,
        raised_from,
        not_lowered_to: retention.filter(|wanted| *wanted < has),
        other_key: !created && wanted_key.is_some_and(|key| !is_same_key(key, &found.kms_key)),
        tags: tags.len(),
        stream: found,
    })
}

/// A key is named by its id, its alias, or an ARN that ends in one of them.
fn is_same_key(wanted: &str, has: &str) -> bool {
    has == wanted || has.ends_with(&format!("/{wanted}")) || has.ends_with(&format!(":{wanted}"))
}

struct Work<'a> {
    aws: Aws,
    config: &'a Config,
}

impl Work<'_> {
    async fn call(&self, call: Call) -> Result<(), Failure> {
        let codec = self.config.codec.unwrap_or(Codec::H264);
        let limit = self.config.session.limit(call);
        let make = || async {
            let reply = self.aws.call(call, Some(codec), limit).await;
            reply.map(drop)
        };
        self.again(make).await
    }

    async fn look(&self) -> Result<StreamInfo, Failure> {
        let limit = self.config.session.limit(Call::Describe);
        let make = || async {
            let look = tokio::time::timeout(limit, self.aws.look_at());
            look.await.unwrap_or_else(|_| {
                let message = format!("DescribeStream: no answer from {}", self.aws.place());
                Err(Failure::new(FailureKind::Network, message))
            })
        };
        self.again(make).await
    }

    /// Makes a call again that fails for a reason that passes by itself.
    async fn again<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        make: impl Fn() -> F,
    ) -> Result<T, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            match make().await {
                Err(failure)
                    if tries < TRIES
                        && matches!(
                            failure.kind,
                            FailureKind::Network
                                | FailureKind::Throttled
                                | FailureKind::Service
                                | FailureKind::Clock
                        ) =>
                {
                    tokio::time::sleep(self.config.session.first_wait * tries).await;
                }
                done => return done,
            }
        }
    }

    async fn wait_until_active(&self) -> Result<StreamInfo, Failure> {
        let deadline = Clock.now() + ACTIVE_WITHIN;
        loop {
            let stream = self.look().await?;
            if stream.is_active() {
                return Ok(stream);
            }
            if stream.status == "DELETING" || Clock.now() >= deadline {
                let message = format!(
                    "the stream {:?} is {} and not ACTIVE: wait until that is over, or take another name",
                    self.config.aws.stream, stream.status
                );
                return Err(Failure::new(FailureKind::NotActive, message));
            }
            tokio::time::sleep(self.config.session.poll).await;
        }
    }
}

impl Created {
    /// As one JSON object.
    pub fn json(&self) -> Value {
        json!({
            "channel": self.channel,
            "created": self.created,
            "arn": self.stream.arn,
            "status": self.stream.status,
            "retention_hours": self.stream.retention_hours,
            "raised_from_hours": self.raised_from,
            "kms_key": self.stream.kms_key,
            "media_type": self.stream.media_type,
            "tags_set": self.tags,
        })
    }
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stream = &self.stream;
        let what = if self.created {
            "created"
        } else {
            "was there already"
        };
        writeln!(f, "{}: {what}, {}", self.channel, stream.status)?;
        writeln!(f, "  {}", stream.arn)?;
        let hours = stream.retention_hours;
        match (self.raised_from, self.not_lowered_to) {
            (Some(before), _) => writeln!(f, "  keeps media for {hours} h, before {before} h")?,
            (None, Some(wanted)) => writeln!(
                f,
                "  keeps media for {hours} h; it is not lowered to {wanted} h, because that would delete media"
            )?,
            (None, None) if hours == 0 => {
                writeln!(f, "  keeps no media: --retention changes that")?;
            }
            (None, None) => writeln!(f, "  keeps media for {hours} h")?,
        }
        if !stream.kms_key.is_empty() {
            let stays = if self.other_key {
                "; a stream keeps its key, and that is not the one asked for"
            } else {
                ""
            };
            writeln!(f, "  encrypted with {}{stays}", stream.kms_key)?;
        }
        if self.tags > 0 {
            writeln!(f, "  tags set: {}", self.tags)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created() -> Created {
        Created {
            channel: "cam".into(),
            created: true,
            raised_from: None,
            not_lowered_to: None,
            other_key: false,
            tags: 0,
            stream: StreamInfo {
                arn: "arn:aws:kinesisvideo:us-west-2:1:stream/cam/1".into(),
                status: "ACTIVE".into(),
                retention_hours: 24,
                kms_key: String::new(),
                media_type: "video/h264".into(),
                version: "v".into(),
            },
        }
    }

    #[test]
    fn it_says_what_it_found_or_made() {
        assert_eq!(
            created().to_string(),
            "cam: created, ACTIVE
  arn:aws:kinesisvideo:us-west-2:1:stream/cam/1
  keeps media for 24 h
"
        );
        let mut found = Created {
            created: false,
            raised_from: Some(2),
            other_key: true,
            tags: 3,
            ..created()
        };
        found.stream.kms_key = "alias/aws/kinesisvideo".into();
        assert_eq!(
            found.to_string(),
            "cam: was there already, ACTIVE
  arn:aws:kinesisvideo:us-west-2:1:stream/cam/1
  keeps media for 24 h, before 2 h
  encrypted with alias/aws/kinesisvideo; a stream keeps its key, and that is not the one asked for
  tags set: 3
"
        );
    }

    #[test]
    fn a_key_has_several_names() {
        let arn = "arn:aws:kms:us-west-2:1:key/12ab";
        assert!(is_same_key("12ab", arn) && is_same_key(arn, arn));
        assert!(is_same_key(
            "alias/cam",
            "arn:aws:kms:us-west-2:1:alias/cam"
        ));
        assert!(!is_same_key("ab", arn) && !is_same_key("12ab", ""));
    }
}
