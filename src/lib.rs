//! Streams encoded video from a Linux camera to Amazon Kinesis Video Streams (KVS).
//!
//! ```text
//! source ──► codec ──► ring ──► mkv ──► kvs::upload ──► PutMedia
//!                        ▲                                 │
//!                        └──── kvs::session ◄── kvs::ack ◄─┘
//! ```
//!
//! The words: a *fragment* is one or more whole groups of pictures, a Matroska cluster on the wire; its *timecode* is how
//! the service names it; it is *persisted* when the service has stored it. A *connection* is one PutMedia request, a
//! *session* a stream's life across connections. *Rewind* goes back to the first fragment that is not confirmed, *evict*
//! gives up a whole fragment because the ring is full.
//!
//! Who embeds it in a program of his own begins at [`producer`].

pub mod app;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod codes;
pub mod course;
pub mod frame;
pub mod kvs;
pub mod log;
pub mod mkv;
pub mod operate;
pub mod producer;
pub mod repeats;
pub mod report;
pub mod ring;
pub mod shutdown;
pub mod source;
pub mod status;
pub mod survive;

#[cfg(feature = "local")]
pub mod local;

use std::error::Error;
use std::fmt;

/// The message of `error` and of all its causes on one line, for the log and for `main`.
///
/// A cause that its parent's message already carries is left out: some libraries repeat themselves.
pub fn chain(error: &dyn Error) -> impl fmt::Display {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
