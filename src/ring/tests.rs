use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::frame::Codec;

const BLOCK: usize = 64;
const C0: ConnectionId = ConnectionId(0);
const C1: ConnectionId = ConnectionId(1);

fn track(kind: u8) -> Arc<TrackInfo> {
    let codec_private = Bytes::copy_from_slice(&[kind]);
    Arc::new(TrackInfo {
        codec: Codec::H264,
        codec_private,
        dimensions: None,
    })
}

/// A ring of `blocks` blocks of 64 bytes.
fn ring(blocks: usize) -> Ring {
    let mut ring = Ring::with_blocks(blocks * BLOCK, BLOCK);
    ring.max_frames = 1000; // the index limit has its own test
    ring
}

struct Camera {
    track: Arc<TrackInfo>,
}

impl Camera {
    fn push(&self, ring: &mut Ring, at: u64, key: bool, len: usize) -> Push {
        self.push_as(ring, at, key, len, WhenFull::Drop)
    }

    fn push_as(&self, ring: &mut Ring, at: u64, key: bool, len: usize, when: WhenFull) -> Push {
        let frame = NewFrame {
            at: MediaTime(at),
            key,
            discontinuity: false,
            track: key.then_some(&self.track),
        };
        ring.push(frame, payload(at, len).as_slice(), when)
    }
}

/// Bytes that tell frames apart.
fn payload(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|index| (seed * 31 + index * 7).to_le_bytes()[0])
        .collect()
}

/// Sends until nothing more is there; the timecodes of fragments that were sent whole, and all bytes.
fn send(ring: &mut Ring, connection: ConnectionId) -> (Vec<u64>, Vec<u8>) {
    let mut timecodes = Vec::new();
    let mut bytes = Vec::new();
    let mut current = None;
    loop {
        match ring.peek() {
            Peek::Fragment(_) => current = ring.begin(connection).map(|(_, timecode)| timecode.0),
            Peek::Frame => {
                let mut parts = VecDeque::new();
                let frame = ring.take_frame(&mut parts).expect("peeked");
                assert_eq!(frame.len, parts.iter().map(Bytes::len).sum::<usize>());
                bytes.extend(parts.iter().flatten());
            }
            Peek::FragmentEnd => {
                ring.finish().expect("peeked");
                timecodes.extend(current.take());
            }
            Peek::Nothing { .. } | Peek::Silent | Peek::Closed => return (timecodes, bytes),
        }
    }
}

#[test]
fn what_goes_in_comes_out_under_wall_clock_names() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    ring.set_anchor(1_000_000);
    let mut expected = Vec::new();
    for (index, at) in (0..2000).step_by(200).enumerate() {
        let stored = camera.push(&mut ring, at, index % 5 == 0, 100);
        assert_eq!(stored, Push::Stored(FrameId(index as u64)));
        expected.extend(payload(at, 100));
    }
    ring.close();
    assert_eq!(send(&mut ring, C0), (vec![1_000_000, 1_001_000], expected));
    assert!(!ring.is_done());
    for timecode in [1_000_000, 1_001_000] {
        assert_eq!(
            ring.confirm(Timecode(timecode))
                .map(|fragment| fragment.amount.frames),
            Some(5)
        );
        assert_eq!(ring.confirm(Timecode(timecode)), None, "only once");
    }
    assert!(ring.is_done());
    assert_eq!(ring.counts().persisted, ring.counts().captured);
    assert_eq!(ring.fill().available_bytes, 64 * BLOCK);
}

#[test]
fn frames_before_the_first_key_frame_are_counted_and_dropped() {
    let (mut ring, camera) = (ring(16), Camera { track: track(0) });
    assert_eq!(
        camera.push(&mut ring, 0, false, 10),
        Push::Dropped(FrameId(0), DropReason::BeforeKeyFrame)
    );
    assert_eq!(
        camera.push(&mut ring, 40, true, 10),
        Push::Stored(FrameId(1))
    );
}

#[test]
fn damage_is_told_from_what_comes_before_the_first_key_frame() {
    let (mut ring, camera) = (ring(16), Camera { track: track(0) });
    let gap = DropReason::CameraGap;
    assert_eq!(ring.drop_frame(10, gap), DropReason::BeforeKeyFrame);
    camera.push(&mut ring, 40, true, 10);
    assert_eq!(ring.drop_frame(10, gap), gap);
    let counts = ring.counts();
    assert_eq!(counts.captured.frames, 3);
    assert_eq!(counts.dropped_for(DropReason::BeforeKeyFrame).frames, 1);
    assert_eq!(counts.dropped_for(gap).frames, 1);
}

