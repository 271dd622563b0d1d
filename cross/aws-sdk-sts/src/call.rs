//! One request of the service's query protocol, and its answer.

use std::fmt;

use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::{
    HttpResponse, OrchestratorError, SensitiveOutput,
};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_runtime_api::client::runtime_plugin::StaticRuntimePlugin;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::Layer;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use form_urlencoded::byte_serialize;

use crate::answer;
use crate::endpoint::{endpoint, signing_region};
use crate::operation::{AssumeRoleOutput, Refusal};
use crate::types::PolicyDescriptorType;

const CONTENT_TYPE: &str = "application/x-www-form-urlencoded";

/// How a request proves who sends it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Auth {
    /// With the credentials of the configuration.
    Signed,
    /// With what is in it.
    None,
}

/// The form that a request carries.
pub struct Parameters(String);

impl Parameters {
    pub fn new(action: &'static str) -> Self {
        Self(format!("Action={action}&Version=2011-06-15"))
    }

    pub fn add(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.0.push('&');
            self.0.extend(byte_serialize(name.as_bytes()));
            self.0.push('=');
            self.0.extend(byte_serialize(value.as_bytes()));
        }
    }

    pub fn add_policies(&mut self, policies: Option<&[PolicyDescriptorType]>) {
        for (index, policy) in (1..).zip(policies.into_iter().flatten()) {
            self.add(
                &format!("PolicyArns.member.{index}.arn"),
                policy.arn.as_deref(),
            );
        }
    }
}

/// A request that only needs to be sent.
struct Ready(http::Request<String>);

/// It carries a token or a signature.
impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ready")
    }
}

/// Carries out a call, once: whoever asks knows when to ask again.
pub async fn send(
    config: &SdkConfig,
    Parameters(body): Parameters,
    auth: Auth,
) -> Result<AssumeRoleOutput, SdkError<Refusal, HttpResponse>> {
    let region = config.region().ok_or_else(|| {
        SdkError::construction_failure("no AWS region for the Security Token Service")
    })?;
    let http_client = config.http_client().ok_or_else(|| {
        SdkError::construction_failure("no HTTP client for the Security Token Service")
    })?;
    let endpoint = configured_endpoint(config).unwrap_or_else(|| {
        let fips = config.use_fips().unwrap_or(false);
        endpoint(
            region.as_ref(),
            fips,
            config.use_dual_stack().unwrap_or(false),
        )
    });
    let request = ready(config, &endpoint, region.as_ref(), body, auth)
        .await
        .map_err(SdkError::construction_failure)?;

    let mut secret = Layer::new("SensitiveOutput");
    secret.store_put(SensitiveOutput);
    let mut operation = Operation::builder()
        .service_name("STS")
        .operation_name("AssumeRole")
        .http_client(http_client)
        .endpoint_url(&endpoint)
        .no_auth()
        .no_retry()
        .timeout_config(
            config
                .timeout_config()
                .cloned()
                .unwrap_or_else(TimeoutConfig::disabled),
        )
        .runtime_plugin(StaticRuntimePlugin::new().with_config(secret.freeze()));
    operation = match config.sleep_impl() {
        Some(sleep) => operation.sleep_impl(sleep),
        None => operation.timeout_config(TimeoutConfig::disabled()),
    };
    operation
        .serializer(|Ready(request): Ready| Ok(request.map(SdkBody::from).try_into()?))
        .deserializer(|response| {
            let body = response.body().bytes().unwrap_or_default();
            answer::read(
                response.status().is_success(),
                &String::from_utf8_lossy(body),
            )
            .map_err(OrchestratorError::operation)
        })
        .build()
        .invoke(request)
        .await
}

/// `AWS_ENDPOINT_URL_STS`, `AWS_ENDPOINT_URL`, or the profile's word.
fn configured_endpoint(config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("STS")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all fields are set");
    config
        .service_config()
        .and_then(|service| service.load_config(key))
        .or_else(|| config.endpoint_url().map(str::to_owned))
}

async fn ready(
    config: &SdkConfig,
    endpoint: &str,
    region: &str,
    body: String,
    auth: Auth,
) -> Result<Ready, BoxError> {
    // The endpoint's path comes before the request's when it is sent.
    let url = format!("{}/", endpoint.trim_end_matches('/'));
    let mut request = http::Request::post("/")
        .header("content-type", CONTENT_TYPE)
        .body(body)?;
    if auth == Auth::None {
        return Ok(Ready(request));
    }
    let credentials = config
        .credentials_provider()
        .ok_or("no credentials to assume a role with")?;
    let identity = credentials.provide_credentials().await?.into();
    let time = config.time_source().ok_or("no clock to sign with")?.now();
    let parameters = SigningParams::builder()
        .identity(&identity)
        .region(signing_region(region))
        .name("sts")
        .time(time)
        .settings(SigningSettings::default())
        .build()?;
    let signable = SignableRequest::new(
        "POST",
        url,
        [("content-type", CONTENT_TYPE)].into_iter(),
        SignableBody::Bytes(request.body().as_bytes()),
    )?;
    let (instructions, _) = sign(signable, &parameters.into())?.into_parts();
    instructions.apply_to_request_http1x(&mut request);
    Ok(Ready(request))
}
