//! What goes into a call and comes out of it.

use std::fmt;

use aws_smithy_types::DateTime;

/// A managed policy by its ARN.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyDescriptorType {
    pub(crate) arn: Option<String>,
}

impl PolicyDescriptorType {
    pub fn builder() -> PolicyDescriptorTypeBuilder {
        PolicyDescriptorTypeBuilder { arn: None }
    }
}

#[derive(Debug, Clone)]
pub struct PolicyDescriptorTypeBuilder {
    arn: Option<String>,
}

impl PolicyDescriptorTypeBuilder {
    pub fn arn(mut self, arn: impl Into<String>) -> Self {
        self.arn = Some(arn.into());
        self
    }

    pub fn build(self) -> PolicyDescriptorType {
        PolicyDescriptorType { arn: self.arn }
    }
}

/// A session tag.
#[derive(Debug, Clone, PartialEq)]
pub struct Tag {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl Tag {
    pub fn builder() -> TagBuilder {
        TagBuilder {
            key: None,
            value: None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct TagBuilder {
    key: Option<String>,
    value: Option<String>,
}

/// A tag without key or value.
#[derive(Debug)]
pub struct IncompleteTag;

impl TagBuilder {
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub fn value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// # Errors
    /// When key or value is missing.
    pub fn build(self) -> Result<Tag, IncompleteTag> {
        match (self.key, self.value) {
            (Some(key), Some(value)) => Ok(Tag { key, value }),
            _ => Err(IncompleteTag),
        }
    }
}

/// The credentials that a call returns.
#[derive(Clone, PartialEq)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: String,
    pub expiration: DateTime,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

/// Who one is with them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AssumedRoleUser {
    pub arn: String,
}
