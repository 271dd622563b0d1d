//! How the endpoint is told to misbehave: rules, as Rust values or as a JSON file. Pure.
//!
//! A scenario is a list of rules; each has a trigger (`when`) and an action (`then`), and all that apply are carried out,
//! in order. Counting starts at 1. Left out, a number means *each*; `{"from": N}` means *the Nth and all later ones*.
//!
//! | `when` | the rule applies |
//! |---|---|
//! | `"start"` | to the endpoint as a whole |
//! | `{"accept": N}` | when the Nth TCP connection is accepted |
//! | `{"call": "DescribeStream", "nth": N}` | when the Nth such call arrives (any operation, `PutMedia` too) |
//! | `{"connection": C, "fragment": K, "ack": "RECEIVED"}` | when that acknowledgement of fragment K of PutMedia connection C is due |
//! | `{"overall": K, "ack": ..}` | the same, K counted over all connections |
//! | `{"connection": C, "bytes": B}` | when B bytes of that connection's body have arrived |
//!
//! | `then` | what happens | `when` |
//! |---|---|---|
//! | `{"delay_ms": T}` | the answer, or this ACK and all behind it, comes later | accept, call, ack |
//! | `"withhold"`, `"split"`, `"merge"`, `"duplicate"`, `"reorder"` | the ACK is kept back; sent byte by byte; together with the next; twice; behind the next. Without `ack`: every ACK of the fragment | ack |
//! | `"cut"`, `"reset"` | the connection ends with a FIN, with an RST; an ACK that is due is not sent | accept, call, ack, bytes |
//! | `"stall"` | nothing is read or written any more, and the stream is free for another connection | accept, call, ack, bytes |
//! | `"black-hole"` | all is read, nothing is acknowledged or stored any more | ack, bytes |
//! | `{"outage_ms": T}` | the server is gone: every connection ends, new ones are refused until the time is over | call, ack, bytes |
//! | `{"error": {"status": S, "type": "..", "message": ".."}}` | the call is refused; with `bytes`, the head of the answer is held back until then | call, bytes |
//! | `{"error_ack": {"id": N, "code": ".."}}` | an ERROR goes out instead of the ACK, and the response ends (`code` may be left out for documented ids) | ack, bytes |
//! | `{"creating_ms": T}` | new streams are CREATING so long | start |
//! | `{"connection_age_ms": T}` | PutMedia connections live no longer than this | start |
//! | `{"clock_skew_s": S}` | the server's clock is so much ahead: `Date`, signatures, timestamps | start |
//!
//! A connection action on a fragment without `ack` happens when its BUFFERING is due.
//!
//! ```
//! # use kvs_producer_app::local::scenario::Scenario;
//! let scenario = Scenario::parse(r#"{
//!     "rules": [
//!         {"when": "start", "then": {"creating_ms": 1500}},
//!         {"when": {"call": "DescribeStream", "nth": 1},
//!          "then": {"error": {"status": 400, "type": "ClientLimitExceededException", "message": "Rate exceeded"}}},
//!         {"when": {"connection": 1, "fragment": 3, "ack": "PERSISTED"}, "then": "withhold"},
//!         {"when": {"connection": 1, "bytes": 400000}, "then": "reset"},
//!         {"when": {"connection": {"from": 2}, "ack": "RECEIVED"}, "then": {"delay_ms": 250}},
//!         {"when": {"overall": 9}, "then": {"error_ack": {"id": 5000}}}
//!     ]
//! }"#)?;
//! assert_eq!(scenario.rules.len(), 6);
//! # Ok::<_, kvs_producer_app::local::scenario::Error>(())
//! ```

use std::time::Duration;

use serde_json::{Map, Value};

use super::acks::{AckError, EventType, Treatment};
use super::api::{ApiError, OPERATIONS};

/// What is wrong with a scenario's text. The place is a path into it, such as `rules[2].then`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not JSON.
    #[error("the scenario is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON is no scenario.
    #[error("scenario, {place}: {reason}")]
    Rule {
        /// Where.
        place: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// What the endpoint does wrong, and when. The default does nothing wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scenario {
    /// Looked through in order; all that apply count.
    pub rules: Vec<Rule>,
}

/// One line of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// When it applies.
    pub when: Trigger,
    /// What happens then.
    pub then: Action,
}

