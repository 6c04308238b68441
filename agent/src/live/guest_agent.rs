//! The agent in a guest (qemu-guest-agent): asked to freeze the guest's file systems, and to thaw them.
//!
//! Not a conversation that can be relied on: the guest may be anything, and its agent may be gone, busy
//! or hostile. The invariants: whatever it says is bounded in length and time; what it says before it
//! answers the question that begins a conversation is not heard.
//!
//! The protocol: <https://qemu-project.gitlab.io/qemu/interop/qemu-ga-ref.html>.

use crate::clock;
use crate::error::{Error, Kind, Result};
use serde_json::{Value, json};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an agent may take to say that it is there.
const GREETING_TIME_MAX: Duration = Duration::from_secs(3);
/// How long it may take to freeze: what the guest has not written yet is written first.
const FREEZE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long it may take to thaw.
const THAW_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest line that is read of it, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// What it has said to others, and not yet been read, in bytes.
const STALE_BYTES_MAX: u64 = 1 << 20;
/// Begins the answer to `guest-sync-delimited`, and stands in no other.
const DELIMITER: u8 = 0xff;

/// A connection to a guest's agent.
#[derive(Debug)]
pub struct GuestAgent {
    stream: BufReader<UnixStream>,
}

impl GuestAgent {
    /// Connects to the agent behind the socket of QEMU's channel to it.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] where it does not answer; [`Kind::Missing`] or [`Kind::Denied`] of the
    /// socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.map_err(|error| {
            Error::io(
                format!("cannot connect to the guest agent at {}", socket.display()),
                error,
            )
        })?;
        Self::greet(stream).await
    }

    /// The same over a connection that is there.
    pub(super) async fn greet(stream: UnixStream) -> Result<Self> {
        let mut agent = Self {
            stream: BufReader::new(stream),
        };
        match timeout(GREETING_TIME_MAX, agent.synchronise()).await {
            Ok(greeted) => greeted.map(|()| agent),
            Err(_) => Err(silent("guest-sync-delimited", GREETING_TIME_MAX)),
        }
    }

    /// Freezes all file systems of the guest. Says how many.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]. They may be frozen all the same.
    pub async fn freeze(&mut self) -> Result<u64> {
        let answer = self.ask("guest-fsfreeze-freeze", FREEZE_TIME_MAX).await?;
        count(&answer)
    }

    /// Whether file systems are frozen.
    ///
    /// # Errors
    /// [`Kind::Unavailable`].
    pub async fn is_frozen(&mut self) -> Result<bool> {
        let answer = self.ask("guest-fsfreeze-status", THAW_TIME_MAX).await?;
        Ok(answer.as_str() == Some("frozen"))
    }

    /// Thaws all file systems. Says how many were frozen.
    ///
    /// # Errors
    /// [`Kind::Unavailable`].
    pub async fn thaw(&mut self) -> Result<u64> {
        // What was asked before may still be answered.
        match timeout(GREETING_TIME_MAX, self.synchronise()).await {
            Ok(greeted) => greeted?,
            Err(_) => return Err(silent("guest-sync-delimited", GREETING_TIME_MAX)),
        }
        let answer = self.ask("guest-fsfreeze-thaw", THAW_TIME_MAX).await?;
        count(&answer)
    }

    /// The connection itself.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }

    /// Asks something whose answer cannot be taken for another, and skips what comes before it.
    async fn synchronise(&mut self) -> Result<()> {
        // A number that JSON's readers all take for one.
        let id = u32::from_le_bytes(clock::random()?);
        let question = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        self.say(&[&[DELIMITER], question.to_string().as_bytes(), b"\n"].concat())
            .await?;
        loop {
            self.skip().await?;
            let answer = self.line().await?;
            if answer["return"].as_u64() == Some(id.into()) {
                return Ok(());
            }
        }
    }

    async fn ask(&mut self, command: &str, time_max: Duration) -> Result<Value> {
        let asked = async {
            let question = json!({ "execute": command }).to_string() + "\n";
            self.say(question.as_bytes()).await?;
            self.line().await
        };
        let mut answer = timeout(time_max, asked)
            .await
            .map_err(|_| silent(command, time_max))??;
        if let Some(error) = answer.get("error") {
            let text = error["desc"].as_str().unwrap_or_default().escape_debug();
            return Err(unavailable(format!(
                "the guest agent refuses {command}: {text}"
            )));
        }
        Ok(answer["return"].take())
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<()> {
        let said = self.stream.get_mut().write_all(bytes).await;
        said.map_err(|error| Error::io("cannot write to the guest agent", error))
    }

    /// Reads up to the delimiter.
    async fn skip(&mut self) -> Result<()> {
        let mut skipped = Vec::new();
        let mut stream = (&mut self.stream).take(STALE_BYTES_MAX);
        let read = stream.read_until(DELIMITER, &mut skipped).await;
        read.map_err(|error| Error::io("cannot read from the guest agent", error))?;
        match skipped.last() {
            Some(&DELIMITER) => Ok(()),
            _ => Err(unavailable("the guest agent does not say what it should")),
        }
    }

    async fn line(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        let mut stream = (&mut self.stream).take(LINE_BYTES_MAX);
        let read = stream.read_until(b'\n', &mut line).await;
        read.map_err(|error| Error::io("cannot read from the guest agent", error))?;
        serde_json::from_slice(&line).map_err(|error| {
            unavailable("the guest agent says something that is no answer").caused_by(error)
        })
    }
}

