//! The control plane through the AWS SDK, over the same HTTP and TLS stack as the media.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig, imds, profile};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_kinesisvideo::Client;
use aws_sdk_kinesisvideo::config::IdentityCache;
use aws_sdk_kinesisvideo::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesisvideo::types::{ApiName, Status, UpdateDataRetentionOperation};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::RetryConfig;
use rustls::ClientConfig;

use super::credentials::keeper::{Keeper, Source};
use super::credentials::{Provider, iot, refresh};
use super::failure::{self, Failure, FailureKind};
use super::service_clock::ServiceClock;
use super::session::{Call, Reply};
use super::sign::{self, PutMedia};
use super::transport::untrusted;
use crate::chain;
use crate::clock::Clock;
use crate::codes::Code;
use crate::frame::{Codec, Timecode};

/// For TCP and TLS of one call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Which stream, where, and what it is created with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the stream.
    pub stream: String,
    /// Its region, where the environment is not to decide.
    pub region: Option<String>,
    /// Address of the control plane, where the environment is not to decide.
    pub endpoint: Option<String>,
    /// Fixed credentials, whatever `provider` says.
    pub credentials: Option<Credentials>,
    /// Where credentials come from.
    pub provider: Provider,
    /// When they are fetched again.
    pub refresh: refresh::Settings,
    /// DataRetentionInHours of a stream that is created.
    pub retention_hours: u32,
    /// KMS key of a stream that is created.
    pub kms_key: Option<String>,
    /// Tags for the stream.
    pub tags: Vec<(String, String)>,
}

/// What the service knows of a stream. Empty texts are those that it does not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its whole name.
    pub arn: String,
    /// `CREATING`, `ACTIVE`, `UPDATING`, `DELETING`.
    pub status: String,
    /// For how long media is kept; 0: not at all.
    pub retention_hours: u32,
    /// What the media is encrypted with.
    pub kms_key: String,
    /// What it is for.
    pub media_type: String,
    /// What a change has to name.
    pub version: String,
}

impl StreamInfo {
    /// Whether it takes media, and changes.
    pub fn is_active(&self) -> bool {
        self.status == "ACTIVE"
    }
}

/// Why streaming cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody says which region.
    #[error("no AWS region: give --region, or set AWS_REGION")]
    NoRegion,
    /// The region is none.
    #[error("{0:?} is no AWS region: it is written like us-west-2")]
    BadRegion(String),
    /// The HTTP client could not be made.
    #[error("cannot set up the HTTP client")]
    Client(#[from] reqwest::Error),
    /// The address of the control plane is none.
    #[error("the endpoint {0:?} is no http or https address")]
    BadEndpoint(String),
    /// What AWS IoT needs is not there, or does not go together.
    #[error(transparent)]
    Iot(#[from] iot::Error),
}

/// Gives the SDK the credentials that the keeper holds.
#[derive(Debug, Clone)]
struct Held(Arc<Keeper>);

impl ProvideCredentials for Held {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let credentials = self.0.use_them();
        future::ProvideCredentials::ready(
            credentials.ok_or_else(|| CredentialsError::not_loaded("none so far")),
        )
    }
}

/// Gives the SDK the service's time to sign with.
#[derive(Debug, Clone)]
struct ServiceTime(ServiceClock);

impl TimeSource for ServiceTime {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.0.now()
    }
}

/// The way to the service.
#[derive(Debug, Clone)]
pub struct Aws {
    options: Options,
    region: String,
    place: String,
    client: Client,
    sts: aws_sdk_sts::Client,
    keeper: Arc<Keeper>,
    /// The service's clock, and ours for waiting.
    clock: ServiceClock,
    waiting: Clock,
}