impl Rule {
    /// Checks that the action goes with the trigger; `place` is where the rule stands, for the message.
    fn check(&self, place: &str) -> Result<(), Error> {
        let fits = match (&self.when, &self.then) {
            (
                Trigger::Start,
                Action::Creating(_) | Action::ConnectionAge(_) | Action::ClockSkew(_),
            )
            | (Trigger::Accept(_), Action::Delay(_))
            | (Trigger::Call { .. }, Action::Delay(_) | Action::Outage(_) | Action::Refuse(_))
            | (
                Trigger::Ack { .. },
                Action::Delay(_)
                | Action::Treat(_)
                | Action::Break(_)
                | Action::Outage(_)
                | Action::ErrorAck(_),
            )
            | (
                Trigger::Bytes { .. },
                Action::Break(_) | Action::Outage(_) | Action::Refuse(_) | Action::ErrorAck(_),
            ) => true,
            (Trigger::Accept(_) | Trigger::Call { .. }, Action::Break(how)) => {
                *how != Break::BlackHole
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        Err(Error::Rule {
            place: place.into(),
            reason: "this action does not go with this trigger; see the table of actions".into(),
        })
    }
}

/// Which of several; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nth {
    /// Each of them.
    #[default]
    Each,
    /// This one.
    Only(u64),
    /// This one and all later ones.
    From(u64),
}

impl Nth {
    fn is(self, number: u64) -> bool {
        match self {
            Self::Each => true,
            Self::Only(only) => number == only,
            Self::From(first) => number >= first,
        }
    }
}

/// When a rule applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// From the start, to all.
    Start,
    /// A TCP connection is accepted.
    Accept(Nth),
    /// An operation is called.
    Call {
        /// `"DescribeStream"`.
        operation: String,
        /// Counted over the calls of this operation.
        nth: Nth,
    },
    /// An acknowledgement is due.
    Ack {
        /// Which PutMedia request, counting those whose signature and headers were good.
        connection: Nth,
        /// Which fragment.
        fragment: FragmentIndex,
        /// Which acknowledgement of it; `None` for each of them.
        event: Option<EventType>,
    },
    /// So many bytes of a PutMedia body have arrived.
    Bytes {
        /// Which PutMedia request.
        connection: Nth,
        /// How many.
        after: u64,
    },
}

/// Which fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentIndex {
    /// Counted on its connection.
    OnConnection(Nth),
    /// Counted over all connections.
    Overall(Nth),
}

impl Trigger {
    /// Any acknowledgement, or only `event`, of the given fragment of the given connection.
    pub fn ack(connection: u64, fragment: u64, event: impl Into<Option<EventType>>) -> Self {
        Self::Ack {
            connection: Nth::Only(connection),
            fragment: FragmentIndex::OnConnection(Nth::Only(fragment)),
            event: event.into(),
        }
    }

    /// `after` bytes on the given connection.
    pub fn bytes(connection: u64, after: u64) -> Self {
        Self::Bytes {
            connection: Nth::Only(connection),
            after,
        }
    }

    /// The nth call of `operation`.
    pub fn call(operation: &str, nth: Nth) -> Self {
        Self::Call {
            operation: operation.into(),
            nth,
        }
    }
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The answer comes so much later.
    Delay(Duration),
    /// The acknowledgement is reshaped.
    Treat(Treatment),
    /// The connection ends, or is left hanging.
    Break(Break),
    /// The server is away so long.
    Outage(Duration),
    /// The call is refused.
    Refuse(ApiError),
    /// An ERROR goes out and the response ends.
    ErrorAck(AckError),
    /// New streams are CREATING so long.
    Creating(Duration),
    /// PutMedia connections live no longer than this.
    ConnectionAge(Duration),
    /// Seconds by which the server's clock is ahead.
    ClockSkew(i64),
}

/// How a connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// With a FIN.
    Cut,
    /// With an RST.
    Reset,
    /// Nothing is read or written any more.
    Stall,
    /// All is read, nothing is acknowledged or stored any more.
    BlackHole,
}

/// What of a scenario holds for the endpoint as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// New streams are CREATING so long.
    pub creating: Option<Duration>,
    /// PutMedia connections live no longer than this.
    pub connection_age: Option<Duration>,
    /// Seconds by which the server's clock is ahead.
    pub clock_skew: i64,
}

