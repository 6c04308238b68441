//! What an HTTP store answered when it did not do what was asked.
//!
//! The object store library keeps status codes to itself. This connector sits under it, reads
//! refusals (bounded: a store's answer is outside input) and passes them on as [`Answer`]s, which
//! the error's chain of causes carries upwards. It neither retries nor counts.

use async_trait::async_trait;
use futures::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest,
    HttpResponse, HttpResponseBody, HttpService, ReqwestConnector,
};
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The longest body of a refusal that is looked at.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The longest code and message that is repeated to the operator.
const TEXT_CHARS_MAX: usize = 300;

/// A refusal by an HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The store's own word for it: `NoSuchBucket`, `BlobAlreadyExists`, …
    pub(super) code: Option<String>,
    message: Option<String>,
    /// The pause that the store asks for before the next request.
    pub(super) retry_after: Option<Duration>,
}

impl Answer {
    fn read(status: u16, code_header: Option<&str>, body: &str) -> Self {
        Self {
            status,
            code: code_header.or_else(|| element(body, "Code")).map(one_line),
            message: element(body, "Message").map(one_line),
            retry_after: None,
        }
    }

    /// With the header `Retry-After` in seconds. In its other form, a date, it is worth no more than
    /// our own pauses, which are shorter: it is passed over.
    fn asking_for(self, retry_after: Option<&str>) -> Self {
        let seconds = retry_after.and_then(|seconds| seconds.trim().parse().ok());
        Self {
            retry_after: seconds.map(Duration::from_secs),
            ..self
        }
    }

    pub(super) fn code_is(&self, codes: &[&str]) -> bool {
        self.code
            .as_deref()
            .is_some_and(|code| codes.contains(&code))
    }

    /// Whether the bucket, and not just an object in it, is missing.
    pub(super) fn bucket_is_missing(&self) -> bool {
        self.status == 404 && self.code_is(&["NoSuchBucket", "ContainerNotFound"])
    }

    /// Whether the library understands this answer: "not found", "not modified", "exists".
    ///
    /// Of conflicts only Azure's "blob exists" is one of these. S3's means that two requests met
    /// and neither result is known, so it must not pass as "exists".
    fn is_understood(&self) -> bool {
        match self.status {
            304 | 412 => true,
            404 => !self.bucket_is_missing(),
            409 => self.code_is(&["BlobAlreadyExists"]),
            _ => false,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store answered {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(message) = &self.message {
            write!(f, " ({message})")?;
        }
        match self.retry_after {
            Some(pause) => write!(f, ", to be asked again after {} s", pause.as_secs()),
            None => Ok(()),
        }
    }
}

impl StdError for Answer {}

/// The machine's own source of credentials could not be reached: there are none.
#[derive(Debug)]
pub(super) struct NoCredentials;

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no credentials are configured, and this machine has no role to take them from")
    }
}

impl StdError for NoCredentials {}

/// Makes HTTP clients whose refusals arrive as [`Answer`]s.
#[derive(Debug)]
pub(super) struct AnsweringConnector {
    /// What the store's own client waits for a connection.
    pub(super) connect_timeout: Duration,
}

impl HttpConnector for AnsweringConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // The library makes a second client for the service that gives a machine its role's
        // credentials, and gives up connecting to that one sooner.
        let connect_timeout = options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let own = ClientOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .get_config_value(&ClientConfigKey::ConnectTimeout);
        Ok(HttpClient::new(AnsweringService {
            inner: ReqwestConnector::default().connect(options)?,
            is_for_credentials: connect_timeout != own,
        }))
    }
}

#[derive(Debug)]
struct AnsweringService {
    inner: HttpClient,
    is_for_credentials: bool,
}

#[async_trait]
impl HttpService for AnsweringService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.inner.execute(request).await;
        if self.is_for_credentials {
            return match response {
                Ok(response) if response.status().as_u16() != 404 => Ok(response),
                _ => Err(HttpError::new(HttpErrorKind::Unknown, NoCredentials)),
            };
        }
        let response = response?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = read_bounded(body).await;
        let header = |name| {
            parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let answer = Answer::read(
            parts.status.as_u16(),
            header("x-ms-error-code"),
            &String::from_utf8_lossy(&body),
        )
        .asking_for(header("retry-after"));
        if answer.is_understood() {
            Ok(HttpResponse::from_parts(parts, body.into()))
        } else {
            Err(HttpError::new(HttpErrorKind::Unknown, answer))
        }
    }
}

/// The start of a body. A body that breaks off is as good as one that ended: it is for messages.
async fn read_bounded(body: HttpResponseBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut parts = body.bytes_stream();
    while let Some(Ok(part)) = parts.next().await {
        let room = BODY_BYTES_MAX - bytes.len();
        bytes.extend(part.iter().take(room));
        if bytes.len() == BODY_BYTES_MAX {
            break;
        }
    }
    bytes
}

/// The text of the first XML element of that name. The clouds' error bodies are flat and need
/// no more.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text)
}

/// The text without control characters and not too long.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for character in text.trim().chars().take(TEXT_CHARS_MAX) {
        line.push(if character.is_control() {
            ' '
        } else {
            character
        });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_BUCKET: &str = "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code>\
        <Message>The specified bucket\r\ndoes not exist</Message></Error>";

    #[test]
    fn codes_come_from_header_or_body() {
        let answer = Answer::read(404, None, NO_BUCKET);
        assert!(answer.bucket_is_missing());
        assert_eq!(
            answer.to_string(),
            "the store answered 404 NoSuchBucket (The specified bucket  does not exist)"
        );
        assert!(Answer::read(404, Some("ContainerNotFound"), "").bucket_is_missing());
        assert!(!Answer::read(404, Some("BlobNotFound"), "").bucket_is_missing());
    }

    #[test]
    fn an_unclear_conflict_never_passes_as_exists() {
        assert!(Answer::read(409, Some("BlobAlreadyExists"), "").is_understood());
        let body = "<Error><Code>ConditionalRequestConflict</Code></Error>";
        assert!(!Answer::read(409, None, body).is_understood());
        assert!(!Answer::read(409, None, "").is_understood());
    }

    #[test]
    fn hostile_bodies_give_short_single_lines() {
        let body = format!("<Message>{}</Message>", "\u{1b}[2J\n".repeat(100_000));
        let text = Answer::read(500, None, &body).to_string();
        assert!(text.chars().count() < 400, "{}", text.len());
        assert!(!text.contains(char::is_control), "{text:?}");
        assert_eq!(
            Answer::read(500, None, "<Code><Code></Cod").to_string(),
            "the store answered 500"
        );
    }
}
