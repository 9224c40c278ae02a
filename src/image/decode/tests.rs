use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::*;

/// What a program makes of `content`: the tools that images are packed with.
fn packed(command: &str, content: &[u8]) -> Vec<u8> {
    let mut words = command.split(' ');
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut bytes = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(content).unwrap());
        output.read_to_end(&mut bytes).unwrap();
    });
    assert!(child.wait().unwrap().success(), "{command}");
    bytes
}

fn run_with(bytes: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let result = decode(bytes, "http://h/i", limit, |buffer| {
        out.extend_from_slice(&buffer);
        Ok(buffer)
    });
    match result {
        Ok(count) => {
            assert_eq!(count, out.len() as u64);
            Ok(out)
        }
        Err(Stop::Failed(error)) => Err(error),
        Err(other) => panic!("{other:?}"),
    }
}

fn run(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    run_with(bytes, u64::MAX)
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Something that begins as a tar archive does, so that it is recognised unpacked, too.
fn tar_like(length: usize) -> Vec<u8> {
    let mut content = crate::image::tests::file(b"x", &noise(length));
    content.resize(content.len() + 1024, 0);
    content
}

const PACKERS: [&str; 12] = [
    "lz4 -c",
    "lz4 -qc -BD -B4",
    "lz4 -c --content-size -BX",
    "lz4 -cl",
    "zstd -c",
    "zstd -c -19 --no-check",
    "zstd -c -T2",
    "gzip -c",
    "gzip -1c",
    "xz -c",
    "xz -1c -T2 --check=crc32",
    "cat",
];

#[test]
fn every_format_and_its_concatenation() {
    let (a, b) = (tar_like(3 * BUFFER + 17), noise(70_000));
    for packer in PACKERS {
        let first = packed(packer, &a);
        assert!(run(&first).unwrap() == a, "{packer}");
        let both = [first, packed(packer, &b)].concat();
        assert!(
            run(&both).unwrap() == [&a[..], &b].concat(),
            "{packer}, twice"
        );
    }
}

#[test]
fn every_truncation_is_an_error() {
    let content = tar_like(3000);
    for packer in PACKERS {
        let whole = packed(packer, &content);
        assert!(run(&whole).is_ok(), "{packer}");
        for length in 0..whole.len() {
            match run(&whole[..length]) {
                // The legacy format and plain tar have no end mark; the archive's own end counts.
                Ok(got) if ["lz4 -cl", "cat"].contains(&packer) => {
                    assert!(got.len() < content.len(), "{packer}: {length}");
                }
                Ok(_) => panic!("{packer}: {length} bytes of {} passed", whole.len()),
                Err(error) => {
                    let text = error.to_string();
                    let known = text.contains("damaged") || text.contains("not an image");
                    assert!(known, "{packer}: {length}: {text}");
                }
            }
        }
    }
}

#[test]
fn what_follows_the_end_must_be_more_of_the_same() {
    let content = tar_like(3000);
    for packer in PACKERS.iter().filter(|packer| **packer != "cat") {
        for junk in [&b"junk"[..], b"\0\0\0", &[0x1f], &[0; 700]] {
            let stream = [packed(packer, &content), junk.to_vec()].concat();
            // Padding of four zero bytes is part of the xz format (2.2), and of a legacy lz4
            // file they are blocks of no bytes.
            if junk.len().is_multiple_of(4) && junk[0] == 0 && packer.starts_with("xz") {
                continue;
            }
            let error = run(&stream).map(|got| got.len());
            let error = error.expect_err(packer).to_string();
            assert!(error.contains("damaged"), "{packer}: {error}");
        }
    }
}

#[test]
fn skippable_frames_are_skipped() {
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"hello"].concat();
    let content = tar_like(3000);
    for packer in ["lz4 -c", "zstd -c"] {
        let frame = packed(packer, &content);
        let stream = [&skippable[..], &skippable, &frame, &skippable, &frame].concat();
        assert!(run(&stream).unwrap() == content.repeat(2), "{packer}");
        check_magic(&stream[..PEEK], "http://h/i", false).unwrap();
        let cut = [&frame[..], &skippable[..10]].concat();
        assert!(run(&cut).is_err(), "{packer}");
    }
}

#[test]
fn a_bomb_ends_at_the_limit() {
    let content = tar_like(1 << 20);
    for packer in PACKERS {
        let bytes = packed(packer, &content);
        assert!(run_with(&bytes, content.len() as u64).is_ok(), "{packer}");
        let error = run_with(&bytes, 1 << 19).unwrap_err();
        assert!(
            matches!(error, Error::TooLarge { limit: 0x8_0000 }),
            "{packer}: {error}"
        );
    }
}

/// A header may ask for any window; memory is not the sender's to give.
#[test]
fn windows_are_bounded() {
    let content = tar_like(1 << 20);
    // Magic, single segment off, window descriptor 0xa8: 2^31 bytes (RFC 8878, 3.1.1.1.2).
    let mut huge = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8];
    huge.extend([0x01, 0, 0]);
    let error = run(&huge).unwrap_err().to_string();
    assert!(
        error.contains("damaged") && error.contains("memory"),
        "{error}"
    );
    let error = run(&packed("xz -c --lzma2=dict=512MiB", &content));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("damaged") && error.contains("memory"),
        "{error}"
    );
    assert!(run(&packed("xz -9c", &content)).is_ok());
}

#[test]
fn other_formats_are_named() {
    for (bytes, name) in [
        (&b"BZh9"[..], "bzip2"),
        (b"<html>", "HTML"),
        (b"", "empty"),
        (b"QFI\xfb\0", "qcow2"),
        (b"\x01\x02", "[01, 02]"),
        (&[0; 600], "[00, 00"),
    ] {
        let error = run(bytes).unwrap_err().to_string();
        assert!(
            error.contains("not an image") && error.contains(name),
            "{error}"
        );
        let head = &bytes[..bytes.len().min(PEEK)];
        assert_eq!(
            check_magic(head, "http://h/i", false)
                .unwrap_err()
                .to_string(),
            error
        );
    }
}

proptest::proptest! {
    #[test]
    fn damage_never_panics(position in 4_usize..2000, byte: u8, which in 0..PACKERS.len()) {
        use std::sync::OnceLock;
        static STREAMS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        let streams = STREAMS.get_or_init(|| {
            let content = tar_like(4000);
            PACKERS.iter().map(|packer| packed(packer, &content)).collect()
        });
        let mut stream = streams[which].clone();
        let position = position % stream.len();
        stream[position] = byte;
        let _ = run_with(&stream, 1 << 24);
    }
}
