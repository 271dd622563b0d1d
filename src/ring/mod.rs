//! The ring: whole fragments in a fixed amount of memory, between the camera that must not wait and the network that may.
//!
//! ```text
//!   oldest                                      newest
//!   | sent, not confirmed | being sent | unsent | being written |
//!   ^ confirm() frees      ^ cursor: next to send ^ push() writes
//! ```
//!
//! A fragment is one or more whole groups of pictures: it starts with a key frame, and so decodes by itself. It leaves
//! when the service has confirmed it, when it was refused, or when it is evicted because the ring is full.

mod pool;
pub mod shared;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::frame::{CameraLosses, FrameId, MediaTime, Payload, Timecode, TrackInfo};
use pool::Pool;

/// The least memory the ring works with: two fragments of a small camera.
pub const MIN_BUDGET_BYTES: usize = 512 * 1024;

/// What an allocator may add to a block. Most have a size class at a power of two, their own bytes included: a block that
/// misses it takes the next, or a page more that it never uses.
const ALLOCATOR_BYTES: usize = 64;

/// The service stores fragments of 1 to 20 s (service limits; ERROR ACK 4002 above that): shorter groups of pictures
/// share a fragment.
pub const MIN_FRAGMENT: Duration = Duration::from_secs(1);

/// Where a fragment is closed although no key frame has come: 1 s below the service's limit, for the last frame's duration.
pub const MAX_FRAGMENT: Duration = Duration::from_secs(19);

/// Where a fragment is closed by its size: the service's limit of 50 MB less the framing around the frames.
const MAX_FRAGMENT_BYTES: usize = 49_000_000;

/// The frames a ring can hold for each of its bytes, so that tiny frames cannot make the index larger than the media:
/// one for every 512 bytes. In 2 MiB that is 4096 frames, 2 min 44 s at 25/s.
const BYTES_PER_INDEXED_FRAME: usize = 512;

/// A wall clock that is off by less is not worth a step in the media's times.
const ANCHOR_TOLERANCE_MS: u64 = 20;

/// Counts fragments from program start; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentId(pub u64);

/// Counts PutMedia requests from program start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    /// People count from 1, as the report does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 + 1)
    }
}

/// What happens when a frame does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Whole oldest fragments go: a camera cannot wait.
    Drop,
    /// The writer waits: a file can.
    Wait,
}

/// Why a frame will never be persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// It came before the first key frame and cannot be decoded.
    BeforeKeyFrame,
    /// A key frame without SPS and PPS (and VPS), in it or before it, and what follows it.
    NoParameterSets,
    /// It depends on something that the camera lost or damaged.
    CameraGap,
    /// Its fragment would be longer than the service takes: no key frame for [`MAX_FRAGMENT`], or 50 MB.
    FragmentLimit,
    /// The frame alone is larger than the ring, or it depends on one that was.
    FrameTooLarge,
    /// The ring was full.
    RingFull,
    /// The service refused the fragment for its own sake.
    Refused,
    /// Somebody wanted it so: a reset, or uploading was paused for longer than the ring holds.
    OnOrder,
    /// Still in the ring when the program had to end.
    NotSentInTime,
}

impl DropReason {
    /// All of them, in the order of the reports.
    pub const ALL: [Self; 9] = [
        Self::BeforeKeyFrame,
        Self::NoParameterSets,
        Self::CameraGap,
        Self::FragmentLimit,
        Self::FrameTooLarge,
        Self::RingFull,
        Self::Refused,
        Self::OnOrder,
        Self::NotSentInTime,
    ];

    /// Its key in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeKeyFrame => "before_key_frame",
            Self::NoParameterSets => "no_parameter_sets",
            Self::CameraGap => "camera_gap",
            Self::FragmentLimit => "fragment_limit",
            Self::FrameTooLarge => "frame_too_large",
            Self::RingFull => "ring_full",
            Self::Refused => "refused",
            Self::OnOrder => "on_order",
            Self::NotSentInTime => "not_sent_in_time",
        }
    }
}