#[test]
fn short_groups_of_pictures_share_a_fragment_of_at_least_a_second() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    for at in (0..=2000).step_by(400) {
        camera.push(&mut ring, at, true, 10);
    }
    ring.close();
    assert_eq!(send(&mut ring, C0).0, [0, 1200]);
}

#[test]
fn another_track_starts_a_fragment_at_once() {
    let mut ring = ring(16);
    Camera { track: track(0) }.push(&mut ring, 0, true, 10);
    Camera { track: track(0) }.push(&mut ring, 40, true, 10);
    Camera { track: track(1) }.push(&mut ring, 80, true, 10);
    assert_eq!(ring.fill().fragments, 2);
}

#[test]
fn a_fragment_that_finds_no_key_frame_is_closed_before_the_services_limit() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    camera.push(&mut ring, 0, true, 10);
    camera.push(&mut ring, 19_000, false, 10);
    let dropped = camera.push(&mut ring, 19_001, false, 10);
    assert_eq!(
        dropped,
        Push::Dropped(FrameId(2), DropReason::FragmentLimit)
    );
    assert_eq!(
        camera.push(&mut ring, 19_002, false, 10),
        Push::Dropped(FrameId(3), DropReason::FragmentLimit)
    );
    assert!(matches!(
        camera.push(&mut ring, 19_003, true, 10),
        Push::Stored(_)
    ));
    assert_eq!(ring.fill().fragments, 2);
}

#[test]
fn tiny_frames_do_not_make_the_index_larger_than_the_media() {
    let mut ring = Ring::new(MIN_BUDGET_BYTES);
    let camera = Camera { track: track(0) };
    for at in 0..100_000 {
        camera.push(&mut ring, at, at % 1000 == 0, 1);
    }
    assert!(ring.frames_held <= MIN_BUDGET_BYTES / BYTES_PER_INDEXED_FRAME);
}

#[test]
fn a_full_ring_gives_up_confirmed_risk_before_unsent_media() {
    let (mut ring, camera) = (ring(12), Camera { track: track(0) });
    // Three fragments of 3 blocks each: one sent and not confirmed, one being sent, one waiting.
    for at in [0, 1000, 2000] {
        camera.push(&mut ring, at, true, 3 * BLOCK);
    }
    ring.begin(C0);
    ring.take_frame(&mut VecDeque::new());
    ring.finish();
    ring.begin(C0);
    // 4 blocks do not fit into the 3 that are free: the first gives up its memory and stays on the books.
    assert!(matches!(
        camera.push(&mut ring, 3000, true, 4 * BLOCK),
        Push::Stored(_)
    ));
    assert_eq!(ring.counts().dropped_in_all().frames, 0);
    // Now the one waiting has to go.
    assert!(matches!(
        camera.push(&mut ring, 4000, true, 4 * BLOCK),
        Push::Stored(_)
    ));
    assert_eq!(ring.counts().dropped_for(DropReason::RingFull).frames, 1);
    assert_eq!(ring.counts().fragments_evicted, 1);
    // A late confirmation of the first is as good as any.
    assert!(ring.confirm(Timecode(0)).is_some());
    assert_eq!(
        send(&mut ring, C0).0.len(),
        1,
        "the one being sent is whole"
    );
}

#[test]
fn what_gave_up_its_memory_is_lost_when_its_connection_is() {
    let (mut ring, camera) = (ring(4), Camera { track: track(0) });
    camera.push(&mut ring, 0, true, 3 * BLOCK);
    camera.push(&mut ring, 1000, true, BLOCK);
    send(&mut ring, C0);
    camera.push(&mut ring, 2000, true, BLOCK);
    assert_eq!(ring.counts().dropped_in_all().frames, 0);
    assert_eq!(ring.rewind(C0), 1);
    assert_eq!(ring.counts().dropped_for(DropReason::RingFull).frames, 1);
    ring.close();
    assert_eq!(send(&mut ring, C1).0, [1000, 2000]);
}

