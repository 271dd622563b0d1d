//! Kinesis Video Streams: the session that decides, and the tasks that carry it out.

pub mod ack;
pub mod failure;
pub mod sign;
