//! The log and the status line share standard error: a log line first wipes the status line away.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

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

/// Standard error, without the status line.
#[derive(Debug, Clone, Copy)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        if STATUS_SHOWN.swap(false, Ordering::Relaxed) {
            stderr.write_all(WIPE)?;
        }
        stderr.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// What is logged can be changed while the program runs.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// What is logged at `level`: libraries are heard from WARN on, because at lower levels some print requests with their
/// signatures.
pub fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(level.min(Level::WARN))
        .with_target("kvs_producer_app", level)
}

/// Starts the log of this process, on standard error.
pub fn start(level: Level, format: Format) {
    let (filter, handle) = reload::Layer::new(filter(level));
    // The first start counts, as it does for the log.
    let _ = FILTER.set(handle);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text if is_journal() => {
            // The journal has the time, and takes the level from the start of the line.
            let line = format::format()
                .with_target(false)
                .with_ansi(false)
                .with_level(false)
                .without_time();
            let layer = tracing_subscriber::fmt::layer().event_format(Prioritized(line));
            registry.with(layer.with_writer(Stderr)).init();
        }
        Format::Text => {
            let layer = tracing_subscriber::fmt::layer()
                .with_target(false)
                .with_ansi(false);
            registry.with(layer.with_writer(Stderr)).init();
        }
        Format::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
            registry
                .with(layer.with_target(false).with_writer(Stderr))
                .init();
        }
    }
}

/// Logs at `level` from now on. Returns the level that was in force; `None` where this process has no log of its own.
pub fn set_level(level: Level) -> Option<Level> {
    let before = self::level();
    FILTER.get()?.reload(filter(level)).ok()?;
    before
}

/// The level in force; `None` where this process has no log of its own.
pub fn level() -> Option<Level> {
    FILTER.get()?;
    LevelFilter::current().into_level()
}

/// Whether standard error goes to systemd's journal: the service manager names the stream by device and inode.
fn is_journal() -> bool {
    let Some(named) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Lines that begin with their priority in angle brackets, as sd-daemon(3) has it.
struct Prioritized<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
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