#[test]
fn a_fragment_larger_than_the_ring_passes_through() {
    let (mut ring, camera) = (ring(8), Camera { track: track(0) });
    let mut expected = Vec::new();
    let mut got = Vec::new();
    ring.set_anchor(0);
    for frame in 0..50 {
        assert!(matches!(
            camera.push(&mut ring, frame * 40, frame == 0, 100),
            Push::Stored(_)
        ));
        expected.extend(payload(frame * 40, 100));
        got.extend(send(&mut ring, C0).1);
    }
    assert!(got == expected && ring.counts().dropped_in_all().frames == 0);
    // The price: it cannot be sent again.
    assert_eq!(ring.rewind(C0), 0);
    assert_eq!(ring.counts().dropped_for(DropReason::RingFull).frames, 50);
}

#[test]
fn a_writer_that_can_wait_loses_nothing_and_is_let_through_when_only_that_helps() {
    let (mut ring, camera) = (ring(8), Camera { track: track(0) });
    let mut at = 0;
    while camera.push_as(&mut ring, at, at == 0, 100, WhenFull::Wait) != Push::Full {
        at += 40;
    }
    assert_eq!(ring.counts().dropped_in_all().frames, 0);
    assert_eq!(
        camera.push_as(&mut ring, at, false, 100, WhenFull::Wait),
        Push::Full
    );
    send(&mut ring, C0);
    assert!(matches!(
        camera.push_as(&mut ring, at, false, 100, WhenFull::Wait),
        Push::Stored(_)
    ));
}

#[test]
fn a_writer_that_can_wait_does_so_while_an_older_fragment_may_be_confirmed() {
    let (mut ring, camera) = (ring(8), Camera { track: track(0) });
    ring.set_anchor(0);
    camera.push_as(&mut ring, 0, true, 3 * BLOCK, WhenFull::Wait);
    let mut times = (1000..).step_by(40).take(8);
    let full = times.find(|&at| {
        let push = camera.push_as(&mut ring, at, at == 1000, BLOCK, WhenFull::Wait);
        send(&mut ring, C0);
        push == Push::Full
    });
    let at = full.expect("more than 8 blocks");
    // Both can still be sent again; and room comes with the first one's confirmation.
    assert_eq!(ring.rewind(C0), 2);
    assert_eq!(ring.counts().dropped_in_all().frames, 0);
    send(&mut ring, C1);
    ring.confirm(Timecode(0)).expect("sent whole");
    assert!(matches!(
        camera.push_as(&mut ring, at, false, BLOCK, WhenFull::Wait),
        Push::Stored(_)
    ));
}

#[test]
fn a_frame_larger_than_the_ring_is_dropped_with_what_depends_on_it() {
    let (mut ring, camera) = (ring(4), Camera { track: track(0) });
    camera.push(&mut ring, 0, true, 10);
    let reason = DropReason::FrameTooLarge;
    assert_eq!(
        camera.push(&mut ring, 40, false, 4 * BLOCK),
        Push::Dropped(FrameId(1), reason)
    );
    assert_eq!(
        camera.push(&mut ring, 80, false, 10),
        Push::Dropped(FrameId(2), reason)
    );
    assert!(matches!(
        camera.push(&mut ring, 1120, true, 3 * BLOCK),
        Push::Stored(_)
    ));
}

#[test]
fn rewind_starts_at_the_first_fragment_that_is_not_confirmed_and_keeps_its_name() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    ring.set_anchor(5_000_000);
    for at in [0, 1000, 2000, 3000] {
        camera.push(&mut ring, at, true, 50);
    }
    assert_eq!(send(&mut ring, C0).0, [5_000_000, 5_001_000, 5_002_000]);
    ring.confirm(Timecode(5_001_000)).expect("sent whole");
    assert_eq!(ring.rewind(C0), 3);
    ring.set_anchor(9_000_000);
    ring.close();
    assert_eq!(send(&mut ring, C1).0, [5_000_000, 5_002_000, 5_003_000]);
    assert_eq!(ring.counts().resent.frames, 3);
}

#[test]
fn rewinding_one_connection_leaves_what_another_carried() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    for at in [0, 1000, 2000, 3000] {
        camera.push(&mut ring, at, true, 50);
    }
    ring.begin(C0);
    ring.take_frame(&mut VecDeque::new());
    ring.finish();
    send(&mut ring, C1);
    assert_eq!(ring.rewind(C1), 3);
    assert_eq!(ring.rewind(C1), 0, "nothing of it is left");
    assert_eq!(send(&mut ring, C1).0, [1000, 2000]);
    assert_eq!(ring.rewind(C0), 1);
}

