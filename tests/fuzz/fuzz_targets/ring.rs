//! Any operations in any order: no panic, no frame unaccounted for, names and times that rise.

#![no_main]

use std::collections::VecDeque;
use std::sync::Arc;

use arbitrary::Arbitrary;
use bytes::Bytes;
use kvs_producer_app::frame::{Codec, MediaTime, Timecode, TrackInfo};
use kvs_producer_app::ring::{ConnectionId, NewFrame, Peek, Push, Ring, WhenFull};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Op {
    Push {
        at: u32,
        len: u16,
        key: bool,
        gap: bool,
        track: bool,
        wait: bool,
    },
    Send(u8),
    Confirm(u8),
    Refuse(u8),
    Rewind,
    Anchor(i32),
    Silent,
    Drop(u16),
}

const BUDGET_BYTES: usize = 512 * 1024;

fuzz_target!(|ops: Vec<Op>| {
    let tracks = [0, 1].map(|kind| {
        let codec_private = Bytes::from(vec![kind]);
        Arc::new(TrackInfo {
            codec: Codec::H264,
            codec_private,
            dimensions: None,
        })
    });
    let mut ring = Ring::new(BUDGET_BYTES);
    let mut connection = ConnectionId(0);
    let mut sent: Vec<Timecode> = Vec::new();
    let mut last_time = None;
    let mut begun = None;
    let mut pushed = 0;
    for op in ops {
        match op {
            Op::Push {
                at,
                len,
                key,
                gap,
                track,
                wait,
            } => {
                let track = key.then_some(&tracks[usize::from(track)]);
                let frame = NewFrame {
                    at: MediaTime(at.into()),
                    key,
                    discontinuity: gap,
                    track,
                };
                let when_full = if wait { WhenFull::Wait } else { WhenFull::Drop };
                // Large frames fill the ring within a few operations.
                let pushes = ring.push(frame, vec![7; usize::from(len) * 8].as_slice(), when_full);
                pushed += u64::from(pushes != Push::Full);
            }
            Op::Drop(len) => {
                ring.drop_frame(len.into(), kvs_producer_app::ring::DropReason::CameraGap);
                pushed += 1;
            }
            Op::Send(steps) => {
                for _ in 0..steps {
                    match ring.peek() {
                        Peek::Fragment(_) => {
                            let (_, timecode) = ring.begin(connection).expect("peeked");
                            assert!(last_time.is_none_or(|last| timecode > last));
                            last_time = Some(timecode);
                            begun = Some(timecode);
                            sent.push(timecode);
                        }
                        Peek::Frame => {
                            let mut parts = VecDeque::new();
                            let frame = ring.take_frame(&mut parts).expect("peeked");
                            assert_eq!(frame.len, parts.iter().map(Bytes::len).sum::<usize>());
                            let time =
                                Timecode(begun.expect("begun").0 + u64::from(frame.offset_ms));
                            assert!(
                                last_time.is_none_or(|last| time > last || frame.offset_ms == 0)
                            );
                            last_time = last_time.max(Some(time));
                        }
                        Peek::FragmentEnd => assert!(ring.finish().is_some()),
                        _ => break,
                    }
                }
            }
            Op::Confirm(pick) => {
                if let Some(&timecode) = sent.get(usize::from(pick)) {
                    ring.confirm(timecode);
                }
            }
            Op::Refuse(pick) => {
                if let Some(&timecode) = sent.get(usize::from(pick)) {
                    ring.refuse_fragment(timecode);
                }
            }
            Op::Rewind => {
                ring.rewind(connection);
                connection = ConnectionId(connection.0 + 1);
                last_time = None;
            }
            Op::Anchor(anchor) => ring.set_anchor(anchor.into()),
            Op::Silent => ring.fall_silent(),
        }
        assert!(ring.fill().available_bytes <= ring.fill().total_bytes);
    }
    ring.abandon();
    let counts = ring.counts();
    assert_eq!(counts.captured.frames, pushed);
    assert_eq!(
        counts.captured.frames,
        counts.persisted.frames + counts.dropped_in_all().frames
    );
});