impl DropReason {
    /// One line for the log: the likely cause, and what to do.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::BeforeKeyFrame => "waiting for the first key frame",
            Self::NoParameterSets => {
                "a key frame came without SPS and PPS: let the encoder repeat them with each key frame"
            }
            Self::CameraGap => "the camera lost something; waiting for a key frame",
            Self::FragmentLimit => {
                "no key frame for 19 s, and the service takes no longer fragment: set a shorter key-frame interval (GOP)"
            }
            Self::FrameTooLarge => "a frame is larger than the ring: give a larger --buffer",
            Self::RingFull => {
                "the ring is full and the network does not keep up: lower the bitrate or give a larger --buffer"
            }
            Self::Refused => "the service refused the fragment",
            Self::OnOrder => "a reset, or a pause longer than the buffer, was asked for",
            Self::NotSentInTime => "the program had to end",
        }
    }
}

/// Frames and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// How many frames.
    pub frames: u64,
    /// Their payload: NAL units with their lengths, without Matroska's framing.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, frames: usize, bytes: usize) {
        self.frames += frames as u64;
        self.bytes += bytes as u64;
    }
}

/// What became of every frame: captured = persisted + dropped + held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Came from the source.
    pub captured: Amount,
    /// Handed to the network at least once.
    pub sent: Amount,
    /// Handed to the network again, after a connection was lost.
    pub resent: Amount,
    /// Confirmed by the service: PERSISTED, or RECEIVED where nothing is retained.
    pub persisted: Amount,
    /// Never to be persisted, by reason, in the order of [`DropReason::ALL`].
    pub dropped: [Amount; DropReason::ALL.len()],
    /// Fragments confirmed.
    pub fragments_persisted: u64,
    /// Whole fragments given up because the ring was full.
    pub fragments_evicted: u64,
    /// Lost before it came from the source, and in none of the other counts.
    pub camera: CameraLosses,
}

impl Counts {
    fn drop(&mut self, reason: DropReason, frames: usize, bytes: usize) {
        self.dropped[reason as usize].add(frames, bytes);
    }

    /// What was dropped for `reason`.
    pub fn dropped_for(&self, reason: DropReason) -> Amount {
        self.dropped[reason as usize]
    }

    /// What was dropped for any reason.
    pub fn dropped_in_all(&self) -> Amount {
        self.dropped
            .iter()
            .fold(Amount::default(), |sum, amount| Amount {
                frames: sum.frames + amount.frames,
                bytes: sum.bytes + amount.bytes,
            })
    }
}

/// A frame on its way in, without its bytes.
#[derive(Debug, Clone, Copy)]
pub struct NewFrame<'a> {
    /// When it was captured. A time that is not after the frame before is moved to 1 ms after it.
    pub at: MediaTime,
    /// Whether decoding can start with it.
    pub key: bool,
    /// Something before it was lost.
    pub discontinuity: bool,
    /// What the stream is from this frame on; looked at when `key`.
    pub track: Option<&'a Arc<TrackInfo>>,
}

/// What became of a pushed frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// It is in the ring.
    Stored(FrameId),
    /// It is not, and was counted.
    Dropped(FrameId, DropReason),
    /// There is no room and the writer is to wait; nothing was counted.
    Full,
}

/// What the reader finds at the cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peek {
    /// The start of a fragment that [`Ring::begin`] has not entered.
    Fragment(Arc<TrackInfo>),
    /// A frame of the fragment that was begun.
    Frame,
    /// The end of the fragment that was begun: [`Ring::finish`] leaves it.
    FragmentEnd,
    /// Nothing yet. `inside` a fragment that was begun, or between two.
    Nothing {
        /// Whether a fragment was begun and has not ended.
        inside: bool,
    },
    /// Nothing, between two fragments, and the source has fallen silent.
    Silent,
    /// Nothing, and the writer will bring no more.
    Closed,
}

/// A frame on its way out; its payload was appended to the reader's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// Milliseconds after the fragment's timecode.
    pub offset_ms: u16,
    /// Whether decoding can start with it.
    pub key: bool,
    /// Bytes of payload.
    pub len: usize,
}

/// A fragment that the service has confirmed and that left the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// Which.
    pub id: FragmentId,
    /// Its frames and bytes.
    pub amount: Amount,
    /// When its first frame was captured.
    pub began: MediaTime,
    /// When its last frame was captured.
    pub ended: MediaTime,
}

/// How full the ring is and how far the network is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Payload memory in all.
    pub total_bytes: usize,
    /// Payload memory that a frame could be written to now.
    pub available_bytes: usize,
    /// When the oldest frame was captured that was not handed to the network.
    pub oldest_unsent: Option<MediaTime>,
    /// Payload that was not handed to the network.
    pub unsent_bytes: usize,
    /// When the oldest frame was captured.
    pub oldest: Option<MediaTime>,
    /// When the newest frame was captured.
    pub newest: Option<MediaTime>,
    /// Fragments in the ring.
    pub fragments: usize,
}