impl Aws {
    /// Reads the environment and the AWS config files. Makes no call, but for a region that only the instance metadata
    /// service knows.
    ///
    /// # Errors
    /// When there is no usable region or endpoint, or what AWS IoT needs is of no use.
    pub async fn load(options: Options, tls: &ClientConfig, clock: Clock) -> Result<Self, Error> {
        let service_clock = ServiceClock::new(clock);
        let http = http_client(tls, service_clock.clone())?;
        // What is known of the service's clock goes into the time.
        let time = ServiceTime(service_clock.clone());
        let [fips, dual_stack] = ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"]
            .map(|name| named(name).map(|value| value.trim().eq_ignore_ascii_case("true")));
        // For whoever has to ask for a region or for credentials.
        let provider = ProviderConfig::default()
            .with_http_client(http.clone())
            .with_time_source(time.clone())
            .with_retry_config(RetryConfig::disabled())
            .with_use_fips(fips)
            .with_use_dual_stack(dual_stack);
        let region = RegionProviderChain::first_try(options.region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(
                profile::region::Builder::default()
                    .configure(&provider)
                    .build(),
            )
            .or_else(
                imds::region::Builder::default()
                    .configure(&provider)
                    .build(),
            );
        let of_calls = region.region().await.ok_or(Error::NoRegion)?;
        let region = of_calls.to_string();
        if region.is_empty() {
            return Err(Error::NoRegion);
        }
        let plain =
            |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        if !region.contains('-') || !region.chars().all(plain) {
            return Err(Error::BadRegion(region));
        }
        let own = Source::own(&options.provider, tls, &service_clock);
        let source = match (&options.credentials, own) {
            (Some(fixed), _) => Source::Chain(SharedCredentialsProvider::new(fixed.clone())),
            (None, Some(source)) => source,
            (None, None) => {
                let chain = DefaultCredentialsChain::builder()
                    .configure(provider)
                    .region(of_calls.clone());
                Source::Chain(SharedCredentialsProvider::new(chain.build().await))
            }
        };
        source.check()?;
        let keeper = Keeper::new(source, options.refresh, service_clock.clone(), clock);
        let keeper = Arc::new(keeper);
        let mut sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(of_calls)
            .http_client(http)
            .time_source(time)
            // It would correct what is right already.
            .disable_clock_skew_correction(true)
            // The session tries again, and knows when not to.
            .retry_config(RetryConfig::disabled())
            .identity_cache(IdentityCache::no_cache())
            .credentials_provider(SharedCredentialsProvider::new(Held(Arc::clone(&keeper))))
            .use_fips(fips.unwrap_or(false))
            .use_dual_stack(dual_stack.unwrap_or(false));
        let all = named("AWS_ENDPOINT_URL");
        let endpoint = options
            .endpoint
            .clone()
            .or_else(|| named("AWS_ENDPOINT_URL_KINESIS_VIDEO"))
            .or_else(|| all.clone());
        if let Some(endpoint) = &endpoint {
            check_endpoint(endpoint)?;
        }
        let sts_endpoint = named("AWS_ENDPOINT_URL_STS")
            .or(all)
            .or_else(|| options.endpoint.clone());
        sdk.set_endpoint_url(sts_endpoint);
        let sdk = sdk.build();
        let sts = aws_sdk_sts::Client::new(&sdk);
        let mut config = aws_sdk_kinesisvideo::config::Builder::from(&sdk);
        config.set_endpoint_url(endpoint.clone());
        let client = Client::from_conf(config.build());
        let place = endpoint.unwrap_or_else(|| format!("region {region}"));
        Ok(Self {
            options,
            region,
            place,
            client,
            sts,
            keeper,
            clock: service_clock,
            waiting: clock,
        })
    }

    /// Where the control plane is, for the log.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Makes a call, which may take until `limit`, from the name's look-up to the last byte of the answer. `codec` is what a
    /// stream that has to be created will carry.
    ///
    /// # Errors
    /// What went wrong, sorted, in one line.
    pub async fn call(
        &self,
        call: Call,
        codec: Option<Codec>,
        limit: Duration,
    ) -> Result<Reply, Failure> {
        let work = async {
            match call {
                Call::Credentials => self.credentials(limit).await,
                Call::Describe => self.describe().await,
                Call::Create => self.create(codec).await,
                Call::Tag => self.tag().await,
                Call::Endpoint => self.endpoint().await,
            }
        };
        if call == Call::Credentials {
            // Whoever fetches them keeps to the limit, and says whom it waited for.
            return work.await;
        }
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let message = format!(
                "{call:?}: no answer from {} for {} s",
                self.place,
                limit.as_secs_f32()
            );
            Err(Failure::new(FailureKind::Network, message))
        })
    }

    /// Keeps the credentials fresh, for ever: calls and connections are signed with the newest.
    pub async fn keep_credentials(self) {
        self.keeper.keep().await;
    }

    /// The signed headers of a PutMedia request to `origin` that begins now.
    ///
    /// # Errors
    /// When there are no credentials, or a value cannot stand in a header.
    pub fn put_media(&self, origin: &str, start: Timecode) -> Result<http::HeaderMap, sign::Error> {
        let host = origin
            .split_once("://")
            .map_or(origin, |(_, rest)| rest)
            .trim_end_matches('/');
        let credentials = self.keeper.use_them();
        let request = PutMedia {
            stream: &self.options.stream,
            host,
            region: &self.region,
            start,
            signed_at: self.clock.now(),
        };
        // Without credentials the session does not get here; the service would say so.
        let credentials =
            credentials.unwrap_or_else(|| Credentials::new("", "", None, None, "none"));
        sign::headers(&request, &credentials)
    }

    /// The wall clock as the service has it, as far as that is known.
    pub fn clock(&self) -> &ServiceClock {
        &self.clock
    }

    async fn credentials(&self, limit: Duration) -> Result<Reply, Failure> {
        self.keeper.renew(limit).await?;
        Ok(Reply::Credentials(self.credentials_end()))
    }

    /// When the credentials at hand end; `None` where that is not known, or not yet: a clock that the service has not put
    /// right may be years off.
    pub fn credentials_end(&self) -> Option<Instant> {
        if !self.clock.has_heard() {
            return None;
        }
        let left = self.keeper.end()?.saturating_sub(self.clock.now());
        Some(self.waiting.now() + left)
    }

    async fn describe(&self) -> Result<Reply, Failure> {
        let stream = self.look_at().await?;
        Ok(Reply::Described {
            active: stream.is_active() || stream.status == "UPDATING",
            deleting: stream.status == "DELETING",
            retention_hours: stream.retention_hours,
        })
    }

    /// What the service knows of the stream: DescribeStream.
    ///
    /// # Errors
    /// What went wrong; [`FailureKind::NotFound`] where there is none.
    pub async fn look_at(&self) -> Result<StreamInfo, Failure> {
        let call = self
            .client
            .describe_stream()
            .stream_name(&self.options.stream);
        let answer = call
            .send()
            .await
            .map_err(|error| self.failure("DescribeStream", &error))?;
        let stream = answer
            .stream_info()
            .ok_or_else(|| self.incomplete("DescribeStream"))?;
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Ok(StreamInfo {
            arn: text(stream.stream_arn()),
            status: text(stream.status().map(Status::as_str)),
            retention_hours: stream
                .data_retention_in_hours()
                .and_then(|hours| u32::try_from(hours).ok())
                .unwrap_or(0),
            kms_key: text(stream.kms_key_id()),
            media_type: text(stream.media_type()),
            version: text(stream.version()),
        })
    }

    /// The ARN of whoever the credentials are of, as the Security Token Service has it.
    ///
    /// # Errors
    /// Why that cannot be told, in one line.
    pub async fn who(&self, limit: Duration) -> Result<String, String> {
        let answer = tokio::time::timeout(limit, self.sts.get_caller_identity().send()).await;
        match answer {
            Ok(Ok(caller)) => Ok(caller.arn().unwrap_or_default().to_owned()),
            Ok(Err(SdkError::ServiceError(refusal))) => {
                Err(failure::words(&refusal.err().to_string()).to_owned())
            }
            Ok(Err(error)) => Err(root_cause(&error).to_string()),
            Err(_) => Err(format!("no answer for {} s", limit.as_secs_f32())),
        }
    }

    /// Has the service keep the stream's media for so many hours more: UpdateDataRetention.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn raise_retention(&self, stream: &StreamInfo, hours: u32) -> Result<(), Failure> {
        let call = self
            .client
            .update_data_retention()
            .stream_name(&self.options.stream)
            .current_version(&stream.version)
            .operation(UpdateDataRetentionOperation::IncreaseDataRetention)
            .data_retention_change_in_hours(i32::try_from(hours).unwrap_or(i32::MAX));
        call.send()
            .await
            .map_err(|error| self.failure("UpdateDataRetention", &error))?;
        Ok(())
    }

    async fn create(&self, codec: Option<Codec>) -> Result<Reply, Failure> {
        let hours = i32::try_from(self.options.retention_hours).unwrap_or(i32::MAX);
        let call = self
            .client
            .create_stream()
            .stream_name(&self.options.stream)
            .set_media_type(codec.map(|codec| codec.media_type().to_owned()))
            .data_retention_in_hours(hours)
            .set_kms_key_id(self.options.kms_key.clone())
            .set_tags((!self.options.tags.is_empty()).then(|| self.tags()));
        call.send()
            .await
            .map_err(|error| self.failure("CreateStream", &error))?;
        Ok(Reply::Created)
    }

    async fn tag(&self) -> Result<Reply, Failure> {
        let call = self
            .client
            .tag_stream()
            .stream_name(&self.options.stream)
            .set_tags(Some(self.tags()));
        call.send()
            .await
            .map_err(|error| self.failure("TagStream", &error))?;
        Ok(Reply::Tagged)
    }

    async fn endpoint(&self) -> Result<Reply, Failure> {
        let call = self
            .client
            .get_data_endpoint()
            .stream_name(&self.options.stream)
            .api_name(ApiName::PutMedia);
        let answer = call
            .send()
            .await
            .map_err(|error| self.failure("GetDataEndpoint", &error))?;
        let origin = answer
            .data_endpoint()
            .ok_or_else(|| self.incomplete("GetDataEndpoint"))?;
        Ok(Reply::Endpoint(origin.to_owned()))
    }

    fn tags(&self) -> HashMap<String, String> {
        self.options.tags.iter().cloned().collect()
    }

    fn incomplete(&self, call: &str) -> Failure {
        let message = format!(
            "{call}: the answer from {} lacks what was asked for",
            self.place
        );
        Failure::new(FailureKind::Service, message)
    }

    fn failure<E>(&self, call: &str, error: &SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let place = &self.place;
        let raw = error.raw_response();
        match (error, raw) {
            (SdkError::ServiceError(context), Some(raw)) => {
                let code = context.err().code().unwrap_or_default();
                let said = failure::words(context.err().message().unwrap_or_default());
                let status = raw.status().as_u16();
                let kind = failure::of_answer(status, code, said);
                let stream = &self.options.stream;
                let colon = if said.is_empty() { "" } else { ": " };
                let message = format!(
                    "{call} of {stream:?} at {place} was refused with {status} {code}{colon}{said}"
                );
                Failure::new(kind, message).with_code(Code::of_answer(status, code, said))
            }
            (_, Some(raw)) => {
                let status = raw.status().as_u16();
                let kind = failure::of_answer(status, "", "");
                let advice = "is the endpoint that of Kinesis Video Streams?";
                let message =
                    format!("{call} at {place}: the answer ({status}) cannot be read; {advice}");
                Failure::new(kind, message).with_code(Code::of_answer(status, "", ""))
            }
            (error, None) => {
                if let Some(reason @ rustls::Error::InvalidCertificate(_)) = tls_error(error) {
                    Failure::new(FailureKind::Untrusted, untrusted(place, reason))
                } else {
                    self.unreachable(call, error)
                }
            }
        }
    }

    fn unreachable(&self, call: &str, error: &(dyn StdError + 'static)) -> Failure {
        let cause = root_cause(error);
        let not_http = cause.downcast_ref().is_some_and(hyper::Error::is_parse);
        let unresolved = chain(error).to_string().contains("dns error");
        let advice = match (unresolved, self.place.strip_prefix("region ")) {
            (true, Some(region)) => {
                format!("; is the region {region:?} right, and the network up?")
            }
            (true, None) => "; is the endpoint's name right, and the network up?".to_owned(),
            // Something answered.
            _ if not_http || tls_error(error).is_some() => {
                "; is that the right port, and http or https as it should be?".to_owned()
            }
            _ => String::new(),
        };
        let message = format!("{call}: cannot reach {}: {cause}{advice}", self.place);
        Failure::new(FailureKind::Network, message)
    }
}

