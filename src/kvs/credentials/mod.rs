//! How credentials are kept fresh.

pub mod refresh;