#[derive(Debug)]
struct Slot {
    at: MediaTime,
    key: bool,
    len: u32,
    first_part: u32,
    end_part: u32,
}

#[derive(Debug)]
struct Block {
    memory: BytesMut,
    /// Index of the last frame that has bytes in it.
    last_frame: usize,
}

#[derive(Debug)]
struct Fragment {
    id: FragmentId,
    track: Arc<TrackInfo>,
    /// Set when it is first sent and kept for ever: what is sent again has the time it had.
    timecode: Option<Timecode>,
    frames: Vec<Slot>,
    parts: Vec<Bytes>,
    blocks: VecDeque<Block>,
    bytes: usize,
    /// When its first and its last frame were captured, also when their tables were given up.
    began: MediaTime,
    ended: MediaTime,
    /// No more frames will come.
    complete: bool,
    /// The connection that carries it or carried it last.
    connection: Option<ConnectionId>,
    /// Frames handed to the network at least once.
    sent_once: usize,
    /// Frames in it, also when their tables were given up.
    count: usize,
    /// Frames at its start whose payload was given up to make room: it cannot be sent again.
    released: usize,
}

impl Fragment {
    fn start(&self) -> MediaTime {
        self.frames.first().map_or(MediaTime(0), |frame| frame.at)
    }

    /// Empties it into `pool`; its tables keep their memory for the next fragment.
    fn empty(&mut self, pool: &mut Pool) {
        self.frames.clear();
        self.parts.clear();
        for block in self.blocks.drain(..) {
            pool.give(block.memory);
        }
    }
}

/// Where the reader stands.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    fragment: FragmentId,
    /// `Some(n)`: the fragment was begun and n of its frames were handed over.
    begun: Option<usize>,
}

/// Fragments between the camera and the network. Pure: no clock, no lock, no wait.
#[derive(Debug)]
pub struct Ring {
    pool: Pool,
    max_frames: usize,
    fragments: VecDeque<Fragment>,
    /// Emptied fragments, kept for their tables' memory.
    spare: Vec<Fragment>,
    frames_held: usize,
    next_fragment: FragmentId,
    next_frame: FrameId,
    cursor: Cursor,
    /// Why frames are dropped until the next key frame.
    awaiting_key: Option<DropReason>,
    last_at: Option<MediaTime>,
    /// Wall clock less media clock, in ms.
    anchor_ms: i64,
    /// The latest time on the wire so far.
    last_timecode: Option<Timecode>,
    silent: bool,
    closed: bool,
    /// Nobody reads, because somebody wants it so: what a full ring gives up is no loss.
    paused: bool,
    counts: Counts,
}

impl Ring {
    /// A ring for `budget_bytes` of payload, which are taken as they are needed; at least [`MIN_BUDGET_BYTES`] make sense.
    ///
    /// The blocks are a 128th of the budget: a fragment wastes half a block on average, a frame of typical size lies in
    /// one to three.
    pub fn new(budget_bytes: usize) -> Self {
        let block_bytes = (budget_bytes / 128)
            .next_power_of_two()
            .clamp(4 * 1024, 64 * 1024);
        Self::with_blocks(budget_bytes, block_bytes - ALLOCATOR_BYTES)
    }

    fn with_blocks(budget_bytes: usize, block_bytes: usize) -> Self {
        Self {
            pool: Pool::new(budget_bytes, block_bytes),
            max_frames: budget_bytes / BYTES_PER_INDEXED_FRAME,
            fragments: VecDeque::new(),
            spare: Vec::new(),
            frames_held: 0,
            next_fragment: FragmentId(0),
            next_frame: FrameId(0),
            cursor: Cursor {
                fragment: FragmentId(0),
                begun: None,
            },
            awaiting_key: Some(DropReason::BeforeKeyFrame),
            last_at: None,
            anchor_ms: 0,
            last_timecode: None,
            silent: false,
            closed: false,
            paused: false,
            counts: Counts::default(),
        }
    }

    // ---- the writer's side ----

