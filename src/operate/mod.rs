//! What an operator meets: how the producer is, how it is steered while it runs, and what the service manager is told.
//!
//! ```text
//!   shell ──► client ──► protocol ═ Unix socket ═ protocol ──► socket ──► app
//!                                                  health, metrics ◄──── app
//! ```

pub mod client;
pub mod command;
pub mod create;
pub mod desk;
pub mod doctor;
pub mod export;
pub mod gauge;
pub mod health;
pub mod metrics;
pub mod notify;
#[cfg(feature = "pages")]
pub mod pages;
pub mod protocol;
pub mod put;
pub mod socket;
mod words;
