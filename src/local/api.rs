//! The control plane: streams, and the operations on them. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::sigv4::Refusal;

/// The operations, as they are called in scenarios and counts. On the wire they are paths with a small first letter.
pub const OPERATIONS: [&str; 10] = [
    "CreateStream",
    "DescribeStream",
    "GetDataEndpoint",
    "TagStream",
    "UntagStream",
    "ListTagsForStream",
    "ListStreams",
    "UpdateDataRetention",
    "DeleteStream",
    "PutMedia",
];

/// What GetDataEndpoint may be asked for.
const API_NAMES: [&str; 8] = [
    "PUT_MEDIA",
    "GET_MEDIA",
    "LIST_FRAGMENTS",
    "GET_MEDIA_FOR_FRAGMENT_LIST",
    "GET_HLS_STREAMING_SESSION_URL",
    "GET_DASH_STREAMING_SESSION_URL",
    "GET_CLIP",
    "GET_IMAGES",
];

/// Ten years.
const MAX_RETENTION_HOURS: u64 = 87_600;

const MAX_TAGS: usize = 50;
const MAX_STREAMS: usize = 10_000;
const MAX_RESULTS: u64 = 10_000;

/// The operation that is called at `path`.
pub fn operation_at(path: &str) -> Option<&'static str> {
    let mut operations = OPERATIONS.into_iter();
    operations.find(|name| {
        let mut letters = name.chars();
        let first = letters.next().map(|letter| letter.to_ascii_lowercase());
        path.strip_prefix('/').is_some_and(|path| {
            let mut path = path.chars();
            path.next() == first && path.as_str() == letters.as_str()
        })
    })
}

/// A refusal, as the service words it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{exception}: {message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Name of the exception, for `x-amzn-ErrorType`.
    pub exception: String,
    /// For the body.
    pub message: String,
}

impl ApiError {
    /// Any answer other than success.
    pub fn new(status: StatusCode, exception: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            exception: exception.into(),
            message: message.into(),
        }
    }

    /// An exception with status 400.
    pub fn bad(exception: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, exception, message)
    }

    /// InvalidArgumentException.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::bad("InvalidArgumentException", message)
    }

    /// ResourceNotFoundException.
    pub fn not_found(name: &str) -> Self {
        let message = format!("The requested stream is not found or not active: {name}");
        Self::new(StatusCode::NOT_FOUND, "ResourceNotFoundException", message)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            refusal.exception(),
            refusal.to_string(),
        )
    }
}

/// What the operations need to know of the moment and the place.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// For what takes a while.
    pub now: Instant,
    /// The server's time since the Unix epoch.
    pub wall: Duration,
    /// The region that the request was signed for.
    pub region: &'a str,
    /// Where this endpoint can be reached.
    pub url: &'a str,
    /// New streams are CREATING so long, changed ones UPDATING.
    pub settle: Settle,
    /// Calls of one operation on one stream in a second.
    pub calls_per_second: Option<usize>,
}

/// How long streams are in passing states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settle {
    /// CREATING after CreateStream.
    pub creating: Duration,
    /// UPDATING after UpdateDataRetention.
    pub updating: Duration,
    /// DELETING after DeleteStream.
    pub deleting: Duration,
}

/// What DescribeStream says of a stream's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Being created.
    Creating,
    /// Usable.
    Active,
    /// Usable, with a change under way.
    Updating,
    /// On its way out.
    Deleting,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Active => "ACTIVE",
            Self::Updating => "UPDATING",
            Self::Deleting => "DELETING",
        }
    }
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    arn: String,
    device_name: Option<String>,
    media_type: Option<String>,
    kms_key: String,
    created: Duration,
    status: Status,
    /// When the passing status is over.
    settled: Instant,
    version: u64,
    /// Hours; 0 stores nothing.
    pub retention_hours: u64,
    tags: BTreeMap<String, String>,
    /// The PutMedia connection that holds the stream.
    pub live: Option<u64>,
    calls: BTreeMap<String, VecDeque<Instant>>,
}

impl Stream {
    /// Its ARN, which tells it from an earlier stream of the same name.
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// Its state.
    pub fn status(&self) -> Status {
        self.status
    }

    /// As UpdateDataRetention and DeleteStream want it back.
    fn version(&self) -> String {
        format!("V{:019}", self.version)
    }