    /// Takes a frame, making its only copy.
    pub fn push<P: Payload + ?Sized>(
        &mut self,
        frame: NewFrame<'_>,
        payload: &P,
        when_full: WhenFull,
    ) -> Push {
        let len = payload.len();
        if self.closed {
            return self.refuse(len, DropReason::NotSentInTime);
        }
        let at = self
            .last_at
            .map_or(frame.at, |last| frame.at.max(MediaTime(last.0 + 1)));

        // Where a key frame is awaited already, that is for the reason that came first.
        if frame.discontinuity && !frame.key && self.awaiting_key.is_none() {
            self.break_fragment(DropReason::CameraGap);
        }
        let starts = match self.writing() {
            Some(fragment) => frame.key && Self::may_split(fragment, &frame, at),
            None if frame.key => true,
            None => return self.refuse(len, self.awaiting_key.unwrap_or(DropReason::CameraGap)),
        };
        if starts {
            if frame.track.is_none() {
                self.break_fragment(DropReason::NoParameterSets);
                return self.refuse(len, DropReason::NoParameterSets);
            }
            self.complete_newest();
        } else if self.would_break_limits(at, len) {
            self.break_fragment(DropReason::FragmentLimit);
            return self.refuse(len, DropReason::FragmentLimit);
        }
        if len > self.largest_frame() {
            self.break_fragment(DropReason::FrameTooLarge);
            return self.refuse(len, DropReason::FrameTooLarge);
        }
        if !self.make_room(len, starts, when_full) {
            if when_full == WhenFull::Wait {
                return Push::Full;
            }
            self.break_fragment(DropReason::RingFull);
            return self.refuse(len, DropReason::RingFull);
        }
        if starts {
            let track = frame.track.expect("checked above when a fragment starts");
            self.open_fragment(Arc::clone(track));
        }
        self.last_at = Some(at);
        self.awaiting_key = None;
        self.silent = false;
        self.store(at, frame.key, payload);
        self.counts.captured.add(1, len);
        Push::Stored(self.take_frame_id())
    }

    /// Counts a frame that the source could not make use of, and returns what for: damage before the first key frame is
    /// none, because nothing there is of use.
    pub fn drop_frame(&mut self, len: usize, reason: DropReason) -> DropReason {
        self.break_fragment(reason);
        let reason = self.awaiting_key.unwrap_or(reason);
        self.refuse(len, reason);
        reason
    }

    /// Counts what was lost before it came here.
    pub fn camera_lost(&mut self, more: CameraLosses) {
        self.counts.camera += more;
    }

    /// The source has fallen silent, or is about to be opened anew: ends the fragment that is being written. What follows
    /// starts with a key frame.
    pub fn fall_silent(&mut self) {
        self.break_fragment(DropReason::CameraGap);
        self.silent = true;
    }

    /// No more frames will come; what is held is still sent.
    pub fn close(&mut self) {
        self.complete_newest();
        self.closed = true;
    }

    fn writing(&self) -> Option<&Fragment> {
        self.fragments.back().filter(|fragment| !fragment.complete)
    }

    /// Whether a key frame begins a fragment of its own.
    fn may_split(fragment: &Fragment, frame: &NewFrame<'_>, at: MediaTime) -> bool {
        let age_ms = at.0 - fragment.start().0;
        let changed = frame.track.is_some_and(|track| **track != *fragment.track);
        changed || frame.discontinuity || u128::from(age_ms) >= MIN_FRAGMENT.as_millis()
    }

    fn would_break_limits(&self, at: MediaTime, len: usize) -> bool {
        self.writing().is_some_and(|fragment| {
            u128::from(at.0 - fragment.start().0) > MAX_FRAGMENT.as_millis()
                || fragment.bytes + len > MAX_FRAGMENT_BYTES
                || fragment.count >= self.max_frames / 2
        })
    }

    /// Closes the fragment being written and drops what follows, up to a key frame, for `reason`.
    fn break_fragment(&mut self, reason: DropReason) {
        let joining = self.awaiting_key == Some(DropReason::BeforeKeyFrame)
            && reason == DropReason::CameraGap;
        if !joining {
            self.awaiting_key = Some(reason);
        }
        self.complete_newest();
    }

    fn complete_newest(&mut self) {
        if let Some(fragment) = self.fragments.back_mut() {
            fragment.complete = true;
        }
    }

    fn refuse(&mut self, len: usize, reason: DropReason) -> Push {
        self.counts.captured.add(1, len);
        self.counts.drop(reason, 1, len);
        Push::Dropped(self.take_frame_id(), reason)
    }

    fn take_frame_id(&mut self) -> FrameId {
        let id = self.next_frame;
        self.next_frame = FrameId(id.0 + 1);
        id
    }

