//! Frames at hostile times through ring and request body: what comes out is read back by a small reader.

#![no_main]

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arbitrary::Arbitrary;
use bytes::Bytes;
use http_body::Body;
use kvs_producer_app::frame::{Codec, MediaTime, TrackInfo};
use kvs_producer_app::kvs::upload::{Handle, UploadBody};
use kvs_producer_app::ring::shared::share;
use kvs_producer_app::ring::{ConnectionId, NewFrame, Ring, WhenFull};
use kvs_producer_app::shutdown;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Frame {
    at: u64,
    key: bool,
    len: u8,
}

fuzz_target!(|input: (i64, Vec<Frame>)| {
    let (anchor, frames) = input;
    let track = Arc::new(TrackInfo {
        codec: Codec::H264,
        codec_private: Bytes::from_static(&[1]),
        dimensions: None,
    });
    let (mut writer, reader) = share(Ring::new(512 * 1024));
    reader.with(|ring| ring.set_anchor(anchor));
    let (_trigger, shutdown) = shutdown::pair().expect("descriptors are left");
    for frame in &frames {
        let new = NewFrame {
            // Times near the end of 64 bits have no place on any clock.
            at: MediaTime(frame.at >> 8),
            key: frame.key,
            discontinuity: false,
            track: frame.key.then_some(&track),
        };
        writer.push(
            new,
            vec![0xAB; usize::from(frame.len)].as_slice(),
            WhenFull::Drop,
            &shutdown,
        );
    }
    drop(writer);
    let (events, _received) = tokio::sync::mpsc::unbounded_channel();
    let mut body = Box::pin(UploadBody::new(
        ConnectionId(0),
        reader,
        Handle::default(),
        events,
    ));
    let mut context = Context::from_waker(Waker::noop());
    let mut bytes = Vec::new();
    loop {
        match body.as_mut().poll_frame(&mut context) {
            Poll::Ready(Some(Ok(frame))) => {
                bytes.extend_from_slice(&frame.into_data().expect("data"))
            }
            Poll::Ready(None) => break,
            Poll::Ready(Some(Err(never))) => match never {},
            Poll::Pending => panic!("a closed ring leaves nothing to wait for"),
        }
    }
    check(&bytes);
});

/// Times rise from block to block, and a cluster starts with a key frame.
fn check(mut bytes: &[u8]) {
    let Some(first) = bytes
        .windows(4)
        .position(|id| id == [0x1F, 0x43, 0xB6, 0x75])
    else {
        return;
    };
    bytes = &bytes[first..];
    let mut cluster = 0;
    let mut last = None;
    let mut starts = false;
    while !bytes.is_empty() {
        if bytes.starts_with(&[0x1F, 0x43, 0xB6, 0x75]) {
            cluster = u64::from_be_bytes(bytes[7..15].try_into().expect("eight bytes"));
            starts = true;
            bytes = &bytes[18..];
        } else if bytes[0] == 0xA3 {
            let size =
                u64::from_be_bytes(bytes[1..9].try_into().expect("eight bytes")) & !(0xFF << 56);
            let offset = i16::from_be_bytes(bytes[10..12].try_into().expect("two bytes"));
            let time = cluster + u64::try_from(offset).expect("never before the cluster");
            assert!(last.is_none_or(|last| time > last), "{time} after {last:?}");
            assert!(
                !starts || bytes[12] == 0x80,
                "a cluster starts with a key frame"
            );
            last = Some(time);
            starts = false;
            bytes = &bytes[9 + usize::try_from(size).expect("a frame")..];
        } else {
            assert!(
                bytes.starts_with(&[0x12, 0x54, 0xC3, 0x67]),
                "the end tag, and nothing else"
            );
            return;
        }
    }
}
