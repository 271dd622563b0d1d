//! Behaviour over real sockets: the producer against the local endpoint.

mod aws_client;
mod camera_trouble;
mod canary;
mod child;
mod cli;
mod clock;
mod credentials;
mod credentials_provider;
mod diagnosis;
mod ending;
mod faults;
mod happy_path;
mod jitter;
mod library;
mod media;
mod netns;
mod operate;
mod panics;
mod proxy;
mod reconnect;
mod rig;
mod roles;
mod rotation;
mod secrets;
mod support;
mod tls;