    fn describe(&self, name: &str) -> Value {
        let mut info = Map::new();
        let mut set = |key: &str, value: Value| info.insert(key.into(), value);
        if let Some(device) = &self.device_name {
            set("DeviceName", device.as_str().into());
        }
        if let Some(media_type) = &self.media_type {
            set("MediaType", media_type.as_str().into());
        }
        set("StreamName", name.into());
        set("StreamARN", self.arn.as_str().into());
        set("KmsKeyId", self.kms_key.as_str().into());
        set("Version", self.version().into());
        set("Status", self.status.name().into());
        set("CreationTime", self.created.as_secs_f64().into());
        set("DataRetentionInHours", self.retention_hours.into());
        Value::Object(info)
    }
}

/// All streams of the endpoint.
#[derive(Debug, Default)]
pub struct Store {
    streams: BTreeMap<String, Stream>,
}

impl Store {
    /// Lets passing states pass.
    pub fn settle(&mut self, now: Instant) {
        self.streams
            .retain(|_, stream| stream.status != Status::Deleting || now < stream.settled);
        for stream in self.streams.values_mut() {
            if now >= stream.settled {
                stream.status = Status::Active;
            }
        }
    }

    /// The stream called `name`.
    pub fn get(&mut self, name: &str) -> Option<&mut Stream> {
        self.streams.get_mut(name)
    }

    /// The name of the stream with this ARN.
    pub fn name_of(&self, arn: &str) -> Option<String> {
        let mut streams = self.streams.iter();
        streams
            .find(|(_, stream)| stream.arn == arn)
            .map(|(name, _)| name.clone())
    }

    /// Counts a call of `operation` on `name` against the calls per second.
    ///
    /// # Errors
    /// ClientLimitExceededException.
    pub fn throttle(
        &mut self,
        name: &str,
        operation: &str,
        most: Option<usize>,
        now: Instant,
    ) -> Result<(), ApiError> {
        let (Some(most), Some(stream)) = (most, self.streams.get_mut(name)) else {
            return Ok(());
        };
        let calls = stream.calls.entry(operation.into()).or_default();
        calls.retain(|call| now.duration_since(*call) < Duration::from_secs(1));
        if calls.len() >= most {
            let message = format!("more than {most} {operation} calls a second");
            return Err(ApiError::bad("ClientLimitExceededException", message));
        }
        calls.push_back(now);
        Ok(())
    }

    /// Carries out any operation but PutMedia; `body` is the request's JSON.
    ///
    /// # Errors
    /// The service's exception.
    pub fn call(
        &mut self,
        operation: &str,
        body: &[u8],
        context: Context<'_>,
    ) -> Result<Value, ApiError> {
        self.settle(context.now);
        let answer = self.carry_out(operation, body, context);
        // States that pass at once.
        self.settle(context.now);
        answer
    }

    fn carry_out(
        &mut self,
        operation: &str,
        body: &[u8],
        context: Context<'_>,
    ) -> Result<Value, ApiError> {
        let body: Value = if body.is_empty() {
            json!({})
        } else {
            serde_json::from_slice(body)
                .map_err(|error| ApiError::bad("SerializationException", error.to_string()))?
        };
        let Value::Object(fields) = body else {
            return Err(ApiError::bad(
                "SerializationException",
                "the body is no object",
            ));
        };
        let request = Request(&fields);
        match operation {
            "CreateStream" => return self.create(request, context),
            "ListStreams" => return self.list(request),
            _ => {}
        }
        let name = self.named(request, operation)?;
        self.throttle(&name, operation, context.calls_per_second, context.now)?;
        let stream = self.streams.get_mut(&name).expect("found by name");
        match operation {
            "DescribeStream" => Ok(json!({ "StreamInfo": stream.describe(&name) })),
            "GetDataEndpoint" => {
                let api = request.need_text("APIName", 1..=64)?;
                if !API_NAMES.contains(&api) {
                    return Err(ApiError::argument(format!("APIName {api:?} is unknown")));
                }
                Ok(json!({ "DataEndpoint": context.url }))
            }
            "TagStream" => stream.tag(request),
            "UntagStream" => stream.untag(request),
            "ListTagsForStream" => Ok(json!({ "Tags": stream.tags })),
            "UpdateDataRetention" => stream.update_retention(request, context),
            "DeleteStream" => stream.delete(request, context),
            other => Err(ApiError::bad(
                "UnknownOperationException",
                format!("{other} is unknown"),
            )),
        }
    }

