//! What tests see of the endpoint, and how they wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::acks::{Ack, AckError, FragmentNumber};
use super::api::ApiError;
use super::media::Frame;

/// How much the endpoint remembers of what came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum History {
    /// All, the payload of every frame included.
    Payloads,
    /// All but the payloads.
    #[default]
    Frames,
    /// The last few fragments and connections without their frames: for endpoints that run for days.
    Recent,
}

/// How many fragments and connections [`History::Recent`] keeps.
const RECENT: usize = 16;

/// All that has happened at the endpoint.
#[derive(Debug, Default)]
pub struct State {
    /// By name; a stream is here once it was created or streamed to.
    pub streams: BTreeMap<String, StreamView>,
    /// The PutMedia connections in the order in which they began.
    pub connections: Vec<ConnectionView>,
    /// TCP connections accepted.
    pub accepted: u64,
    /// Calls that arrived, by operation (`"PutMedia"`).
    pub calls: BTreeMap<&'static str, u64>,
    /// Calls that were answered with an error.
    pub errors: Vec<ErrorView>,
}

impl State {
    /// The fragments of `stream` that were stored, the first time each.
    pub fn persisted(&self, stream: &str) -> impl Iterator<Item = &FragmentView> {
        let fragments = self.streams.get(stream).into_iter();
        fragments
            .flat_map(|stream| &stream.fragments)
            .filter(|fragment| fragment.persisted && !fragment.duplicate)
    }

    /// How often `operation` was called.
    pub fn count(&self, operation: &str) -> u64 {
        self.calls.get(operation).copied().unwrap_or(0)
    }

    /// The PutMedia connection with this number, the first being 1.
    pub fn connection(&self, number: u64) -> Option<&ConnectionView> {
        self.connections.iter().find(|known| known.number == number)
    }
}

/// What came for a stream.
#[derive(Debug, Default)]
pub struct StreamView {
    /// Whole fragments that broke no rule, in the order in which they came.
    pub fragments: Vec<FragmentView>,
    /// How many, also where they are no longer remembered.
    pub fragments_total: u64,
    /// Frames in them.
    pub frames_total: u64,
    /// Bytes in them, headers of clusters and blocks included.
    pub bytes_total: u64,
}

/// A whole fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentView {
    /// Its number.
    pub number: FragmentNumber,
    /// The cluster's timecode as sent.
    pub timecode: u64,
    /// The connection it came on.
    pub connection: u64,
    /// Its frames, in order.
    pub frames: Vec<Frame>,
    /// How many frames.
    pub frame_count: usize,
    /// Bytes of the cluster and its tags.
    pub bytes: usize,
    /// Its tags but the end mark.
    pub tags: Vec<(String, String)>,
    /// Whether the stream keeps what it gets (its retention is not 0).
    pub persisted: bool,
    /// Whether it came and was stored before.
    pub duplicate: bool,
}

/// A PutMedia connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionView {
    /// Counted from 1.
    pub number: u64,
    /// Name of the stream.
    pub stream: String,
    /// Bytes of its body so far.
    pub bytes: u64,
    /// Fragments that have begun.
    pub fragments: u64,
    /// The acknowledgements, but those that a scenario withheld, in the order in which they were due.
    pub acks: Vec<Ack>,
    /// How it ended; `None` while it lives.
    pub closed: Option<Closed>,
}

/// How a PutMedia connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// The body was sent to its end and every acknowledgement went out.
    Completed,
    /// With an ERROR, for this reason.
    Refused(AckError, String),
    /// Nothing came for too long.
    Idle,
    /// The client went away, or the endpoint was stopped.
    Lost,
    /// A scenario broke it.
    Broken,
}

/// A call that was answered with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorView {
    /// The operation, or the path where it is none.
    pub operation: String,
    /// The answer.
    pub error: ApiError,
}

/// A handle on what happens at the endpoint; cheap to clone.
#[derive(Debug, Clone)]
pub struct View {
    state: watch::Receiver<State>,
}

