//! `metal-anvil lldp listen IFACE`: the neighbours on one link as they come and go. Only
//! listens; it changes nothing on the host.

use std::fmt;
use std::io;
use std::io::Write;

use jiff::Timestamp;
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::frame::{self, Capabilities, Frame};
use super::neighbours::{Neighbours, News, describe, is_switch};
use super::socket::Socket;

/// Why there is nothing to be heard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no interface {0:?}: {1}")]
    NoInterface(String, nix::Error),
    #[error("cannot listen on {0} (needs root, or CAP_NET_RAW): {1}")]
    Socket(String, io::Error),
    #[error("{0}: {1}")]
    Receive(String, io::Error),
}

/// How neighbours are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A line that a person reads.
    Line,
    /// One JSON object a line.
    Json,
}

/// Prints the neighbours of `interface` to `output` until that is closed.
///
/// # Errors
/// No such interface, no permission, or the interface goes away.
pub async fn listen(interface: &str, format: Format, output: &mut impl Write) -> Result<(), Error> {
    let index = if_nametoindex(interface)
        .map_err(|errno| Error::NoInterface(interface.to_owned(), errno))?;
    let socket = Socket::open(index).map_err(|error| Error::Socket(interface.to_owned(), error))?;
    let mut neighbours = Neighbours::default();
    let mut refused = None;
    loop {
        let expiry = neighbours.next_expiry();
        let over = async {
            match expiry {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let mut events = Vec::new();
        tokio::select! {
            received = socket.receive() => match received.map(|bytes| frame::parse(&bytes)) {
                Ok(Ok(frame)) => {
                    let news = neighbours.learn(index, frame.clone(), Instant::now());
                    events.extend(news.map(|news| (Event::of(news), frame)));
                }
                // A broken sender repeats itself: once is enough.
                Ok(Err(error)) if refused.as_ref() != Some(&error) => {
                    eprintln!("{interface}: frame refused: {error}");
                    refused = Some(error);
                }
                Ok(Err(_)) => {}
                // The link is down; the socket works on when it is up again.
                Err(error) if error.kind() == io::ErrorKind::NetworkDown => {}
                Err(error) => return Err(Error::Receive(interface.to_owned(), error)),
            },
            () = over => {
                let gone = neighbours.expire(Instant::now());
                events.extend(gone.into_iter().map(|frame| (Event::Silent, frame)));
            }
        }
        for (event, frame) in events {
            let line = match format {
                Format::Line => line(Timestamp::now(), interface, event, &frame),
                Format::Json => object(Timestamp::now(), interface, event, &frame).to_string(),
            };
            // A reader that has seen enough is no error.
            if writeln!(output, "{line}")
                .and_then(|()| output.flush())
                .is_err()
            {
                return Ok(());
            }
        }
    }
}

/// What happened to a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    New,
    Changed,
    /// It said goodbye.
    Gone,
    /// Its time to live is over.
    Silent,
}

impl Event {
    fn of(news: News) -> Self {
        match news {
            News::New => Self::New,
            News::Changed => Self::Changed,
            News::Gone => Self::Gone,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Gone => "gone",
            Self::Silent => "silent",
        })
    }
}

fn line(time: Timestamp, interface: &str, event: Event, frame: &Frame) -> String {
    let what = describe(frame);
    format!("{time:.0} {interface} {event}: {what}, {} s", frame.ttl)
}

fn object(time: Timestamp, interface: &str, event: Event, frame: &Frame) -> Value {
    let capabilities: Vec<_> = frame
        .capabilities
        .into_iter()
        .flat_map(Capabilities::names)
        .collect();
    json!({
        "time": format!("{time:.0}"),
        "interface": interface,
        "event": event.to_string(),
        "switch": is_switch(frame),
        "system_name": frame.system_name,
        "system_description": frame.system_description,
        "chassis": frame.chassis.to_string(),
        "port": frame.port.to_string(),
        "port_description": frame.port_description,
        "source": frame.source.to_string(),
        "capabilities": capabilities,
        "management": frame.management,
        "ttl_seconds": frame.ttl,
    })
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;
    use crate::net::mac::MacAddress;

    fn heard() -> Frame {
        let bytes = build::frame(&build::Announcement {
            mac: MacAddress([2, 0, 0, 0, 0, 9]),
            port_description: "eth0",
            system_name: "a machine",
            system_description: "metal-anvil",
            ttl: 20,
        });
        frame::parse(&bytes).unwrap()
    }

    #[test]
    fn a_neighbour_as_a_line_and_as_json() {
        let time = "2026-11-24T21:30:00.7Z".parse().unwrap();
        assert_eq!(
            line(time, "eth1", Event::New, &heard()),
            "2026-11-24T21:30:00Z eth1 new: not a switch (neither bridge nor router is enabled) \
             \"a machine\", chassis 02:00:00:00:00:09, port 02:00:00:00:00:09 \"eth0\", 20 s"
        );
        let object = object(time, "eth1", Event::Silent, &heard());
        assert_eq!(
            object,
            json!({"time": "2026-11-24T21:30:00Z", "interface": "eth1", "event": "silent",
                "switch": false, "system_name": "a machine", "system_description": "metal-anvil",
                "chassis": "02:00:00:00:00:09", "port": "02:00:00:00:00:09",
                "port_description": "eth0", "source": "02:00:00:00:00:09",
                "capabilities": ["station"], "management": [], "ttl_seconds": 20})
        );
    }

    #[tokio::test]
    async fn an_interface_that_is_not_there_is_named() {
        let listened = listen("nosuchlink0", Format::Line, &mut Vec::new()).await;
        let error = listened.unwrap_err().to_string();
        assert!(error.contains("\"nosuchlink0\""), "{error}");
    }
}