    /// The existing stream that the request names, by exactly one of name and ARN.
    fn named(&self, request: Request<'_>, operation: &str) -> Result<String, ApiError> {
        let name = request.text("StreamName", 1..=256)?;
        let arn = request.text("StreamARN", 1..=1024)?;
        match (name, arn) {
            (Some(name), None) if operation != "DeleteStream" => {
                check_name(name)?;
                let known = self.streams.contains_key(name);
                known
                    .then(|| name.to_owned())
                    .ok_or_else(|| ApiError::not_found(name))
            }
            (None, Some(arn)) => self.name_of(arn).ok_or_else(|| ApiError::not_found(arn)),
            (Some(_), Some(_)) => Err(ApiError::argument(
                "StreamName and StreamARN exclude each other",
            )),
            _ if operation == "DeleteStream" => Err(ApiError::argument("StreamARN is required")),
            _ => Err(ApiError::argument("StreamName or StreamARN is required")),
        }
    }

    fn create(&mut self, request: Request<'_>, context: Context<'_>) -> Result<Value, ApiError> {
        let name = request.need_text("StreamName", 1..=256)?;
        check_name(name)?;
        let device_name = request.text("DeviceName", 1..=128)?;
        let media_type = request.text("MediaType", 1..=128)?;
        if let Some(media_type) = media_type {
            check_media_type(media_type)?;
        }
        let kms_key = request.text("KmsKeyId", 1..=2048)?;
        let retention_hours = request.number("DataRetentionInHours")?.unwrap_or(0);
        if retention_hours > MAX_RETENTION_HOURS {
            return Err(ApiError::argument(format!(
                "DataRetentionInHours is more than {MAX_RETENTION_HOURS}"
            )));
        }
        let tags = request.tags("Tags", 0)?;
        if tags.len() > MAX_TAGS {
            return Err(too_many_tags());
        }
        if self.streams.contains_key(name) {
            let message = format!("The stream {name} already exists.");
            return Err(ApiError::bad("ResourceInUseException", message));
        }
        if self.streams.len() >= MAX_STREAMS {
            let message = format!("{MAX_STREAMS} streams");
            return Err(ApiError::bad(
                "AccountStreamLimitExceededException",
                message,
            ));
        }
        let arn = format!(
            "arn:aws:kinesisvideo:{}:123456789012:stream/{name}/{:013}",
            context.region,
            context.wall.as_millis()
        );
        let stream = Stream {
            arn: arn.clone(),
            device_name: device_name.map(Into::into),
            media_type: media_type.map(Into::into),
            kms_key: kms_key.unwrap_or("alias/aws/kinesisvideo").into(),
            created: context.wall,
            status: Status::Creating,
            settled: context.now + context.settle.creating,
            version: 1,
            retention_hours,
            tags,
            live: None,
            calls: BTreeMap::new(),
        };
        self.streams.insert(name.into(), stream);
        Ok(json!({ "StreamARN": arn }))
    }

    fn list(&self, request: Request<'_>) -> Result<Value, ApiError> {
        let most = request.number("MaxResults")?.unwrap_or(MAX_RESULTS);
        if !(1..=MAX_RESULTS).contains(&most) {
            return Err(ApiError::argument("MaxResults is not within 1 and 10000"));
        }
        let prefix = match request.0.get("StreamNameCondition") {
            None | Some(Value::Null) => "",
            Some(Value::Object(condition)) => {
                let condition = Request(condition);
                let operator = condition.text("ComparisonOperator", 1..=64)?;
                if !matches!(operator, None | Some("BEGINS_WITH")) {
                    return Err(ApiError::argument("ComparisonOperator is not BEGINS_WITH"));
                }
                condition
                    .text("ComparisonValue", 1..=256)?
                    .unwrap_or_default()
            }
            Some(_) => return Err(ApiError::argument("StreamNameCondition is no structure")),
        };
        let after = match request.text("NextToken", 0..=512)? {
            None => "",
            Some(token) => token
                .strip_prefix("after:")
                .ok_or_else(|| ApiError::argument("NextToken is not one of ours"))?,
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut matching = self
            .streams
            .iter()
            .filter(|(name, _)| name.starts_with(prefix) && name.as_str() > after);
        let page: Vec<_> = matching.by_ref().take(most).collect();
        let infos = page.iter().map(|(name, stream)| stream.describe(name));
        let mut answer = json!({ "StreamInfoList": infos.collect::<Vec<_>>() });
        if let (Some((last, _)), Some(_)) = (page.last(), matching.next()) {
            answer["NextToken"] = format!("after:{last}").into();
        }
        Ok(answer)
    }
}

impl Stream {
    fn tag(&mut self, request: Request<'_>) -> Result<Value, ApiError> {
        let mut tags = self.tags.clone();
        tags.extend(request.tags("Tags", 1)?);
        if tags.len() > MAX_TAGS {
            return Err(too_many_tags());
        }
        self.tags = tags;
        Ok(json!({}))
    }

