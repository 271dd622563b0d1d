//! What happens in a run: all of it follows from the seed, and can be made smaller while a run still fails.

use std::time::Duration;

use kvs_producer_app::kvs::failure::{self, FailureKind, Verdict};
use kvs_producer_app::kvs::session::Reset;

/// How the camera misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    /// No frame for so long; it goes on where it was.
    Stall { ms: u64 },
    /// It is gone for so long; what comes then has no past.
    Lost { ms: u64 },
    /// Other parameter sets, with a key frame.
    NewTrack,
    /// The next frame's time is off by so much.
    Time { ms: i64 },
    /// Something was lost before the next frame.
    Discontinuity,
    /// A frame that the source cannot use.
    Damaged,
    /// The next frame has this size.
    Big { bytes: usize },
    /// Key frames come this far apart from now on.
    Gop { ms: u64 },
}

#[derive(Debug, Clone, Copy)]
pub struct Scene {
    pub at_ms: u64,
    pub trick: Trick,
}

/// Which fragment an ERROR acknowledgement names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// The one that is arriving.
    Arriving,
    /// None, or 0.
    Nothing,
    /// One that nobody sent.
    Unknown,
}

/// How network and service misbehave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trouble {
    /// The connection is cut after so many more bytes have left. The service sees it only after `linger_ms`.
    Cut { after: usize, linger_ms: u64 },
    /// What goes in does not come out. Connections are dead for ever, new ones hang until it is over.
    BlackHole { linger_ms: u64 },
    /// Nothing moves; afterwards all goes on.
    Freeze,
    /// No network: connections break at once, new ones and calls fail.
    Down { linger_ms: u64 },
    /// Bandwidth is divided by this.
    Slow { by: u32 },
    /// The service reads and says nothing.
    Mute,
    /// It receives and does not store.
    NoPersist,
    /// Its answers come late by so much.
    Late { ms: u64 },
    /// Acknowledgements come twice.
    Double,
    /// The next PERSISTED is lost, and the connection soon after.
    LoseAck { dies_in_ms: u64 },
    /// The service ends the response.
    End,
    /// PutMedia is refused.
    RefusePut(FailureKind),
    /// Every other call is refused.
    RefuseCalls(FailureKind),
    /// An ERROR acknowledgement.
    Error { id: u32, names: Names },
    /// The wall clock steps.
    ClockStep { ms: i64 },
    /// Somebody deletes the stream.
    Delete,
    /// The data endpoint moves.
    Move,
    /// Somebody wants nothing to be uploaded.
    Pause,
    /// Somebody wants it to begin anew.
    Anew(Reset),
}

#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub at_ms: u64,
    pub lasting_ms: u64,
    pub trouble: Trouble,
}

impl Fault {
    pub fn end_ms(&self) -> u64 {
        let linger = match self.trouble {
            Trouble::Cut { linger_ms, .. }
            | Trouble::BlackHole { linger_ms }
            | Trouble::Down { linger_ms } => linger_ms,
            Trouble::LoseAck { dies_in_ms } => dies_in_ms,
            Trouble::Late { ms } => ms,
            _ => 0,
        };
        self.at_ms + self.lasting_ms + linger
    }
}

