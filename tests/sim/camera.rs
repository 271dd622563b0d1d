//! The camera: frames whose payload says which they are, at the times and with the troubles of the schedule.

use std::sync::Arc;

use kvs_producer_app::frame::{Codec, MediaTime, TrackInfo};
use kvs_producer_app::ring::shared::{Reader, Writer};
use kvs_producer_app::ring::{DropReason, NewFrame, Push, WhenFull};

use crate::schedule::{Schedule, Trick};

/// CLOCK_MONOTONIC at the beginning of a schedule, in ms.
pub const BOOT_MS: u64 = 7_000_000;

/// How long the capture loop bears a silent source before it closes the fragment, in ms.
const SILENCE_MS: u64 = 20_000;

/// A frame as it went into the ring.
#[derive(Debug, Clone, Copy)]
pub struct Shot {
    /// Its time once the ring has put it after the one before.
    pub at: u64,
    pub key: bool,
    pub track: u32,
    pub len: usize,
    pub dropped: Option<DropReason>,
}

#[derive(Debug)]
pub struct Camera {
    pub shots: Vec<Shot>,
    pub bytes: u64,
    /// The longest time between two key frames so far, in ms.
    pub longest_gop_ms: u64,
    tricks: usize,
    track: u32,
    info: Arc<TrackInfo>,
    gop_ms: u64,
    last_key: Option<u64>,
    last_stored: Option<u64>,
    stalled_until: u64,
    discontinuity: bool,
    force_key: bool,
    shift: i64,
    big: Option<usize>,
    /// There was no room for it.
    waiting: Option<Waiting>,
}

/// A frame that was made and is not in the ring.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    time: u64,
    key: bool,
    discontinuity: bool,
    len: usize,
}

/// A frame's payload.
pub fn payload(id: u64, len: usize) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.resize(len, id.to_le_bytes()[0]);
    bytes
}

/// What Tracks says of version `track` of the stream.
pub fn codec_private(track: u32) -> Vec<u8> {
    [b"version ".as_slice(), &track.to_be_bytes()].concat()
}

fn info(track: u32) -> Arc<TrackInfo> {
    Arc::new(TrackInfo {
        codec: Codec::H264,
        codec_private: codec_private(track).into(),
        dimensions: None,
    })
}

impl Camera {
    pub fn new(plan: &Schedule) -> Self {
        Self {
            shots: Vec::new(),
            bytes: 0,
            longest_gop_ms: plan.gop_ms,
            tricks: 0,
            track: 0,
            info: info(0),
            gop_ms: plan.gop_ms,
            last_key: None,
            last_stored: None,
            stalled_until: 0,
            discontinuity: true,
            force_key: false,
            shift: 0,
            big: None,
            waiting: None,
        }
    }

    /// Time passes to `now_ms`: the tricks that are due, then a frame, unless the camera is stalled.
    pub fn step(
        &mut self,
        plan: &Schedule,
        now_ms: u64,
        writer: &mut Writer,
        ring: &Reader,
        random: &mut fastrand::Rng,
    ) {
        if let Some(waiting) = self.waiting.take() {
            return self.push(plan, waiting, ring);
        }
        while let Some(scene) = plan.scenes.get(self.tricks) {
            if scene.at_ms > now_ms {
                break;
            }
            self.tricks += 1;
            self.play(scene.trick, now_ms, writer);
        }
        if now_ms < self.stalled_until {
            return;
        }
        let key = self.force_key
            || self
                .last_key
                .is_none_or(|last| now_ms.saturating_sub(last) >= self.gop_ms);
        if key {
            if self.last_key.is_none() && plan.starts_late && now_ms < self.gop_ms {
                return self.shoot(plan, now_ms, false, ring, random);
            }
            self.last_key = Some(now_ms);
            self.force_key = false;
        }
        self.shoot(plan, now_ms, key, ring, random);
    }

    fn play(&mut self, trick: Trick, now_ms: u64, writer: &mut Writer) {
        match trick {
            Trick::Stall { ms } => {
                self.stalled_until = now_ms + ms;
                if ms > SILENCE_MS {
                    writer.fall_silent();
                }
            }
            Trick::Lost { ms } => {
                self.stalled_until = now_ms + ms;
                writer.fall_silent();
                self.discontinuity = true;
            }
            Trick::NewTrack => {
                self.track += 1;
                self.info = info(self.track);
                self.force_key = true;
            }
            Trick::Time { ms } => self.shift = ms,
            Trick::Discontinuity => self.discontinuity = true,
            Trick::Damaged => {
                self.bytes += 100;
                let reason = writer.drop_frame(100, DropReason::CameraGap);
                // Damage before the first key frame is none.
                let joining = self.last_stored.is_none() && reason == DropReason::BeforeKeyFrame;
                assert!(joining || reason == DropReason::CameraGap);
                let at = self.last_stored.unwrap_or(0);
                self.shots.push(Shot {
                    at,
                    key: false,
                    track: self.track,
                    len: 100,
                    dropped: Some(reason),
                });
            }
            Trick::Big { bytes } => self.big = Some(bytes),
            Trick::Gop { ms } => {
                self.gop_ms = ms;
                self.longest_gop_ms = self.longest_gop_ms.max(ms);
            }
        }
    }

    fn shoot(
        &mut self,
        plan: &Schedule,
        now_ms: u64,
        key: bool,
        ring: &Reader,
        random: &mut fastrand::Rng,
    ) {
        let usual = plan.frame_bytes + random.usize(..=plan.frame_bytes / 2);
        let len = self
            .big
            .take()
            .unwrap_or(if key { 3 * usual } else { usual });
        let time = (BOOT_MS + now_ms).saturating_add_signed(std::mem::take(&mut self.shift));
        let discontinuity = std::mem::take(&mut self.discontinuity);
        let frame = Waiting {
            time,
            key,
            discontinuity,
            len,
        };
        self.push(plan, frame, ring);
    }

    fn push(&mut self, plan: &Schedule, waiting: Waiting, ring: &Reader) {
        let Waiting {
            time,
            key,
            discontinuity,
            len,
        } = waiting;
        let id = self.shots.len() as u64;
        let frame = NewFrame {
            at: MediaTime(time),
            key,
            discontinuity,
            track: Some(&self.info),
        };
        let when_full = if plan.waits {
            WhenFull::Wait
        } else {
            WhenFull::Drop
        };
        // As the writer does, which would block here where it has to wait.
        let push = ring.with(|ring| ring.push(frame, payload(id, len).as_slice(), when_full));
        ring.wake_body();
        let at = self.last_stored.map_or(time, |last| time.max(last + 1));
        let dropped = match push {
            Push::Stored(stored) => {
                assert_eq!(stored.0, id, "frame ids count every frame");
                self.last_stored = Some(at);
                None
            }
            Push::Dropped(_, reason) => Some(reason),
            Push::Full => {
                assert!(plan.waits, "a camera does not wait");
                self.waiting = Some(waiting);
                return;
            }
        };
        self.bytes += len as u64;
        self.shots.push(Shot {
            at,
            key,
            track: self.track,
            len,
            dropped,
        });
    }

    pub fn waits_for_room(&self) -> bool {
        self.waiting.is_some()
    }
}
