use super::*;

const C0: ConnectionId = ConnectionId(0);
const C1: ConnectionId = ConnectionId(1);
const C2: ConnectionId = ConnectionId(2);

/// A session, its clock, and what surrounds it.
struct Bench {
    session: Session,
    now: Now,
    notes: Vec<Note>,
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn settings() -> Settings {
    Settings {
        connection_age: seconds(600.0),
        ..Settings::default()
    }
}

fn ack(kind: AckKind, timecode: u64) -> Ack {
    Ack {
        kind,
        timecode: Some(Timecode(timecode)),
        number: None,
    }
}

fn error(id: u32) -> AckKind {
    AckKind::Error {
        id,
        code: String::new(),
    }
}

fn described(active: bool) -> Reply {
    Reply::Described {
        active,
        deleting: false,
        retention_hours: 24,
    }
}

fn refused(kind: FailureKind) -> Failure {
    Failure::new(kind, "refused")
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = Now {
            at: crate::clock::Clock.now(),
            unsent: true,
            done: false,
            jitter: 0.0,
        };
        Self {
            session: Session::new(settings),
            now,
            notes: Vec::new(),
        }
    }

    /// Streams on connection 0, with `credentials` for so long.
    fn streaming(settings: Settings, credentials: Option<Duration>) -> Self {
        let mut bench = Self::new(settings);
        let until = credentials.map(|life| bench.now.at + life);
        assert_eq!(bench.tell(Event::Tick), [Action::Call(Call::Credentials)]);
        let next = bench.reply(Call::Credentials, Reply::Credentials(until));
        assert_eq!(next, [Action::Call(Call::Endpoint)], "nothing else");
        let next = bench.reply(Call::Endpoint, Reply::Endpoint("https://one".into()));
        assert_eq!(next, [Action::Open(C0, "https://one".into())]);
        assert_eq!(bench.tell(Event::Opened(C0)), [Action::Start(C0)]);
        assert_eq!(bench.tell(Event::Accepted(C0)), []);
        assert!(bench.session.is_streaming());
        bench
    }

    /// As control does: the event, and a tick after each round of actions.
    fn tell(&mut self, event: Event) -> Vec<Action> {
        let mut all = Vec::new();
        let mut next = Some(event);
        while let Some(event) = next.take() {
            self.session.handle(event, self.now);
            while let Some(action) = self.session.next_action() {
                if let Action::Note(note) = action {
                    self.notes.push(note);
                } else {
                    all.push(action);
                    next = Some(Event::Tick);
                }
            }
        }
        all
    }

    fn reply(&mut self, call: Call, reply: Reply) -> Vec<Action> {
        self.tell(Event::Replied(call, Ok(reply)))
    }

    fn fails(&mut self, call: Call, kind: FailureKind) -> Vec<Action> {
        self.tell(Event::Replied(call, Err(refused(kind))))
    }

    /// Time goes on, with a tick at each deadline on the way, until something is to be done or the time is over.
    fn wait(&mut self, time: f64) -> Vec<Action> {
        let end = self.now.at + seconds(time);
        let mut standing = 0;
        while let Some(deadline) = self.session.deadline().filter(|&at| at <= end) {
            standing = if deadline > self.now.at {
                0
            } else {
                standing + 1
            };
            assert!(standing < 3, "the deadline does not move");
            self.now.at = self.now.at.max(deadline);
            let actions = self.tell(Event::Tick);
            if !actions.is_empty() {
                return actions;
            }
        }
        self.now.at = end;
        self.tell(Event::Tick)
    }

    fn begin(&mut self, id: ConnectionId, timecode: u64) {
        assert_eq!(self.tell(Event::Begun(id, Timecode(timecode))), []);
    }

    fn send(&mut self, id: ConnectionId, timecode: u64) {
        self.begin(id, timecode);
        assert_eq!(self.tell(Event::Sent(id, Timecode(timecode))), []);
    }

    fn ack(&mut self, id: ConnectionId, kind: AckKind, timecode: u64) -> Vec<Action> {
        self.tell(Event::Ack(id, ack(kind, timecode)))
    }

    /// The wait that the last failure was noted with.
    fn last_wait(&self) -> Duration {
        let failed = |note: &Note| match note {
            Note::Failed(_, wait) => Some(*wait),
            _ => None,
        };
        self.notes
            .iter()
            .rev()
            .find_map(failed)
            .expect("a failure was noted")
    }
}

#[test]
fn a_fragment_is_confirmed_when_it_is_persisted_and_not_before() {
    let mut bench = Bench::streaming(settings(), None);
    bench.begin(C0, 100);
    assert_eq!(bench.ack(C0, AckKind::Buffering, 100), []);
    assert_eq!(bench.ack(C0, AckKind::Persisted, 100), [], "not sent whole");
    assert_eq!(bench.tell(Event::Sent(C0, Timecode(100))), []);
    assert_eq!(bench.ack(C0, AckKind::Received, 100), []);
    assert_eq!(bench.ack(C0, AckKind::Persisted, 7), [], "of nobody");
    let confirm = [Action::Confirm(Timecode(100))];
    assert_eq!(bench.ack(C0, AckKind::Persisted, 100), confirm);
    assert_eq!(bench.ack(C0, AckKind::Persisted, 100), [], "a second time");
}

