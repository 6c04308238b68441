//! An HTTP proxy that fails on demand, between a store's real client and its real server.
//!
//! It passes bytes on as they came, head and body, one request at a time on each connection, and knows
//! no more of HTTP/1.1 than where a message ends. What shall go wrong with a request, a script says. It
//! is no general proxy: what it does not know (trailers, upgrades, more than one answer) it does not
//! meet here.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What shall go wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFault {
    /// The server never sees it; the answer is this status with this S3 error code.
    Refuse {
        /// The status and its words, such as `503 Slow Down`.
        status: &'static str,
        /// The code in the body.
        code: &'static str,
        /// The header `Retry-After`, in seconds.
        retry_after: Option<u32>,
    },
    /// The connection is reset, and the server never sees the request.
    ResetBefore,
    /// The server does what is asked, and the connection is reset in place of an answer.
    ResetAfter,
    /// The server never sees it, and there is no answer.
    StallBefore,
    /// The server does what is asked, and there is no answer.
    StallAfter,
    /// The answer breaks off after so many bytes of its body. One that is shorter is not touched.
    CutOff(usize),
    /// The body of the answer comes at so many bytes a second.
    Slow(usize),
    /// It is delivered twice, and the answer is the second delivery's.
    Repeat,
    /// The answer is the first delivery's, and it is delivered again that much later.
    RepeatLate(Duration),
}

/// A request, as the script sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCall {
    /// How many came before it.
    pub ordinal: u64,
    /// `GET` and the like.
    pub method: String,
    /// Path and query.
    pub target: String,
}

/// Decides what goes wrong with each request.
type Script = Box<dyn FnMut(&HttpCall) -> Option<HttpFault> + Send>;

/// A proxy in front of a server on this machine. It ends with its value.
pub struct FaultyProxy {
    address: Ipv4Addr,
    port: u16,
    state: Arc<Mutex<State>>,
    /// Dropped with it: its thread's sign to end.
    _running: tokio::sync::oneshot::Sender<()>,
}

struct State {
    calls: Vec<HttpCall>,
    script: Script,
}

impl FaultyProxy {
    /// Starts one in front of the server on `port` of 127.0.0.1; nothing fails until a script says so.
    ///
    /// # Panics
    /// Where no port can be listened on.
    pub fn before(port: u16) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, port)
    }

    /// The same, for clients that find it at `address`.
    ///
    /// # Panics
    /// Where no port can be listened on.
    pub fn at(address: Ipv4Addr, port: u16) -> Self {
        let state = Arc::new(Mutex::new(State {
            calls: Vec::new(),
            script: Box::new(|_| None),
        }));
        let listener = std::net::TcpListener::bind((address, 0)).expect("a port is free");
        listener
            .set_nonblocking(true)
            .expect("a socket can be made not to block");
        let own_port = listener.local_addr().expect("it is bound").port();
        let (running, ended) = tokio::sync::oneshot::channel::<()>();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made")
                .block_on(async {
                    tokio::select! {
                        () = accept(listener, port, shared) => {}
                        _ = ended => {}
                    }
                });
        });
        Self {
            address,
            port: own_port,
            state,
            _running: running,
        }
    }

    /// Where clients find it, such as `http://127.0.0.1:4711`.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.address, self.port)
    }

    /// Replaces the script.
    pub fn script(&self, script: impl FnMut(&HttpCall) -> Option<HttpFault> + Send + 'static) {
        self.lock().script = Box::new(script);
    }

    /// Lets everything succeed again.
    pub fn heal(&self) {
        self.script(|_| None);
    }

    /// The requests so far, in the order they came.
    pub fn calls(&self) -> Vec<HttpCall> {
        self.lock().calls.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: std::net::TcpListener, port: u16, state: Arc<Mutex<State>>) {
    let listener = TcpListener::from_std(listener).expect("a runtime takes a socket");
    loop {
        if let Ok((client, _)) = listener.accept().await {
            // Whatever ends a connection, a client or a server: the other side sees it end.
            tokio::spawn(serve(client, port, Arc::clone(&state)));
        }
    }
}

/// Serves one connection of a client to its end.
async fn serve(client: TcpStream, port: u16, state: Arc<Mutex<State>>) -> io::Result<()> {
    let mut client = BufReader::new(client);
    while let Some(request) = Message::read(&mut client, Expect::Request).await? {
        let fault = decide(&state, &request);
        match fault {
            Some(HttpFault::Refuse {
                status,
                code,
                retry_after,
            }) => {
                let answer = refusal(status, code, retry_after, request.is_head());
                client.get_mut().write_all(answer.as_bytes()).await?;
            }
            Some(HttpFault::ResetBefore) => return reset(client),
            Some(HttpFault::ResetAfter) => {
                forward(port, &request).await?;
                return reset(client);
            }
            Some(HttpFault::StallBefore) => return std::future::pending().await,
            Some(HttpFault::StallAfter) => {
                forward(port, &request).await?;
                return std::future::pending().await;
            }
            Some(HttpFault::CutOff(bytes)) => {
                let answer = forward(port, &request).await?;
                client.get_mut().write_all(&answer.head).await?;
                let Some(part) = answer
                    .body
                    .get(..bytes)
                    .filter(|_| answer.body.len() > bytes)
                else {
                    client.get_mut().write_all(&answer.body).await?;
                    continue;
                };
                client.get_mut().write_all(part).await?;
                return client.get_mut().shutdown().await;
            }
            Some(HttpFault::Slow(bytes_per_second)) => {
                let answer = forward(port, &request).await?;
                client.get_mut().write_all(&answer.head).await?;
                for part in answer.body.chunks((bytes_per_second / 20).max(1)) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    client.get_mut().write_all(part).await?;
                }
            }
            Some(HttpFault::Repeat) => {
                forward(port, &request).await?;
                pass_back(&mut client, &forward(port, &request).await?).await?;
            }
            Some(HttpFault::RepeatLate(pause)) => {
                pass_back(&mut client, &forward(port, &request).await?).await?;
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    forward(port, &request).await
                });
            }
            None => pass_back(&mut client, &forward(port, &request).await?).await?,
        }
    }
    Ok(())
}

