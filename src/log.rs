//! The log and the status line share standard error: a log line first wipes the status line away.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
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

/// What is logged at `level`: libraries are heard from WARN on, because at lower levels some print requests with their
/// signatures.
pub fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(level.min(Level::WARN))
        .with_target("kvs_producer_app", level)
}

/// Starts the log of this process, on standard error.
pub fn start(level: Level, format: Format) {
    let filter = filter(level);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
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