#[test]
fn acknowledgements_may_overtake_each_other() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    bench.send(C0, 200);
    let confirm = |timecode| [Action::Confirm(Timecode(timecode))];
    assert_eq!(bench.ack(C0, AckKind::Persisted, 200), confirm(200));
    assert_eq!(bench.ack(C0, AckKind::Persisted, 100), confirm(100));
}

#[test]
fn a_missing_stream_is_created_once_there_is_media_and_waited_for() {
    let mut bench = Bench::new(Settings {
        tag: true,
        ..settings()
    });
    bench.now.unsent = false;
    bench.tell(Event::Tick);
    bench.reply(Call::Credentials, Reply::Credentials(None));
    assert_eq!(bench.fails(Call::Endpoint, FailureKind::NotFound), []);
    assert!(
        bench.session.awaits_media(),
        "the media says what to create"
    );
    bench.now.unsent = true;
    assert_eq!(bench.tell(Event::Tick), [Action::Call(Call::Create)]);
    assert_eq!(bench.reply(Call::Create, Reply::Created), []);
    for _ in 0..2 {
        assert_eq!(
            bench.wait(0.9),
            [],
            "5 DescribeStream a second are the limit"
        );
        assert_eq!(bench.wait(0.1), [Action::Call(Call::Describe)]);
        assert_eq!(bench.reply(Call::Describe, described(false)), []);
    }
    assert_eq!(bench.wait(1.0), [Action::Call(Call::Describe)]);
    let next = bench.reply(Call::Describe, described(true));
    assert_eq!(next, [Action::Call(Call::Endpoint)]);
    let next = bench.reply(Call::Endpoint, Reply::Endpoint("https://one".into()));
    assert_eq!(next, [Action::Call(Call::Tag)]);
    // Media matters more than tags.
    let next = bench.fails(Call::Tag, FailureKind::NotPermitted);
    assert_eq!(next, [Action::Open(C0, "https://one".into())]);
}

#[test]
fn a_missing_stream_that_must_not_be_created_ends_a_file_and_not_a_camera() {
    for give_up in [false, true] {
        let mut bench = Bench::new(Settings {
            create: false,
            give_up,
            ..settings()
        });
        bench.tell(Event::Tick);
        bench.reply(Call::Credentials, Reply::Credentials(None));
        assert_eq!(bench.fails(Call::Endpoint, FailureKind::NotFound), []);
        let gave_up = matches!(
            bench.session.outcome(),
            Some(Outcome::GaveUp(failure)) if failure.message.contains("--no-create")
        );
        assert_eq!(gave_up, give_up);
        if !give_up {
            assert_eq!(bench.last_wait(), seconds(30.0), "slowly");
            assert_eq!(bench.wait(30.0), [Action::Call(Call::Endpoint)]);
        }
    }
}

#[test]
fn a_stream_of_which_anything_was_persisted_is_never_looked_at() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    bench.ack(C0, AckKind::Received, 100);
    assert_eq!(bench.wait(0.9), []);
    bench.ack(C0, AckKind::Persisted, 100);
    bench.send(C0, 200);
    bench.ack(C0, AckKind::Received, 200);
    assert_eq!(bench.wait(19.9), [], "neither for what is late");
}

#[test]
fn what_is_retained_is_asked_for_beside_a_connection_that_goes_on() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    bench.send(C0, 200);
    assert_eq!(bench.wait(3.0), [], "a slow link is no reason to ask");
    bench.ack(C0, AckKind::Received, 100);
    assert_eq!(bench.wait(0.9), []);
    bench.ack(C0, AckKind::Received, 200);
    assert_eq!(bench.wait(0.1), [Action::Call(Call::Describe)]);
    bench.begin(C0, 300);
    let reply = Reply::Described {
        active: false,
        deleting: true,
        retention_hours: 0,
    };
    let confirm = |timecode| Action::Confirm(Timecode(timecode));
    let next = bench.reply(Call::Describe, reply);
    assert_eq!(next, [confirm(100), confirm(200)], "and nothing else");
    assert_eq!(bench.tell(Event::Sent(C0, Timecode(300))), []);
    assert_eq!(bench.ack(C0, AckKind::Received, 300), [confirm(300)]);
    assert!(bench.session.is_streaming());
}