/// The fragment that an acknowledgement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentPlace {
    /// Number of its connection.
    pub connection: u64,
    /// Its number on the connection.
    pub index: u64,
    /// Its number over all connections.
    pub overall: u64,
}

impl Scenario {
    /// The scenario of these rules.
    pub fn of(rules: impl IntoIterator<Item = (Trigger, Action)>) -> Self {
        let rules = rules.into_iter().map(|(when, then)| Rule { when, then });
        Self {
            rules: rules.collect(),
        }
    }

    /// Checks that every action goes with its trigger, as [`Self::parse`] does for a file.
    ///
    /// # Errors
    /// The first rule of which nothing would ever come.
    pub fn check(&self) -> Result<(), Error> {
        let mut rules = self.rules.iter().enumerate();
        rules.try_for_each(|(index, rule)| rule.check(&format!("rules[{index}]")))
    }

    /// Reads the JSON that the module's documentation describes.
    ///
    /// # Errors
    /// The first thing that is wrong and where.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let root: Value = serde_json::from_str(text)?;
        let root = Place::root(&root).object(&["rules"])?;
        let Value::Array(rules) = root.need("rules")?.value else {
            return Err(root.wrong("rules must be an array"));
        };
        let rules = rules.iter().enumerate().map(|(index, rule)| {
            let place = Place {
                path: format!("rules[{index}]"),
                value: rule,
            };
            parse_rule(&place)
        });
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// What holds from the start.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        for rule in &self.rules {
            match (&rule.when, &rule.then) {
                (Trigger::Start, Action::Creating(time)) => settings.creating = Some(*time),
                (Trigger::Start, Action::ConnectionAge(time)) => {
                    settings.connection_age = Some(*time);
                }
                (Trigger::Start, Action::ClockSkew(seconds)) => settings.clock_skew = *seconds,
                _ => {}
            }
        }
        settings
    }

    /// What happens when the nth TCP connection is accepted.
    pub fn on_accept(&self, number: u64) -> Vec<Action> {
        self.select(|when| matches!(when, Trigger::Accept(nth) if nth.is(number)))
    }

    /// What happens when the nth call of `name` arrives.
    pub fn on_call(&self, name: &str, number: u64) -> Vec<Action> {
        self.select(
            |when| matches!(when, Trigger::Call { operation, nth } if operation == name && nth.is(number)),
        )
    }

    /// What happens to this acknowledgement.
    pub fn on_ack(&self, place: FragmentPlace, due: EventType) -> Vec<Action> {
        let rules = self.rules.iter().filter(|rule| {
            let Trigger::Ack {
                connection,
                fragment,
                event,
            } = &rule.when
            else {
                return false;
            };
            let here = match fragment {
                FragmentIndex::OnConnection(nth) => nth.is(place.index),
                FragmentIndex::Overall(nth) => nth.is(place.overall),
            };
            // What ends a connection happens once, at the fragment's beginning.
            let event = match rule.then {
                Action::Delay(_) | Action::Treat(_) => *event,
                _ => event.or(Some(EventType::Buffering)),
            };
            here && connection.is(place.connection) && event.is_none_or(|event| event == due)
        });
        rules.map(|rule| rule.then.clone()).collect()
    }

    /// What happens when exactly so many bytes of a connection have arrived.
    pub fn on_bytes(&self, number: u64, bytes: u64) -> Vec<Action> {
        self.select(|when| {
            matches!(when, Trigger::Bytes { connection, after }
                if connection.is(number) && *after == bytes)
        })
    }

    /// The next count of bytes on a connection, above `bytes`, at which something happens.
    pub fn next_bytes(&self, number: u64, bytes: u64) -> Option<u64> {
        let counts = self.rules.iter().filter_map(|rule| match &rule.when {
            Trigger::Bytes { connection, after } if connection.is(number) => Some(*after),
            _ => None,
        });
        counts.filter(|after| *after > bytes).min()
    }

    /// The refusal that waits until so many bytes of this connection have arrived.
    pub fn late_refusal(&self, number: u64) -> Option<(u64, ApiError)> {
        self.rules.iter().find_map(|rule| match rule {
            Rule {
                when: Trigger::Bytes { connection, after },
                then: Action::Refuse(error),
            } if connection.is(number) => Some((*after, error.clone())),
            _ => None,
        })
    }

    fn select(&self, applies: impl Fn(&Trigger) -> bool) -> Vec<Action> {
        let rules = self.rules.iter().filter(|rule| applies(&rule.when));
        rules.map(|rule| rule.then.clone()).collect()
    }
}