fn decide(state: &Mutex<State>, request: &Message) -> Option<HttpFault> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let line = request.first_line();
    let mut words = line.split(' ').map(str::to_owned);
    let call = HttpCall {
        ordinal: state.calls.len() as u64,
        method: words.next().unwrap_or_default(),
        target: words.next().unwrap_or_default(),
    };
    let fault = (state.script)(&call);
    state.calls.push(call);
    fault
}

fn refusal(status: &str, code: &str, retry_after: Option<u32>, is_head: bool) -> String {
    let body = format!("<Error><Code>{code}</Code><Message>the proxy says so</Message></Error>");
    let retry =
        retry_after.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
    let length = body.len();
    let body = if is_head { String::new() } else { body };
    format!("HTTP/1.1 {status}\r\n{retry}Content-Length: {length}\r\n\r\n{body}")
}

/// Closes a connection so that the other side reads "reset by peer".
fn reset(client: BufReader<TcpStream>) -> io::Result<()> {
    client.into_inner().set_zero_linger()
}

async fn pass_back(client: &mut BufReader<TcpStream>, answer: &Message) -> io::Result<()> {
    client.get_mut().write_all(&answer.head).await?;
    client.get_mut().write_all(&answer.body).await
}

/// Sends a request to the server, on a connection of its own, and reads the answer.
async fn forward(port: u16, request: &Message) -> io::Result<Message> {
    let mut server = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    server.get_mut().write_all(&request.head).await?;
    server.get_mut().write_all(&request.body).await?;
    let expect = Expect::Answer {
        to_head: request.is_head(),
    };
    Message::read(&mut server, expect)
        .await?
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// What a message is, which decides whether it has a body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Request,
    Answer { to_head: bool },
}

/// A request or an answer, as it came over the wire.
struct Message {
    /// First line and headers, with the empty line.
    head: Vec<u8>,
    /// All that follows, chunked where it came so.
    body: Vec<u8>,
}

impl Message {
    /// The next message; nothing where the connection ended before it.
    async fn read(from: &mut BufReader<TcpStream>, expect: Expect) -> io::Result<Option<Self>> {
        let mut message = Self {
            head: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let start = message.head.len();
            if from.read_until(b'\n', &mut message.head).await? == 0 {
                return match start {
                    0 => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            if message.head.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        let is_bodiless = match expect {
            Expect::Request => false,
            Expect::Answer { to_head } => {
                let line = message.first_line();
                let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
                to_head || matches!(status.as_str(), "204" | "304")
            }
        };
        if is_bodiless {
            return Ok(Some(message));
        }
        if let Some(length) = message.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            message.body.resize(length, 0);
            from.read_exact(&mut message.body).await?;
        } else if message.header("transfer-encoding").as_deref() == Some("chunked") {
            message.read_chunks(from).await?;
        } else if expect != Expect::Request {
            from.read_to_end(&mut message.body).await?;
        }
        Ok(Some(message))
    }

    async fn read_chunks(&mut self, from: &mut BufReader<TcpStream>) -> io::Result<()> {
        loop {
            let start = self.body.len();
            from.read_until(b'\n', &mut self.body).await?;
            let line = String::from_utf8_lossy(&self.body[start..]);
            let digits = line.trim().split(';').next().unwrap_or_default();
            let length = usize::from_str_radix(digits, 16).map_err(io::Error::other)?;
            let start = self.body.len();
            // The chunk, and the line's end behind it.
            self.body.resize(start + length + 2, 0);
            from.read_exact(&mut self.body[start..]).await?;
            if length == 0 {
                return Ok(());
            }
        }
    }

    fn first_line(&self) -> String {
        let end = self.head.iter().position(|byte| *byte == b'\r');
        String::from_utf8_lossy(&self.head[..end.unwrap_or(0)]).into_owned()
    }

    fn is_head(&self) -> bool {
        self.head.starts_with(b"HEAD ")
    }

    /// A header's value in lower case.
    fn header(&self, name: &str) -> Option<String> {
        let head = String::from_utf8_lossy(&self.head).to_ascii_lowercase();
        head.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    }
}
