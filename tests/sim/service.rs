//! A model of Kinesis Video Streams: one PutMedia for a stream, fragments out of Matroska, BUFFERING, RECEIVED, PERSISTED.
//!
//! It checks every frame as it arrives against what the camera made, so that a wrong byte is found where it happens.

use std::collections::BTreeMap;
use std::time::Duration;

use kvs_producer_app::kvs::failure::FailureKind;
use kvs_producer_app::ring::ConnectionId;

use crate::camera::{Shot, codec_private};
use crate::mkv::{Element, Parser};
use crate::schedule::{Names, Schedule};

/// What the service sends down a connection.
#[derive(Debug, Clone)]
pub enum Down {
    Accept,
    Refuse(FailureKind),
    Bytes(Vec<u8>),
    End,
}

/// What the service does later.
#[derive(Debug, Clone)]
pub enum Step {
    Persist(ConnectionId, Vec<u64>, u64),
    /// It has seen that the connection is gone.
    Gone(ConnectionId),
    /// The connection has lived long enough.
    Age(ConnectionId),
}

#[derive(Debug)]
pub enum Out {
    Say(ConnectionId, Down),
    Later(Duration, Step),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Missing,
    Creating { ready_ms: u64 },
    Active,
}

/// How the service is at the moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mood {
    pub now_ms: u64,
    pub mute: bool,
    pub no_persist: bool,
    pub double: bool,
    pub refuse: Option<FailureKind>,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what has happened to it")]
struct Peer {
    parser: Parser,
    track: Option<Vec<u8>>,
    fragment: Option<Arriving>,
    /// The time of the latest frame, on the wire.
    latest: Option<u64>,
    over: bool,
    body_ended: bool,
    pending: usize,
    lose_next: bool,
    losing: bool,
}

#[derive(Debug)]
struct Arriving {
    timecode: u64,
    frames: Vec<u64>,
}

#[derive(Debug)]
pub struct Service {
    pub stream: Stream,
    pub retention_hours: u32,
    persist_ms: u64,
    age_ms: u64,
    /// A stream's PutMedia counts as open until its last acknowledgement is out, not only until its body has ended.
    holds_slot: bool,
    slot: Option<ConnectionId>,
    peers: BTreeMap<ConnectionId, Peer>,
    /// Frame ids of every fragment that is stored, whole or in part, by timecode.
    pub recording: BTreeMap<u64, Vec<u64>>,
    number: u64,
}

impl Service {
    pub fn new(plan: &Schedule) -> Self {
        Self {
            stream: if plan.stream_exists {
                Stream::Active
            } else {
                Stream::Missing
            },
            retention_hours: plan.retention_hours,
            persist_ms: plan.persist_ms,
            age_ms: plan.service_age_ms,
            holds_slot: plan.holds_slot,
            slot: None,
            peers: BTreeMap::new(),
            recording: BTreeMap::new(),
            number: 0,
        }
    }

    /// A request's head has arrived.
    pub fn head(
        &mut self,
        id: ConnectionId,
        good: Result<(), FailureKind>,
        mood: Mood,
    ) -> Vec<Out> {
        let refusal = mood
            .refuse
            .or(good.err())
            .or(match self.stream {
                Stream::Missing => Some(FailureKind::NotFound),
                Stream::Creating { ready_ms } if mood.now_ms < ready_ms => {
                    Some(FailureKind::NotActive)
                }
                _ => None,
            })
            .or(self.slot.map(|_| FailureKind::ConnectionLimit));
        if let Some(kind) = refusal {
            return vec![Out::Say(id, Down::Refuse(kind))];
        }
        self.slot = Some(id);
        self.peers.insert(id, Peer::default());
        vec![
            Out::Say(id, Down::Accept),
            Out::Later(Duration::from_millis(self.age_ms), Step::Age(id)),
        ]
    }

    /// Bytes of a body have arrived.
    pub fn bytes(
        &mut self,
        id: ConnectionId,
        bytes: &[u8],
        shots: &[Shot],
        mood: Mood,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<Out>, String> {
        let mut out = Vec::new();
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.over) else {
            return Ok(out);
        };
        peer.parser.push(bytes);
        while let Some(element) = self.peers.get_mut(&id).expect("above").parser.next()? {
            let peer = self.peers.get_mut(&id).expect("above");
            match element {
                Element::Header(private) => peer.track = Some(private),
                Element::Cluster(timecode) => {
                    self.complete(id, mood, rng, &mut out)?;
                    let peer = self.peers.get_mut(&id).expect("above");
                    if peer.latest.is_some_and(|latest| timecode <= latest) {
                        return Err(format!(
                            "fragment {timecode} is not after the frame at {:?} on connection {id}",
                            peer.latest
                        ));
                    }
                    peer.fragment = Some(Arriving {
                        timecode,
                        frames: Vec::new(),
                    });
                    self.say(id, "BUFFERING", timecode, mood, &mut out);
                }
                Element::Block {
                    offset,
                    key,
                    payload,
                } => {
                    let time = take_frame(peer, offset, key, payload, shots)?;
                    peer.latest = Some(time);
                }
                Element::EndOfFragment if peer.fragment.is_none() => {
                    return Err("an end-of-fragment tag without a fragment".into());
                }
                Element::EndOfFragment => self.complete(id, mood, rng, &mut out)?,
            }
        }
        Ok(out)
    }

