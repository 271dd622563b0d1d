//! Behaviour over real sockets: the producer against the local endpoint.

mod aws_client;
mod camera_trouble;
mod cli;
mod clock;
mod ending;
mod happy_path;
mod media;
mod reconnect;
mod rig;
mod rotation;
mod support;
mod tls;