    fn open_fragment(&mut self, track: Arc<TrackInfo>) {
        let id = self.next_fragment;
        self.next_fragment = FragmentId(id.0 + 1);
        let mut fragment = self.spare.pop().unwrap_or_else(|| Fragment {
            id,
            track: Arc::clone(&track),
            timecode: None,
            frames: Vec::new(),
            parts: Vec::new(),
            blocks: VecDeque::new(),
            bytes: 0,
            began: MediaTime(0),
            ended: MediaTime(0),
            complete: false,
            connection: None,
            sent_once: 0,
            count: 0,
            released: 0,
        });
        fragment.id = id;
        fragment.track = track;
        fragment.timecode = None;
        fragment.bytes = 0;
        fragment.complete = false;
        fragment.connection = None;
        fragment.sent_once = 0;
        fragment.count = 0;
        fragment.released = 0;
        self.fragments.push_back(fragment);
    }

    fn store<P: Payload + ?Sized>(&mut self, at: MediaTime, key: bool, payload: &P) {
        let fragment = self
            .fragments
            .back_mut()
            .expect("a fragment is being written");
        let index = fragment.frames.len();
        let first_part = fragment.parts.len();
        payload.for_each_part(&mut |mut bytes| {
            while !bytes.is_empty() {
                if fragment
                    .blocks
                    .back()
                    .is_none_or(|block| pool::room(&block.memory) == 0)
                {
                    if let Some(full) = fragment.blocks.back_mut()
                        && !full.memory.is_empty()
                    {
                        fragment.parts.push(pool::cut(&mut full.memory));
                    }
                    fragment.blocks.push_back(Block {
                        memory: self.pool.take(),
                        last_frame: index,
                    });
                }
                let block = fragment.blocks.back_mut().expect("just made sure");
                block.last_frame = index;
                bytes = pool::fill(&mut block.memory, bytes);
            }
        });
        if let Some(block) = fragment
            .blocks
            .back_mut()
            .filter(|block| !block.memory.is_empty())
        {
            fragment.parts.push(pool::cut(&mut block.memory));
        }
        let len = payload.len();
        fragment.bytes += len;
        if index == 0 {
            fragment.began = at;
        }
        fragment.ended = at;
        fragment.frames.push(Slot {
            at,
            key,
            len: u32::try_from(len).expect("a frame fits into the ring, and the ring into 32 bits"),
            first_part: u32::try_from(first_part).expect("fewer parts than bytes"),
            end_part: u32::try_from(fragment.parts.len()).expect("fewer parts than bytes"),
        });
        fragment.count += 1;
        self.frames_held += 1;
    }

    // ---- room ----

    /// Bytes of the largest frame that can be stored: one block is left to what is being written.
    pub fn largest_frame(&self) -> usize {
        self.pool.total_bytes() - self.pool.block_bytes()
    }

    /// Whether there is room for a frame now, after giving up what `when_full` allows.
    fn make_room(&mut self, len: usize, starts: bool, when_full: WhenFull) -> bool {
        loop {
            let tail = match self.writing() {
                Some(fragment) if !starts => fragment
                    .blocks
                    .back()
                    .map_or(0, |block| pool::room(&block.memory)),
                _ => 0,
            };
            let blocks = len.saturating_sub(tail).div_ceil(self.pool.block_bytes());
            if self.pool.has(blocks) && self.frames_held < self.max_frames {
                return true;
            }
            let freed = match when_full {
                WhenFull::Drop => {
                    self.release_unconfirmed() || self.evict_oldest() || self.release_sent()
                }
                // Waiting helps unless the fragment being written has the ring to itself: it is larger than the ring.
                WhenFull::Wait => self.writes_all_that_is_held() && self.release_sent(),
            };
            if !freed {
                return false;
            }
        }
    }

    /// Gives up the payload of the oldest fragment that was handed over whole and is not confirmed. Nothing is lost unless
    /// its connection is: it stays on the books until the service or [`Self::rewind`] decides.
    fn release_unconfirmed(&mut self) -> bool {
        let cursor = self.cursor.fragment;
        let oldest = self
            .fragments
            .iter_mut()
            .find(|fragment| fragment.id < cursor && fragment.released < fragment.count);
        let Some(fragment) = oldest else { return false };
        self.frames_held -= fragment.frames.len();
        fragment.released = fragment.count;
        fragment.empty(&mut self.pool);
        true
    }

