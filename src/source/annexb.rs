//! Pipes and files.
