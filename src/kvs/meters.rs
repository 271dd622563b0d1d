//! Counts what happens on the network side, for the metrics. Pure: it is told what happened and when.

use std::time::{Duration, Instant};

use super::ack::AckKind;
use super::failure::{Failure, FailureKind};
use super::session::{Call, Event};
use crate::ring::ConnectionId;

const CALLS: usize = Call::ALL.len();

/// How often something took how long: fixed buckets, so that the figures of many cameras can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Histogram {
    /// Those that took longer than the bound before and no longer than their own; the last ones longer than all bounds.
    buckets: [u64; Self::BOUNDS_MS.len() + 1],
    sum_ms: u64,
}

impl Histogram {
    /// Upper bounds of the buckets, in ms. Around 2 s lies a fragment of usual length, at 20 s a connection is given up.
    pub const BOUNDS_MS: [u32; 14] = [
        5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 60_000, 300_000,
    ];

    /// Takes one in.
    pub fn observe(&mut self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = Self::BOUNDS_MS.partition_point(|&bound| u64::from(bound) < ms);
        self.buckets[bucket] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in ms.
    pub fn sum_ms(&self) -> u64 {
        self.sum_ms
    }

    /// Each bound in ms with how many took no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (u32, u64)> {
        let counts = self.buckets.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        Self::BOUNDS_MS.into_iter().zip(counts)
    }

    /// The bound in ms that a share of them (0 to 1) took no longer than; `None` when there are none, or when only the
    /// last bucket would do.
    pub fn quantile_ms(&self, share: f64) -> Option<u32> {
        #[expect(clippy::cast_precision_loss, reason = "a share of a count")]
        let wanted = self.count() as f64 * share;
        #[expect(clippy::cast_precision_loss, reason = "a share of a count")]
        let reached = |count: u64| count > 0 && count as f64 >= wanted;
        let mut bounds = self.cumulative().filter(|(_, count)| reached(*count));
        bounds.next().map(|(bound, _)| bound)
    }
}

/// What happened on the network side since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meters {
    /// BUFFERING acknowledgements.
    pub acks_buffering: u64,
    /// RECEIVED acknowledgements.
    pub acks_received: u64,
    /// PERSISTED acknowledgements.
    pub acks_persisted: u64,
    /// ERROR acknowledgements.
    pub acks_error: u64,
    /// Connections that were lost or refused, in the order of [`FailureKind::ALL`].
    pub lost: [u64; FailureKind::ALL.len()],
    /// Connections that were left because they stood still.
    pub stalls: u64,
    /// Calls that were answered, in the order of [`Call::ALL`].
    pub calls: [Histogram; CALLS],
    /// Calls that failed, in the order of [`Call::ALL`].
    pub calls_failed: [u64; CALLS],
    /// From the start of PutMedia's connection to its 200.
    pub accepted: Histogram,
    /// From the capture of a fragment's first frame to its being handed to the connection.
    pub to_wire: Histogram,
    /// From the capture of a fragment's first frame to PERSISTED.
    pub to_persisted: Histogram,
    /// How long the connections lived that have ended, in ms.
    pub lived_ms: u64,
    /// How many have ended.
    pub ended: u64,
    /// Connections that are open, with when they were begun.
    open: Vec<(ConnectionId, Instant)>,
    /// The call under way.
    calling: Option<(Call, Instant)>,
}