    /// Gives up the oldest whole fragment of which nothing is on its way.
    fn evict_oldest(&mut self) -> bool {
        let cursor = self.cursor;
        let unsent = |fragment: &Fragment| {
            fragment.complete
                && fragment.id >= cursor.fragment
                && !(cursor.begun.is_some() && fragment.id == cursor.fragment)
        };
        let Some(index) = self.fragments.iter().position(unsent) else {
            return false;
        };
        if self.paused {
            self.remove(index, DropReason::OnOrder);
        } else {
            self.counts.fragments_evicted += 1;
            self.remove(index, DropReason::RingFull);
        }
        true
    }

    /// Gives up the payload of frames that are on their way, so that a fragment larger than the ring passes through. Its
    /// price: that fragment cannot be sent again.
    fn release_sent(&mut self) -> bool {
        let Some(handed) = self.cursor.begun else {
            return false;
        };
        let Some(index) = self.index_of(self.cursor.fragment) else {
            return false;
        };
        let fragment = &mut self.fragments[index];
        let mut freed = false;
        // The block that is being written stays: it has room.
        while fragment.blocks.len() > 1 && fragment.blocks[0].last_frame < handed {
            let block = fragment.blocks.pop_front().expect("there is more than one");
            let released = block.last_frame + 1;
            for part in &mut fragment.parts[..fragment.frames[released - 1].end_part as usize] {
                *part = Bytes::new();
            }
            self.pool.give(block.memory);
            fragment.released = fragment.released.max(released);
            freed = true;
        }
        freed
    }

    fn writes_all_that_is_held(&self) -> bool {
        self.fragments.len() == 1 && self.writing().is_some()
    }

    fn index_of(&self, id: FragmentId) -> Option<usize> {
        self.fragments
            .binary_search_by_key(&id, |fragment| fragment.id)
            .ok()
    }

    /// Takes out a fragment that will not be persisted.
    fn remove(&mut self, index: usize, reason: DropReason) {
        let fragment = self.take_out(index);
        self.counts.drop(reason, fragment.count, fragment.bytes);
        self.recycle(fragment);
    }

    fn take_out(&mut self, index: usize) -> Fragment {
        let fragment = self
            .fragments
            .remove(index)
            .expect("the caller looked it up");
        self.frames_held -= fragment.frames.len();
        if self.cursor.fragment == fragment.id {
            self.cursor = Cursor {
                fragment: FragmentId(fragment.id.0 + 1),
                begun: None,
            };
        }
        fragment
    }

    fn recycle(&mut self, mut fragment: Fragment) {
        // One spare for each fragment that is usually alive; more would be memory for nothing.
        const SPARES: usize = 4;
        fragment.empty(&mut self.pool);
        if self.spare.len() < SPARES {
            self.spare.push(fragment);
        }
    }

    // ---- the reader's side ----

    /// Wall clock less media clock in ms, from now on: what a fragment sent for the first time is named by. Where that
    /// would lead back behind a time already sent, the old naming goes on; and so it does where the two differ by no more
    /// than reading two clocks one after the other is inexact, so that the frames keep their spacing.
    pub fn set_anchor(&mut self, anchor_ms: i64) {
        if self.last_timecode.is_none() || anchor_ms.abs_diff(self.anchor_ms) > ANCHOR_TOLERANCE_MS
        {
            self.anchor_ms = anchor_ms;
        }
    }

    /// What stands at the cursor.
    pub fn peek(&self) -> Peek {
        let Some(fragment) = self.at_cursor() else {
            return match (self.closed, self.silent) {
                (true, _) => Peek::Closed,
                (false, true) => Peek::Silent,
                (false, false) => Peek::Nothing { inside: false },
            };
        };
        match self.cursor.begun {
            None if fragment.frames.is_empty() => Peek::Nothing { inside: false },
            None => Peek::Fragment(Arc::clone(&fragment.track)),
            Some(handed) if handed < fragment.frames.len() => Peek::Frame,
            Some(_) if fragment.complete => Peek::FragmentEnd,
            Some(_) => Peek::Nothing { inside: true },
        }
    }

