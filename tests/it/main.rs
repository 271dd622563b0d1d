//! Behaviour over real sockets: the producer against the local endpoint.

mod happy_path;
mod reconnect;
mod rig;
mod rotation;
mod tls;
