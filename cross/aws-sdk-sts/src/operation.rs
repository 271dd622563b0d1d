//! The calls.

use std::error::Error as StdError;
use std::fmt;

use crate::types::{AssumedRoleUser, Credentials};

pub mod assume_role;
pub mod assume_role_with_web_identity;
pub mod get_caller_identity;

/// What the calls for a role return.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AssumeRoleOutput {
    pub credentials: Option<Credentials>,
    pub assumed_role_user: Option<AssumedRoleUser>,
}

/// The service has said no.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// Such as `AccessDenied`; empty where the answer was not the service's.
    pub code: String,
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.code.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl StdError for Refusal {}