    fn untag(&mut self, request: Request<'_>) -> Result<Value, ApiError> {
        let keys = request.0.get("TagKeyList").and_then(Value::as_array);
        let keys = keys
            .filter(|keys| (1..=MAX_TAGS).contains(&keys.len()))
            .ok_or_else(|| ApiError::argument("TagKeyList must have 1 to 50 keys"))?;
        for key in keys {
            if let Some(key) = key.as_str() {
                self.tags.remove(key);
            }
        }
        Ok(json!({}))
    }

    fn update_retention(
        &mut self,
        request: Request<'_>,
        context: Context<'_>,
    ) -> Result<Value, ApiError> {
        let version = request.need_text("CurrentVersion", 1..=64)?;
        let change = request.number("DataRetentionChangeInHours")?.unwrap_or(0);
        if change == 0 {
            return Err(ApiError::argument(
                "DataRetentionChangeInHours must be 1 or more",
            ));
        }
        let hours = match request.need_text("Operation", 1..=64)? {
            "INCREASE_DATA_RETENTION" => self.retention_hours.checked_add(change),
            "DECREASE_DATA_RETENTION" => self.retention_hours.checked_sub(change),
            _ => return Err(ApiError::argument("Operation is unknown")),
        };
        let hours = hours.filter(|hours| *hours <= MAX_RETENTION_HOURS);
        let hours = hours.ok_or_else(|| {
            ApiError::argument("the retention would not be within 0 and 87600 hours")
        })?;
        self.be_active()?;
        self.check_version(version)?;
        self.retention_hours = hours;
        self.version += 1;
        self.status = Status::Updating;
        self.settled = context.now + context.settle.updating;
        Ok(json!({}))
    }

    fn delete(&mut self, request: Request<'_>, context: Context<'_>) -> Result<Value, ApiError> {
        if let Some(version) = request.text("CurrentVersion", 1..=64)? {
            self.check_version(version)?;
        }
        self.be_active()?;
        self.status = Status::Deleting;
        self.settled = context.now + context.settle.deleting;
        Ok(json!({}))
    }

    fn be_active(&self) -> Result<(), ApiError> {
        if self.status == Status::Active {
            return Ok(());
        }
        let message = format!("The stream is {}.", self.status.name());
        Err(ApiError::bad("ResourceInUseException", message))
    }

    fn check_version(&self, version: &str) -> Result<(), ApiError> {
        if version == self.version() {
            return Ok(());
        }
        let message = format!("The stream's version is not {version}.");
        Err(ApiError::bad("VersionMismatchException", message))
    }
}

/// The fields of a request.
#[derive(Clone, Copy)]
struct Request<'a>(&'a Map<String, Value>);