    /// Enters the fragment at the cursor for `connection`, naming it if it has no name yet.
    ///
    /// `None` when there is none, or one was begun already.
    pub fn begin(&mut self, connection: ConnectionId) -> Option<(FragmentId, Timecode)> {
        if !matches!(self.peek(), Peek::Fragment(_)) {
            return None;
        }
        let index = self.index_at_cursor()?;
        let fragment = &mut self.fragments[index];
        let start = fragment.start();
        let timecode = *fragment.timecode.get_or_insert_with(|| {
            let least = self.last_timecode.map_or(0, |last| last.0 + 1);
            let named = start.0.saturating_add_signed(self.anchor_ms);
            if named < least {
                // Keeping the fragments' spacing: this and the following ones go on from the last.
                self.anchor_ms = self.anchor_ms.saturating_add_unsigned(least - named);
            }
            Timecode(named.max(least))
        });
        fragment.connection = Some(connection);
        self.last_timecode = self.last_timecode.max(Some(timecode));
        self.cursor = Cursor {
            fragment: fragment.id,
            begun: Some(0),
        };
        Some((fragment.id, timecode))
    }

    /// Hands over the next frame of the fragment that was begun: its payload's parts go to the end of `parts`.
    ///
    /// `None` when [`Self::peek`] does not say [`Peek::Frame`].
    pub fn take_frame(&mut self, parts: &mut VecDeque<Bytes>) -> Option<Outgoing> {
        let handed = self.cursor.begun?;
        let index = self.index_at_cursor()?;
        let fragment = &mut self.fragments[index];
        let frame = fragment.frames.get(handed)?;
        parts.extend(
            fragment.parts[frame.first_part as usize..frame.end_part as usize]
                .iter()
                .cloned(),
        );
        let len = frame.len as usize;
        let offset_ms = u16::try_from(frame.at.0 - fragment.start().0)
            .expect("push keeps fragments under 20 s");
        let outgoing = Outgoing {
            offset_ms,
            key: frame.key,
            len,
        };
        let end = fragment
            .timecode
            .map(|timecode| Timecode(timecode.0 + u64::from(offset_ms)));
        self.last_timecode = self.last_timecode.max(end);
        if handed < fragment.sent_once {
            self.counts.resent.add(1, len);
        } else {
            fragment.sent_once = handed + 1;
            self.counts.sent.add(1, len);
        }
        self.cursor.begun = Some(handed + 1);
        Some(outgoing)
    }

    /// Leaves the fragment whose frames are all handed over.
    pub fn finish(&mut self) -> Option<FragmentId> {
        if self.peek() != Peek::FragmentEnd {
            return None;
        }
        let id = self.cursor.fragment;
        self.cursor = Cursor {
            fragment: FragmentId(id.0 + 1),
            begun: None,
        };
        Some(id)
    }

    fn at_cursor(&self) -> Option<&Fragment> {
        self.index_at_cursor().map(|index| &self.fragments[index])
    }

    /// The cursor may stand on a fragment that was evicted: then the next one counts.
    fn index_at_cursor(&self) -> Option<usize> {
        let index = self
            .fragments
            .partition_point(|fragment| fragment.id < self.cursor.fragment);
        (index < self.fragments.len()).then_some(index)
    }

    // ---- the service's answers ----

    /// The service holds the fragment with this timecode for good: it leaves the ring.
    ///
    /// `None` when no fragment of that name was handed over whole: an ACK that is late or not ours.
    pub fn confirm(&mut self, timecode: Timecode) -> Option<Confirmed> {
        let index = self.named(timecode)?;
        if self.fragments[index].id >= self.cursor.fragment {
            return None;
        }
        let fragment = self.take_out(index);
        let mut amount = Amount::default();
        amount.add(fragment.count, fragment.bytes);
        self.counts.persisted.add(fragment.count, fragment.bytes);
        self.counts.fragments_persisted += 1;
        let confirmed = Confirmed {
            id: fragment.id,
            amount,
            began: fragment.began,
            ended: fragment.ended,
        };
        self.recycle(fragment);
        Some(confirmed)
    }

    /// The service will not take the fragment with this timecode, ever: it leaves the ring, counted.
    pub fn refuse_fragment(&mut self, timecode: Timecode) -> Option<FragmentId> {
        let index = self.named(timecode)?;
        let id = self.fragments[index].id;
        if !self.fragments[index].complete {
            self.break_fragment(DropReason::Refused);
        }
        self.remove(index, DropReason::Refused);
        Some(id)
    }

    /// `connection` is gone: the cursor goes back to the first fragment it carried that is not confirmed. Returns how many
    /// fragments will be sent again.
    pub fn rewind(&mut self, connection: ConnectionId) -> usize {
        self.rewind_those(|carrier| carrier == connection)
    }

    /// All connections are gone, and nobody knows which there were. Otherwise as [`Self::rewind`].
    pub fn rewind_all(&mut self) -> usize {
        self.rewind_those(|_| true)
    }