/// A value and the way to it, for messages.
struct Place<'a> {
    path: String,
    value: &'a Value,
}

/// An object that has only known keys.
struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Place<'a> {
    fn root(value: &'a Value) -> Self {
        Self {
            path: "the outermost object".into(),
            value,
        }
    }

    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Rule {
            place: self.path.clone(),
            reason: reason.into(),
        }
    }

    fn object(&self, known: &[&str]) -> Result<Object<'a>, Error> {
        let Value::Object(fields) = self.value else {
            return Err(self.wrong(format!("must be an object with {}", known.join(", "))));
        };
        if let Some(odd) = fields.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(self.wrong(format!("unknown key {odd:?}; known: {}", known.join(", "))));
        }
        Ok(Object {
            path: self.path.clone(),
            fields,
        })
    }

    fn number(&self) -> Result<u64, Error> {
        let number = self.value.as_u64();
        number.ok_or_else(|| self.wrong("must be a whole number from 0 on"))
    }

    fn millis(&self) -> Result<Duration, Error> {
        self.number().map(Duration::from_millis)
    }

    fn text(&self) -> Result<&'a str, Error> {
        let text = self.value.as_str();
        text.ok_or_else(|| self.wrong("must be a string"))
    }

    fn nth(&self) -> Result<Nth, Error> {
        if self.value.is_object() {
            let from = self.object(&["from"])?.need("from")?;
            return from.number().map(Nth::From);
        }
        match self.number() {
            Ok(0) | Err(_) => Err(self.wrong("must be a number from 1 on, or {\"from\": N}")),
            Ok(number) => Ok(Nth::Only(number)),
        }
    }
}

impl<'a> Object<'a> {
    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Rule {
            place: self.path.clone(),
            reason: reason.into(),
        }
    }

    fn get(&self, key: &str) -> Option<Place<'a>> {
        self.fields.get(key).map(|value| Place {
            path: format!("{}.{key}", self.path),
            value,
        })
    }

    fn need(&self, key: &str) -> Result<Place<'a>, Error> {
        self.get(key)
            .ok_or_else(|| self.wrong(format!("{key} is missing")))
    }

    fn nth(&self, key: &str) -> Result<Nth, Error> {
        self.get(key).map_or(Ok(Nth::Each), |place| place.nth())
    }
}

fn parse_rule(place: &Place<'_>) -> Result<Rule, Error> {
    let rule = place.object(&["when", "then"])?;
    let when = parse_trigger(&rule.need("when")?)?;
    let then = parse_action(&rule.need("then")?)?;
    let rule = Rule { when, then };
    rule.check(&place.path)?;
    Ok(rule)
}