fn count(answer: &Value) -> Result<u64> {
    answer
        .as_u64()
        .ok_or_else(|| unavailable("the guest agent does not say how many file systems it means"))
}

fn silent(command: &str, time_max: Duration) -> Error {
    unavailable(format!(
        "the guest agent did not answer {command} within {} s",
        time_max.as_secs()
    ))
}

fn unavailable(text: impl Into<String>) -> Error {
    Error::new(Kind::Unavailable, text)
        .advise("look whether qemu-guest-agent runs in the guest and has its channel")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// An agent that has said `before`, and answers each question after the greeting with the next of
    /// `answers`.
    fn agent(before: &'static [u8], answers: &'static [&'static [u8]]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            theirs.get_mut().write_all(before).await.unwrap();
            let mut answers = answers.iter();
            loop {
                let mut line = Vec::new();
                if theirs.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                    return;
                }
                let said = match line.strip_prefix(&[DELIMITER]) {
                    Some(question) => {
                        let question: Value = serde_json::from_slice(question).unwrap();
                        let id = &question["arguments"]["id"];
                        [
                            &[DELIMITER][..],
                            format!("{{\"return\": {id}}}\n").as_bytes(),
                        ]
                        .concat()
                    }
                    None => match answers.next() {
                        Some(answer) => answer.to_vec(),
                        // Silence.
                        None => continue,
                    },
                };
                theirs.get_mut().write_all(&said).await.unwrap();
            }
        });
        ours
    }

    #[tokio::test]
    async fn what_was_said_before_is_not_heard() {
        let before = b"{\"return\": 7}\n\xff{\"return\": 3}\nrubbish";
        let stream = agent(
            before,
            &[
                b"{\"return\": 2}\n",
                b"{\"return\": \"frozen\"}\n",
                b"{\"return\": 2}\n",
            ],
        );
        let mut agent = GuestAgent::greet(stream).await.unwrap();
        assert_eq!(agent.freeze().await.unwrap(), 2);
        assert!(agent.is_frozen().await.unwrap());
        assert_eq!(agent.thaw().await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_an_agent_says_or_does_not_say_is_an_error_in_time() {
        const ANSWERS: [&[&[u8]]; 5] = [
            &[b"{\"error\": {\"class\": \"x\", \"desc\": \"no\\u0007\"}}\n"],
            &[b"{\"return\": \"many\"}\n"],
            &[b"{}\n"],
            &[b"nonsense\n"],
            &[],
        ];
        for answers in ANSWERS {
            let mut agent = GuestAgent::greet(agent(b"", answers)).await.unwrap();
            let error = agent.freeze().await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
            assert!(!error.chain().contains('\u{7}'), "{error:?}");
        }
        // One that never greets, one that talks without an end, one that is gone.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let error = GuestAgent::greet(ours).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        drop(theirs);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let talking =
            tokio::spawn(async move { while theirs.write_all(&[b'x'; 4096]).await.is_ok() {} });
        assert!(GuestAgent::greet(ours).await.is_err());
        talking.await.unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(GuestAgent::greet(ours).await.is_err());
    }
}
