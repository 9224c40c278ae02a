//! A stand-in for metal-apiserver, boot helper and broken servers, for the tests of this crate.
//! The contract test against the published API package is part of the test bed.
//!
//! It takes whole HTTP/1.1 requests on `[::1]` and answers each with what a closure says,
//! so that it can also misbehave in ways that a server library would not allow.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use url::Url;

use super::envelope::wrap;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Request line and headers.
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    /// The last segment of the path: the method's name.
    pub fn name(&self) -> &str {
        let path = self.head.split(' ').nth(1).unwrap_or("");
        path.rsplit('/').next().unwrap_or("")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What happens to a request.
pub enum Act {
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
    /// Silence for so long, then the bytes, then the connection is closed.
    After(Duration, Vec<u8>),
    /// One byte of these after the other, slowly.
    Drip(Duration, Vec<u8>),
    /// The bytes, and the connection is held open.
    Hold(Vec<u8>),
    /// Silence until something else has happened, then the bytes, and the connection is held open.
    On(Arc<Notify>, Vec<u8>),
}

/// A running stand-in; it ends with the test's runtime.
pub struct StandIn {
    pub url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl StandIn {
    pub async fn start(act: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        let act = Arc::new(act);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (all, act) = (all.clone(), act.clone());
                tokio::spawn(async move {
                    let _ = converse(stream, &all, &*act).await;
                });
            }
        });
        Self { url, seen }
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The names of the methods called so far.
    pub fn names(&self) -> Vec<String> {
        self.seen()
            .iter()
            .map(|seen| seen.name().to_owned())
            .collect()
    }
}

async fn converse(
    mut stream: TcpStream,
    all: &Mutex<Vec<Seen>>,
    act: &(impl Fn(&Seen, usize) -> Act + Send + Sync),
) -> std::io::Result<()> {
    let seen = read_request(&mut stream).await?;
    let act = {
        let mut all = all.lock().unwrap();
        let earlier = all.iter().filter(|other| other.name() == seen.name());
        let act = act(&seen, earlier.count());
        all.push(seen);
        act
    };
    match act {
        Act::Raw(bytes) => stream.write_all(&bytes).await,
        Act::After(time, bytes) => {
            tokio::time::sleep(time).await;
            stream.write_all(&bytes).await
        }
        Act::Drip(pause, bytes) => {
            for byte in bytes {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(())
        }
        Act::Hold(bytes) => hold(stream, &bytes).await,
        Act::On(event, bytes) => {
            event.notified().await;
            hold(stream, &bytes).await
        }
    }
}

async fn hold(mut stream: TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    let mut rest = [0; 64];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length: usize = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length:")
                .map(|n| n.trim().parse().unwrap())
        })
        .unwrap_or(0);
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let body = bytes[end..].to_vec();
    Ok(Seen { head, body })
}

/// An address at which connections are refused, for as long as the socket lives.
pub fn nobody() -> (tokio::net::TcpSocket, Url) {
    let socket = tokio::net::TcpSocket::new_v6().unwrap();
    socket.bind("[::1]:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, Url::parse(&format!("http://{address}")).unwrap())
}

/// A whole HTTP response with extra header lines, each ended by CRLF.
pub fn response(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A JSON response.
pub fn json(status: u16, body: &str) -> Act {
    let headers = "content-type: application/json\r\n";
    Act::Raw(response(status, headers, body.as_bytes()))
}

/// An error as Connect sends it.
pub fn refuse(status: u16, code: &str, message: &str) -> Act {
    let body = serde_json::json!({"code": code, "message": message, "details": []});
    json(status, &body.to_string())
}

/// The head of a stream and envelopes of these messages.
pub fn stream(messages: &[&str], end: Option<&str>) -> Vec<u8> {
    let mut bytes =
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/connect+json\r\n\r\n"
            .to_vec();
    for message in messages {
        bytes.extend(wrap(message.as_bytes()).unwrap());
    }
    if let Some(end) = end {
        let mut envelope = wrap(end.as_bytes()).unwrap();
        envelope[0] = 2;
        bytes.extend(envelope);
    }
    bytes
}