    /// The request's body is at its end.
    pub fn terminator(
        &mut self,
        id: ConnectionId,
        mood: Mood,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<Out>, String> {
        let mut out = Vec::new();
        if self.peers.get(&id).is_none_or(|peer| peer.over) {
            return Ok(out);
        }
        self.complete(id, mood, rng, &mut out)?;
        let peer = self.peers.get_mut(&id).expect("above");
        peer.body_ended = true;
        if self.slot == Some(id) && !self.holds_slot {
            self.slot = None;
        }
        self.end_if_done(id, &mut out);
        Ok(out)
    }

    /// The client is gone in the middle of its body.
    fn gone(&mut self, id: ConnectionId, rng: &mut fastrand::Rng) -> Result<(), String> {
        if self.slot == Some(id) {
            self.slot = None;
        }
        let Some(mut peer) = self.peers.remove(&id) else {
            return Ok(());
        };
        // What had arrived of the last fragment may be kept, or not.
        match peer.fragment.take() {
            Some(fragment) if rng.bool() && !fragment.frames.is_empty() => {
                self.record(fragment.timecode, fragment.frames)
            }
            _ => Ok(()),
        }
    }

    pub fn step(
        &mut self,
        step: Step,
        mood: Mood,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<Out>, String> {
        let mut out = Vec::new();
        match step {
            Step::Persist(id, frames, timecode) => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.pending -= 1;
                }
                self.record(timecode, frames)?;
                if self.retention_hours > 0 {
                    self.say(id, "PERSISTED", timecode, mood, &mut out);
                }
                self.end_if_done(id, &mut out);
            }
            Step::Gone(id) => self.gone(id, rng)?,
            Step::Age(id) => {
                if self.slot == Some(id) {
                    out = self.error(4003, Names::Nothing);
                }
            }
        }
        Ok(out)
    }

    /// Somebody is told an error; the connection is over.
    pub fn error(&mut self, error: u32, names: Names) -> Vec<Out> {
        let Some(id) = self.slot.take() else {
            return Vec::new();
        };
        let peer = self.peers.get_mut(&id).expect("it has the slot");
        peer.over = true;
        let arriving = peer.fragment.take().map(|fragment| fragment.timecode);
        let timecode = match names {
            Names::Arriving => arriving.map(|timecode| format!(",\"FragmentTimecode\":{timecode}")),
            Names::Nothing => {
                Some(",\"FragmentTimecode\":0".to_owned()).filter(|_| error.is_multiple_of(2))
            }
            Names::Unknown => Some(",\"FragmentTimecode\":4242".to_owned()),
        };
        let text = format!(
            "{{\"EventType\":\"ERROR\"{},\"ErrorId\":{error}}}\r\n",
            timecode.unwrap_or_default()
        );
        vec![
            Out::Say(id, Down::Bytes(text.into_bytes())),
            Out::Say(id, Down::End),
        ]
    }

    /// The response ends, for no reason.
    pub fn end(&mut self) -> Vec<Out> {
        let Some(id) = self.slot.take() else {
            return Vec::new();
        };
        let peer = self.peers.get_mut(&id).expect("it has the slot");
        peer.over = true;
        peer.fragment = None;
        vec![Out::Say(id, Down::End)]
    }

    /// From the next PERSISTED on nothing gets through. The connection in question, if there is one.
    pub fn lose_next(&mut self) -> Option<ConnectionId> {
        let id = self.slot?;
        self.peers.get_mut(&id)?.lose_next = true;
        Some(id)
    }

    pub fn delete(&mut self) -> Vec<Out> {
        self.stream = Stream::Missing;
        self.error(4507, Names::Nothing)
    }

