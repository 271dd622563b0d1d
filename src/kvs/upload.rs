//! The body of a PutMedia request: pulls frames from the ring as the connection takes them.
//!
//! There is no task and no channel between the ring and the connection: the HTTP client asks for bytes when it can write
//! some, and a frame that is pushed meanwhile wakes it. What is in the ring is the only queue.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::mpsc;

use super::session::{BodyEnd, Event};
use crate::frame::{Timecode, TrackInfo};
use crate::mkv::{self, Fragmenter, Names};
use crate::ring::shared::Reader;
use crate::ring::{ConnectionId, Peek, Ring};

/// What control and a body share.
#[derive(Debug, Clone, Default)]
pub struct Handle {
    finish: Arc<AtomicBool>,
}

impl Handle {
    /// Asks the body to end at the next fragment boundary.
    pub fn finish(&self, ring: &Reader) {
        self.finish.store(true, Ordering::Relaxed);
        ring.wake_body();
    }
}

/// See the module.
#[derive(Debug)]
pub struct UploadBody {
    connection: ConnectionId,
    ring: Reader,
    handle: Handle,
    events: mpsc::UnboundedSender<Event>,
    fragmenter: Fragmenter,
    /// What the header said; `None` until it was sent.
    track: Option<Arc<TrackInfo>>,
    /// The fragment that is being sent.
    fragment: Option<Timecode>,
    /// The parts of one frame.
    queue: VecDeque<Bytes>,
    /// The service has seen a fragment begin and no tag that ends it.
    open: bool,
    ended: bool,
}

/// What the ring had for the body.
enum Step {
    Header(Arc<TrackInfo>),
    Begun(Timecode),
    Queued,
    /// A fragment is at its end; whether the next one is there already.
    Sent {
        followed: bool,
    },
    End(BodyEnd),
}

impl UploadBody {
    /// A body for `connection`. What happens to it goes to `events`, two for each fragment, in order.
    pub fn new(
        connection: ConnectionId,
        ring: Reader,
        handle: Handle,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        Self {
            connection,
            ring,
            handle,
            events,
            fragmenter: Fragmenter::default(),
            track: None,
            fragment: None,
            queue: VecDeque::new(),
            open: false,
            ended: false,
        }
    }

    /// Looks what the ring has; moves the parts of one frame into the queue.
    fn step(&mut self, ring: &mut Ring) -> Option<Step> {
        let asked = self.handle.finish.load(Ordering::Relaxed);
        match ring.peek() {
            Peek::Fragment(_) if asked => Some(Step::End(BodyEnd::Asked)),
            Peek::Fragment(track) => match &self.track {
                None => Some(Step::Header(track)),
                Some(sent) if *sent != track => Some(Step::End(BodyEnd::TrackChanged)),
                Some(_) => ring
                    .begin(self.connection)
                    .map(|(_, timecode)| Step::Begun(timecode)),
            },
            Peek::Frame => {
                let frame = ring.take_frame(&mut self.queue)?;
                self.queue
                    .push_front(self.fragmenter.block(frame.offset_ms, frame.key, frame.len));
                Some(Step::Queued)
            }
            Peek::FragmentEnd => ring.finish().map(|_| Step::Sent {
                followed: matches!(ring.peek(), Peek::Fragment(_)),
            }),
            Peek::Nothing { inside: false } if asked => Some(Step::End(BodyEnd::Asked)),
            Peek::Nothing { .. } => None,
            // A body that has sent nothing would end for nothing.
            Peek::Silent if self.track.is_some() || asked => Some(Step::End(BodyEnd::Silent)),
            Peek::Silent => None,
            Peek::Closed => Some(Step::End(BodyEnd::Closed)),
        }
    }

    fn take_in(&mut self, step: Step) {
        match step {
            Step::Header(track) => {
                let uid = fastrand::u128(..).to_be_bytes();
                self.queue
                    .push_back(mkv::header(&track, uid, &Names::default()));
                self.track = Some(track);
            }
            Step::Begun(timecode) => {
                self.fragmenter.begin_fragment(timecode);
                self.fragment = Some(timecode);
                self.open = true;
                self.report(Event::Begun(self.connection, timecode));
            }
            Step::Queued => {}
            Step::Sent { followed } => {
                // The next cluster would end it for the service, and may be seconds away.
                if !followed {
                    self.close_fragment();
                }
                if let Some(timecode) = self.fragment.take() {
                    self.report(Event::Sent(self.connection, timecode));
                }
            }
            Step::End(why) => {
                self.close_fragment();
                self.ended = true;
                self.report(Event::BodyEnded(self.connection, why));
            }
        }
    }

    fn close_fragment(&mut self) {
        if self.open {
            self.queue.push_back(mkv::end_of_fragment());
            self.open = false;
        }
    }

    fn report(&self, event: Event) {
        // Control is gone only when the program ends.
        let _ = self.events.send(event);
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = &mut *self;
        loop {
            if let Some(bytes) = body.queue.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if body.ended {
                return Poll::Ready(None);
            }
            let ring = body.ring.clone();
            match ring.with_or_wait(context.waker(), |ring| body.step(ring)) {
                Some(step) => body.take_in(step),
                None => return Poll::Pending,
            }
        }
    }
}