impl View {
    /// Looks at the state. While it is looked at the endpoint stands still: do not await meanwhile.
    pub fn state(&self) -> watch::Ref<'_, State> {
        self.state.borrow()
    }

    /// Waits until `condition` holds, looked at after every change. Never returns when the endpoint is gone before.
    pub async fn wait_until(&mut self, condition: impl FnMut(&State) -> bool) {
        if self.state.wait_for(condition).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Where the endpoint writes what happens.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    state: Arc<watch::Sender<State>>,
    history: History,
}

impl Journal {
    pub(super) fn new(history: History) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::default())),
            history,
        }
    }

    pub(super) fn view(&self) -> View {
        View {
            state: self.state.subscribe(),
        }
    }

    pub(super) fn history(&self) -> History {
        self.history
    }

    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| {
            result = Some(change(state));
        });
        result.expect("send_modify calls its argument")
    }

    /// Counts a call and tells which of its kind it is.
    pub(super) fn call(&self, operation: &'static str) -> u64 {
        self.update(|state| {
            let count = state.calls.entry(operation).or_default();
            *count += 1;
            *count
        })
    }

    pub(super) fn error(&self, operation: &str, error: &ApiError) {
        let view = ErrorView {
            operation: operation.to_owned(),
            error: error.clone(),
        };
        self.update(|state| {
            state.errors.push(view);
            self.forget(&mut state.errors);
        });
    }

    pub(super) fn opened(&self, number: u64, stream: &str) {
        let view = ConnectionView {
            number,
            stream: stream.to_owned(),
            bytes: 0,
            fragments: 0,
            acks: Vec::new(),
            closed: None,
        };
        self.update(|state| {
            state.streams.entry(stream.to_owned()).or_default();
            state.connections.push(view);
            self.forget(&mut state.connections);
        });
    }

    pub(super) fn connection(&self, number: u64, change: impl FnOnce(&mut ConnectionView)) {
        self.update(|state| {
            let mut connections = state.connections.iter_mut().rev();
            if let Some(connection) = connections.find(|known| known.number == number) {
                change(connection);
                self.forget(&mut connection.acks);
            }
        });
    }

    pub(super) fn fragment(&self, stream: &str, mut fragment: FragmentView) {
        if self.history == History::Recent {
            fragment.frames = Vec::new();
        }
        self.update(|state| {
            let stream = state.streams.entry(stream.to_owned()).or_default();
            stream.fragments_total += 1;
            stream.frames_total += fragment.frame_count as u64;
            stream.bytes_total += fragment.bytes as u64;
            stream.fragments.push(fragment);
            self.forget(&mut stream.fragments);
        });
    }

    fn forget<T>(&self, list: &mut Vec<T>) {
        if self.history == History::Recent && list.len() > RECENT {
            list.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(number: u128) -> FragmentView {
        FragmentView {
            number: FragmentNumber::new(number),
            timecode: 1,
            connection: 1,
            frames: vec![Frame {
                track: 1,
                at_ms: 1,
                key: true,
                bytes: 1,
                payload: None,
            }],
            frame_count: 1,
            bytes: 10,
            tags: Vec::new(),
            persisted: true,
            duplicate: false,
        }
    }

    #[tokio::test]
    async fn waiting_sees_what_was_and_what_comes() {
        let journal = Journal::new(History::Frames);
        let mut view = journal.view();
        journal.call("PutMedia");
        view.wait_until(|state| state.count("PutMedia") == 1).await;
        let later = async {
            journal.fragment("camera", fragment(1));
        };
        let waiting = view.wait_until(|state| state.persisted("camera").count() == 1);
        tokio::join!(waiting, later);
    }

    #[test]
    fn recent_history_stays_small_and_totals_go_on() {
        let journal = Journal::new(History::Recent);
        for number in 0..100 {
            journal.fragment("camera", fragment(number));
            journal.opened(u64::try_from(number).unwrap(), "camera");
        }
        let view = journal.view();
        let state = view.state();
        let stream = &state.streams["camera"];
        assert_eq!(
            (stream.fragments.len(), stream.fragments_total),
            (RECENT, 100)
        );
        assert!(stream.fragments[0].frames.is_empty());
        assert_eq!(state.connections.len(), RECENT);
        assert_eq!(state.connections.last().unwrap().number, 99);
    }
}