#[test]
fn a_look_beside_a_connection_that_fails_harms_nothing_and_is_taken_again() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    bench.ack(C0, AckKind::Received, 100);
    for kind in [
        FailureKind::Throttled,
        FailureKind::Network,
        FailureKind::BadCredentials,
        FailureKind::NotFound,
    ] {
        assert_eq!(bench.wait(1.0), [Action::Call(Call::Describe)]);
        assert_eq!(bench.fails(Call::Describe, kind), []);
        assert!(bench.session.is_streaming());
        assert_eq!(bench.session.last_failure(), None);
    }
    assert_eq!(bench.wait(1.0), [Action::Call(Call::Describe)]);
    // Whoever has to connect again does not wait for it.
    let next = bench.tell(Event::Lost(C0, refused(FailureKind::Service)));
    let open = Action::Open(C1, "https://one".into());
    assert_eq!(next, [Action::Rewind(C0), open]);
    assert_eq!(bench.tell(Event::Opened(C1)), [Action::Start(C1)]);
    assert_eq!(bench.reply(Call::Describe, described(true)), []);
    bench.tell(Event::Accepted(C1));
    bench.send(C1, 100);
    bench.ack(C1, AckKind::Received, 100);
    assert_eq!(bench.wait(19.9), [], "it is known by now");
}

#[test]
fn an_answer_that_ends_with_received_may_be_that_of_a_stream_that_retains_nothing() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    bench.ack(C0, AckKind::Received, 100);
    let next = bench.tell(Event::Lost(C0, refused(FailureKind::Network)));
    let (describe, endpoint) = (Action::Call(Call::Describe), Action::Call(Call::Endpoint));
    assert_eq!(next, [describe, Action::Rewind(C0), endpoint]);
    let reply = Reply::Described {
        active: true,
        deleting: false,
        retention_hours: 0,
    };
    bench.reply(Call::Endpoint, Reply::Endpoint("https://one".into()));
    assert_eq!(bench.tell(Event::Opened(C1)), [Action::Start(C1)]);
    assert_eq!(bench.reply(Call::Describe, reply), []);
    bench.send(C1, 100);
    let confirm = [Action::Confirm(Timecode(100))];
    assert_eq!(bench.ack(C1, AckKind::Received, 100), confirm);
}

#[test]
fn whether_a_stream_retains_anything_is_not_guessed_while_somebody_may_tell() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    bench.ack(C0, AckKind::Received, 100);
    assert_eq!(bench.wait(1.0), [Action::Call(Call::Describe)]);
    // Nobody answers.
    let next = bench.wait(19.0);
    assert_eq!(next, [Action::Close(C0), Action::Rewind(C0)]);
    assert_eq!(bench.wait(60.0), [], "one at a time");
    let next = bench.reply(Call::Describe, described(true));
    assert_eq!(next, [Action::Call(Call::Endpoint)]);
}

#[test]
fn a_stream_that_may_not_be_described_is_one_that_retains_nothing_when_nothing_is_persisted() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    assert_eq!(bench.ack(C0, AckKind::Received, 100), []);
    assert_eq!(bench.wait(1.0), [Action::Call(Call::Describe)]);
    assert_eq!(bench.fails(Call::Describe, FailureKind::NotPermitted), []);
    // PERSISTED never comes, and nobody can tell whether anything is retained: RECEIVED is taken for enough.
    assert_eq!(bench.wait(18.9), []);
    assert_eq!(bench.wait(0.1), [Action::Confirm(Timecode(100))]);
    bench.send(C0, 200);
    let next = bench.ack(C0, AckKind::Received, 200);
    assert_eq!(next, [Action::Confirm(Timecode(200))]);
    // What was refused once may be permitted after a failure that describing may cure.
    let next = bench.tell(Event::Lost(C0, refused(FailureKind::NotFound)));
    assert_eq!(next, [Action::Rewind(C0), Action::Call(Call::Describe)]);
    let next = bench.fails(Call::Describe, FailureKind::NotPermitted);
    assert_eq!(next, [Action::Call(Call::Endpoint)], "it may be there");
}

#[test]
fn an_endpoint_that_is_denied_again_and_again_is_not_asked_for_in_a_loop() {
    let mut bench = Bench::new(settings());
    bench.tell(Event::Tick);
    bench.reply(Call::Credentials, Reply::Credentials(None));
    let next = bench.fails(Call::Endpoint, FailureKind::NotFound);
    assert_eq!(next, [Action::Call(Call::Create)]);
    // It is there for one and not for the other.
    let next = bench.fails(Call::Create, FailureKind::NotActive);
    assert_eq!(next, [Action::Call(Call::Describe)]);
    for wait in [0.0, 0.125, 0.25] {
        let next = bench.reply(Call::Describe, described(true));
        assert_eq!(next, [Action::Call(Call::Endpoint)]);
        bench.fails(Call::Endpoint, FailureKind::NotFound);
        assert_eq!(bench.last_wait(), seconds(wait));
        bench.wait(wait);
    }
}

