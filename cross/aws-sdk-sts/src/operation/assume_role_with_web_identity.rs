//! AssumeRoleWithWebIdentity.

pub mod builders {
    use std::fmt;

    use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
    use aws_smithy_runtime_api::client::result::SdkError;
    use aws_types::SdkConfig;

    use crate::call::{self, Auth, Parameters};
    use crate::operation::{AssumeRoleOutput, Refusal};
    use crate::types::PolicyDescriptorType;

    #[derive(Clone)]
    pub struct AssumeRoleWithWebIdentityFluentBuilder {
        config: SdkConfig,
        role_arn: Option<String>,
        role_session_name: Option<String>,
        web_identity_token: Option<String>,
        policy: Option<String>,
        policy_arns: Option<Vec<PolicyDescriptorType>>,
    }

    impl AssumeRoleWithWebIdentityFluentBuilder {
        pub(crate) fn new(config: SdkConfig) -> Self {
            Self {
                config,
                role_arn: None,
                role_session_name: None,
                web_identity_token: None,
                policy: None,
                policy_arns: None,
            }
        }

        pub fn role_arn(mut self, role_arn: impl Into<String>) -> Self {
            self.role_arn = Some(role_arn.into());
            self
        }

        pub fn role_session_name(mut self, name: impl Into<String>) -> Self {
            self.role_session_name = Some(name.into());
            self
        }

        pub fn web_identity_token(mut self, token: impl Into<String>) -> Self {
            self.web_identity_token = Some(token.into());
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

        /// # Errors
        /// What kept the call from being made or answered, or why the service refused it.
        pub async fn send(self) -> Result<AssumeRoleOutput, SdkError<Refusal, HttpResponse>> {
            let mut parameters = Parameters::new("AssumeRoleWithWebIdentity");
            parameters.add("RoleArn", self.role_arn.as_deref());
            parameters.add("RoleSessionName", self.role_session_name.as_deref());
            parameters.add("WebIdentityToken", self.web_identity_token.as_deref());
            parameters.add("Policy", self.policy.as_deref());
            parameters.add_policies(self.policy_arns.as_deref());
            call::send(&self.config, parameters, Auth::None).await
        }
    }

    /// Without the token.
    impl fmt::Debug for AssumeRoleWithWebIdentityFluentBuilder {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("AssumeRoleWithWebIdentityFluentBuilder")
                .field("role_arn", &self.role_arn)
                .field("role_session_name", &self.role_session_name)
                .finish_non_exhaustive()
        }
    }
}