#[test]
fn a_fresh_start_gives_up_all_and_waits_for_a_key_frame() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    for at in [0, 1000, 1040] {
        camera.push(&mut ring, at, at != 1040, 50);
    }
    ring.begin(C0);
    ring.take_frame(&mut VecDeque::new());
    assert_eq!(ring.fill().unsent_bytes, 100);
    assert_eq!(ring.discard().frames, 3);
    let fill = ring.fill();
    assert_eq!(
        (fill.fragments, fill.unsent_bytes, fill.oldest),
        (0, 0, None)
    );
    camera.push(&mut ring, 1080, false, 50);
    camera.push(&mut ring, 2000, true, 50);
    let counts = ring.counts();
    assert_eq!(counts.dropped_for(DropReason::OnOrder).frames, 4);
    ring.close();
    assert_eq!(send(&mut ring, C1).0, [2000]);
}

#[test]
fn what_a_paused_ring_turns_over_is_no_loss() {
    let (mut ring, camera) = (ring(16), Camera { track: track(0) });
    ring.set_paused(true);
    for second in 0..20 {
        camera.push(&mut ring, second * 1000, true, 2 * BLOCK);
    }
    let counts = ring.counts();
    let given_up = counts.dropped_for(DropReason::OnOrder).frames;
    assert!(given_up > 0 && counts.dropped_in_all().frames == given_up);
    assert_eq!(counts.fragments_evicted, 0);
    assert_eq!(ring.fill().newest, Some(MediaTime(19_000)));
    ring.set_paused(false);
    for second in 20..40 {
        camera.push(&mut ring, second * 1000, true, 2 * BLOCK);
    }
    assert!(ring.counts().dropped_for(DropReason::RingFull).frames > 0);
}

#[test]
fn rewinding_all_starts_at_the_first_fragment_whoever_carried_it() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    for at in [0, 1000, 2000, 3000] {
        camera.push(&mut ring, at, true, 50);
    }
    ring.begin(C0);
    ring.take_frame(&mut VecDeque::new());
    ring.finish();
    send(&mut ring, C1);
    assert_eq!(ring.rewind_all(), 4);
    ring.close();
    assert_eq!(send(&mut ring, C1).0, [0, 1000, 2000, 3000]);
}

#[test]
fn a_fragment_is_not_confirmed_before_it_was_sent_whole() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    camera.push(&mut ring, 0, true, 50);
    send(&mut ring, C0);
    assert_eq!(ring.confirm(Timecode(0)), None);
}

#[test]
fn the_end_of_a_fragment_waits_for_the_reader_like_a_frame() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    camera.push(&mut ring, 0, true, 10);
    ring.close();
    ring.begin(C0).unwrap();
    ring.take_frame(&mut VecDeque::new()).unwrap();
    assert!(ring.has_unsent(), "nobody has asked for the fragment's end");
    ring.finish().unwrap();
    assert!(!ring.has_unsent());
}

#[test]
fn a_wall_clock_that_steps_back_does_not_lead_back() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    ring.set_anchor(1_000_000);
    camera.push(&mut ring, 0, true, 50);
    camera.push(&mut ring, 1000, true, 50);
    ring.close();
    ring.begin(C0);
    ring.take_frame(&mut VecDeque::new());
    ring.finish();
    ring.set_anchor(400_000);
    assert_eq!(send(&mut ring, C0).0, [1_000_001]);
}

#[test]
fn clocks_that_are_read_a_little_apart_do_not_change_the_spacing() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    ring.set_anchor(1_000_000);
    for at in [0, 1000, 2000] {
        camera.push(&mut ring, at, true, 50);
    }
    ring.close();
    for (anchor, expected) in [
        (1_000_000, 1_000_000),
        (1_000_020, 1_001_000),
        (1_000_021, 1_002_021),
    ] {
        ring.set_anchor(anchor);
        assert_eq!(
            ring.begin(C0).map(|(_, timecode)| timecode.0),
            Some(expected)
        );
        ring.take_frame(&mut VecDeque::new());
        ring.finish();
    }
}

#[test]
fn silence_ends_the_fragment_and_the_next_key_frame_starts_another() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    camera.push(&mut ring, 0, true, 50);
    ring.fall_silent();
    assert_eq!(send(&mut ring, C0).0, [0]);
    assert_eq!(ring.peek(), Peek::Silent);
    assert!(matches!(
        camera.push(&mut ring, 25_000, false, 50),
        Push::Dropped(_, DropReason::CameraGap)
    ));
    camera.push(&mut ring, 25_040, true, 50);
    assert!(matches!(ring.peek(), Peek::Fragment(_)));
}

