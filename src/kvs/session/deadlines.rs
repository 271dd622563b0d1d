//! How long a session waits for what, and what it does when that is over: a connection is left, or the session ends.

use std::time::Instant;

use super::{
    Action, Connection, InFlight, Level, Note, Now, Outcome, Phase, Retention, Session, Stream,
};
use crate::kvs::failure::{Failure, FailureKind, Pace};
use crate::ring::ConnectionId;

/// What a connection was waited for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stall {
    Connect,
    Head,
    Write,
    Silence,
    Unconfirmed,
}

impl Session {
    /// When the connection counts as dead, and why, unless something moves before.
    pub(super) fn due(&self, connection: &Connection) -> Option<(Instant, Stall)> {
        let settings = &self.settings;
        match connection.phase {
            Phase::Opening => {
                return Some((connection.since + settings.connect_timeout, Stall::Connect));
            }
            Phase::Ready => return None,
            Phase::Head => return Some((connection.since + settings.head_timeout, Stall::Head)),
            Phase::Streaming | Phase::Draining => {}
        }
        let held = connection
            .held
            .map(|held| (held + settings.progress_timeout, Stall::Write));
        let silent = connection.in_flight.iter().filter_map(|fragment| {
            let since = match (fragment.level, fragment.sent) {
                (Level::Nothing, _) => fragment.begun,
                (Level::Buffering, Some(sent)) => sent,
                _ => return None,
            };
            let since = since.max(connection.last_ack);
            // What waits behind others in the kernel cannot be acknowledged. That is no excuse for ever: a server may read
            // on and acknowledge nothing.
            let last = since + settings.confirm_timeout;
            let moved = connection.moved.map_or(since, |moved| moved.max(since));
            Some((moved + settings.progress_timeout).min(last))
        });
        let silent = silent.min().map(|due| (due, Stall::Silence));
        let unconfirmed = connection
            .in_flight
            .iter()
            .filter_map(|fragment| fragment.sent)
            .min();
        let unconfirmed =
            unconfirmed.map(|sent| (sent + settings.confirm_timeout, Stall::Unconfirmed));
        [held, silent, unconfirmed].into_iter().flatten().min()
    }

    /// When nothing but failures is enough.
    pub(super) fn out_of_patience(&self) -> Option<Instant> {
        let since = self.failing_since.filter(|_| !self.ever.confirmed)?;
        self.settings.patience.map(|patience| since + patience)
    }

    pub(super) fn watch(&mut self, now: Now) {
        if self.outcome.is_some() {
            return;
        }
        let due = self.connections.iter().find_map(|connection| {
            let (due, stall) = self.due(connection)?;
            (now.at >= due).then_some((connection.id, stall))
        });
        if let Some((id, stall)) = due {
            self.stalled(id, stall, now);
        }
        if self.out_of_patience().is_some_and(|at| now.at >= at)
            && let Some(failure) = self.last_failure.clone()
        {
            return self.end(Outcome::GaveUp(failure));
        }
        let Some(until) = self.drain else { return };
        let hopeless = self
            .last_failure
            .as_ref()
            .filter(|failure| failure.kind.pace() == Pace::Slow);
        match hopeless {
            _ if now.done => self.end(Outcome::Done),
            Some(failure) if !self.ever.confirmed => self.end(Outcome::GaveUp(failure.clone())),
            _ if now.at >= until => self.end(Outcome::OutOfTime(Some(self.unfinished()))),
            _ => {}
        }
    }

    /// Why not everything is confirmed at the end: what failed last, or what is being waited for.
    fn unfinished(&self) -> Failure {
        if let Some(failure) = &self.last_failure {
            return failure.clone();
        }
        let message = match (self.awaited(), self.connections.first()) {
            (Some(call), _) => format!("the time was over before {call:?} was answered"),
            (None, Some(one)) if one.phase <= Phase::Head => {
                "the time was over before the service had taken the connection".to_owned()
            }
            (None, Some(_)) => {
                "the time was over before the service had confirmed everything".to_owned()
            }
            (None, None) => "the time was over before a connection could be opened".to_owned(),
        };
        Failure::new(FailureKind::Stalled, message)
    }

    fn stalled(&mut self, id: ConnectionId, stall: Stall, now: Now) {
        if stall == Stall::Unconfirmed && self.learn_retention(id) {
            return;
        }
        let settings = &self.settings;
        let (what, time) = match stall {
            Stall::Connect => ("no connection", settings.connect_timeout),
            Stall::Head => ("no answer to PutMedia", settings.head_timeout),
            Stall::Write => (
                "the connection takes no more bytes",
                settings.progress_timeout,
            ),
            Stall::Silence => ("no acknowledgement", settings.progress_timeout),
            Stall::Unconfirmed => ("a fragment is not confirmed", settings.confirm_timeout),
        };
        self.actions.push_back(Action::Close(id));
        let message = format!("{what} for {} s", time.as_secs_f32());
        self.lost(id, Failure::new(FailureKind::Stalled, message), now);
    }

    /// Fragments that were RECEIVED and are never PERSISTED: the stream may retain nothing. Whether that is the answer,
    /// because nobody else can tell.
    fn learn_retention(&mut self, id: ConnectionId) -> bool {
        let received = self
            .connection(id)
            .is_some_and(|connection| connection.in_flight.iter().any(InFlight::is_received));
        if !received {
            return false;
        }
        if self.ever.persisted || self.retention != Retention::Forbidden {
            // It may have been changed, or nobody has answered so far: DescribeStream tells.
            self.stream = Stream::Unknown;
            return false;
        }
        self.note(Note::NothingRetained);
        self.take_received_for_enough();
        true
    }
}
