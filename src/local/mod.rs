//! The local endpoint.
pub mod acks;
pub mod codec;
pub mod date;
pub mod media;
pub mod sigv4;
#[cfg(test)]
mod samples;