/// What the environment says, if anything.
fn named(variable: &str) -> Option<String> {
    std::env::var(variable)
        .ok()
        .filter(|value| !value.is_empty())
}

fn check_endpoint(endpoint: &str) -> Result<(), Error> {
    let uri: Option<http::Uri> = endpoint.parse().ok();
    let usable = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
    });
    if usable {
        Ok(())
    } else {
        Err(Error::BadEndpoint(endpoint.into()))
    }
}

/// The last error of the chain: the operating system's or the library's word, without the wrappings.
pub(super) fn root_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// What is wrong with TLS, wherever it is in the chain. An `io::Error` hides what it wraps from `source`.
pub(super) fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inside = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// The SDK's calls over one `reqwest` client.
#[derive(Debug, Clone)]
struct Connector {
    client: reqwest::Client,
    clock: ServiceClock,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Self { client, clock } = self.clone();
        HttpConnectorFuture::new(async move {
            let request = request
                .try_into_http1x()
                .map_err(|error| ConnectorError::user(error.into()))?;
            let request = request.map(|body| body.bytes().map(<[u8]>::to_vec).unwrap_or_default());
            let request = reqwest::Request::try_from(request).map_err(connector_error)?;
            let response = client.execute(request).await.map_err(connector_error)?;
            let (status, headers) = (response.status(), response.headers().clone());
            clock.hear(&headers);
            let body = response.bytes().await.map_err(connector_error)?;
            let mut response = http::Response::new(SdkBody::from(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            HttpResponse::try_from(response).map_err(|error| ConnectorError::user(error.into()))
        })
    }
}

fn connector_error(error: reqwest::Error) -> ConnectorError {
    if error.is_timeout() {
        ConnectorError::timeout(error.into())
    } else {
        ConnectorError::io(error.into())
    }
}

fn http_client(
    tls: &ClientConfig,
    clock: ServiceClock,
) -> Result<SharedHttpClient, reqwest::Error> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        // One call follows the other at the start. A connection that is kept any longer may be dead by the next one, which
        // would then hang.
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(2))
        // PutMedia goes straight to the service; and credentials of this machine are not for a proxy to see.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let connector = SharedHttpConnector::new(Connector { client, clock });
    Ok(http_client_fn(move |_, _| connector.clone()))
}

/// The CA file that the environment names, where no option does: as AWS's producer and as OpenSSL have it.
pub fn ca_file_from_environment() -> Option<PathBuf> {
    ["AWS_KVS_CACERT_PATH", "SSL_CERT_FILE"]
        .iter()
        .find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
        .map(PathBuf::from)
}