/// A run.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "a plain list of what may be")]
pub struct Schedule {
    pub seed: u64,
    pub length_ms: u64,
    pub interval_ms: u64,
    pub frame_bytes: usize,
    pub gop_ms: u64,
    /// The first frames are no key frames.
    pub starts_late: bool,
    /// A file: it waits when the ring is full.
    pub waits: bool,
    pub scenes: Vec<Scene>,
    pub faults: Vec<Fault>,
    pub ring_bytes: usize,
    pub latency_ms: u64,
    /// Bytes a second.
    pub bandwidth: u64,
    /// What kernel and HTTP client hold of what was handed over.
    pub send_buffer: usize,
    pub retention_hours: u32,
    pub stream_exists: bool,
    pub create: bool,
    pub tag: bool,
    pub give_up: bool,
    pub persist_ms: u64,
    /// The service takes a connection for open until its last acknowledgement is out.
    pub holds_slot: bool,
    pub service_age_ms: u64,
    pub connection_age_ms: u64,
    pub endpoint_age_ms: u64,
    pub credential_life_ms: Option<u64>,
    pub credential_margin_ms: u64,
    /// The wall clock's distance from virtual time at the beginning.
    pub wall_ms: i64,
    pub grace_ms: u64,
    pub abort_ms: Option<u64>,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let rng = &mut rng;
        let interval_ms = pick(rng, &[40, 100, 200, 333, 500, 500]);
        let length_ms = interval_ms * rng.u64(60..350);
        let frame_bytes = pick(rng, &[24, 60, 60, 200, 900]);
        let rate = frame_bytes as u64 * 1500 / interval_ms;
        let bandwidth = pick(rng, &[1_000_000, 100 * rate, 8 * rate, 3 * rate]).max(2_000);
        let mut plan = Self {
            seed,
            length_ms,
            interval_ms,
            frame_bytes,
            gop_ms: pick(rng, &[200, 1000, 1000, 2000, 2000, 4000, 10_000]),
            starts_late: rng.u8(..) < 30,
            waits: false,
            scenes: Vec::new(),
            faults: Vec::new(),
            ring_bytes: 4 << 20,
            latency_ms: pick(rng, &[1, 10, 40, 150, 300]),
            bandwidth,
            send_buffer: usize::try_from(bandwidth / pick(rng, &[1, 2, 10]))
                .expect("small")
                .min(128 * 1024),
            retention_hours: pick(rng, &[24, 24, 24, 24, 24, 24, 0]),
            stream_exists: rng.u8(..) < 200,
            create: true,
            tag: rng.u8(..) < 80,
            give_up: false,
            persist_ms: pick(rng, &[20, 200, 800, 3000]),
            holds_slot: rng.u8(..) < 50,
            service_age_ms: 2_700_000,
            connection_age_ms: pick(rng, &[8_000, 15_000, 40_000, 2_400_000, 2_400_000]),
            endpoint_age_ms: pick(rng, &[10_000, 2_400_000]),
            credential_life_ms: None,
            credential_margin_ms: 180_000,
            wall_ms: pick(rng, &[1_700_000_000_000, 1_700_000_000_000, 0]),
            grace_ms: 150_000,
            abort_ms: None,
        };
        if rng.u8(..) < 80 {
            plan.credential_life_ms = Some(rng.u64(15_000..120_000));
            plan.credential_margin_ms = pick(rng, &[5_000, 10_000]);
        }
        let wild = rng.bool();
        for _ in 0..rng.usize(0..7) {
            plan.faults.push(fault(rng, length_ms, wild));
        }
        for _ in 0..rng.usize(0..4) {
            plan.scenes.push(scene(rng, length_ms, wild));
        }
        if wild {
            plan.make_wild(rng, rate);
        } else if rng.u8(..) < 40 {
            plan.waits = true;
            plan.ring_bytes = pick(rng, &[64, 256, 1024]) * 1024;
        }
        plan.scenes.sort_by_key(|scene| scene.at_ms);
        plan
    }

    /// Small rings, slow links, sudden ends.
    fn make_wild(&mut self, rng: &mut fastrand::Rng, rate: u64) {
        self.ring_bytes = pick(rng, &[32, 64, 128, 512, 4096]) * 1024;
        self.create = rng.u8(..) < 230;
        self.give_up = rng.u8(..) < 25;
        self.waits = rng.u8(..) < 25;
        self.grace_ms = pick(rng, &[0, 2_000, 10_000, 60_000, 150_000]);
        if rng.u8(..) < 40 {
            self.bandwidth = rate.max(2_000);
            self.send_buffer = usize::try_from(self.bandwidth).expect("small");
        }
        if rng.u8(..) < 30 {
            self.abort_ms = Some(rng.u64(..self.length_ms + self.grace_ms));
        }
        if rng.u8(..) < 40 {
            self.service_age_ms = rng.u64(5_000..60_000);
        }
    }

    /// A day, with a fault every few minutes.
    pub fn day(seed: u64) -> Self {
        let mut plan = Self::new(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        plan.length_ms = 24 * 3600 * 1000;
        plan.interval_ms = 1000;
        plan.frame_bytes = 60;
        plan.gop_ms = 4000;
        plan.ring_bytes = 1 << 20;
        plan.bandwidth = 100_000;
        plan.send_buffer = 16 * 1024;
        plan.connection_age_ms = 2_400_000;
        plan.endpoint_age_ms = 2_400_000;
        plan.service_age_ms = 2_700_000;
        plan.credential_life_ms = Some(3_600_000);
        plan.credential_margin_ms = 180_000;
        plan.retention_hours = 24;
        plan.create = true;
        plan.give_up = false;
        plan.abort_ms = None;
        plan.grace_ms = 150_000;
        plan.faults.clear();
        plan.scenes.clear();
        let mut at = 0;
        while at + 900_000 < plan.length_ms {
            at += rng.u64(60_000..400_000);
            let mut fault = fault(&mut rng, 1, false);
            fault.at_ms = at;
            plan.faults.push(fault);
        }
        plan
    }

    /// Whether nothing may be lost: the ring holds all there is, nothing is refused for good, and there is time enough
    /// at the end.
    pub fn must_lose_nothing(&self) -> bool {
        // What waits needs room for the fragment being written and the one before, anything else for all there is.
        let held_ms = if self.waits {
            3 * (self.gop_ms.max(1000) + self.interval_ms)
        } else {
            // No trouble lasts longer, in a day of them either.
            self.length_ms.min(125_000)
        };
        let frames = usize::try_from(held_ms / self.interval_ms).expect("small") + 2;
        // A fragment wastes half a block.
        let fragments = usize::try_from(held_ms / self.gop_ms.max(1000)).expect("small") + 2;
        let bytes = frames * self.frame_bytes * 5 + fragments * (self.ring_bytes / 128).max(4096);
        let rate = self.frame_bytes as u64 * 1500 / self.interval_ms;
        self.ring_bytes >= bytes
            && self.ring_bytes / 512 > 2 * frames
            && self.bandwidth >= 3 * rate
            && self.abort_ms.is_none()
            && self.create
            && !self.give_up
            && self.grace_ms >= 150_000
            && self.service_age_ms > self.connection_age_ms
            && self.faults.iter().all(|fault| !fault.gives_up_media())
            && self.last_trouble_ms() < self.length_ms + 30_000
            && self.scenes.iter().all(|scene| {
                !matches!(
                    scene.trick,
                    Trick::Big { .. } | Trick::Gop { .. } | Trick::Time { .. }
                )
            })
    }

    /// Whether the stream has to get going again after every fault, in a time that can be told.
    pub fn must_recover(&self) -> bool {
        let rate = self.frame_bytes as u64 * 1500 / self.interval_ms;
        self.bandwidth >= 3 * rate
            && !self.give_up
            && (self.create
                || (self.stream_exists
                    && self
                        .faults
                        .iter()
                        .all(|fault| fault.trouble != Trouble::Delete)))
            && self.service_age_ms > self.connection_age_ms
            && self
                .scenes
                .iter()
                .all(|scene| !matches!(scene.trick, Trick::Big { .. } | Trick::Time { .. }))
    }

    /// When the last fault and the last trick are over.
    pub fn last_trouble_ms(&self) -> u64 {
        let faults = self.faults.iter().map(Fault::end_ms);
        let scenes = self.scenes.iter().map(|scene| {
            scene.at_ms
                + match scene.trick {
                    Trick::Stall { ms } | Trick::Lost { ms } => ms,
                    _ => 0,
                }
        });
        faults.chain(scenes).max().unwrap_or(0)
    }

    pub fn settings(&self) -> kvs_producer_app::kvs::session::Settings {
        let ms = Duration::from_millis;
        kvs_producer_app::kvs::session::Settings {
            create: self.create,
            tag: self.tag,
            give_up: self.give_up,
            connection_age: ms(self.connection_age_ms),
            endpoint_age: ms(self.endpoint_age_ms),
            credential_margin: ms(self.credential_margin_ms),
            ..Default::default()
        }
    }

    /// Whether nothing ever happens that only DescribeStream tells about.
    pub fn needs_no_look(&self) -> bool {
        let soon_persisted = self.retention_hours > 0 && self.persist_ms < 1000;
        self.stream_exists && soon_persisted && self.faults.is_empty()
    }

    /// Schedules that are a little smaller, the boldest first.
    pub fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut plan = self.clone();
            change(&mut plan);
            all.push(plan);
        };
        for index in (0..self.faults.len()).rev() {
            with(&|plan| {
                plan.faults.remove(index);
            });
        }
        for index in (0..self.scenes.len()).rev() {
            with(&|plan| {
                plan.scenes.remove(index);
            });
        }
        with(&|plan| plan.length_ms /= 2);
        with(&|plan| plan.length_ms = plan.length_ms * 9 / 10);
        for index in 0..self.faults.len() {
            if self.faults[index].lasting_ms > 100 {
                with(&|plan| plan.faults[index].lasting_ms /= 2);
            }
        }
        if self.abort_ms.is_some() {
            with(&|plan| plan.abort_ms = None);
        }
        if self.credential_life_ms.is_some() {
            with(&|plan| plan.credential_life_ms = None);
        }
        if self.connection_age_ms < 2_400_000 {
            with(&|plan| plan.connection_age_ms = 2_400_000);
        }
        if self.endpoint_age_ms < 2_400_000 {
            with(&|plan| plan.endpoint_age_ms = 2_400_000);
        }
        if self.tag {
            with(&|plan| plan.tag = false);
        }
        if !self.stream_exists {
            with(&|plan| plan.stream_exists = true);
        }
        if self.latency_ms > 10 {
            with(&|plan| plan.latency_ms = 10);
        }
        if self.starts_late {
            with(&|plan| plan.starts_late = false);
        }
        all.retain(|plan| plan.length_ms >= 2 * plan.interval_ms);
        all
    }
}

