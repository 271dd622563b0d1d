//! Behaviour over real sockets: the producer against the local endpoint.

mod camera_trouble;
mod clock;
mod ending;
mod happy_path;
mod reconnect;
mod rig;
mod rotation;
mod tls;