impl<'a> Request<'a> {
    fn text(
        self,
        key: &str,
        length: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<&'a str>, ApiError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if length.contains(&text.chars().count()) => Ok(Some(text)),
            Some(_) => Err(ApiError::argument(format!(
                "{key} is not a text of {} to {} characters",
                length.start(),
                length.end()
            ))),
        }
    }

    fn need_text(
        self,
        key: &str,
        length: std::ops::RangeInclusive<usize>,
    ) -> Result<&'a str, ApiError> {
        self.text(key, length)?
            .ok_or_else(|| ApiError::argument(format!("{key} is required")))
    }

    fn number(self, key: &str) -> Result<Option<u64>, ApiError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| {
                ApiError::argument(format!("{key} is not a whole number from 0 on"))
            }),
        }
    }

    fn tags(self, key: &str, least: usize) -> Result<BTreeMap<String, String>, ApiError> {
        let empty = Map::new();
        let tags = match self.0.get(key) {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(tags)) => tags,
            Some(_) => return Err(ApiError::argument(format!("{key} is no map"))),
        };
        if tags.len() < least {
            return Err(ApiError::argument(format!("{key} is empty")));
        }
        if tags.len() > MAX_TAGS {
            return Err(too_many_tags());
        }
        let checked = tags.iter().map(|(key, value)| {
            let value = value
                .as_str()
                .ok_or_else(|| ApiError::argument("a tag's value is no text"))?;
            check_tag(key, value)?;
            Ok((key.clone(), value.to_owned()))
        });
        checked.collect()
    }
}

fn too_many_tags() -> ApiError {
    ApiError::bad(
        "TagsPerResourceExceededLimitException",
        format!("more than {MAX_TAGS} tags"),
    )
}

