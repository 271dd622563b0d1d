//! Behaviour over real sockets: the producer against the local endpoint.

mod aws_client;
mod happy_path;
mod media;
mod reconnect;
mod rig;
mod rotation;
mod support;
mod tls;