#[test]
fn a_retention_that_was_taken_away_is_asked_for_when_nothing_is_persisted_any_more() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    bench.ack(C0, AckKind::Persisted, 100);
    bench.send(C0, 200);
    bench.ack(C0, AckKind::Received, 200);
    let next = bench.wait(20.0);
    assert_eq!(
        next,
        [
            Action::Close(C0),
            Action::Rewind(C0),
            Action::Call(Call::Describe)
        ]
    );
    let failure = bench.session.last_failure().expect("it has failed");
    assert!(
        failure.message.contains("not confirmed for 20 s"),
        "{failure:?}"
    );
}

#[test]
fn a_ready_connection_goes_on_when_the_one_before_it_breaks() {
    let mut bench = Bench::streaming(settings(), None);
    bench.wait(600.0);
    bench.tell(Event::Opened(C1));
    bench.begin(C0, 100);
    let next = bench.tell(Event::Lost(C0, refused(FailureKind::Network)));
    assert_eq!(next, [Action::Rewind(C0), Action::Start(C1)]);
}

#[test]
fn an_error_that_names_no_fragment_means_the_one_that_was_being_read() {
    let mut bench = Bench::streaming(settings(), None);
    bench.send(C0, 100);
    bench.ack(C0, AckKind::Received, 100);
    bench.begin(C0, 200);
    let kind = AckKind::Error {
        id: 4006,
        code: "INVALID_MKV_DATA".into(),
    };
    let next = bench.tell(Event::Ack(
        C0,
        Ack {
            kind,
            timecode: Some(Timecode(0)),
            number: None,
        },
    ));
    assert_eq!(next[0], Action::Refuse(Timecode(200)));
}

#[test]
fn credentials_that_are_still_good_are_kept_while_their_provider_is_away() {
    let mut bench = Bench::streaming(settings(), Some(seconds(500.0)));
    bench.now.unsent = false;
    bench.wait(319.0);
    assert_eq!(bench.wait(1.0), [Action::Call(Call::Credentials)]);
    let next = bench.fails(Call::Credentials, FailureKind::Network);
    assert_eq!(next, [], "the connection is as good as another");
    // Where one is needed the old ones do.
    let next = bench.tell(Event::Lost(C0, refused(FailureKind::Service)));
    assert_eq!(next, [Action::Rewind(C0)]);
    bench.now.unsent = true;
    assert_eq!(
        bench.tell(Event::Tick),
        [Action::Open(C1, "https://one".into())]
    );
}

#[test]
fn an_hour_without_new_credentials_ends_no_connection() {
    let mut bench = Bench::streaming(
        Settings {
            connection_age: seconds(6000.0),
            ..settings()
        },
        Some(seconds(2000.0)),
    );
    bench.now.unsent = false;
    let old = bench.now.at + seconds(2000.0);
    let back = bench.now.at + seconds(1820.0 + 3600.0);
    let mut asked = 0;
    loop {
        let next = bench.wait(2000.0);
        assert_eq!(next, [Action::Call(Call::Credentials)]);
        asked += 1;
        if bench.now.at >= back {
            break;
        }
        // What was kept is good for 3 minutes more, and then there is nothing.
        let next = if bench.now.at < old {
            bench.reply(Call::Credentials, Reply::Credentials(Some(old)))
        } else {
            // The first failure is followed by another try at once.
            bench.fails(Call::Credentials, FailureKind::Network);
            bench.fails(Call::Credentials, FailureKind::Network)
        };
        assert_eq!(next, [], "the connection stays");
        assert!(bench.session.is_streaming());
    }
    assert!((120..250).contains(&asked), "{asked} times");
    let new = Reply::Credentials(Some(bench.now.at + seconds(2000.0)));
    // The endpoint may have been why nobody answered.
    assert_eq!(
        bench.reply(Call::Credentials, new),
        [Action::Call(Call::Endpoint)]
    );
    let next = bench.reply(Call::Endpoint, Reply::Endpoint("https://one".into()));
    assert_eq!(next, [Action::Open(C1, "https://one".into())]);
}

#[test]
fn credentials_are_fetched_anew_at_once_when_old_ones_are_refused_and_not_when_new_ones_are() {
    for (age, next) in [(60.0, &[Action::Call(Call::Credentials)][..]), (1.0, &[])] {
        let mut bench = Bench::new(settings());
        bench.tell(Event::Tick);
        bench.reply(Call::Credentials, Reply::Credentials(None));
        // The service is slow.
        bench.now.at += seconds(age);
        let got = bench.fails(Call::Endpoint, FailureKind::BadCredentials);
        assert_eq!(got, next, "{age} s");
    }
}

#[test]
fn one_failure_long_ago_does_not_make_a_file_give_up() {
    let mut bench = Bench::new(Settings {
        give_up: true,
        patience: Some(seconds(30.0)),
        ..settings()
    });
    bench.tell(Event::Tick);
    bench.fails(Call::Credentials, FailureKind::Network);
    bench.tell(Event::Tick);
    bench.reply(Call::Credentials, Reply::Credentials(None));
    bench.now.unsent = false;
    bench.reply(Call::Endpoint, Reply::Endpoint("https://one".into()));
    bench.wait(60.0);
    assert_eq!(bench.session.outcome(), None);
}