#[test]
fn a_refused_fragment_leaves_wherever_it_stands() {
    let (mut ring, camera) = (ring(64), Camera { track: track(0) });
    camera.push(&mut ring, 0, true, 50);
    camera.push(&mut ring, 1000, true, 50);
    send(&mut ring, C0);
    assert!(
        ring.refuse_fragment(Timecode(1000)).is_some(),
        "while it is being written and sent"
    );
    assert!(matches!(
        camera.push(&mut ring, 1040, false, 9),
        Push::Dropped(_, DropReason::Refused)
    ));
    assert!(ring.refuse_fragment(Timecode(0)).is_some());
    assert_eq!(
        (
            ring.fill().fragments,
            ring.counts().dropped_for(DropReason::Refused).frames
        ),
        (0, 3)
    );
}

// ---- against a naive model ----

#[derive(Debug, Clone)]
enum Op {
    Push {
        key: bool,
        len: usize,
        later: u64,
        gap: bool,
        track: u8,
    },
    Send {
        frames: usize,
    },
    Confirm(usize),
    Refuse(usize),
    Rewind,
    Anchor(i64),
    Silent,
}

fn op() -> impl Strategy<Value = Op> {
    let push = (0..4_u8, 0..400_usize, 0..900_u64, 0..40_u8, 0..30_u8).prop_map(
        |(key, len, later, gap, track)| Op::Push {
            key: key == 0,
            len,
            later,
            gap: gap == 0,
            track: u8::from(track == 0),
        },
    );
    prop_oneof![
        12 => push,
        6 => (1..12_usize).prop_map(|frames| Op::Send { frames }),
        3 => (0..4_usize).prop_map(Op::Confirm),
        1 => (0..4_usize).prop_map(Op::Refuse),
        1 => Just(Op::Rewind),
        1 => (-5000_i64..5000).prop_map(Op::Anchor),
        1 => Just(Op::Silent),
    ]
}

/// What a fragment on the wire was: its payload, in full once it was finished.
#[derive(Debug, Default, Clone)]
struct Wire {
    bytes: Vec<u8>,
    times: Vec<u64>,
    finished: bool,
}

#[derive(Default)]
struct Model {
    /// Every frame that was stored, in order: its time (as the ring placed it) and its bytes.
    stored: Vec<(u64, Vec<u8>)>,
    /// By timecode.
    wire: BTreeMap<u64, Wire>,
    current: Option<u64>,
    connection: u64,
    on_connection: Vec<u64>,
    confirmed: Vec<u64>,
    last_time: Option<u64>,
    open_parts: VecDeque<Bytes>,
}

impl Model {
    fn send(&mut self, ring: &mut Ring, frames: usize) {
        for _ in 0..frames {
            match ring.peek() {
                Peek::Fragment(_) => {
                    let (_, timecode) = ring.begin(ConnectionId(self.connection)).expect("peeked");
                    let last = self.on_connection.last().copied();
                    assert!(
                        last.is_none_or(|last| timecode.0 > last),
                        "names rise on a connection"
                    );
                    assert!(
                        self.last_time.is_none_or(|last| timecode.0 > last),
                        "after the frame before"
                    );
                    assert!(
                        !self.confirmed.contains(&timecode.0),
                        "nothing confirmed is sent again"
                    );
                    self.on_connection.push(timecode.0);
                    self.current = Some(timecode.0);
                    self.last_time = None;
                    self.wire.insert(timecode.0, Wire::default());
                }
                Peek::Frame => {
                    self.open_parts.clear();
                    let frame = ring.take_frame(&mut self.open_parts).expect("peeked");
                    let timecode = self.current.expect("a frame follows a begin");
                    let wire = self.wire.get_mut(&timecode).expect("begun");
                    assert!(
                        frame.key || !wire.times.is_empty(),
                        "a fragment starts with a key frame"
                    );
                    let time = timecode + u64::from(frame.offset_ms);
                    assert!(self.last_time.is_none_or(|last| time > last), "times rise");
                    self.last_time = Some(time);
                    wire.times.push(time);
                    self.open_parts
                        .iter()
                        .for_each(|part| wire.bytes.extend_from_slice(part));
                }
                Peek::FragmentEnd => {
                    ring.finish().expect("peeked");
                    let timecode = self.current.take().expect("an end follows a begin");
                    let wire = self.wire.get_mut(&timecode).expect("begun");
                    wire.finished = true;
                    assert!(
                        self.is_stored_run(&self.wire[&timecode].bytes),
                        "bytes as they were pushed"
                    );
                }
                Peek::Nothing { .. } | Peek::Silent | Peek::Closed => return,
            }
        }
    }

