//! What the steady state allocates: nothing for payload, next to nothing for framing.

use std::alloc::System;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Body;
use kvs_producer_app::frame::{Codec, MediaTime, TrackInfo};
use kvs_producer_app::kvs::session::Event;
use kvs_producer_app::kvs::upload::{Handle, UploadBody};
use kvs_producer_app::ring::shared::share;
use kvs_producer_app::ring::{ConnectionId, NewFrame, Push, Ring, WhenFull};
use kvs_producer_app::shutdown;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const FRAME_BYTES: usize = 19_000; // 3.8 Mbit/s at 25/s
const GROUP: u64 = 50;

/// Frames through the ring, the framing and out, each fragment confirmed a fragment later, as on a healthy connection.
#[test]
fn the_steady_state_allocates_no_payload_memory() {
    let budget = 4 * 1024 * 1024;
    let track = Arc::new(TrackInfo {
        codec: Codec::H264,
        codec_private: Bytes::from_static(&[1]),
        dimensions: None,
    });
    let (mut writer, reader) = share(Ring::new(budget));
    let (_trigger, shutdown) = shutdown::pair().expect("descriptors are left");
    let (events, mut received) = tokio::sync::mpsc::unbounded_channel();
    let mut body = Box::pin(UploadBody::new(
        ConnectionId(0),
        reader.clone(),
        Handle::default(),
        events,
    ));
    let mut context = Context::from_waker(Waker::noop());
    let payload = vec![0x5A; FRAME_BYTES];
    let mut sent = VecDeque::new();
    let mut out = 0;
    let mut run = |frames: std::ops::Range<u64>| {
        for index in frames {
            let key = index % GROUP == 0;
            let frame = NewFrame {
                at: MediaTime(index * 40),
                key,
                discontinuity: false,
                track: key.then_some(&track),
            };
            let pushed = writer.push(frame, payload.as_slice(), WhenFull::Drop, &shutdown);
            assert!(matches!(pushed, Some(Push::Stored(_))));
            while let Poll::Ready(Some(Ok(part))) = body.as_mut().poll_frame(&mut context) {
                out += part.data_ref().map_or(0, Bytes::len);
            }
            while let Ok(event) = received.try_recv() {
                if let Event::Sent(_, timecode) = event {
                    sent.push_back(timecode);
                }
            }
            if sent.len() > 1 {
                let oldest = sent.pop_front().expect("there are two");
                assert!(reader.with(|ring| ring.confirm(oldest)).is_some());
            }
        }
    };
    run(0..20 * GROUP);
    let region = Region::new(ALLOCATOR);
    run(20 * GROUP..120 * GROUP);
    let change = region.change();
    let frames = 100 * GROUP;
    assert!(out as u64 > frames * FRAME_BYTES as u64);
    let per_frame = change.bytes_allocated as u64 / frames;
    assert!(
        per_frame < 100,
        "{per_frame} bytes a frame: framing takes some 13, and no payload is among them"
    );
    assert!(
        change.allocations as u64 <= frames / 10,
        "{} allocations",
        change.allocations
    );
    assert_eq!(
        change.reallocations, 0,
        "tables have their size after the first fragments"
    );
}
