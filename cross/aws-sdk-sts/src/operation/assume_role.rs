//! AssumeRole.

use std::error::Error as StdError;
use std::fmt;

use crate::operation::Refusal;

/// Why not. Of the reasons, aws-config tells these two from all others.
#[derive(Debug, Clone, PartialEq)]
pub enum AssumeRoleError {
    RegionDisabledException(Refusal),
    MalformedPolicyDocumentException(Refusal),
    Other(Refusal),
}

impl From<Refusal> for AssumeRoleError {
    fn from(refusal: Refusal) -> Self {
        match refusal.code.as_str() {
            "RegionDisabledException" => Self::RegionDisabledException(refusal),
            "MalformedPolicyDocument" => Self::MalformedPolicyDocumentException(refusal),
            _ => Self::Other(refusal),
        }
    }
}

impl fmt::Display for AssumeRoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::RegionDisabledException(refusal)
        | Self::MalformedPolicyDocumentException(refusal)
        | Self::Other(refusal)) = self;
        refusal.fmt(f)
    }
}

impl StdError for AssumeRoleError {}

pub mod builders {
    use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
    use aws_smithy_runtime_api::client::result::SdkError;
    use aws_types::SdkConfig;

    use super::AssumeRoleError;
    use crate::call::{self, Auth, Parameters};
    use crate::operation::AssumeRoleOutput;
    use crate::types::{PolicyDescriptorType, Tag};

    #[derive(Debug, Clone)]
    pub struct AssumeRoleFluentBuilder {
        config: SdkConfig,
        role_arn: Option<String>,
        role_session_name: Option<String>,
        external_id: Option<String>,
        policy: Option<String>,
        policy_arns: Option<Vec<PolicyDescriptorType>>,
        duration_seconds: Option<i32>,
        tags: Option<Vec<Tag>>,
    }

    impl AssumeRoleFluentBuilder {
        pub(crate) fn new(config: SdkConfig) -> Self {
            Self {
                config,
                role_arn: None,
                role_session_name: None,
                external_id: None,
                policy: None,
                policy_arns: None,
                duration_seconds: None,
                tags: None,
            }
        }

        pub fn role_arn(self, role_arn: impl Into<String>) -> Self {
            self.set_role_arn(Some(role_arn.into()))
        }

        pub fn set_role_arn(mut self, role_arn: Option<String>) -> Self {
            self.role_arn = role_arn;
            self
        }

        pub fn role_session_name(self, name: impl Into<String>) -> Self {
            self.set_role_session_name(Some(name.into()))
        }

        pub fn set_role_session_name(mut self, name: Option<String>) -> Self {
            self.role_session_name = name;
            self
        }

        pub fn set_external_id(mut self, external_id: Option<String>) -> Self {
            self.external_id = external_id;
            self
        }

        pub fn set_policy(mut self, policy: Option<String>) -> Self {
            self.policy = policy;
            self
        }

        pub fn set_policy_arns(mut self, policy_arns: Option<Vec<PolicyDescriptorType>>) -> Self {
            self.policy_arns = policy_arns;
            self
        }

        pub fn set_duration_seconds(mut self, seconds: Option<i32>) -> Self {
            self.duration_seconds = seconds;
            self
        }

        pub fn set_tags(mut self, tags: Option<Vec<Tag>>) -> Self {
            self.tags = tags;
            self
        }

        /// # Errors
        /// What kept the call from being made or answered, or why the service refused it.
        pub async fn send(
            self,
        ) -> Result<AssumeRoleOutput, SdkError<AssumeRoleError, HttpResponse>> {
            let mut parameters = Parameters::new("AssumeRole");
            parameters.add("RoleArn", self.role_arn.as_deref());
            parameters.add("RoleSessionName", self.role_session_name.as_deref());
            parameters.add("ExternalId", self.external_id.as_deref());
            parameters.add("Policy", self.policy.as_deref());
            parameters.add_policies(self.policy_arns.as_deref());
            let seconds = self.duration_seconds.map(|seconds| seconds.to_string());
            parameters.add("DurationSeconds", seconds.as_deref());
            for (index, tag) in (1..).zip(self.tags.iter().flatten()) {
                parameters.add(&format!("Tags.member.{index}.Key"), Some(&tag.key));
                parameters.add(&format!("Tags.member.{index}.Value"), Some(&tag.value));
            }
            call::send(&self.config, parameters, Auth::Signed)
                .await
                .map_err(|error| error.map_service_error(AssumeRoleError::from))
        }
    }
}
