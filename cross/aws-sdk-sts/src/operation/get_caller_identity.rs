//! GetCallerIdentity.

/// Who the credentials are of.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GetCallerIdentityOutput {
    pub(crate) arn: Option<String>,
}

impl GetCallerIdentityOutput {
    pub fn arn(&self) -> Option<&str> {
        self.arn.as_deref()
    }
}

pub mod builders {
    use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
    use aws_smithy_runtime_api::client::result::SdkError;
    use aws_types::SdkConfig;

    use super::GetCallerIdentityOutput;
    use crate::call::{self, Auth, Parameters};
    use crate::operation::Refusal;

    #[derive(Debug, Clone)]
    pub struct GetCallerIdentityFluentBuilder {
        config: SdkConfig,
    }

    impl GetCallerIdentityFluentBuilder {
        pub(crate) fn new(config: SdkConfig) -> Self {
            Self { config }
        }

        /// # Errors
        /// What kept the call from being made or answered, or why the service refused it.
        pub async fn send(
            self,
        ) -> Result<GetCallerIdentityOutput, SdkError<Refusal, HttpResponse>> {
            let parameters = Parameters::new("GetCallerIdentity");
            let answer = call::send(&self.config, parameters, Auth::Signed).await?;
            Ok(GetCallerIdentityOutput {
                arn: answer.assumed_role_user.map(|user| user.arn),
            })
        }
    }
}
