//! The log and the status line share standard error: a log line first wipes the status line away.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::{Interest, set_global_default};
use tracing::{Event, Level, Metadata, Subscriber, callsite};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines to read.
    Text,
    /// One JSON object a line.
    Json,
}

/// Back to the first column, and erase to the end of the line (ECMA-48 CR, EL).
const WIPE: &[u8] = b"\r\x1b[K";

/// Whether a status line stands on the terminal.
static STATUS_SHOWN: AtomicBool = AtomicBool::new(false);

/// What is logged can be changed while the program runs.
static FILTER: OnceLock<RwLock<Targets>> = OnceLock::new();

/// Target of [`detail!`](crate::detail).
pub const DETAIL: &str = "kvs_producer_app::detail";

/// A line for whoever asks for more with `-v`: at level DEBUG, as far as anybody can see.
///
/// For the compiler it is of level INFO. A release has no line below that: those of libraries, which nobody is shown, would
/// be 64 kB of a camera's flash.
#[macro_export]
macro_rules! detail {
    ($($line:tt)*) => {
        tracing::info!(target: $crate::log::DETAIL, $($line)*)
    };
}

/// What `event` is to be taken for.
fn level_of(metadata: &Metadata<'_>) -> Level {
    if metadata.target() == DETAIL {
        Level::DEBUG
    } else {
        *metadata.level()
    }
}

/// What is logged at `level`: libraries are heard from WARN on, because at lower levels some print requests with their
/// signatures.
pub fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(level.min(Level::WARN))
        .with_target("kvs_producer_app", level)
        .with_target(DETAIL, details(level))
}

/// Whether details are shown at `level`.
fn details(level: Level) -> LevelFilter {
    if level >= Level::DEBUG {
        LevelFilter::INFO
    } else {
        LevelFilter::OFF
    }
}

/// Starts the log of this process, on standard error. The first start counts.
pub fn start(level: Level, format: Format) {
    if FILTER.set(RwLock::new(filter(level))).is_err() {
        return;
    }
    let style = match format {
        Format::Text if is_journal() => Style::Journal,
        Format::Text => Style::Text,
        Format::Json => Style::Json,
    };
    // Where a larger program has a log of its own, that one is it.
    let _ = set_global_default(Log { style });
}

/// Logs at `level` from now on. Returns the level that was in force; `None` where this process has no log of its own.
pub fn set_level(level: Level) -> Option<Level> {
    let before = self::level();
    let targets = FILTER.get()?;
    *targets.write().unwrap_or_else(PoisonError::into_inner) = filter(level);
    callsite::rebuild_interest_cache();
    before
}

/// The level in force; `None` where this process has no log of its own.
pub fn level() -> Option<Level> {
    FILTER.get()?;
    LevelFilter::current().into_level()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Text,
    /// The journal has the time, and takes the level from the start of the line, where it is in angle brackets as
    /// sd-daemon(3) has it.
    Journal,
    Json,
}

/// Writes events, a line each, and keeps no account of spans: only libraries have any, and nobody asks for them.
struct Log {
    style: Style,
}

impl Subscriber for Log {
    /// Asked once for each place in the program, and again when the level has changed.
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let Some(targets) = FILTER.get().filter(|_| metadata.is_event()) else {
            return false;
        };
        let targets = targets.read().unwrap_or_else(PoisonError::into_inner);
        targets.would_enable(metadata.target(), metadata.level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let targets = FILTER.get()?;
        let targets = targets.read().unwrap_or_else(PoisonError::into_inner);
        targets.iter().map(|(_, level)| level).max()
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = String::new();
        // A string takes whatever it is given; what fails is a value that cannot be shown, and the rest of the line is told.
        let _ = self.style.write(event, &mut line);
        line.push('\n');
        let mut stderr = io::stderr().lock();
        if STATUS_SHOWN.swap(false, Ordering::Relaxed) {
            let _ = stderr.write_all(WIPE);
        }
        // There is no other place to tell that this one is gone.
        let _ = stderr.write_all(line.as_bytes());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Style {
    fn write(self, event: &Event<'_>, line: &mut String) -> fmt::Result {
        let level = level_of(event.metadata());
        match self {
            Self::Text => {
                SystemTime.format_time(&mut Writer::new(line))?;
                write!(line, " {level:>5} ")?;
            }
            Self::Journal => write!(line, "<{}>", priority(level))?,
            Self::Json => {
                line.push_str("{\"timestamp\":\"");
                SystemTime.format_time(&mut Writer::new(line))?;
                write!(line, "\",\"level\":\"{level}\"")?;
            }
        }
        let mut fields = Fields {
            json: self == Self::Json,
            line,
            first: true,
            result: Ok(()),
        };
        event.record(&mut fields);
        fields.result?;
        if self == Self::Json {
            line.push('}');
        }
        Ok(())
    }
}

/// Appends an event's fields to its line.
struct Fields<'a> {
    json: bool,
    line: &'a mut String,
    first: bool,
    result: fmt::Result,
}

impl Fields<'_> {
    /// A value that stands for itself in JSON as in text.
    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.add(field, |line, _| write!(line, "{value}"));
    }

    fn add(&mut self, field: &Field, value: impl FnOnce(&mut String, bool) -> fmt::Result) {
        let (name, json) = (field.name(), self.json);
        if json {
            self.line.push(',');
            push_string(self.line, name);
            self.line.push(':');
        } else {
            if !self.first {
                self.line.push(' ');
            }
            if name != "message" {
                self.line.push_str(name);
                self.line.push('=');
            }
        }
        self.first = false;
        self.result = self.result.and(value(self.line, json));
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity.
        if value.is_finite() {
            self.plain(field, value);
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, |line, json| {
            if json {
                push_string(line, value);
                Ok(())
            } else {
                write!(line, "{value:?}")
            }
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, |line, json| {
            if json {
                push_string(line, &format!("{value:?}"));
                Ok(())
            } else {
                write!(line, "{value:?}")
            }
        });
    }
}

