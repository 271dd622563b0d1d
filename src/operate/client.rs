//! The other end of the control socket: asks a running producer, and waits for its answer. Blocking, without a runtime.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::protocol::{Lines, MOST_ANSWER_BYTES, Refusal, Request, parse_answer};
use super::socket::{Place, directories, looked_in, path_in};
use crate::codes::Code;

/// For an answer that needs nothing but a look: also behind clients that hang.
const PATIENCE: Duration = Duration::from_secs(15);

/// Media is handed on in pieces of so many bytes.
const PIECE_BYTES: usize = 16 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no producer runs for {channel:?} here: there is no socket in {}", places(.looked))]
    NoProducer {
        /// Name of the stream.
        channel: String,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The socket is there and nobody is behind it, or it is not for us.
    #[error("cannot ask the producer at {}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// The connection broke, or was silent for too long.
    #[error("no answer from the producer at {}", .path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// What answered is no producer.
    #[error("{} is not a producer's control socket: {what}", .path.display())]
    NotOurs {
        /// The socket.
        path: PathBuf,
        /// What is wrong with its answer.
        what: &'static str,
    },
    /// The media cannot be read.
    #[error("cannot read {place}")]
    Media {
        /// What.
        place: String,
        /// The operating system's word.
        source: io::Error,
    },
    /// The producer will not.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl Error {
    /// For [`crate::codes`].
    pub fn code(&self) -> Code {
        match self {
            Self::NoProducer { .. } => Code::NO_PRODUCER,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Code::NOT_YOURS
            }
            Self::Connect { .. } => Code::NO_PRODUCER,
            Self::NoAnswer { .. } | Self::NotOurs { .. } => Code::NO_ANSWER,
            Self::Media { .. } => Code::SOURCE,
            Self::Refused(refusal) => refusal.code,
        }
    }
}

fn places(looked: &[PathBuf]) -> String {
    let looked: Vec<_> = looked
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    looked.join(" or ")
}

/// The socket of the channel's producer.
///
/// # Errors
/// When there is none.
pub fn find(place: &Place, channel: &str) -> Result<PathBuf, Error> {
    if let Place::At(path) = place {
        return Ok(path.clone());
    }
    // What cannot be looked at, because its directory is closed to us, is there: connecting tells.
    let there = |path: &PathBuf| !matches!(path.try_exists(), Ok(false));
    let mut paths = looked_in().into_iter().map(|dir| path_in(&dir, channel));
    paths.find(there).ok_or_else(|| Error::NoProducer {
        channel: channel.to_owned(),
        looked: directories(),
    })
}

/// A connection to a running producer.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    lines: Lines,
}

/// Asks for one thing. `patience` is how much longer than usual the answer may take.
///
/// # Errors
/// When nobody answers, or the answer is a refusal.
pub fn ask(
    path: &Path,
    request: &Request,
    patience: Option<Duration>,
) -> Result<Map<String, Value>, Error> {
    Client::connect(path)?.ask(request, patience)
}

/// Sends a request and the media behind it, and waits for as long as it takes.
///
/// # Errors
/// When nobody answers, the media cannot be read, or the answer is a refusal.
pub fn put(
    path: &Path,
    request: &Request,
    media: &mut impl Read,
) -> Result<Map<String, Value>, Error> {
    let mut client = Client::connect(path)?;
    client.send(request)?;
    // The producer takes what the service takes.
    client.wait_at_most(None)?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let len = match media.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                let place = "the media".into();
                return Err(Error::Media { place, source });
            }
        };
        if client.stream.write_all(&piece[..len]).is_err() {
            // It takes no more: its answer says why.
            break;
        }
    }
    // Nothing is left to shut down where the producer has closed.
    let _ = client.stream.shutdown(Shutdown::Write);
    client.receive()
}

impl Client {
    /// Connects to the producer behind this socket.
    ///
    /// # Errors
    /// When nobody listens there, or not to us.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).map_err(|source| Error::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            stream,
            path: path.to_owned(),
            lines: Lines::new(MOST_ANSWER_BYTES),
        })
    }

    /// Asks for one thing; more can be asked for afterwards. `patience` is how much longer than usual the answer may take.
    ///
    /// # Errors
    /// When nobody answers, or the answer is a refusal.
    pub fn ask(
        &mut self,
        request: &Request,
        patience: Option<Duration>,
    ) -> Result<Map<String, Value>, Error> {
        self.wait_at_most(Some(PATIENCE + patience.unwrap_or_default()))?;
        match self.send(request) {
            // It may have said why it takes nothing before it closed.
            Err(error) => self.receive().map_err(|why| match why {
                Error::Refused(_) => why,
                _ => error,
            }),
            Ok(()) => self.receive(),
        }
    }

    fn wait_at_most(&self, time: Option<Duration>) -> Result<(), Error> {
        self.stream
            .set_read_timeout(time)
            .and_then(|()| self.stream.set_write_timeout(time))
            .map_err(|source| self.no_answer(source))
    }

    fn send(&mut self, request: &Request) -> Result<(), Error> {
        let sent = self.stream.write_all(request.line().as_bytes());
        sent.map_err(|source| self.no_answer(source))
    }

    fn receive(&mut self) -> Result<Map<String, Value>, Error> {
        let mut bytes = [0; 4096];
        let line = loop {
            match self.lines.next_line() {
                Ok(Some(line)) => break line,
                Ok(None) => {}
                Err(_) => return Err(self.not_ours("its answer is too long")),
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(self.no_answer(io::ErrorKind::UnexpectedEof.into())),
                Ok(len) => self.lines.push(&bytes[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.no_answer(error)),
            }
        };
        let answer = parse_answer(&line).map_err(|what| self.not_ours(what))?;
        answer.map_err(Error::Refused)
    }

    fn no_answer(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        Error::NoAnswer { path, source }
    }

    fn not_ours(&self, what: &'static str) -> Error {
        let path = self.path.clone();
        Error::NotOurs { path, what }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What a client makes of a server that sends these bytes and closes.
    fn answered(bytes: &'static [u8]) -> Error {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cam.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut line = [0; 100];
                let _ = stream.read(&mut line).expect("a request");
                stream.write_all(bytes).expect("is taken");
            });
            ask(&path, &Request::Status, None).expect_err("no answer")
        })
    }

    #[test]
    fn whatever_listens_there_the_client_says_what_is_wrong() {
        let error = answered(b"220 mail.example.org ESMTP\n");
        assert!(matches!(error, Error::NotOurs { .. }), "{error}");
        assert_eq!(error.code(), Code::NO_ANSWER);
        let error = answered(b"{\"ok\":tr");
        assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
        let error =
            answered(b"{\"v\":1,\"ok\":false,\"code\":\"KVS-E608\",\"error\":\"it drains\"}\n");
        assert_eq!(error.to_string(), "it drains");
        assert_eq!(error.code(), Code::NOT_NOW);
    }

    #[test]
    fn nobody_there_is_said_with_the_places() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cam.sock");
        let error = ask(&path, &Request::Status, None).expect_err("nobody");
        assert_eq!(error.code(), Code::NO_PRODUCER);
        assert!(error.to_string().contains("cam.sock"), "{error}");
        // A socket that its process left behind.
        drop(UnixListener::bind(&path).expect("binds"));
        let error = ask(&path, &Request::Status, None).expect_err("nobody");
        assert_eq!(error.code(), Code::NO_PRODUCER);
        let error = find(&Place::Usual, "no-such-channel").expect_err("nobody");
        assert!(error.to_string().contains("/run/kvsProducerApp"), "{error}");
    }
}
