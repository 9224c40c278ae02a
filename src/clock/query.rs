//! Asks NTP servers, all at once; the first answer that stands every check counts.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use super::sntp::{self, Answer};

/// Servers asked; what is beyond is a mistake, or an attack on the servers.
const MAX_SERVERS: usize = 8;
/// Longer than any answer: extension fields and authentication are not read.
const BUFFER: usize = 512;

/// How long a server may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Requests sent.
    pub attempts: u32,
    /// Until the next one.
    pub pause: Duration,
}

impl Patience {
    /// For servers that somebody named.
    pub const NAMED: Self = Self {
        attempts: 4,
        pause: Duration::from_secs(1),
    };
    /// For hosts that may be NTP servers too: little is lost when they are not.
    pub const GUESSED: Self = Self {
        attempts: 2,
        pause: Duration::from_millis(500),
    };
}

/// No server gave a usable answer.
#[derive(Debug, thiserror::Error)]
#[error("no NTP server gave the time:{0}")]
pub struct Unanswered(String);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer")]
    Silent,
    #[error(transparent)]
    Io(io::Error),
    #[error(transparent)]
    Answer(#[from] sntp::Error),
}

/// Asks all `servers` and takes the first good answer.
///
/// # Errors
/// None came; the text has what each server did.
pub async fn ask(
    servers: &[SocketAddrV6],
    patience: Patience,
) -> Result<(SocketAddrV6, Answer), Unanswered> {
    let mut asked: FuturesUnordered<_> = servers
        .iter()
        .take(MAX_SERVERS)
        .map(|server| async move { (*server, exchange(*server, patience).await) })
        .collect();
    let mut failures = String::new();
    while let Some((server, result)) = asked.next().await {
        match result {
            Ok(answer) => return Ok((server, answer)),
            Err(error) => {
                let _ = write!(failures, " {server}: {error};");
            }
        }
    }
    Err(Unanswered(failures.trim_end_matches(';').to_owned()))
}

async fn exchange(server: SocketAddrV6, patience: Patience) -> Result<Answer, Failure> {
    // Connected: the kernel takes datagrams from this server alone, and says when nobody
    // listens there.
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .await
        .map_err(Failure::Io)?;
    socket.connect(server).await.map_err(Failure::Io)?;
    for _ in 0..patience.attempts {
        // A server that refuses, or says that it does not know, is not asked again.
        if let Ok(result) = timeout(patience.pause, attempt(&socket)).await {
            return result;
        }
    }
    Err(Failure::Silent)
}

/// One request. An answer to another one is passed over: anybody can send it, and it must not
/// end the attempt.
async fn attempt(socket: &UdpSocket) -> Result<Answer, Failure> {
    let nonce = rand::random();
    let sent = Timestamp::now();
    let begun = Instant::now();
    let request = sntp::request(nonce);
    socket.send(&request).await.map_err(Failure::Io)?;
    let mut buffer = [0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(Failure::Io)?;
        let took = SignedDuration::try_from(begun.elapsed()).unwrap_or(SignedDuration::MAX);
        // The monotonic clock measures: the other one may be set meanwhile.
        let received = sent.checked_add(took).unwrap_or(sent);
        let packet = buffer.get(..length).unwrap_or_default();
        match sntp::answer(packet, nonce, sent, received) {
            Err(sntp::Error::NotOurs | sntp::Error::NotAnAnswer { .. } | sntp::Error::Short(_)) => {
            }
            judged => return Ok(judged?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Patience = Patience {
        attempts: 2,
        pause: Duration::from_millis(100),
    };

    /// A server on `[::1]` that sends what `reply` makes of each request.
    async fn server(
        reply: impl Fn([u8; sntp::PACKET], usize) -> Vec<Vec<u8>> + Send + 'static,
    ) -> SocketAddrV6 {
        let socket = UdpSocket::bind("[::1]:0").await.unwrap();
        let std::net::SocketAddr::V6(address) = socket.local_addr().unwrap() else {
            unreachable!()
        };
        tokio::spawn(async move {
            let mut packet = [0; sntp::PACKET];
            for count in 0.. {
                let (_, client) = socket.recv_from(&mut packet).await.unwrap();
                for answer in reply(packet, count) {
                    socket.send_to(&answer, client).await.unwrap();
                }
            }
        });
        address
    }

    /// The answer of a server at stratum 3 whose clock shows `seconds` of era 0.
    fn good(request: [u8; sntp::PACKET], seconds: u32) -> Vec<u8> {
        let mut packet = vec![0; sntp::PACKET];
        packet[0] = 4 << 3 | 4;
        packet[1] = 3;
        packet[24..32].copy_from_slice(&request[40..]);
        packet[32..36].copy_from_slice(&seconds.to_be_bytes());
        packet[40..44].copy_from_slice(&seconds.to_be_bytes());
        packet
    }

    /// 2030-01-01T00:00:00Z since 1900.
    const SECONDS: u32 = 4_102_444_800;

    fn nearly_2030(answer: &Answer) -> bool {
        let new = Timestamp::now().checked_add(answer.offset).unwrap();
        (new.as_second() - 1_893_456_000).abs() < 60
    }

    #[tokio::test]
    async fn the_first_good_answer_counts() {
        let silent = server(|_, _| vec![]).await;
        let refuses = server(|request, _| {
            let mut packet = good(request, SECONDS);
            packet[1] = 0;
            packet[12..16].copy_from_slice(b"RATE");
            vec![packet]
        })
        .await;
        let right = server(|request, _| vec![good(request, SECONDS)]).await;
        let (from, answer) = ask(&[silent, refuses, right], QUICK).await.unwrap();
        assert_eq!((from, answer.stratum), (right, 3));
        assert!(nearly_2030(&answer), "{answer:?}");
    }

    #[tokio::test]
    async fn a_forged_answer_does_not_end_the_attempt() {
        let address = server(|request, _| {
            let mut forged = good(request, SECONDS);
            forged[24] ^= 0xff;
            vec![vec![1, 2, 3], forged, good(request, SECONDS)]
        })
        .await;
        let (_, answer) = ask(&[address], QUICK).await.unwrap();
        assert!(nearly_2030(&answer), "{answer:?}");
    }

    #[tokio::test]
    async fn a_lost_request_is_sent_again() {
        let address = server(|request, count| match count {
            0 => vec![],
            _ => vec![good(request, SECONDS)],
        })
        .await;
        assert!(ask(&[address], QUICK).await.is_ok());
    }

    #[tokio::test]
    async fn what_each_server_did_is_said() {
        let silent = server(|_, _| vec![]).await;
        let unsure = server(|request, _| {
            let mut packet = good(request, SECONDS);
            packet[0] |= 3 << 6;
            vec![packet]
        })
        .await;
        let closed = UdpSocket::bind("[::1]:0").await.unwrap().local_addr();
        let std::net::SocketAddr::V6(closed) = closed.unwrap() else {
            unreachable!()
        };
        let error = ask(&[silent, unsure, closed], QUICK).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("{silent}: no answer")), "{text}");
        assert!(text.contains("not synchronised itself"), "{text}");
        assert!(
            text.contains(&format!("{closed}: Connection refused")),
            "{text}"
        );
    }
}
