//! Behaviour over real sockets: the producer against the local endpoint.

mod child;
mod clock;
mod ending;
mod faults;
mod happy_path;
mod netns;
mod proxy;
mod reconnect;
mod rig;
mod rotation;
mod secrets;
mod tls;
