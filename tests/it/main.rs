//! Behaviour over real sockets: the producer against the local endpoint.

mod clock;
mod ending;
mod happy_path;
mod reconnect;
mod rig;
mod rotation;
mod tls;
