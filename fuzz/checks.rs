//! What has to hold for any input of each parser: beside not panicking, the promises that the
//! rest of the program builds on. Shared by the fuzz targets and by `tests/corpus.rs`, which runs
//! every committed input through them.

use std::io::BufReader;

use metal_anvil::clock::sntp;
use metal_anvil::config::{Settings, Source, cmdline, file, layer};
use metal_anvil::control::HelperAnswer;
use metal_anvil::control::envelope::{EnvelopeError, EnvelopeReader, Frame};
use metal_anvil::image::archive::{Archive, Kind};
use metal_anvil::net::MacAddress;
use metal_anvil::net::advert;
use metal_anvil::net::dns::Servers;
use metal_anvil::net::lldp::PortNeighbour;
use metal_anvil::net::lldp::frame;
use metal_anvil::net::lldp::neighbours::{Neighbours, describe};
use metal_anvil::net::nd_option;
use tokio::time::Instant;

/// Panics when an input breaks a promise.
pub type Check = fn(&[u8]);

/// A check by its name, which is that of the fuzz target and of its corpus directory.
pub const ALL: [(&str, Check); 6] = [
    ("nd_options", nd_options),
    ("lldp", lldp),
    ("sntp", sntp),
    ("envelope", envelope),
    ("metal_config", metal_config),
    ("tar", tar),
];

/// Messages of the kernel about router advertisements, the options alone, and whole
/// advertisements.
pub fn nd_options(data: &[u8]) {
    let mut servers = Servers::default();
    let now = Instant::now();
    for options in nd_option::parse_datagram(data).into_iter().flatten() {
        for option in options.options {
            servers.learn(options.index, option, now);
        }
    }
    for option in nd_option::parse_options(data).into_iter().flatten() {
        servers.learn(2, option, now);
    }
    if let Ok(advertisement) = advert::parse(data) {
        assert!(advertisement.prefixes.len() <= 16);
        for prefix in advertisement.prefixes {
            let _ = prefix.obstacle();
        }
    }
    let text = servers.render(|index| (index < 100).then(|| format!("eth{index}")));
    let count = |word| text.lines().filter(|line| line.starts_with(word)).count();
    assert!(count("nameserver ") <= 3 && count("search ") <= 1, "{text}");
    // Nothing that was announced can add a line of another kind.
    assert_eq!(
        text.lines().count(),
        count("nameserver ") + count("search ") + count("# "),
        "{text}"
    );
}

/// Ethernet frames; also behind a header of our own, to spare the fuzzer the search for it.
pub fn lldp(data: &[u8]) {
    let header = *b"\x01\x80\xc2\x00\x00\x0e\x52\x54\x00\x00\x00\x01\x88\xcc";
    for bytes in [data, &[&header[..], data].concat()] {
        let Ok(frame) = frame::parse(bytes) else {
            continue;
        };
        let (chassis, port) = (frame.chassis.to_string(), frame.port.to_string());
        let texts = [
            &frame.system_name,
            &frame.system_description,
            &frame.port_description,
            &chassis,
            &port,
        ];
        assert!(!texts.iter().any(|text| text.contains(char::is_control)));
        assert!(!chassis.is_empty() && !port.is_empty() && frame.management.len() <= 8);
        assert_eq!(describe(&frame).lines().count(), 1);
        Neighbours::default().learn(2, frame.clone(), Instant::now());
        let own = MacAddress([2, 0, 0, 0, 0, 1]);
        let nic = PortNeighbour {
            index: 2,
            interface: "eth0".to_owned(),
            mac: own,
            frame,
        }
        .to_nic();
        assert!(nic.mac.parse::<MacAddress>().is_ok(), "{}", nic.mac);
        assert!(
            (2..=128).contains(&nic.name.chars().count()),
            "{}",
            nic.name
        );
        assert!(nic.hostname.chars().count() <= 128);
    }
}

/// Answers of NTP servers, taken for answers to the request whose nonce they hold.
pub fn sntp(data: &[u8]) {
    let nonce = data.get(24..32).and_then(<[u8]>::first_chunk);
    let nonce = nonce.map_or(0, |bytes| u64::from_be_bytes(*bytes));
    for own in [
        "2019-01-01T00:00:00Z",
        "2026-11-24T12:00:00Z",
        "2099-01-01T00:00:00Z",
    ] {
        let own: jiff::Timestamp = own.parse().expect("a time");
        if let Ok(answer) = sntp::answer(data, nonce, own, own) {
            let new = own.checked_add(answer.offset).expect("a time").as_second();
            let believed = sntp::EARLIEST - 1..=sntp::EARLIEST + i64::from(sntp::HORIZON) + 1;
            assert!(believed.contains(&new), "{new}");
        }
    }
}

/// Bodies of Connect streams; it must not matter how the network cuts them.
pub fn envelope(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let (first, second) = bytes.split_at(bytes.len().min(usize::from(*cut)));
    let whole = read(&[bytes]);
    assert_eq!(read(&[first, second]), whole);
    let size: usize = whole
        .0
        .iter()
        .map(|frame| match frame {
            Frame::Message(body) => body.len(),
            Frame::End(_) => 0,
        })
        .sum();
    assert!(size <= bytes.len());
}

fn read(chunks: &[&[u8]]) -> (Vec<Frame>, Option<EnvelopeError>) {
    let mut reader = EnvelopeReader::new(4096);
    let mut frames = Vec::new();
    for chunk in chunks {
        reader.push(chunk);
        loop {
            match reader.take() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// metal.config, the boot helper's answer, and the kernel command line.
pub fn metal_config(data: &[u8]) {
    let mut layers = Vec::new();
    if let Ok((layer, problems)) = file::parse(data) {
        assert!(
            problems
                .iter()
                .all(|problem| problem.key.chars().count() <= 64)
        );
        layers.push((Source::File, layer));
    }
    if let Ok(answer) = serde_json::from_slice::<HelperAnswer>(data) {
        layers.push((Source::BootHelper, layer::from_answer(&answer).0));
    }
    let line = cmdline::parse(&String::from_utf8_lossy(data));
    assert!(line.layer.token.is_none() && line.layer.ticket.is_none());
    layers.push((Source::CommandLine, line.layer));
    let settings = Settings::from_layers(layers);
    let _ = settings.summary();
    let policy = &settings.policy;
    assert!(policy.switches().timeout.as_secs() <= 3600);
    for time in [
        policy.slaac_timeout(),
        policy.reboot_delay(),
        policy.boot_helper_timeout(),
    ] {
        assert!(time.as_secs() <= 3600, "{time:?}");
    }
}

/// Tar streams, as they are and with the checksums of their headers put right.
pub fn tar(data: &[u8]) {
    let mut repaired = data.to_vec();
    for block in repaired.as_chunks_mut::<512>().0 {
        if block[257..].starts_with(b"ustar") {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    for bytes in [data, &repaired] {
        // Small pieces: entries lie across them.
        let mut archive = Archive::new(BufReader::with_capacity(100, bytes));
        while let Ok(Some(entry)) = archive.next_entry() {
            if let Kind::File { size, parts } = entry.kind {
                let mut end = 0;
                for (at, length) in parts {
                    assert!(at >= end, "parts lie one behind the other");
                    end = at + length;
                    if archive.content(length, |_| Ok(())).is_err() {
                        break;
                    }
                }
                assert!(end <= size, "a part behind the file's end");
            }
        }
        assert!(archive.position() <= bytes.len() as u64);
    }
}