#[test]
fn where_nothing_is_retained_received_is_all_there_will_be() {
    let mut bench = Bench::new(settings());
    bench.tell(Event::Tick);
    bench.reply(Call::Credentials, Reply::Credentials(None));
    bench.fails(Call::Endpoint, FailureKind::NotFound);
    bench.reply(Call::Create, Reply::Created);
    bench.wait(1.0);
    let reply = Reply::Described {
        active: true,
        deleting: false,
        retention_hours: 0,
    };
    bench.reply(Call::Describe, reply);
    bench.reply(Call::Endpoint, Reply::Endpoint("https://one".into()));
    bench.tell(Event::Opened(C0));
    bench.tell(Event::Accepted(C0));
    bench.send(C0, 100);
    assert_eq!(bench.ack(C0, AckKind::Buffering, 100), []);
    let confirm = [Action::Confirm(Timecode(100))];
    assert_eq!(bench.ack(C0, AckKind::Received, 100), confirm);
}

#[test]
fn at_a_rotation_the_new_connection_is_up_before_the_old_one_ends() {
    let mut bench = Bench::streaming(settings(), None);
    bench.now.unsent = false;
    assert_eq!(bench.wait(599.0), [], "not before its age");
    let open = [Action::Open(C1, "https://one".into())];
    assert_eq!(bench.wait(1.0), open);
    assert_eq!(bench.wait(0.3), [], "the old one goes on");
    bench.begin(C0, 100);
    assert_eq!(bench.tell(Event::Opened(C1)), [Action::Finish(C0)]);
    assert_eq!(bench.session.current(), Some(C0), "up to the boundary");
    bench.tell(Event::Sent(C0, Timecode(100)));
    let next = bench.tell(Event::BodyEnded(C0, BodyEnd::Asked));
    assert_eq!(next, [Action::Start(C1)], "one PutMedia at a time");
    assert_eq!(bench.session.current(), Some(C1));
    bench.tell(Event::Accepted(C1));
    bench.send(C1, 200);
    bench.ack(C1, AckKind::Persisted, 200);
    // The old one's acknowledgements are read to the last.
    let last = [Action::Confirm(Timecode(100)), Action::Close(C0)];
    assert_eq!(bench.ack(C0, AckKind::Persisted, 100), last);
}

#[test]
fn a_rotation_that_fails_leaves_the_old_connection_alone() {
    let mut bench = Bench::streaming(settings(), None);
    bench.now.unsent = false;
    bench.wait(600.0);
    let lost = Event::Lost(C1, refused(FailureKind::Network));
    // At once, with a fresh endpoint.
    assert_eq!(bench.tell(lost), [Action::Call(Call::Endpoint)]);
    assert_eq!(bench.session.current(), Some(C0));
    let next = bench.reply(Call::Endpoint, Reply::Endpoint("https://two".into()));
    assert_eq!(next, [Action::Open(C2, "https://two".into())]);
}

#[test]
fn when_the_old_connection_is_lost_the_new_one_takes_over_from_its_first_fragment() {
    let mut bench = Bench::streaming(settings(), None);
    bench.now.unsent = false;
    bench.wait(600.0);
    bench.tell(Event::Opened(C1));
    bench.send(C0, 100);
    bench.tell(Event::BodyEnded(C0, BodyEnd::Asked));
    bench.tell(Event::Accepted(C1));
    bench.begin(C1, 200);
    // Later fragments are on their way on a connection that may not carry earlier ones.
    let next = bench.tell(Event::Lost(C0, refused(FailureKind::Network)));
    assert_eq!(
        next[..3],
        [Action::Close(C1), Action::Rewind(C1), Action::Rewind(C0)]
    );
}

#[test]
fn a_rotation_comes_before_the_credentials_end_and_with_new_ones() {
    let mut bench = Bench::streaming(settings(), Some(seconds(500.0)));
    bench.now.unsent = false;
    assert_eq!(bench.wait(319.0), []);
    let next = bench.wait(1.0);
    assert_eq!(next, [Action::Call(Call::Credentials)], "3 min before");
    let next = bench.reply(Call::Credentials, Reply::Credentials(None));
    assert_eq!(next, [Action::Open(C1, "https://one".into())]);
    assert!(matches!(
        bench.notes.last(),
        Some(Note::Rotating(C1, "its credentials end"))
    ));
}

