//! Kinesis Video Streams: the session that decides, and the tasks that carry it out.

pub mod ack;
pub mod aws;
pub mod control;
pub mod credentials;
pub mod failure;
pub mod meters;
pub mod service_clock;
pub mod session;
pub mod sign;
pub mod tls;
pub mod transport;
pub mod upload;
