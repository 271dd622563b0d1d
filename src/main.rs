//! kvsProducerApp.
fn main() {}