#[test]
fn credentials_that_end_soon_are_used_for_a_while_and_never_past_their_end() {
    let mut bench = Bench::streaming(settings(), Some(seconds(29.0)));
    bench.now.unsent = false;
    bench.wait(10.0);
    let next = bench.tell(Event::Lost(C0, refused(FailureKind::Service)));
    assert_eq!(next[..], [Action::Rewind(C0)]);
    bench.now.unsent = true;
    assert_eq!(
        bench.tell(Event::Tick),
        [Action::Open(C1, "https://one".into())],
        "19 s are left"
    );
    bench.tell(Event::Opened(C1));
    bench.wait(4.0);
    bench.tell(Event::Accepted(C1));
    bench.now.unsent = false;
    bench.wait(6.0);
    let next = bench.tell(Event::Lost(C1, refused(FailureKind::Service)));
    assert_eq!(next, [Action::Rewind(C1)]);
    bench.now.unsent = true;
    let next = bench.wait(30.0);
    assert_eq!(
        next,
        [Action::Call(Call::Credentials)],
        "they may end before the 200 comes"
    );
    let expired = Reply::Credentials(Some(bench.now.at));
    assert_eq!(bench.reply(Call::Credentials, expired), [], "of no use");
    assert_eq!(bench.last_wait(), seconds(30.0));
}

#[test]
fn a_write_that_stands_still_is_noticed_and_one_that_is_slow_is_not() {
    let mut bench = Bench::streaming(settings(), None);
    for _ in 0..20 {
        assert_eq!(bench.tell(Event::Held(C0)), []);
        assert_eq!(bench.wait(3.0), []);
        assert_eq!(bench.tell(Event::Moved(C0)), []);
        bench.tell(Event::Ack(
            C0,
            Ack {
                kind: AckKind::Idle,
                timecode: None,
                number: None,
            },
        ));
    }
    let stalled = bench.now.at;
    bench.tell(Event::Held(C0));
    let next = bench.wait(10.0);
    assert_eq!(next[..2], [Action::Close(C0), Action::Rewind(C0)]);
    assert_eq!(bench.now.at - stalled, seconds(5.0));
    let failure = bench.session.last_failure().expect("it has failed");
    assert!(failure.message.contains("no more bytes"), "{failure:?}");
}

#[test]
fn silence_after_a_fragment_was_begun_is_noticed() {
    let mut bench = Bench::streaming(settings(), None);
    bench.now.unsent = false;
    bench.begin(C0, 100);
    assert_eq!(bench.wait(4.9), []);
    assert_eq!(bench.wait(0.1)[0], Action::Close(C0));
    let failure = bench.session.last_failure().expect("it has failed");
    assert!(
        failure.message.contains("no acknowledgement"),
        "{failure:?}"
    );
}

#[test]
fn silence_in_a_long_fragment_is_none_and_is_noticed_after_its_end() {
    let mut bench = Bench::streaming(settings(), None);
    bench.now.unsent = false;
    bench.begin(C0, 100);
    bench.ack(C0, AckKind::Buffering, 100);
    assert_eq!(bench.wait(15.0), [], "nothing is due");
    bench.tell(Event::Sent(C0, Timecode(100)));
    assert_eq!(bench.wait(4.9), []);
    assert_eq!(bench.wait(0.1)[0], Action::Close(C0));
}

#[test]
fn a_fragment_that_is_received_and_never_persisted_is_sent_again() {
    let mut bench = Bench::streaming(settings(), None);
    bench.now.unsent = false;
    bench.send(C0, 100);
    bench.ack(C0, AckKind::Received, 100);
    for at in 1..20 {
        assert_eq!(bench.wait(0.9), []);
        bench.send(C0, 100 + at);
        bench.ack(C0, AckKind::Received, 100 + at);
        let confirm = [Action::Confirm(Timecode(100 + at))];
        assert_eq!(bench.ack(C0, AckKind::Persisted, 100 + at), confirm);
    }
    let next = bench.wait(3.0);
    assert_eq!(next[..2], [Action::Close(C0), Action::Rewind(C0)]);
}

#[test]
fn a_connection_that_does_not_come_up_or_gets_no_answer_is_left_in_time() {
    let mut bench = Bench::streaming(settings(), None);
    bench.tell(Event::Lost(C0, refused(FailureKind::Service)));
    assert_eq!(bench.session.current(), None);
    assert_eq!(bench.wait(4.9), []);
    assert_eq!(bench.wait(0.1)[0], Action::Close(C1), "no TCP or TLS");
    bench.wait(1.0);
    bench.reply(Call::Endpoint, Reply::Endpoint("https://one".into()));
    assert_eq!(bench.tell(Event::Opened(C2)), [Action::Start(C2)]);
    bench.now.unsent = false;
    assert_eq!(bench.wait(4.9), []);
    assert_eq!(bench.wait(0.1)[0], Action::Close(C2), "no answer");
}

#[test]
fn a_fragment_refused_for_its_own_sake_is_skipped_and_any_other_sent_again() {
    for (id, skipped) in [(4006, true), (4002, true), (5000, false), (4500, false)] {
        let mut bench = Bench::streaming(settings(), None);
        bench.send(C0, 100);
        bench.begin(C0, 200);
        let next = bench.ack(C0, error(id), 200);
        let mut expected = vec![Action::Close(C0), Action::Rewind(C0)];
        if skipped {
            expected.insert(0, Action::Refuse(Timecode(200)));
        }
        assert_eq!(next[..expected.len()], expected, "{id}");
    }
}

