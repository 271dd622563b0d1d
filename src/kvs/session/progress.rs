//! A connection that stands still is left in time, one that is merely slow is not.

use super::*;

/// A session whose first connection streams, and the time.
struct Streaming {
    session: Session,
    at: Instant,
}

const ID: ConnectionId = ConnectionId(0);

impl Streaming {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let at = Instant::now();
        let mut streaming = Self {
            session: Session::new(Settings::default()),
            at,
        };
        let replies = [
            (Call::Credentials, Reply::Credentials(None)),
            (Call::Endpoint, Reply::Endpoint("http://there".into())),
        ];
        streaming.after(0, Event::Tick);
        for (call, reply) in replies {
            streaming.after(0, Event::Replied(call, Ok(reply)));
        }
        streaming.after(0, Event::Opened(ID));
        streaming.after(0, Event::Accepted(ID));
        streaming.after(0, Event::Begun(ID, Timecode(1)));
        streaming
    }

    /// What the session does when `event` comes so much later.
    fn after(&mut self, ms: u64, event: Event) -> Vec<Action> {
        self.at += Duration::from_millis(ms);
        let now = Now {
            at: self.at,
            unsent: true,
            done: false,
            jitter: 0.0,
        };
        self.session.handle(event, now);
        std::iter::from_fn(|| self.session.next_action()).collect()
    }

    /// The failure for which the connection is left by a tick so much later.
    fn left_after(&mut self, ms: u64) -> Option<String> {
        let actions = self.after(ms, Event::Tick);
        actions.into_iter().find_map(|action| match action {
            Action::Note(Note::Failed(failure, _)) => Some(failure.message),
            _ => None,
        })
    }

    fn ack(&mut self, kind: AckKind) {
        let ack = Ack {
            kind,
            timecode: Some(Timecode(1)),
            number: None,
        };
        self.after(0, Event::Ack(ID, ack));
    }
}

#[test]
fn a_write_that_stands_still_for_5_s_is_left_whatever_was_acknowledged() {
    let mut streaming = Streaming::new();
    streaming.ack(AckKind::Buffering);
    streaming.after(0, Event::Held(ID));
    assert_eq!(streaming.left_after(4_999), None);
    let why = streaming.left_after(1).expect("left");
    assert!(why.contains("takes no more bytes"), "{why}");
}

#[test]
fn bytes_that_move_now_and_then_keep_the_connection_up_to_the_time_to_confirm() {
    let mut streaming = Streaming::new();
    for _ in 0..4 {
        streaming.after(0, Event::Held(ID));
        assert_eq!(streaming.left_after(4_500), None);
        streaming.after(0, Event::Moved(ID));
    }
    assert_eq!(streaming.left_after(1_999), None);
    let why = streaming.left_after(1).expect("20 s without a BUFFERING");
    assert!(why.contains("no acknowledgement"), "{why}");
}

#[test]
fn a_server_that_reads_all_and_acknowledges_nothing_is_left_after_5_s() {
    let mut streaming = Streaming::new();
    streaming.after(1_000, Event::Sent(ID, Timecode(1)));
    assert_eq!(streaming.left_after(3_999), None);
    assert!(streaming.left_after(1).is_some());
}

#[test]
fn the_session_asks_for_a_tick_when_a_held_write_is_due() {
    let mut streaming = Streaming::new();
    streaming.ack(AckKind::Buffering);
    streaming.after(0, Event::Held(ID));
    let due = streaming.at + Duration::from_secs(5);
    assert_eq!(streaming.session.deadline(), Some(due));
    streaming.after(0, Event::Moved(ID));
    assert!(streaming.session.deadline() > Some(due));
}

#[test]
fn an_end_without_a_failure_says_what_was_waited_for() {
    let mut streaming = Streaming::new();
    let until = streaming.at + Duration::from_secs(2);
    streaming.after(0, Event::Drain(until));
    streaming.after(2_000, Event::Tick);
    let Some(Outcome::OutOfTime(Some(failure))) = streaming.session.outcome() else {
        panic!("{:?}", streaming.session.outcome());
    };
    assert!(
        failure.message.contains("confirmed everything"),
        "{failure:?}"
    );
}