    fn rewind_those(&mut self, is_gone: impl Fn(ConnectionId) -> bool) -> usize {
        let was_carried = |fragment: &Fragment| fragment.connection.is_some_and(&is_gone);
        // A fragment that lost its beginning to a full ring cannot be sent again.
        while let Some(index) = self
            .fragments
            .iter()
            .position(|fragment| fragment.released > 0 && was_carried(fragment))
        {
            if !self.fragments[index].complete {
                self.break_fragment(DropReason::RingFull);
            }
            self.counts.fragments_evicted += 1;
            self.remove(index, DropReason::RingFull);
        }
        let mut again = 0;
        for fragment in &mut self.fragments {
            if was_carried(fragment) {
                fragment.connection = None;
                again += 1;
                if fragment.id <= self.cursor.fragment {
                    self.cursor = Cursor {
                        fragment: fragment.id,
                        begun: None,
                    };
                }
            }
        }
        again
    }

    fn named(&self, timecode: Timecode) -> Option<usize> {
        self.fragments
            .iter()
            .position(|fragment| fragment.timecode == Some(timecode))
    }

    // ---- looking ----

    /// Whether the writer is done and nothing is left to confirm.
    pub fn is_done(&self) -> bool {
        self.closed && self.fragments.is_empty()
    }

    /// Whether a frame, or the start or end of a fragment, waits for the reader. The end counts: while the reader has not
    /// asked for it, the last frame's bytes may still be in its hands.
    pub fn has_unsent(&self) -> bool {
        matches!(
            self.peek(),
            Peek::Frame | Peek::Fragment(_) | Peek::FragmentEnd
        )
    }

    /// What became of every frame so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Gives up everything that is held, as the program ends.
    pub fn abandon(&mut self) {
        self.close();
        self.give_up_all(DropReason::NotSentInTime);
    }

    /// Gives up everything that is held, because somebody wants a fresh start. The next key frame is the first. Returns what
    /// was given up.
    pub fn discard(&mut self) -> Amount {
        self.break_fragment(DropReason::OnOrder);
        self.give_up_all(DropReason::OnOrder)
    }

    /// Whether somebody wants nothing to be read for now. Then the ring keeps the newest media, and what it gives up for
    /// that is counted for that reason.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    fn give_up_all(&mut self, reason: DropReason) -> Amount {
        let before = self.counts.dropped_for(reason);
        while !self.fragments.is_empty() {
            self.remove(0, reason);
        }
        let after = self.counts.dropped_for(reason);
        Amount {
            frames: after.frames - before.frames,
            bytes: after.bytes - before.bytes,
        }
    }

    /// How full it is.
    pub fn fill(&self) -> Fill {
        let tail = self
            .writing()
            .and_then(|fragment| fragment.blocks.back())
            .map_or(0, |block| pool::room(&block.memory));
        let oldest_unsent = self.at_cursor().and_then(|fragment| {
            fragment
                .frames
                .get(self.cursor.begun.unwrap_or(0))
                .map(|frame| frame.at)
        });
        Fill {
            total_bytes: self.pool.total_bytes(),
            available_bytes: self.pool.free_bytes() + tail,
            oldest_unsent: oldest_unsent.or_else(|| {
                let index = self.index_at_cursor()? + 1;
                self.fragments.get(index).map(Fragment::start)
            }),
            unsent_bytes: self.unsent_bytes(),
            oldest: self.fragments.front().map(|fragment| fragment.began),
            newest: self.fragments.back().map(|fragment| fragment.ended),
            fragments: self.fragments.len(),
        }
    }

    fn unsent_bytes(&self) -> usize {
        let first = self.index_at_cursor().unwrap_or(self.fragments.len());
        let handed = self.at_cursor().map_or(0, |fragment| {
            let handed = self.cursor.begun.unwrap_or(0).min(fragment.frames.len());
            let handed = &fragment.frames[..handed];
            handed.iter().map(|frame| frame.len as usize).sum()
        });
        let from_first = self.fragments.range(first..);
        from_first.map(|fragment| fragment.bytes).sum::<usize>() - handed
    }

    /// When the first frame of the fragment of this name was captured.
    pub fn captured_at(&self, timecode: Timecode) -> Option<MediaTime> {
        let index = self.named(timecode)?;
        Some(self.fragments[index].began)
    }
}

#[cfg(test)]
mod tests;
