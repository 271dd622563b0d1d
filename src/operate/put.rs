//! `put`: recorded media into a stream.
//!
//! The service takes one connection for a stream. Where a producer runs for it, that one makes room: it ends its connection
//! at a fragment boundary, uploads what the client sends in a connection of its own, and goes on; meanwhile its ring keeps the
//! newest media of the camera. Where none runs, the command is a producer itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::client;
use super::command::{self, Error};
use super::export::Export;
use super::protocol::{Put, Request};
use super::socket::{Media, Place};
use super::words;
use crate::app::{self, Config, Device, Exit, ReportTo, Summary};
use crate::clock::Clock;
use crate::codes::Code;
use crate::course::Beside;
use crate::kvs::aws;
use crate::ring::WhenFull;
use crate::source::Source;
use crate::source::annexb::{self, AnnexB};

/// `config` for media that is put by itself: nothing of it is dropped, and what cannot be uploaded is not tried for ever.
pub fn config(config: &Config, how: Put, json: bool) -> Config {
    let mut config = of_client(config, how, config.aws.clone());
    if json && config.report.is_none() {
        config.report = Some(ReportTo::Stdout);
    }
    config
}

/// The same, for media that comes to a producer with this configuration.
pub fn of_client(config: &Config, how: Put, aws: aws::Options) -> Config {
    let mut config = config.clone();
    config.aws = aws;
    config.start = how.start;
    config.fast = how.fast;
    config.fps = how.fps;
    config.duration = None;
    config.when_full = Some(WhenFull::Wait);
    config.session.give_up = true;
    config.session.patience = Some(config.grace);
    config
}

/// Puts the media through the producer that runs for the stream. `None` where none runs.
///
/// # Errors
/// When the media cannot be read, or the producer does not take it.
pub fn through_producer(config: &Config, how: Put, json: bool) -> Result<Option<Exit>, Error> {
    if config.control == Place::Nowhere {
        return Ok(None);
    }
    let Ok(socket) = client::find(&config.control, &config.aws.stream) else {
        return Ok(None);
    };
    let answer = match &config.device {
        Device::Stdin => send(&socket, how, &mut io::stdin().lock()),
        Device::Path(path) => send_file(&socket, how, path),
        // A word that is no file's name was taken for a camera's.
        Device::NamedCamera(name) => send_file(&socket, how, Path::new(name)),
        Device::AnyCamera => return Ok(None),
        #[cfg(feature = "local")]
        Device::Demo => return Ok(None),
    };
    match answer {
        Ok(answer) => command::show_end(&answer, json, words::end).map(Some),
        Err(Error::Client(error)) if error.code() == Code::NO_PRODUCER => Ok(None),
        Err(error) => Err(error),
    }
}

fn send_file(socket: &Path, how: Put, path: &Path) -> Result<serde_json::Value, Error> {
    let mut file = File::open(path).map_err(|source| client::Error::Media {
        place: path.display().to_string(),
        source,
    })?;
    send(socket, how, &mut file)
}

fn send(socket: &Path, how: Put, media: &mut impl Read) -> Result<serde_json::Value, Error> {
    let answer = client::put(socket, &Request::Put(how), media)?;
    Ok(serde_json::Value::Object(answer))
}

/// Uploads what a client sends, with `beside` keeping the run.
///
/// # Errors
/// When it could not start.
pub async fn from_client(
    media: Media,
    config: Config,
    beside: &Beside,
) -> Result<Summary, app::Error> {
    let config = Config {
        control: Place::Nowhere,
        export: Export::default(),
        report: None,
        #[cfg(feature = "local")]
        local: None,
        device: Device::Stdin,
        ..config
    };
    let options = annexb::Options {
        codec: config.codec,
        fps: config.fps,
        max_unit_bytes: config.buffer_bytes,
        fast: config.fast,
    };
    let Media { first, rest } = media;
    let mut rest = Some(rest);
    let open = move || {
        let rest = rest.take().ok_or_else(|| crate::source::Error::Unusable {
            place: "the client's media".into(),
            reason: "it can be read once only".into(),
        })?;
        let source = AnnexB::from_client(&first, rest.into(), options, Clock)?;
        Ok(Box::new(source) as Box<dyn Source>)
    };
    app::run_beside(config, open, beside).await
}
