//! The producer as a part of another program.

use std::time::Duration;

use kvs_producer_app::app::{Config, Exit};
use kvs_producer_app::clock::Clock;
use kvs_producer_app::frame::Codec;
use kvs_producer_app::local::Options;
use kvs_producer_app::producer::{Error, Frame, Producer, Stream};
use serde_json::Value;

use crate::rig::{STREAM, assert_whole, clip, config, endpoint};

/// A producer whose settings are the test's.
fn producer(config: Config) -> Producer {
    let mut producer = Producer::new(STREAM).expect("a channel");
    *producer.config() = config;
    producer
}

/// Puts the clip from one frame to another, each 40 ms after the other in its own time.
fn put(stream: &Stream, start: Duration, frames: std::ops::Range<usize>) {
    let units = clip();
    for index in frames {
        let spacing = Duration::from_millis(40);
        let frame = Frame {
            codec: Codec::H264,
            data: &units[index % units.len()],
            at: Some(start + spacing * u32::try_from(index).expect("few")),
        };
        stream.put_frame(&frame).expect("it runs");
    }
}

fn wait_until(stream: &Stream, wanted: impl Fn(&Value) -> bool) {
    for _ in 0..400 {
        if wanted(&stream.metrics().expect("it runs")) {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("{}", stream.metrics().expect("it runs"));
}

#[tokio::test]
async fn frames_that_a_program_puts_are_persisted_in_order() {
    let endpoint = endpoint(Options::default()).await;
    let producer = producer(config(&endpoint.url()));
    let work = tokio::task::spawn_blocking(move || {
        let stream = producer.create().expect("it starts");
        let start = Clock.monotonic();
        put(&stream, start, 0..100);
        wait_until(&stream, |metrics| metrics["persisted"]["frames"] == 50);
        stream.reset(true).expect("it goes on");
        // A pause waits for the end of the fragment under way, and so for frames.
        std::thread::scope(|scope| {
            let pausing = scope.spawn(|| stream.pause());
            for index in 100..250 {
                put(&stream, start, index..index + 1);
                std::thread::sleep(Duration::from_millis(10));
            }
            pausing.join().expect("no panic").expect("it pauses");
        });
        assert_eq!(stream.metrics().expect("it runs")["state"], "paused");
        stream.resume().expect("it goes on");
        stream.stop().expect("a run")
    });
    let summary = work.await.expect("no panic");
    assert_eq!(summary.exit, Exit::Persisted, "{}", summary.report);
    assert_eq!(summary.report.counts.persisted.frames, 250);
    assert_whole(&endpoint.view().state(), 250);
}

#[tokio::test]
async fn a_stream_that_is_freed_says_what_is_lost_and_one_that_cannot_be_says_why() {
    let endpoint = endpoint(Options::default()).await;
    let url = endpoint.url();
    let work = tokio::task::spawn_blocking(move || {
        let stream = producer(config(&url)).create().expect("it starts");
        put(&stream, Clock.monotonic(), 0..10);
        wait_until(&stream, |metrics| metrics["captured"]["frames"] == 10);
        let summary = stream.free().expect("a run");
        let mut lost = config(&url);
        lost.aws.credentials = Some(aws_credential_types::Credentials::new(
            "AKIDEXAMPLE",
            "wrong",
            None,
            None,
            "test",
        ));
        (summary, producer(lost).create())
    });
    let (summary, refused) = work.await.expect("no panic");
    assert_eq!(summary.exit, Exit::Unsent, "{}", summary.report);
    assert_eq!(summary.report.counts.dropped_in_all().frames, 10);
    assert!(matches!(refused, Err(Error::Create(_))), "{refused:?}");
    assert!(matches!(Producer::new("a/b"), Err(Error::Usage(_))));
}