impl Fault {
    /// Whether the service refuses a fragment for its own sake.
    fn gives_up_media(&self) -> bool {
        match self.trouble {
            Trouble::Error { id, .. } => failure::of_error_ack(id, "").0 == Verdict::Skip,
            Trouble::Anew(what) => what == Reset::All,
            _ => false,
        }
    }
}

fn pick<T: Copy>(rng: &mut fastrand::Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

/// From 50 ms to 40 s, the short ones as likely as the long ones.
fn span(rng: &mut fastrand::Rng) -> u64 {
    let doublings = rng.u32(0..10);
    (50_u64 << doublings) * rng.u64(100..156) / 100
}

fn fault(rng: &mut fastrand::Rng, length_ms: u64, wild: bool) -> Fault {
    use FailureKind as K;
    let linger_ms = if rng.bool() { 0 } else { rng.u64(..5_000) };
    let trouble = match rng.u8(0..25) {
        0..=3 => Trouble::Cut {
            after: rng.usize(..4000),
            linger_ms,
        },
        4 => Trouble::BlackHole { linger_ms },
        5 => Trouble::Freeze,
        6 => Trouble::Down { linger_ms },
        7 => Trouble::Slow { by: rng.u32(2..20) },
        8 => Trouble::Mute,
        9 => Trouble::NoPersist,
        10 => Trouble::Late {
            ms: rng.u64(..8_000),
        },
        11 => Trouble::Double,
        12 | 13 => Trouble::LoseAck {
            dies_in_ms: rng.u64(..3_000),
        },
        14 => Trouble::End,
        15 => Trouble::RefusePut(pick(
            rng,
            &[
                K::Network,
                K::BadCredentials,
                K::NotPermitted,
                K::Clock,
                K::NotFound,
                K::NotActive,
                K::Throttled,
                K::ConnectionLimit,
                K::WrongEndpoint,
                K::Service,
                K::Key,
                K::Invalid,
            ],
        )),
        16 => Trouble::RefuseCalls(pick(
            rng,
            &[
                K::Network,
                K::Stalled,
                K::Untrusted,
                K::NoCredentials,
                K::BadCredentials,
                K::NotPermitted,
                K::Clock,
                K::NotActive,
                K::Throttled,
                K::Service,
                K::StreamLimit,
                K::Invalid,
            ],
        )),
        17 | 18 => {
            let resend: &[u32] = &[4000, 4003, 4005, 4007, 4008, 4010, 4500, 5000, 5001, 7777];
            let skip: &[u32] = &[4001, 4002, 4004, 4006, 4009, 4011];
            let kinds = if wild && rng.bool() { skip } else { resend };
            Trouble::Error {
                id: pick(rng, kinds),
                names: pick(rng, &[Names::Arriving, Names::Nothing, Names::Unknown]),
            }
        }
        19 => Trouble::ClockStep {
            ms: pick(
                rng,
                &[-7_200_000, -30_000, -3_000, 3_000, 30_000, 7_200_000],
            ),
        },
        20 => Trouble::Delete,
        21 => Trouble::Pause,
        22 | 23 if wild && rng.bool() => Trouble::Anew(Reset::All),
        22 | 23 => Trouble::Anew(Reset::Connections),
        _ => Trouble::Move,
    };
    let lasting_ms = match trouble {
        Trouble::Cut { .. }
        | Trouble::LoseAck { .. }
        | Trouble::End
        | Trouble::Error { .. }
        | Trouble::ClockStep { .. }
        | Trouble::Delete
        | Trouble::Anew(_)
        | Trouble::Move => 0,
        _ => span(rng),
    };
    Fault {
        at_ms: rng.u64(..length_ms),
        lasting_ms,
        trouble,
    }
}

fn scene(rng: &mut fastrand::Rng, length_ms: u64, wild: bool) -> Scene {
    let trick = match rng.u8(0..if wild { 8 } else { 5 }) {
        0 => Trick::Stall { ms: span(rng) },
        1 => Trick::Lost { ms: span(rng) },
        2 => Trick::NewTrack,
        3 => Trick::Discontinuity,
        4 => Trick::Damaged,
        5 => Trick::Time {
            ms: pick(rng, &[-3_600_000, -500, -1, 40, 3_000, 25_000, 3_600_000]),
        },
        6 => Trick::Big {
            bytes: pick(rng, &[5_000, 20_000, 40_000, 200_000]),
        },
        _ => Trick::Gop {
            ms: pick(rng, &[200, 900, 1100, 5_000, 18_000, 25_000]),
        },
    };
    Scene {
        at_ms: rng.u64(..length_ms),
        trick,
    }
}
