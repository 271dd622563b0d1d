//! The part of the Security Token Service's SDK that is needed: AssumeRole for a profile with `role_arn` and
//! AssumeRoleWithWebIdentity, for aws-config, and GetCallerIdentity for `doctor`. Names and shapes are those of the SDK; see README.md.

mod answer;
mod call;
pub mod config;
pub mod endpoint;
pub mod operation;
pub mod types;

use aws_types::SdkConfig;

pub use config::Config;

use operation::assume_role::builders::AssumeRoleFluentBuilder;
use operation::assume_role_with_web_identity::builders::AssumeRoleWithWebIdentityFluentBuilder;
use operation::get_caller_identity::builders::GetCallerIdentityFluentBuilder;

/// Calls the service.
#[derive(Debug, Clone)]
pub struct Client {
    config: SdkConfig,
}

impl Client {
    pub fn new(config: &SdkConfig) -> Self {
        Self {
            config: config.clone(),
        }
    }

    pub fn from_conf(config: Config) -> Self {
        Self { config: config.0 }
    }

    /// Signed with the credentials of the client's configuration.
    pub fn assume_role(&self) -> AssumeRoleFluentBuilder {
        AssumeRoleFluentBuilder::new(self.config.clone())
    }

    /// Signed; needs no permission.
    pub fn get_caller_identity(&self) -> GetCallerIdentityFluentBuilder {
        GetCallerIdentityFluentBuilder::new(self.config.clone())
    }

    /// Not signed: the token tells who asks.
    pub fn assume_role_with_web_identity(&self) -> AssumeRoleWithWebIdentityFluentBuilder {
        AssumeRoleWithWebIdentityFluentBuilder::new(self.config.clone())
    }
}