#[test]
fn an_error_that_names_no_fragment_means_the_oldest() {
    for timecode in [None, Some(Timecode(0))] {
        let mut bench = Bench::streaming(settings(), None);
        bench.send(C0, 100);
        bench.begin(C0, 200);
        let ack = Ack {
            kind: error(4006),
            timecode,
            number: None,
        };
        let next = bench.tell(Event::Ack(C0, ack));
        assert_eq!(next[0], Action::Refuse(Timecode(100)));
    }
}

#[test]
fn another_open_putmedia_is_met_with_a_short_wait_and_the_old_one_still_drains() {
    let mut bench = Bench::streaming(settings(), None);
    bench.now.unsent = false;
    bench.wait(600.0);
    bench.tell(Event::Opened(C1));
    bench.send(C0, 100);
    bench.tell(Event::BodyEnded(C0, BodyEnd::Asked));
    bench.begin(C1, 200);
    bench.now.unsent = true;
    let limit = refused(FailureKind::ConnectionLimit);
    assert_eq!(bench.tell(Event::Lost(C1, limit)), [Action::Rewind(C1)]);
    assert_eq!(bench.last_wait(), seconds(0.25), "not at once");
    let last = [Action::Confirm(Timecode(100)), Action::Close(C0)];
    assert_eq!(bench.ack(C0, AckKind::Persisted, 100), last);
    let open = [Action::Open(C2, "https://one".into())];
    assert_eq!(bench.wait(0.25), open);
}

#[test]
fn the_first_try_comes_at_once_and_the_later_ones_wait_longer_until_something_is_confirmed() {
    let mut bench = Bench::streaming(settings(), None);
    let mut waits = Vec::new();
    for id in 0..4 {
        let id = ConnectionId(id);
        bench.tell(Event::Lost(id, refused(FailureKind::Service)));
        waits.push(bench.last_wait().as_millis());
        bench.wait(2.0);
        bench.tell(Event::Opened(ConnectionId(id.0 + 1)));
        bench.tell(Event::Accepted(ConnectionId(id.0 + 1)));
    }
    assert_eq!(waits, [0, 125, 250, 500], "the lower end of each range");
    let id = ConnectionId(4);
    bench.send(id, 100);
    bench.ack(id, AckKind::Persisted, 100);
    bench.tell(Event::Lost(id, refused(FailureKind::Service)));
    assert_eq!(bench.last_wait(), Duration::ZERO);
}

#[test]
fn draining_ends_when_all_is_confirmed_or_its_time_is_over() {
    for confirmed in [true, false] {
        let mut bench = Bench::streaming(settings(), None);
        bench.send(C0, 100);
        bench.ack(C0, AckKind::Received, 100);
        let until = bench.now.at + seconds(10.0);
        bench.now.unsent = false;
        assert_eq!(bench.tell(Event::Drain(until)), []);
        bench.tell(Event::BodyEnded(C0, BodyEnd::Closed));
        if confirmed {
            bench.now.done = true;
            bench.ack(C0, AckKind::Persisted, 100);
            assert_eq!(bench.session.outcome(), Some(&Outcome::Done));
        } else {
            assert_eq!(bench.wait(9.9), [Action::Call(Call::Describe)]);
            bench.reply(Call::Describe, described(true));
            assert_eq!(bench.wait(8.9), []);
            assert_eq!(bench.session.outcome(), None);
            assert!(bench.wait(0.1).contains(&Action::Close(C0)));
            let Some(Outcome::OutOfTime(Some(why))) = bench.session.outcome() else {
                panic!("{:?}", bench.session.outcome());
            };
            assert!(why.message.contains("confirmed everything"), "{why:?}");
        }
        assert_eq!(bench.session.deadline(), None);
    }
}

#[test]
fn an_abort_closes_everything_at_once() {
    let mut bench = Bench::streaming(settings(), None);
    assert_eq!(bench.tell(Event::Abort), [Action::Close(C0)]);
    assert_eq!(bench.session.outcome(), Some(&Outcome::OutOfTime(None)));
    assert_eq!(bench.tell(Event::Opened(C0)), [], "nothing follows");
}

#[test]
fn what_only_somebody_can_cure_is_tried_slowly_and_given_up_at_the_end_of_the_media() {
    let mut bench = Bench::new(settings());
    bench.tell(Event::Tick);
    assert_eq!(
        bench.fails(Call::Credentials, FailureKind::NoCredentials),
        []
    );
    assert_eq!(bench.wait(29.9), []);
    assert_eq!(bench.wait(0.1), [Action::Call(Call::Credentials)]);
    bench.fails(Call::Credentials, FailureKind::NoCredentials);
    let until = bench.now.at + seconds(60.0);
    bench.tell(Event::Drain(until));
    assert!(matches!(bench.session.outcome(), Some(Outcome::GaveUp(_))));
}

