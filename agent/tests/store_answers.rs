//! What the S3 client makes of answers that real servers give seldom: each test plays a server
//! that sends the given bytes, one answer a connection.
#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate_agent::error::{Kind, Result};
use tidegate_agent::store::{Created, Environment, Store, StoreSettings};

/// What the server does with a request.
#[derive(Clone)]
enum Answer {
    /// Status line, headers and body as they are sent; then it hangs up.
    Bytes(String),
    /// Nothing, ever.
    Silence,
}

/// An answer with a status and an S3 error code.
fn refusal(status: &str, code: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>because</Message></Error>");
    Answer::Bytes(format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    ))
}

/// An answer that succeeds with a body, which may be shorter than `length` says.
fn object(status: &str, headers: &str, length: usize, body: &str) -> Answer {
    Answer::Bytes(format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"x\"\r\n\
         Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n{headers}Connection: close\r\n\r\n{body}"
    ))
}

fn stored() -> Answer {
    object("200 OK", "", 0, "")
}

/// Plays `answers` in turn, and the last one for ever after. Returns the store that asks, and
/// the first lines of its requests.
fn served_by(answers: Vec<Answer>) -> (Store, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let environment = Environment::empty()
        .with(
            "AWS_ENDPOINT_URL",
            format!("http://{}", listener.local_addr().unwrap()),
        )
        .with("AWS_ACCESS_KEY_ID", "key")
        .with("AWS_SECRET_ACCESS_KEY", "secret");
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for (nth, connection) in listener.incoming().enumerate() {
            let mut connection = connection.unwrap();
            let Some(line) = read_request(&mut connection) else {
                continue;
            };
            seen.lock().unwrap().push(line);
            match answers.get(nth).or(answers.last()).unwrap() {
                Answer::Bytes(bytes) => drop(connection.write_all(bytes.as_bytes())),
                Answer::Silence => silent.push(connection),
            }
        }
    });
    let settings = StoreSettings {
        request_timeout: Duration::from_millis(300),
        operation_deadline: Duration::from_millis(1500),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
        ..StoreSettings::default()
    };
    let store = Store::open_in("s3://bucket/repo", &settings, &environment).unwrap();
    (store, requests)
}

/// The request's first line; its headers and body are read and dropped.
fn read_request(connection: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let head = String::from_utf8(request).unwrap().to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    connection.read_exact(&mut body).ok()?;
    head.lines().next().map(str::to_owned)
}

async fn create(answers: Vec<Answer>) -> Result<Created> {
    let (store, _) = served_by(answers);
    store.create("log/1", Bytes::from_static(b"record")).await
}

async fn kind_of(answer: Answer) -> Kind {
    create(vec![answer]).await.unwrap_err().kind()
}

#[tokio::test]
async fn a_busy_store_is_asked_again() {
    let busy = [
        refusal("503 Slow Down", "SlowDown"),
        refusal("500 Internal Server Error", "InternalError"),
        refusal("429 Too Many Requests", "TooManyRequests"),
        refusal("408 Request Timeout", "RequestTimeout"),
        Answer::Silence,
        Answer::Bytes(String::new()),
        stored(),
    ];
    assert_eq!(create(busy.to_vec()).await.unwrap(), Created::New);
}