    /// Whether `bytes` are those of some frames stored one after the other.
    fn is_stored_run(&self, bytes: &[u8]) -> bool {
        let whole: Vec<u8> = self
            .stored
            .iter()
            .flat_map(|(_, bytes)| bytes.iter().copied())
            .collect();
        bytes.is_empty() || whole.windows(bytes.len()).any(|window| window == bytes)
    }

    fn unconfirmed(&self, pick: usize) -> Option<u64> {
        let sent: Vec<u64> = self
            .on_connection
            .iter()
            .copied()
            .filter(|t| !self.confirmed.contains(t))
            .collect();
        sent.get(pick).copied()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn no_frame_is_unaccounted_for_whatever_happens(ops in proptest::collection::vec(op(), 1..250), wait in any::<bool>()) {
        let mut ring = ring(16);
        let when_full = if wait { WhenFull::Wait } else { WhenFull::Drop };
        let mut model = Model::default();
        let mut at = 10_000;
        let mut pushed = 0;
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Push { key, len, later, gap, track: kind } => {
                    at += later;
                    let info = track(kind);
                    let frame = NewFrame { at: MediaTime(at), key, discontinuity: gap, track: key.then_some(&info) };
                    let bytes = payload(step as u64 + 1, len);
                    let evicted = ring.counts().fragments_evicted;
                    match ring.push(frame, bytes.as_slice(), when_full) {
                        Push::Stored(_) => {
                            pushed += 1;
                            model.stored.push((at, bytes));
                        }
                        Push::Dropped(..) => pushed += 1,
                        Push::Full => prop_assert!(wait),
                    }
                    let now_evicted = ring.counts().fragments_evicted;
                    prop_assert!(!wait || now_evicted == evicted, "a writer that waits has nothing evicted");
                }
                Op::Send { frames } => model.send(&mut ring, frames),
                Op::Confirm(pick) => if let Some(timecode) = model.unconfirmed(pick) {
                    let done = ring.confirm(Timecode(timecode));
                    let whole = model.wire[&timecode].finished;
                    prop_assert!(done.is_none() || whole, "only what was sent whole");
                    if done.is_some() {
                        model.confirmed.push(timecode);
                    }
                },
                Op::Refuse(pick) => if let Some(timecode) = model.unconfirmed(pick) {
                    if ring.refuse_fragment(Timecode(timecode)).is_some() {
                        model.confirmed.push(timecode);
                    }
                    if model.current == Some(timecode) {
                        model.current = None;
                    }
                },
                Op::Rewind => {
                    ring.rewind(ConnectionId(model.connection));
                    model.connection += 1;
                    model.on_connection.clear();
                    model.current = None;
                    model.last_time = None;
                }
                Op::Anchor(anchor) => ring.set_anchor(anchor),
                Op::Silent => ring.fall_silent(),
            }
            let counts = ring.counts();
            let held: usize = ring.fragments.iter().map(|fragment| fragment.count).sum();
            prop_assert_eq!(counts.captured.frames, pushed);
            prop_assert_eq!(
                counts.captured.frames,
                counts.persisted.frames + counts.dropped_in_all().frames + held as u64
            );
            let blocks: usize = ring.fragments.iter().map(|fragment| fragment.blocks.len()).sum();
            prop_assert!(blocks * BLOCK + ring.pool.free_bytes() <= 16 * BLOCK, "within the budget");
        }
        // In the end everything that is left goes out and is confirmed.
        ring.rewind(ConnectionId(model.connection));
        model.connection += 1;
        model.on_connection.clear();
        model.current = None;
        model.last_time = None;
        ring.close();
        model.send(&mut ring, usize::MAX);
        prop_assert_eq!(ring.peek(), Peek::Closed);
        for timecode in std::mem::take(&mut model.on_connection) {
            prop_assert!(ring.confirm(Timecode(timecode)).is_some());
        }
        prop_assert!(ring.is_done());
        let counts = ring.counts();
        prop_assert_eq!(counts.captured.frames, counts.persisted.frames + counts.dropped_in_all().frames);
        model.open_parts.clear();
        let (free, total) = (ring.pool.has(16), ring.pool.free_bytes());
        prop_assert!(free && total == 16 * BLOCK, "all memory is back");
    }
}