impl Meters {
    /// Takes an event in, as the session gets it.
    pub fn observe(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Replied(call, reply) => self.replied(*call, reply.is_ok(), now),
            Event::Accepted(id) => {
                if let Some((_, since)) = self.open.iter().find(|(open, _)| open == id) {
                    self.accepted.observe(now.saturating_duration_since(*since));
                }
            }
            Event::Ack(_, ack) => match ack.kind {
                AckKind::Buffering => self.acks_buffering += 1,
                AckKind::Received => self.acks_received += 1,
                AckKind::Persisted => self.acks_persisted += 1,
                AckKind::Error { .. } => self.acks_error += 1,
                AckKind::Idle => {}
            },
            Event::Lost(id, _) => self.ended(*id, now),
            _ => {}
        }
    }

    /// A call begins.
    pub fn calling(&mut self, call: Call, now: Instant) {
        self.calling = Some((call, now));
    }

    /// A connection begins.
    pub fn opened(&mut self, id: ConnectionId, now: Instant) {
        self.open.push((id, now));
    }

    /// A connection is at its end, however it came to it.
    pub fn ended(&mut self, id: ConnectionId, now: Instant) {
        let Some(index) = self.open.iter().position(|(open, _)| *open == id) else {
            return;
        };
        let (_, since) = self.open.swap_remove(index);
        let lived = now.saturating_duration_since(since).as_millis();
        self.lived_ms += u64::try_from(lived).unwrap_or(u64::MAX);
        self.ended += 1;
    }

    /// Whoever counted before is gone, and its connections with it.
    pub fn take_over(&mut self, now: Instant) {
        self.calling = None;
        while let Some((id, _)) = self.open.first().copied() {
            self.ended(id, now);
        }
    }

    /// The session goes on anew because of this.
    pub fn failed(&mut self, failure: &Failure) {
        self.lost[failure.kind as usize] += 1;
        self.stalls += u64::from(failure.kind == FailureKind::Stalled);
    }

    /// Connections that are open.
    pub fn active(&self) -> usize {
        self.open.len()
    }

    fn replied(&mut self, call: Call, well: bool, now: Instant) {
        let Some((_, since)) = self.calling.take_if(|(calling, _)| *calling == call) else {
            return;
        };
        self.calls[call as usize].observe(now.saturating_duration_since(since));
        self.calls_failed[call as usize] += u64::from(!well);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::frame::Timecode;
    use crate::kvs::ack::Ack;
    use crate::kvs::session::Reply;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_none_is_lost_above_the_last() {
        let mut histogram = Histogram::default();
        for ms in [0, 5, 6, 300_000, 300_001, u64::MAX] {
            histogram.observe(Duration::from_millis(ms));
        }
        let cumulative: Vec<_> = histogram.cumulative().collect();
        assert_eq!(cumulative[0], (5, 2));
        assert_eq!(cumulative[1], (10, 3));
        assert_eq!(cumulative.last(), Some(&(300_000, 4)));
        assert_eq!(histogram.count(), 6);
        assert_eq!(histogram.sum_ms(), u64::MAX);
    }

    #[test]
    fn a_quantile_is_the_bound_that_so_many_stay_below() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        for ms in 1..=100 {
            histogram.observe(Duration::from_millis(ms));
        }
        assert_eq!(histogram.quantile_ms(0.5), Some(50));
        assert_eq!(histogram.quantile_ms(0.51), Some(100));
        assert_eq!(histogram.quantile_ms(0.05), Some(5));
    }

    #[test]
    fn every_kind_stands_where_all_has_it() {
        for (index, kind) in FailureKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "{kind:?}");
        }
        for (index, call) in Call::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, index, "{call:?}");
        }
    }

    #[test]
    fn a_connections_life_is_counted_once() {
        let at = Clock.now();
        let after = |ms| at + Duration::from_millis(ms);
        let mut meters = Meters::default();
        let id = ConnectionId(3);
        meters.opened(id, at);
        meters.observe(&Event::Accepted(id), after(80));
        assert_eq!(meters.active(), 1);
        let ack = |kind| {
            let timecode = Some(Timecode(1));
            let number = None;
            Event::Ack(
                id,
                Ack {
                    kind,
                    timecode,
                    number,
                },
            )
        };
        meters.observe(&ack(AckKind::Buffering), after(90));
        meters.observe(&ack(AckKind::Persisted), after(95));
        let failure = Failure::new(FailureKind::Stalled, "");
        meters.failed(&failure);
        meters.ended(id, after(1000));
        meters.observe(&Event::Lost(id, failure), after(1001));
        assert_eq!(
            (meters.active(), meters.ended, meters.lived_ms),
            (0, 1, 1000)
        );
        assert_eq!(meters.accepted.sum_ms(), 80);
        assert_eq!((meters.acks_buffering, meters.acks_persisted), (1, 1));
        assert_eq!(meters.lost[FailureKind::Stalled as usize], 1);
        assert_eq!(meters.stalls, 1);
    }

    #[test]
    fn a_call_is_timed_from_its_start_to_its_reply() {
        let at = Clock.now();
        let mut meters = Meters::default();
        let reply = Event::Replied(Call::Create, Ok(Reply::Created));
        meters.observe(&reply, at);
        meters.calling(Call::Create, at);
        meters.observe(&reply, at + Duration::from_millis(30));
        let failure = Failure::new(FailureKind::Service, "");
        meters.calling(Call::Create, at);
        meters.observe(&Event::Replied(Call::Create, Err(failure)), at);
        let index = Call::Create as usize;
        assert_eq!(meters.calls[index].count(), 2);
        assert_eq!(meters.calls[index].sum_ms(), 30);
        assert_eq!(meters.calls_failed[index], 1);
    }
}