/// Appends `text` as a JSON string.
fn push_string(line: &mut String, text: &str) {
    // Appending to it cannot fail, and what serde_json writes is UTF-8.
    line.push_str(&serde_json::Value::from(text).to_string());
}

/// Whether standard error goes to systemd's journal: the service manager names the stream by device and inode.
fn is_journal() -> bool {
    let Some(named) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The syslog priority of a level (RFC 5424 section 6.2.1).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Whether a status line makes sense: somebody is looking.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Puts `line` in the place of the status line before it.
pub fn show_status(line: &str) {
    let mut text = WIPE.to_vec();
    text.extend_from_slice(line.as_bytes());
    STATUS_SHOWN.store(true, Ordering::Relaxed);
    // A terminal that is gone needs no status.
    let _ = io::stderr().lock().write_all(&text);
}

/// Leaves the terminal clean.
pub fn end_status() {
    if STATUS_SHOWN.swap(false, Ordering::Relaxed) {
        let _ = io::stderr().lock().write_all(WIPE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tracing::subscriber::with_default;
    use tracing::{error, warn};

    /// Keeps what each event looks like in a style.
    struct Kept(Style, Mutex<Vec<String>>);

    impl Subscriber for &'static Kept {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn event(&self, event: &Event<'_>) {
            let mut line = String::new();
            self.0.write(event, &mut line).expect("all can be shown");
            self.1.lock().expect("nobody panics").push(line);
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    fn lines(style: Style) -> Vec<String> {
        let kept: &'static Kept = Box::leak(Box::new(Kept(style, Mutex::default())));
        with_default(kept, || {
            warn!(stream = "my \"camera\"", frames = 7, at = %"12", wait_s = 0.5, "a {}", "line");
            error!(gone = true, odd = f64::INFINITY, path = ?Some("x"), "two\nlines");
            crate::detail!("nothing else");
        });
        std::mem::take(&mut *kept.1.lock().expect("nobody panics"))
    }

    #[test]
    fn a_line_of_text_has_the_time_the_level_and_all_fields() {
        let lines = lines(Style::Text);
        let (time, rest) = lines[0].split_at("2026-11-22T10:11:12.123456Z".len());
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        assert_eq!(
            rest,
            r#"  WARN a line stream="my \"camera\"" frames=7 at=12 wait_s=0.5"#
        );
        assert!(lines[1].ends_with("ERROR two\nlines gone=true odd=inf path=Some(\"x\")"));
    }

    #[test]
    fn details_are_shown_to_those_who_ask_for_debug_lines() {
        for (level, shown) in [
            (Level::INFO, false),
            (Level::DEBUG, true),
            (Level::TRACE, true),
        ] {
            assert_eq!(
                filter(level).would_enable(DETAIL, &Level::INFO),
                shown,
                "{level}"
            );
            assert!(filter(level).would_enable("kvs_producer_app::app", &Level::INFO));
        }
        assert!(lines(Style::Text)[2].ends_with(" DEBUG nothing else"));
    }

    #[test]
    fn a_line_for_the_journal_begins_with_its_priority() {
        let lines = lines(Style::Journal);
        assert_eq!(lines[2], "<7>nothing else");
        assert!(lines[0].starts_with("<4>a line stream="), "{}", lines[0]);
    }

    #[test]
    fn a_line_of_json_can_be_read() {
        let lines = lines(Style::Json);
        let read =
            |line: &String| -> serde_json::Value { serde_json::from_str(line).expect("JSON") };
        let first = read(&lines[0]);
        assert_eq!(first["level"], "WARN");
        assert_eq!(first["message"], "a line");
        assert_eq!(first["stream"], "my \"camera\"");
        assert_eq!(first["frames"], 7);
        assert_eq!(first["at"], "12");
        assert_eq!(first["wait_s"], 0.5);
        let second = read(&lines[1]);
        assert_eq!(second["gone"], true);
        assert_eq!(second["odd"], "inf");
        assert_eq!(second["message"], "two\nlines");
    }
}
