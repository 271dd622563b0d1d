//! Secrets that may show up nowhere: whatever this suite runs, in this process or in one of its own, runs at TRACE, and all it
//! says is searched for them.

use std::io::{self, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use kvs_producer_app::local::Credential;
use kvs_producer_app::log;
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Set when a log line of this process has had a secret in it.
static LEAKED: AtomicBool = AtomicBool::new(false);

fn secrets() -> Vec<String> {
    [
        Credential::default(),
        Credential::temporary(),
        Credential::expired(),
    ]
    .into_iter()
    .flat_map(|known| [Some(known.secret_access_key), known.session_token])
    .flatten()
    .collect()
}

/// Fails where `text`, which came from `place`, has a secret in it.
pub fn assert_none_in(text: &str, place: &str) {
    for secret in secrets() {
        assert!(!text.contains(&secret), "a secret in {place}:\n{text}");
    }
}

/// From now on all that this process logs is searched, at TRACE. [`assert_quiet`] tells.
pub fn watch() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(Search(secrets()));
        tracing_subscriber::registry()
            .with(log::filter(Level::TRACE))
            .with(layer)
            .init();
    });
}

/// Fails when a secret was logged in this process.
pub fn assert_quiet() {
    assert!(
        !LEAKED.load(Ordering::Relaxed),
        "a secret was logged; the line is above"
    );
}

/// Takes log lines, and remembers a bad one.
struct Search(Vec<String>);

impl Write for &Search {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        if self.0.iter().any(|secret| text.contains(secret)) {
            LEAKED.store(true, Ordering::Relaxed);
            eprintln!("LEAKED: {text}");
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Search {
    type Writer = &'a Search;

    fn make_writer(&'a self) -> &'a Search {
        self
    }
}

#[test]
fn the_search_finds_a_secret() {
    let secret = &secrets()[0];
    let found = std::panic::catch_unwind(|| assert_none_in(&format!("x{secret}y"), "here"));
    assert!(found.is_err());
}