fn check_tag(key: &str, value: &str) -> Result<(), ApiError> {
    let allowed =
        |text: &str| (text.chars()).all(|c| c.is_alphanumeric() || " _.:/=+-@".contains(c));
    let good = (1..=128).contains(&key.chars().count())
        && value.chars().count() <= 256
        && allowed(key)
        && allowed(value);
    if !good {
        return Err(ApiError::argument(format!("the tag {key:?} is malformed")));
    }
    if key.to_ascii_lowercase().starts_with("aws:") {
        return Err(ApiError::argument(format!("the tag {key:?} is reserved")));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.chars().all(allowed) {
        return Ok(());
    }
    Err(ApiError::argument(format!(
        "StreamName {name:?} has other characters than a-zA-Z0-9_.-"
    )))
}

fn check_media_type(media_type: &str) -> Result<(), ApiError> {
    let part = |text: &str| {
        !text.is_empty() && (text.chars()).all(|c| c.is_ascii_alphanumeric() || "_-.+".contains(c))
    };
    let good = media_type.split(',').all(|one| {
        one.split_once('/')
            .is_some_and(|(kind, sub)| part(kind) && part(sub))
    });
    if good {
        return Ok(());
    }
    Err(ApiError::argument(format!(
        "MediaType {media_type:?} is not type/subtype[,type/subtype..]"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    struct Bench {
        store: Store,
        now: Instant,
        settle: Settle,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                store: Store::default(),
                now: Clock.now(),
                settle: Settle::default(),
            }
        }

        fn call(&mut self, operation: &str, body: &Value) -> Result<Value, ApiError> {
            let context = Context {
                now: self.now,
                wall: Duration::from_millis(1_551_924_009_774),
                region: "eu-west-1",
                url: "http://127.0.0.1:1",
                settle: self.settle,
                calls_per_second: None,
            };
            self.store
                .call(operation, body.to_string().as_bytes(), context)
        }

        fn error(&mut self, operation: &str, body: &Value) -> String {
            self.call(operation, body).unwrap_err().exception
        }

        fn info(&mut self) -> Value {
            let described = self.call("DescribeStream", &json!({"StreamName": "camera"}));
            described.unwrap()["StreamInfo"].clone()
        }
    }

    fn camera(retention: u64) -> Value {
        json!({"StreamName": "camera", "DataRetentionInHours": retention, "MediaType": "video/h264,audio/aac"})
    }

    #[test]
    fn paths_name_operations() {
        assert_eq!(operation_at("/putMedia"), Some("PutMedia"));
        assert_eq!(
            operation_at("/listTagsForStream"),
            Some("ListTagsForStream")
        );
        for wrong in ["/PutMedia", "putMedia", "/", "", "/putMedia/"] {
            assert_eq!(operation_at(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn create_describe_delete() {
        let mut bench = Bench::new();
        bench.settle.creating = Duration::from_secs(2);
        bench.settle.deleting = Duration::from_secs(2);
        let missing = bench.call("DescribeStream", &json!({"StreamName": "camera"}));
        assert_eq!(missing.unwrap_err().status, StatusCode::NOT_FOUND);
        let arn = bench.call("CreateStream", &camera(24)).unwrap()["StreamARN"].clone();
        assert_eq!(
            arn,
            "arn:aws:kinesisvideo:eu-west-1:123456789012:stream/camera/1551924009774"
        );
        let info = bench.info();
        assert_eq!(info["Status"], "CREATING");
        assert_eq!(info["StreamARN"], arn);
        assert_eq!(info["CreationTime"], 1_551_924_009.774);
        assert_eq!(info["DataRetentionInHours"], 24);
        assert_eq!(
            bench.error("CreateStream", &camera(24)),
            "ResourceInUseException"
        );
        let by_arn = json!({"StreamARN": arn});
        assert_eq!(
            bench.error("DeleteStream", &by_arn),
            "ResourceInUseException"
        );
        bench.now += Duration::from_secs(2);
        assert_eq!(bench.info()["Status"], "ACTIVE");
        let wrong = json!({"StreamARN": arn, "CurrentVersion": "x"});
        assert_eq!(
            bench.error("DeleteStream", &wrong),
            "VersionMismatchException"
        );
        bench.call("DeleteStream", &by_arn).unwrap();
        assert_eq!(bench.info()["Status"], "DELETING");
        bench.now += Duration::from_secs(2);
        assert_eq!(
            bench.error("DescribeStream", &by_arn),
            "ResourceNotFoundException"
        );
    }

    #[test]
    fn arguments_are_checked() {
        let mut bench = Bench::new();
        let long = "x".repeat(257);
        for wrong in [
            json!({}),
            json!({"StreamName": ""}),
            json!({"StreamName": long}),
            json!({"StreamName": "a b"}),
            json!({"StreamName": 7}),
            json!({"StreamName": "a", "MediaType": "video"}),
            json!({"StreamName": "a", "DeviceName": ""}),
            json!({"StreamName": "a", "DataRetentionInHours": -1}),
            json!({"StreamName": "a", "DataRetentionInHours": 87_601}),
            json!({"StreamName": "a", "Tags": {"aws:x": "y"}}),
            json!({"StreamName": "a", "Tags": {"": "y"}}),
            json!({"StreamName": "a", "Tags": {"x": "#"}}),
        ] {
            assert_eq!(
                bench.error("CreateStream", &wrong),
                "InvalidArgumentException",
                "{wrong}"
            );
        }
        bench.call("CreateStream", &camera(1)).unwrap();
        let arn = bench.info()["StreamARN"].clone();
        for wrong in [json!({}), json!({"StreamName": "camera", "StreamARN": arn})] {
            assert_eq!(
                bench.error("DescribeStream", &wrong),
                "InvalidArgumentException"
            );
        }
        let by_name = json!({"StreamName": "camera"});
        assert_eq!(
            bench.error("DeleteStream", &by_name),
            "InvalidArgumentException"
        );
        assert_eq!(
            bench.error("GetDataEndpoint", &by_name),
            "InvalidArgumentException"
        );
        let odd = json!({"StreamName": "camera", "APIName": "PUT"});
        assert_eq!(
            bench.error("GetDataEndpoint", &odd),
            "InvalidArgumentException"
        );
        let good = json!({"StreamName": "camera", "APIName": "PUT_MEDIA"});
        let endpoint = bench.call("GetDataEndpoint", &good).unwrap();
        assert_eq!(endpoint["DataEndpoint"], "http://127.0.0.1:1");
        assert_eq!(
            bench.error("PutMedia", &by_name),
            "UnknownOperationException"
        );
        assert_eq!(
            bench.error("DescribeStream", &json!([])),
            "SerializationException"
        );
    }

    #[test]
    fn retention_changes_by_a_difference() {
        let mut bench = Bench::new();
        bench.settle.updating = Duration::from_secs(1);
        bench.call("CreateStream", &camera(24)).unwrap();
        let update = |bench: &mut Bench, version: &Value, operation: &str, hours: u64| {
            let body = json!({
                "StreamName": "camera", "CurrentVersion": version,
                "Operation": operation, "DataRetentionChangeInHours": hours,
            });
            bench
                .call("UpdateDataRetention", &body)
                .map_err(|error| error.exception)
        };
        let version = bench.info()["Version"].clone();
        let (more, less) = ("INCREASE_DATA_RETENTION", "DECREASE_DATA_RETENTION");
        let mismatch = update(&mut bench, &json!("old"), more, 1);
        assert_eq!(mismatch, Err("VersionMismatchException".into()));
        for (operation, hours) in [(more, 0), (more, 87_577), (less, 25), ("MORE", 1)] {
            let refused = update(&mut bench, &version, operation, hours);
            assert_eq!(
                refused,
                Err("InvalidArgumentException".into()),
                "{operation} {hours}"
            );
        }
        update(&mut bench, &version, more, 2).unwrap();
        let info = bench.info();
        assert_eq!(
            (&info["Status"], &info["DataRetentionInHours"]),
            (&json!("UPDATING"), &json!(26))
        );
        assert_ne!(info["Version"], version);
        let busy = update(&mut bench, &info["Version"], less, 1);
        assert_eq!(busy, Err("ResourceInUseException".into()));
        bench.now += Duration::from_secs(1);
        update(&mut bench, &info["Version"], less, 26).unwrap();
        assert_eq!(bench.info()["DataRetentionInHours"], 0);
    }

    #[test]
    fn tags_come_and_go() {
        let mut bench = Bench::new();
        bench.call("CreateStream", &camera(1)).unwrap();
        let with = |tags: Value| json!({"StreamName": "camera", "Tags": tags});
        bench
            .call("TagStream", &with(json!({"site": "1", "gate": "a"})))
            .unwrap();
        bench
            .call("TagStream", &with(json!({"site": "2"})))
            .unwrap();
        let by_name = json!({"StreamName": "camera"});
        let tags = bench.call("ListTagsForStream", &by_name).unwrap();
        assert_eq!(tags["Tags"], json!({"site": "2", "gate": "a"}));
        assert_eq!(
            bench.error("TagStream", &with(json!({}))),
            "InvalidArgumentException"
        );
        let many: Map<_, _> = (0..49).map(|n| (format!("k{n}"), json!("v"))).collect();
        let limit = "TagsPerResourceExceededLimitException";
        assert_eq!(bench.error("TagStream", &with(Value::Object(many))), limit);
        let keys = json!({"StreamName": "camera", "TagKeyList": ["gate", "none"]});
        bench.call("UntagStream", &keys).unwrap();
        let tags = bench.call("ListTagsForStream", &by_name).unwrap();
        assert_eq!(tags["Tags"], json!({"site": "2"}));
    }

    #[test]
    fn streams_are_listed_in_pages() {
        let mut bench = Bench::new();
        for name in ["a1", "b1", "b2", "b3"] {
            bench
                .call("CreateStream", &json!({"StreamName": name}))
                .unwrap();
        }
        let names = |answer: &Value| {
            let infos = answer["StreamInfoList"].as_array().unwrap().clone();
            infos
                .iter()
                .map(|info| info["StreamName"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let condition = json!({"ComparisonOperator": "BEGINS_WITH", "ComparisonValue": "b"});
        let mut ask = json!({"MaxResults": 2, "StreamNameCondition": condition});
        let first = bench.call("ListStreams", &ask).unwrap();
        assert_eq!(names(&first), ["b1", "b2"]);
        ask["NextToken"] = first["NextToken"].clone();
        let second = bench.call("ListStreams", &ask).unwrap();
        assert_eq!(names(&second), ["b3"]);
        assert_eq!(second.get("NextToken"), None);
        for wrong in [
            json!({"MaxResults": 0}),
            json!({"NextToken": "x"}),
            json!({"StreamNameCondition": 1}),
        ] {
            assert_eq!(
                bench.error("ListStreams", &wrong),
                "InvalidArgumentException"
            );
        }
    }

    #[test]
    fn calls_are_counted_when_asked_for() {
        let mut bench = Bench::new();
        bench.call("CreateStream", &camera(1)).unwrap();
        let now = bench.now;
        let mut call = |at| bench.store.throttle("camera", "PutMedia", Some(5), at);
        for _ in 0..5 {
            call(now).unwrap();
        }
        assert_eq!(
            call(now).unwrap_err().exception,
            "ClientLimitExceededException"
        );
        assert!(call(now + Duration::from_secs(1)).is_ok());
    }
}
