//! Monitors that answer late, wrong, too much, or somebody else.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use tokio::io::AsyncReadExt as _;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}"#;

/// A monitor that says `lines` at once and then keeps its socket open; the first answers
/// `qmp_capabilities`, the second the first command.
fn monitor(lines: &[&str]) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let said: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    tokio::spawn(async move {
        theirs.write_all(said.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let _ = theirs.read_to_end(&mut heard).await;
    });
    ours
}

async fn ask(lines: &[&str]) -> Result<(Value, Vec<Event>)> {
    let mut qmp = Qmp::greet(monitor(lines), "the machine".to_owned()).await?;
    let answer = qmp.execute("query-name", Value::Null).await?;
    Ok((answer, qmp.take_events()))
}

#[tokio::test]
async fn answers_are_told_from_events_by_their_ids() {
    let (answer, events) = ask(&[
        GREETING,
        r#"{"return": {}, "id": 0}"#,
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
        r#"{"event": "RESET", "data": {"guest": true}}"#,
        r#"{"return": {"name": "web01"}, "id": 1}"#,
    ])
    .await
    .unwrap();
    assert_eq!(answer["name"], "web01");
    let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["STOP", "RESET"]);

    let wrong = ask(&[
        GREETING,
        r#"{"return": {}, "id": 0}"#,
        r#"{"return": 7, "id": 9}"#,
    ]);
    let error = wrong.await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains("nobody asked"), "{error:?}");
}

#[tokio::test]
async fn a_refusal_names_the_command_and_leaves_the_connection() {
    let lines = [
        GREETING,
        r#"{"return": {}, "id": 0}"#,
        r#"{"id": 1, "error": {"class": "CommandNotFound", "desc": "no such command"}}"#,
        r#"{"return": {"name": "web01"}, "id": 2}"#,
    ];
    let mut qmp = Qmp::greet(monitor(&lines), "web01".to_owned())
        .await
        .unwrap();
    assert_eq!(qmp.version().major, 10);
    let error = qmp.execute("query-name", Value::Null).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    let text = error.to_string();
    assert!(
        text.contains("web01 refuses query-name: no such command"),
        "{text}"
    );
    assert!(qmp.execute("query-name", Value::Null).await.is_ok());
}

#[tokio::test]
async fn silence_ends_and_an_unanswered_command_ends_the_connection() {
    let greet = |lines: &[&str]| {
        let patience = Patience {
            greeting_max: Duration::from_millis(200),
            answer_max: Duration::from_millis(200),
        };
        Qmp::greet_within(monitor(lines), "web01".to_owned(), patience)
    };
    let error = greet(&[]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("another program"), "{error:?}");

    let silent = [GREETING, r#"{"return": {}, "id": 0}"#];
    let mut qmp = greet(&silent).await.unwrap();
    for what in ["does not answer query-name", "failed earlier"] {
        let error = qmp.execute("query-name", Value::Null).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains(what), "{error:?}");
    }
}

#[tokio::test]
async fn nonsense_and_endless_lines_are_errors() {
    for nonsense in ["[]", "{}", "\u{0}", r#"{"return": {}, "id": "zero"}"#] {
        let error = ask(&[GREETING, nonsense]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{nonsense}");
    }
    let endless = format!("\"{}", "x".repeat(LINE_BYTES_MAX + 1));
    let error = ask(&[&endless]).await.unwrap_err();
    assert!(error.chain().contains("too long"), "{}", error.chain());
}