fn parse_trigger(place: &Place<'_>) -> Result<Trigger, Error> {
    if place.value.as_str() == Some("start") {
        return Ok(Trigger::Start);
    }
    let known = [
        "accept",
        "call",
        "nth",
        "connection",
        "fragment",
        "overall",
        "ack",
        "bytes",
    ];
    let trigger = place.object(&known)?;
    let only = |allowed: &[&str]| {
        let mut keys = trigger.fields.keys();
        match keys.find(|key| !allowed.contains(&key.as_str())) {
            Some(odd) => Err(place.wrong(format!("{odd:?} does not go with {:?}", allowed[0]))),
            None => Ok(()),
        }
    };
    if let Some(nth) = trigger.get("accept") {
        only(&["accept"])?;
        return nth.nth().map(Trigger::Accept);
    }
    if let Some(call) = trigger.get("call") {
        only(&["call", "nth"])?;
        let operation = call.text()?;
        if !OPERATIONS.contains(&operation) {
            let known = OPERATIONS.join(", ");
            return Err(call.wrong(format!("unknown operation {operation:?}; known: {known}")));
        }
        return Ok(Trigger::call(operation, trigger.nth("nth")?));
    }
    let connection = trigger.nth("connection")?;
    if let Some(bytes) = trigger.get("bytes") {
        only(&["bytes", "connection"])?;
        return Ok(Trigger::Bytes {
            connection,
            after: bytes.number()?.max(1),
        });
    }
    let fragment = if trigger.get("overall").is_some() {
        only(&["overall", "ack"])?;
        FragmentIndex::Overall(trigger.nth("overall")?)
    } else {
        only(&["fragment", "connection", "ack"])?;
        FragmentIndex::OnConnection(trigger.nth("fragment")?)
    };
    let event = trigger.get("ack").map(|ack| {
        let event = EventType::from_name(ack.text()?);
        let of_fragment = |event: &EventType| !matches!(event, EventType::Idle | EventType::Error);
        (event.filter(of_fragment))
            .ok_or_else(|| ack.wrong("must be BUFFERING, RECEIVED or PERSISTED"))
    });
    if trigger.fields.is_empty() {
        return Err(place.wrong("is empty; write \"start\", or one of the keys of the table"));
    }
    Ok(Trigger::Ack {
        connection,
        fragment,
        event: event.transpose()?,
    })
}

fn parse_action(place: &Place<'_>) -> Result<Action, Error> {
    if let Some(word) = place.value.as_str() {
        return match word {
            "withhold" => Ok(Action::Treat(Treatment::Withhold)),
            "split" => Ok(Action::Treat(Treatment::Split)),
            "merge" => Ok(Action::Treat(Treatment::Merge)),
            "duplicate" => Ok(Action::Treat(Treatment::Duplicate)),
            "reorder" => Ok(Action::Treat(Treatment::Reorder)),
            "cut" => Ok(Action::Break(Break::Cut)),
            "reset" => Ok(Action::Break(Break::Reset)),
            "stall" => Ok(Action::Break(Break::Stall)),
            "black-hole" => Ok(Action::Break(Break::BlackHole)),
            other => Err(place.wrong(format!(
                "unknown action {other:?}; known words: withhold, split, merge, duplicate, reorder, cut, reset, stall, \
                 black-hole"
            ))),
        };
    }
    let known = [
        "delay_ms",
        "outage_ms",
        "error",
        "error_ack",
        "creating_ms",
        "connection_age_ms",
        "clock_skew_s",
    ];
    let action = place.object(&known)?;
    let mut keys = action.fields.keys();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(place.wrong("must have exactly one key"));
    };
    let value = action.need(key)?;
    Ok(match key.as_str() {
        "delay_ms" => Action::Delay(value.millis()?),
        "outage_ms" => Action::Outage(value.millis()?),
        "creating_ms" => Action::Creating(value.millis()?),
        "connection_age_ms" => Action::ConnectionAge(value.millis()?),
        "clock_skew_s" => {
            let seconds = value.value.as_i64();
            Action::ClockSkew(seconds.ok_or_else(|| value.wrong("must be a whole number"))?)
        }
        "error" => Action::Refuse(parse_error(&value)?),
        _ => Action::ErrorAck(parse_error_ack(&value)?),
    })
}

fn parse_error(place: &Place<'_>) -> Result<ApiError, Error> {
    let error = place.object(&["status", "type", "message"])?;
    let status = error.need("status")?;
    let code = u16::try_from(status.number()?).ok();
    let code = code
        .filter(|code| (400..600).contains(code))
        .and_then(|code| http::StatusCode::from_u16(code).ok());
    let message = error.get("message").map(|message| message.text());
    Ok(ApiError {
        status: code.ok_or_else(|| status.wrong("must be a status from 400 to 599"))?,
        exception: error.need("type")?.text()?.to_owned(),
        message: message.transpose()?.unwrap_or_default().to_owned(),
    })
}