#[test]
fn credentials_that_are_refused_in_the_middle_are_fetched_anew_at_once() {
    let mut bench = Bench::streaming(settings(), None);
    let lost = Event::Lost(C0, refused(FailureKind::BadCredentials));
    let next = [Action::Rewind(C0), Action::Call(Call::Credentials)];
    assert_eq!(bench.tell(lost), next);
}

/// Both ends of a rotation while the stream is away: nothing can be done, and time has to pass.
#[test]
fn a_rotation_that_is_due_waits_for_a_stream_that_is_created_anew() {
    let mut bench = Bench::streaming(settings(), None);
    bench.now.unsent = false;
    bench.wait(600.0);
    let lost = Event::Lost(C1, refused(FailureKind::NotFound));
    assert_eq!(bench.tell(lost), [Action::Call(Call::Describe)]);
    assert_eq!(bench.reply(Call::Describe, described(false)), []);
    // The bench fails when the deadline does not move.
    assert_eq!(bench.wait(0.9), []);
    assert_eq!(bench.wait(0.1), [Action::Call(Call::Describe)]);
    // Nor while it is not known what to create.
    assert_eq!(bench.fails(Call::Describe, FailureKind::NotFound), []);
    assert_eq!(bench.wait(3.0), []);
}

#[test]
fn a_pause_ends_the_connection_in_order_and_opens_none_until_it_is_over() {
    let mut bench = Bench::streaming(settings(), None);
    bench.tell(Event::Begun(C0, Timecode(1)));
    bench.tell(Event::Sent(C0, Timecode(1)));
    assert_eq!(bench.tell(Event::Pause), [Action::Finish(C0)]);
    assert_eq!(bench.tell(Event::Pause), [], "once is enough");
    assert_eq!(bench.tell(Event::BodyEnded(C0, BodyEnd::Asked)), []);
    assert!(!bench.session.is_idle(), "the last PERSISTED is awaited");
    let persisted = Event::Ack(C0, ack(AckKind::Persisted, 1));
    assert_eq!(
        bench.tell(persisted),
        [Action::Confirm(Timecode(1)), Action::Close(C0)]
    );
    assert!(bench.session.is_idle() && !bench.session.awaits_media());
    assert_eq!(
        bench.session.deadline(),
        None,
        "there is nothing to wake for"
    );
    assert_eq!(
        bench.tell(Event::Resume),
        [Action::Open(C1, "https://one".into())]
    );
}

#[test]
fn a_pause_closes_what_carries_nothing_yet() {
    let mut bench = Bench::new(settings());
    bench.tell(Event::Tick);
    bench.reply(Call::Credentials, Reply::Credentials(None));
    bench.reply(Call::Endpoint, Reply::Endpoint("https://one".into()));
    assert_eq!(bench.tell(Event::Pause), [Action::Close(C0)]);
    assert!(bench.session.is_idle());
}

#[test]
fn a_paused_session_that_is_to_end_sends_what_is_left() {
    let mut bench = Bench::streaming(settings(), None);
    bench.tell(Event::Pause);
    bench.tell(Event::BodyEnded(C0, BodyEnd::Asked));
    let until = bench.now.at + seconds(30.0);
    let actions = bench.tell(Event::Drain(until));
    assert_eq!(actions, [Action::Open(C1, "https://one".into())]);
    assert_eq!(bench.tell(Event::Pause), [], "too late for a pause");
    assert_eq!(bench.tell(Event::Opened(C1)), [Action::Start(C1)]);
}

#[test]
fn a_reset_of_the_connections_sends_again_at_once_what_is_not_confirmed() {
    let mut bench = Bench::streaming(settings(), None);
    bench.tell(Event::Begun(C0, Timecode(1)));
    assert_eq!(
        bench.tell(Event::Reset(Reset::Connections)),
        [
            Action::Close(C0),
            Action::Rewind(C0),
            Action::Open(C1, "https://one".into())
        ]
    );
}

#[test]
fn a_reset_of_all_discards_and_begins_as_at_the_start() {
    let mut bench = Bench::streaming(settings(), None);
    bench.tell(Event::Begun(C0, Timecode(1)));
    assert_eq!(
        bench.tell(Event::Reset(Reset::All)),
        [
            Action::Close(C0),
            Action::Discard,
            Action::Call(Call::Endpoint)
        ]
    );
}

#[test]
fn a_reset_does_not_wait_for_what_a_failure_waits_for() {
    let mut bench = Bench::streaming(settings(), None);
    for id in [C0, C1] {
        bench.tell(Event::Lost(id, refused(FailureKind::NotPermitted)));
    }
    bench.reply(Call::Credentials, Reply::Credentials(None));
    assert!(bench.session.last_failure().is_some());
    bench.tell(Event::Reset(Reset::Connections));
    assert_eq!(bench.session.last_failure(), None);
    assert!(!bench.session.awaits_media(), "something is under way");
}