#[tokio::test]
async fn a_pause_that_the_store_asks_for_is_made() {
    let asking = |pause: &str| {
        Answer::Bytes(format!(
            "HTTP/1.1 503 Slow Down\r\nRetry-After: {pause}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        ))
    };
    let started = std::time::Instant::now();
    let created = create(vec![asking("1"), stored()]).await.unwrap();
    assert_eq!(created, Created::New);
    assert!(started.elapsed() >= Duration::from_secs(1));
    // One that leaves no time is not waited for, and a date is no number.
    let error = create(vec![asking("3600")]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.chain();
    let last = "the store answered 503, to be asked again after 3600 s";
    assert!(
        text.contains("gave up after") && text.ends_with(last),
        "{text}"
    );
    let date = asking("Fri, 31 Dec 1999 23:59:59 GMT");
    assert_eq!(create(vec![date, stored()]).await.unwrap(), Created::New);
}

#[tokio::test]
async fn a_conflict_of_two_writers_is_not_taken_for_an_answer() {
    let conflict = refusal("409 Conflict", "ConditionalRequestConflict");
    let exists = refusal("412 Precondition Failed", "PreconditionFailed");
    let created = create(vec![conflict.clone(), stored()]).await.unwrap();
    assert_eq!(created, Created::New);
    let created = create(vec![conflict.clone(), exists]).await.unwrap();
    assert_eq!(created, Created::Exists);
    assert_eq!(kind_of(conflict).await, Kind::Unavailable);
}

#[tokio::test]
async fn every_put_is_create_only_and_sent_once() {
    let (store, requests) = served_by(vec![refusal("403 Forbidden", "AccessDenied")]);
    let error = store.create("log/1", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_eq!(
        error.chain(),
        "could not store log/1 in s3://bucket/repo: the store answered 403 AccessDenied (because)"
    );
    assert_eq!(
        *requests.lock().unwrap(),
        ["put /bucket/repo/log/1 http/1.1"]
    );
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    for (status, code, expected) in [
        ("401 Unauthorized", "", Kind::Denied),
        ("403 Forbidden", "InvalidAccessKeyId", Kind::Denied),
        ("403 Forbidden", "QuotaExceeded", Kind::NoSpace),
        ("400 Bad Request", "ExpiredToken", Kind::Denied),
        ("400 Bad Request", "InvalidArgument", Kind::Io),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            Kind::Config,
        ),
        ("301 Moved Permanently", "PermanentRedirect", Kind::Config),
        ("404 Not Found", "NoSuchBucket", Kind::Missing),
        ("501 Not Implemented", "NotImplemented", Kind::Unsupported),
        (
            "507 Insufficient Storage",
            "XMinioStorageFull",
            Kind::NoSpace,
        ),
    ] {
        assert_eq!(
            kind_of(refusal(status, code)).await,
            expected,
            "{status} {code}"
        );
    }
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up() {
    let error = create(vec![Answer::Silence]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.chain();
    assert!(
        text.contains("gave up after") && text.contains("no answer within 0.3 s"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_no_http_is_given_up() {
    let error = create(vec![Answer::Bytes("SSH-2.0-OpenSSH_9.2\r\n".into())])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_read_again() {
    let (store, requests) = served_by(vec![
        object("200 OK", "", 10, "01234"),
        object("200 OK", "", 10, "0123456789"),
    ]);
    assert_eq!(store.get("packs/1", 10).await.unwrap(), "0123456789");
    assert_eq!(requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_body_that_always_breaks_off_is_given_up() {
    let (store, _) = served_by(vec![object("200 OK", "", 10, "01234")]);
    let error = store.get("packs/1", 10).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn other_bytes_than_asked_for_are_refused() {
    for answer in [
        // The range is ignored.
        object("200 OK", "", 10, "0123456789"),
        // Another range is sent.
        object(
            "206 Partial Content",
            "Content-Range: bytes 0-3/10\r\n",
            4,
            "0123",
        ),
        // The announced length is not that of the range.
        object(
            "206 Partial Content",
            "Content-Range: bytes 2-5/10\r\n",
            2,
            "23",
        ),
    ] {
        let (store, _) = served_by(vec![answer]);
        let outcome = store.get_range("packs/1", 2..6).await;
        assert!(outcome.is_err(), "{outcome:?}");
    }
    let right = object(
        "206 Partial Content",
        "Content-Range: bytes 2-5/10\r\n",
        4,
        "2345",
    );
    let (store, _) = served_by(vec![right]);
    assert_eq!(store.get_range("packs/1", 2..6).await.unwrap(), "2345");
}

#[tokio::test]
async fn an_object_that_claims_to_be_huge_is_refused_unread() {
    let (store, _) = served_by(vec![object("200 OK", "", 1 << 50, "")]);
    let error = store.get("index/1", 1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(store.requests().bytes_down, 0);
}

#[tokio::test]
async fn without_credentials_the_message_says_where_they_are_looked_for() {
    // Nobody listens where the machine's role would be asked for.
    let environment = Environment::empty()
        .with("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        .with("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9");
    let store = Store::open_in("s3://bucket", &StoreSettings::default(), &environment).unwrap();
    let error = store.get("repository", 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error:?}");
    assert!(
        error.chain().contains("no credentials are configured"),
        "{error:?}"
    );
    assert!(error.advice().unwrap().contains("AWS_ACCESS_KEY_ID"));
}