fn parse_error_ack(place: &Place<'_>) -> Result<AckError, Error> {
    let error = place.object(&["id", "code"])?;
    let id = error.need("id")?;
    let number = u32::try_from(id.number()?).map_err(|_| id.wrong("is too large"))?;
    match error.get("code") {
        Some(code) => Ok(AckError {
            id: number,
            code: code.text()?.to_owned().into(),
        }),
        None => AckError::known(number)
            .ok_or_else(|| id.wrong("is no documented error; give its code as well")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(when: &str, then: &str) -> Result<Rule, Error> {
        let text = format!(r#"{{"rules": [{{"when": {when}, "then": {then}}}]}}"#);
        Scenario::parse(&text).map(|mut scenario| scenario.rules.remove(0))
    }

    fn place(connection: u64, index: u64, overall: u64) -> FragmentPlace {
        FragmentPlace {
            connection,
            index,
            overall,
        }
    }

    #[test]
    fn every_trigger_and_action_is_read() {
        let ms = Duration::from_millis;
        let error = ApiError {
            status: http::StatusCode::FORBIDDEN,
            exception: "AccessDeniedException".into(),
            message: String::new(),
        };
        let own = AckError {
            id: 9,
            code: "NINE".into(),
        };
        let each = |operation: &str| Trigger::call(operation, Nth::Each);
        let cases = [
            (
                r#""start""#,
                r#"{"creating_ms": 5}"#,
                Trigger::Start,
                Action::Creating(ms(5)),
            ),
            (
                r#""start""#,
                r#"{"connection_age_ms": 5}"#,
                Trigger::Start,
                Action::ConnectionAge(ms(5)),
            ),
            (
                r#""start""#,
                r#"{"clock_skew_s": -5}"#,
                Trigger::Start,
                Action::ClockSkew(-5),
            ),
            (
                r#"{"accept": {"from": 2}}"#,
                r#""reset""#,
                Trigger::Accept(Nth::From(2)),
                Action::Break(Break::Reset),
            ),
            (
                r#"{"call": "PutMedia"}"#,
                r#"{"delay_ms": 7}"#,
                each("PutMedia"),
                Action::Delay(ms(7)),
            ),
            (
                r#"{"call": "TagStream", "nth": 3}"#,
                r#"{"error": {"status": 403, "type": "AccessDeniedException"}}"#,
                Trigger::call("TagStream", Nth::Only(3)),
                Action::Refuse(error),
            ),
            (
                r#"{"connection": 1, "fragment": 2, "ack": "PERSISTED"}"#,
                r#""withhold""#,
                Trigger::ack(1, 2, EventType::Persisted),
                Action::Treat(Treatment::Withhold),
            ),
            (
                r#"{"overall": 4}"#,
                r#"{"error_ack": {"id": 4004}}"#,
                Trigger::Ack {
                    connection: Nth::Each,
                    fragment: FragmentIndex::Overall(Nth::Only(4)),
                    event: None,
                },
                Action::ErrorAck(AckError::TIMECODE_LESSER),
            ),
            (
                r#"{"connection": 1, "bytes": 0}"#,
                r#"{"error_ack": {"id": 9, "code": "NINE"}}"#,
                Trigger::bytes(1, 1),
                Action::ErrorAck(own),
            ),
            (
                r#"{"connection": 1, "bytes": 9}"#,
                r#"{"outage_ms": 3}"#,
                Trigger::bytes(1, 9),
                Action::Outage(ms(3)),
            ),
            (
                r#"{"connection": 1, "bytes": 9}"#,
                r#""black-hole""#,
                Trigger::bytes(1, 9),
                Action::Break(Break::BlackHole),
            ),
        ];
        for (when, then, trigger, action) in cases {
            let expected = Rule {
                when: trigger,
                then: action,
            };
            assert_eq!(rule(when, then).unwrap(), expected, "{when} {then}");
        }
        for word in ["split", "merge", "duplicate", "reorder", "cut", "stall"] {
            assert!(rule(r#"{"fragment": 1}"#, &format!("{word:?}")).is_ok());
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let cases = [
            ("{", "line 1"),
            ("[]", "the outermost object: must be an object"),
            ("{}", "rules is missing"),
            (r#"{"rules": 1}"#, "rules must be an array"),
            (r#"{"rules": [{}]}"#, "rules[0]: when is missing"),
            (
                r#"{"rules": [{"when": "start"}]}"#,
                "rules[0]: then is missing",
            ),
            (
                r#"{"rules": [{"when": "now", "then": "cut"}]}"#,
                "rules[0].when",
            ),
            (
                r#"{"rules": [{"when": {}, "then": "cut"}]}"#,
                "rules[0].when: is empty",
            ),
            (
                r#"{"rules": [{"when": {"fragment": 1}, "then": "dely"}]}"#,
                "rules[0].then: unknown action \"dely\"",
            ),
            (
                r#"{"rules": [{"when": {"frgment": 1}, "then": "cut"}]}"#,
                "rules[0].when: unknown key \"frgment\"",
            ),
            (
                r#"{"rules": [{"when": {"fragment": 0}, "then": "cut"}]}"#,
                "rules[0].when.fragment",
            ),
            (
                r#"{"rules": [{"when": {"fragment": 1, "nth": 1}, "then": "cut"}]}"#,
                "\"nth\" does not go with \"fragment\"",
            ),
            (
                r#"{"rules": [{"when": {"fragment": 1, "ack": "IDLE"}, "then": "cut"}]}"#,
                "rules[0].when.ack",
            ),
            (
                r#"{"rules": [{"when": {"call": "X"}, "then": "cut"}]}"#,
                "rules[0].when.call: unknown operation",
            ),
            (
                r#"{"rules": [{"when": "start", "then": "cut"}]}"#,
                "rules[0]: this action does not go",
            ),
            (
                r#"{"rules": [{"when": {"accept": 1}, "then": "black-hole"}]}"#,
                "does not go",
            ),
            (
                r#"{"rules": [{"when": {"bytes": 1}, "then": {}}]}"#,
                "rules[0].then: must have exactly one key",
            ),
            (
                r#"{"rules": [{"when": {"bytes": 1}, "then": {"error_ack": {"id": 1}}}]}"#,
                "rules[0].then.error_ack.id",
            ),
            (
                r#"{"rules": [{"when": {"bytes": 1}, "then": {"error": {"status": 200, "type": "X"}}}]}"#,
                "rules[0].then.error.status",
            ),
        ];
        for (text, message) in cases {
            let error = Scenario::parse(text).unwrap_err().to_string();
            assert!(
                error.contains(message),
                "{text}: {error:?} lacks {message:?}"
            );
        }
    }

    #[test]
    fn rules_of_rust_values_are_checked_as_well() {
        let good = (Trigger::bytes(1, 1), Action::Break(Break::Cut));
        let idle = (Trigger::Start, Action::Break(Break::Cut));
        assert!(Scenario::of([good.clone()]).check().is_ok());
        let error = Scenario::of([good, idle]).check().unwrap_err();
        assert!(
            error.to_string().contains("rules[1]: this action"),
            "{error}"
        );
    }

    #[test]
    fn rules_apply_where_they_say() {
        let treat = Action::Treat(Treatment::Duplicate);
        let cut = Action::Break(Break::Cut);
        let scenario = Scenario::of([
            (Trigger::ack(2, 3, None), treat.clone()),
            (Trigger::ack(2, 3, None), cut.clone()),
            (Trigger::bytes(1, 100), Action::Break(Break::Reset)),
            (
                Trigger::call("TagStream", Nth::From(2)),
                Action::Delay(Duration::ZERO),
            ),
            (Trigger::Accept(Nth::Only(2)), Action::Break(Break::Stall)),
            (Trigger::Start, Action::ClockSkew(60)),
        ]);
        assert_eq!(
            scenario.on_ack(place(2, 3, 9), EventType::Buffering),
            [treat.clone(), cut]
        );
        assert_eq!(
            scenario.on_ack(place(2, 3, 9), EventType::Persisted),
            [treat]
        );
        assert!(
            scenario
                .on_ack(place(1, 3, 9), EventType::Buffering)
                .is_empty()
        );
        assert_eq!(scenario.on_bytes(1, 100).len(), 1);
        assert!(scenario.on_bytes(1, 101).is_empty() && scenario.on_bytes(2, 100).is_empty());
        assert_eq!(scenario.next_bytes(1, 99), Some(100));
        assert_eq!(scenario.next_bytes(1, 100), None, "only once");
        assert!(scenario.on_call("TagStream", 1).is_empty());
        assert_eq!(scenario.on_call("TagStream", 3).len(), 1);
        assert_eq!(scenario.on_accept(2).len(), 1);
        assert_eq!(scenario.settings().clock_skew, 60);
        assert_eq!(scenario.late_refusal(1), None);
    }
}