    fn complete(
        &mut self,
        id: ConnectionId,
        mood: Mood,
        rng: &mut fastrand::Rng,
        out: &mut Vec<Out>,
    ) -> Result<(), String> {
        let peer = self.peers.get_mut(&id).expect("the caller has it");
        let Some(fragment) = peer.fragment.take() else {
            return Ok(());
        };
        if fragment.frames.is_empty() {
            return Err(format!("fragment {} has no frame", fragment.timecode));
        }
        let timecode = fragment.timecode;
        if self.retention_hours == 0 {
            self.record(timecode, fragment.frames)?;
            self.say(id, "RECEIVED", timecode, mood, out);
            return Ok(());
        }
        self.say(id, "RECEIVED", timecode, mood, out);
        if !mood.no_persist {
            let peer = self.peers.get_mut(&id).expect("above");
            peer.pending += 1;
            let after = Duration::from_millis(rng.u64(..=self.persist_ms));
            out.push(Out::Later(
                after,
                Step::Persist(id, fragment.frames, timecode),
            ));
        }
        Ok(())
    }

    /// The answer ends after the last acknowledgement of a body that has ended.
    fn end_if_done(&mut self, id: ConnectionId, out: &mut Vec<Out>) {
        let done = self
            .peers
            .get(&id)
            .is_some_and(|peer| peer.body_ended && peer.pending == 0);
        if done {
            self.peers.remove(&id);
            if self.slot == Some(id) {
                self.slot = None;
            }
            out.push(Out::Say(id, Down::End));
        }
    }

    fn say(
        &mut self,
        id: ConnectionId,
        event: &str,
        timecode: u64,
        mood: Mood,
        out: &mut Vec<Out>,
    ) {
        self.number += 1;
        let number = self.number;
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.over) else {
            return;
        };
        if event == "PERSISTED" && peer.lose_next {
            peer.losing = true;
        }
        if mood.mute || peer.losing {
            return;
        }
        let text = format!(
            "{{\"EventType\":\"{event}\",\"FragmentTimecode\":{timecode},\"FragmentNumber\":\"9134385233318{number:034}\"}}\r\n"
        );
        let text = if mood.double { text.repeat(2) } else { text };
        out.push(Out::Say(id, Down::Bytes(text.into_bytes())));
    }

    /// The same timecode never names two different things: one copy may only be longer than the other.
    fn record(&mut self, timecode: u64, frames: Vec<u64>) -> Result<(), String> {
        let known = self.recording.entry(timecode).or_default();
        let common = known.len().min(frames.len());
        if known[..common] != frames[..common] {
            return Err(format!(
                "timecode {timecode} names two fragments: {known:?} and {frames:?}"
            ));
        }
        if frames.len() > known.len() {
            *known = frames;
        }
        Ok(())
    }
}

/// Checks a frame and adds it to the fragment. Its time on the wire.
fn take_frame(
    peer: &mut Peer,
    offset: i16,
    key: bool,
    payload: std::ops::Range<usize>,
    shots: &[Shot],
) -> Result<u64, String> {
    let fragment = peer.fragment.as_mut().ok_or("a block outside a fragment")?;
    let bytes = peer.parser.bytes(payload);
    let (id, fill) = bytes
        .split_first_chunk()
        .map(|(id, fill)| (u64::from_le_bytes(*id), fill))
        .ok_or("a frame of less than 8 bytes")?;
    let index = usize::try_from(id).map_err(|error| error.to_string())?;
    let shot = shots
        .get(index)
        .ok_or_else(|| format!("frame {id} was never captured"))?;
    let first = *fragment.frames.first().unwrap_or(&id);
    let first_at = shots[usize::try_from(first).map_err(|error| error.to_string())?].at;
    let spacing = shot.at - first_at;
    let problem = if bytes.len() != shot.len || !fill.iter().all(|&byte| byte == bytes[0]) {
        "its bytes are not the camera's"
    } else if key != shot.key {
        "its key flag is not the camera's"
    } else if shot.dropped.is_some() {
        "it was reported as dropped"
    } else if i64::from(offset) != i64::try_from(spacing).unwrap_or(-1) {
        "its spacing is not the camera's"
    } else if spacing > 20_000 {
        "its fragment is longer than 20 s"
    } else if fragment.frames.is_empty() && !key {
        "its fragment does not start with a key frame"
    } else if fragment.frames.last().is_some_and(|&last| last + 1 != id) {
        "it does not follow the one before"
    } else if peer.track.as_deref() != Some(&codec_private(shot.track)) {
        "its connection's header is of another track"
    } else {
        fragment.frames.push(id);
        return Ok(fragment.timecode + spacing);
    };
    Err(format!(
        "frame {id} in fragment {}: {problem} ({shot:?}, offset {offset}, key {key})",
        fragment.timecode
    ))
}
