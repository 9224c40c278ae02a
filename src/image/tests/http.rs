//! The whole pipeline against a server that misbehaves.

use super::server::{PATH, Plan, Server, cut, image, noise};
use super::*;
use crate::image::Progress;

#[tokio::test]
async fn an_image_arrives() {
    let image = image();
    let server = Server::new(&image, vec![]).await;
    let verified = server.install().await.unwrap();
    assert!(server.content_is_whole());
    assert_eq!(verified.summary().algorithm, Algorithm::Md5);
    assert_eq!(verified.summary().digest, digest(Algorithm::Md5, &image));
    let progress = verified.summary().progress;
    assert_eq!(progress.downloaded, image.len() as u64);
    assert_eq!(progress.total, Some(image.len() as u64));
    assert_eq!(progress.entries, 2);
    assert!(progress.unpacked > 1_600_000);
    assert!(!verified.summary().url.contains("s3cret"));
}

#[tokio::test]
async fn the_strongest_checksum_is_required() {
    let image = image();
    let server = Server::new(&image, vec![]).await;
    server.status(&format!("{PATH}.sha512"), 410);
    server.put(&format!("{PATH}.sha256"), digest(Algorithm::Sha256, &image));
    assert_eq!(
        server.install().await.unwrap().summary().algorithm,
        Algorithm::Sha256
    );
    // A right md5 beside a wrong sha256 does not help.
    server.put(&format!("{PATH}.sha256"), "0".repeat(64));
    let error = server.install().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::ChecksumMismatch {
                algorithm: Algorithm::Sha256,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_broken_connection_is_resumed() {
    let image = image();
    let server = Server::new(&image, vec![cut(300_000), cut(500_000), Plan::default()]).await;
    server.install().await.unwrap();
    assert!(server.content_is_whole());
    let ranges = server.ranges();
    assert_eq!(ranges.len(), 3);
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[1].as_deref(), Some("bytes=300000-"));
    assert_eq!(ranges[2].as_deref(), Some("bytes=800000-"));
    let asked = &server.site.lock().unwrap().asked;
    assert_eq!(asked[1].1.as_deref(), Some("\"one\""));
}

#[tokio::test]
async fn a_date_serves_where_there_is_no_etag() {
    let weak = |cut| Plan {
        cut,
        weak: true,
        ..Plan::default()
    };
    let server = Server::new(&image(), vec![weak(Some(300_000)), weak(None)]).await;
    server.install().await.unwrap();
    let asked = &server.site.lock().unwrap().asked;
    assert_eq!(asked[1].1.as_deref(), Some("Sun, 22 Nov 2026 08:00:00 GMT"));
}

#[tokio::test]
async fn a_silent_server_is_left_and_asked_again() {
    let hang = Plan {
        hang: Some(100_000),
        ..Plan::default()
    };
    let server = Server::new(&image(), vec![hang, Plan::default()]).await;
    server.install().await.unwrap();
    assert_eq!(server.ranges()[1].as_deref(), Some("bytes=100000-"));
}

#[tokio::test]
async fn breaks_are_bounded() {
    // Progress each time, so that only the total number of breaks ends it.
    let server = Server::new(&image(), vec![cut(1000)]).await;
    let error = server.install().await.unwrap_err();
    assert!(
        matches!(error, Error::Interrupted { offset: 6000, .. }),
        "{error}"
    );
    // No progress at all: the attempts in a row end it.
    let server = Server::new(&image(), vec![cut(1000), cut(0)]).await;
    let error = server.install().await.unwrap_err();
    assert!(
        matches!(error, Error::Interrupted { offset: 1000, .. }),
        "{error}"
    );
    assert_eq!(server.ranges().len(), 3);
}

#[tokio::test]
async fn a_server_without_ranges_starts_again_and_nothing_is_delivered_twice() {
    let no_range = |cut| Plan {
        no_range: true,
        cut,
        ..Plan::default()
    };
    let image = image();
    let plans = vec![
        cut(300_000),
        no_range(Some(200_000)),
        no_range(Some(700_001)),
        no_range(None),
    ];
    let server = Server::new(&image, plans).await;
    let verified = server.install().await.unwrap();
    assert!(server.content_is_whole());
    assert_eq!(verified.summary().progress.downloaded, image.len() as u64);
    assert_eq!(server.ranges()[3].as_deref(), Some("bytes=700001-"));
}

#[tokio::test]
async fn what_cannot_be_resumed_is_told_apart() {
    let no_range = Plan {
        no_range: true,
        ..Plan::default()
    };
    for plan in [
        Plan {
            etag: Some("\"two\""),
            ..Plan::default()
        },
        Plan {
            etag: Some("\"two\""),
            ..no_range
        },
        Plan {
            status: Some(416),
            ..Plan::default()
        },
    ] {
        let server = Server::new(&image(), vec![cut(300_000), plan]).await;
        let error = server.install().await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Changed {
                    offset: 300_000,
                    ..
                }
            ),
            "{error}"
        );
    }
    let gone = Plan {
        status: Some(404),
        ..Plan::default()
    };
    let server = Server::new(&image(), vec![cut(300_000), gone]).await;
    let error = server.install().await.unwrap_err();
    assert!(
        matches!(error, Error::Status { status: 404, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_passing_server_error_is_waited_out() {
    let busy = Plan {
        status: Some(503),
        ..Plan::default()
    };
    let server = Server::new(
        &image(),
        vec![busy.clone(), cut(300_000), busy, Plan::default()],
    )
    .await;
    server.install().await.unwrap();
    assert!(server.content_is_whole());
}

#[tokio::test]
async fn missing_things_are_named() {
    let server = Server::new(&image(), vec![]).await;
    server.status(PATH, 404);
    let error = server.install().await.unwrap_err();
    assert!(
        matches!(error, Error::Status { status: 404, .. }),
        "{error}"
    );

    let server = Server::new(&image(), vec![]).await;
    server.status(&format!("{PATH}.md5"), 404);
    let error = server.install().await.unwrap_err();
    assert!(matches!(error, Error::NoChecksum { .. }), "{error}");

    // Only where the policy says so; and only a checksum that does not exist.
    let mut server = server;
    server.source.without_checksum = true;
    let verified = server.install().await.unwrap();
    assert!(server.content_is_whole());
    assert!(!verified.summary().compared);
    assert!(verified.summary().to_string().contains("NO CHECKSUM"));
    server.put(PATH, image()[..900_000].to_vec());
    let error = server.install().await.unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
    server.status(&format!("{PATH}.md5"), 500);
    let error = server.install().await.unwrap_err().to_string();
    assert!(error.contains("500"), "{error}");

    // Anything but 404 and 410 may hide a stronger checksum.
    for status in [500, 403] {
        let server = Server::new(&image(), vec![]).await;
        server.status(&format!("{PATH}.sha256"), status);
        let error = server.install().await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("{status}")) && error.contains(".sha256"),
            "{error}"
        );
        assert_eq!(
            server.ranges().len(),
            0,
            "the image was asked for all the same"
        );
    }

    let server = Server::new(&image(), vec![]).await;
    server.put(&format!("{PATH}.md5"), "<html>sign in</html>");
    let error = server.install().await.unwrap_err();
    assert!(matches!(error, Error::ChecksumFile { .. }), "{error}");
    server.put(&format!("{PATH}.md5"), vec![b'0'; 5000]);
    let error = server.install().await.unwrap_err();
    assert!(error.to_string().contains("larger than 4096"), "{error}");
}

#[tokio::test]
async fn the_checksum_of_another_image() {
    let server = Server::new(&image(), vec![]).await;
    server.put(
        &format!("{PATH}.md5"),
        format!("{}  img.tar.lz4\n", "0".repeat(32)),
    );
    let error = server.install().await.unwrap_err();
    let Error::ChecksumMismatch { symptom: None, .. } = error else {
        panic!("{error}");
    };
    assert!(!error.retry_from_origin());
}

#[tokio::test]
async fn a_flipped_byte_is_a_wrong_checksum_wherever_it_is() {
    let image = image();
    for position in [20, 1000, image.len() / 2, image.len() - 3] {
        let mut damaged = image.clone();
        damaged[position] ^= 0x40;
        let server = Server::new(&image, vec![]).await;
        server.put(PATH, damaged);
        let error = server.install().await.unwrap_err();
        assert!(
            matches!(error, Error::ChecksumMismatch { .. }),
            "byte {position}: {error}"
        );
    }
}

/// The damage is found in the first header, long before the rest has come in: the rest is
/// hashed all the same, and the checksum is what is reported.
#[tokio::test]
async fn damage_at_the_start_of_a_long_image_is_a_wrong_checksum() {
    let long: Vec<u8> = std::iter::repeat_with(noise).take(12).flatten().collect();
    let image = lz4(&archive(&[file(b"big", &long)]));
    let mut damaged = image.clone();
    let name = damaged.windows(3).position(|w| w == b"big").unwrap();
    damaged[name] ^= 1;
    let server = Server::new(&image, vec![]).await;
    server.put(PATH, damaged.clone());
    let error = server.install().await.unwrap_err();
    let Error::ChecksumMismatch {
        got,
        symptom: Some(symptom),
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert!(symptom.contains("header's checksum"), "{symptom}");
    assert_eq!(got, digest(Algorithm::Md5, &damaged));
}

#[tokio::test]
async fn an_image_that_was_published_broken_says_so() {
    let whole = image();
    let truncated = &whole[..whole.len() / 2];
    let server = Server::new(truncated, vec![]).await;
    let error = server.install().await.unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
    let server = Server::new(&lz4(&archive(&[file(b"../x", b"")])), vec![]).await;
    let error = server.install().await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let server = Server::new(b"QFI\xfb", vec![]).await;
    let error = server.install().await.unwrap_err().to_string();
    assert!(
        error.contains("not an image") && error.contains("qcow2"),
        "{error}"
    );
}

#[tokio::test]
async fn the_cache_comes_first_and_the_origin_helps_out() {
    let (server, cache) = behind_cache(vec![]).await;
    server.install().await.unwrap();
    assert_eq!((server.ranges().len(), cache.ranges().len()), (0, 1));
    cache.status(PATH, 404);
    server.install().await.unwrap();
    assert_eq!(server.ranges().len(), 1);

    cache.site.lock().unwrap().statuses.clear();
    cache.put(&format!("{PATH}.md5"), "0".repeat(32));
    let error = server.install().await.unwrap_err();
    assert!(error.retry_from_origin(), "{error}");
}

#[tokio::test]
async fn a_cache_without_checksums_is_not_taken_for_an_image_without_one() {
    let (mut server, cache) = behind_cache(vec![]).await;
    server.source.without_checksum = true;
    cache.status(&format!("{PATH}.md5"), 404);
    let verified = server.install().await.unwrap();
    assert!(verified.summary().compared);
    assert_eq!((server.ranges().len(), cache.ranges().len()), (1, 0));

    // Neither has one: then the policy counts, at the origin.
    server.status(&format!("{PATH}.md5"), 404);
    server.target = Target::new();
    let verified = server.install().await.unwrap();
    assert!(!verified.summary().compared);
    assert_eq!((server.ranges().len(), cache.ranges().len()), (2, 0));
}

/// An origin with a whole image, and a cache before it that does as it is told.
async fn behind_cache(plans: Vec<Plan>) -> (Server, Server) {
    let image = image();
    let mut origin = Server::new(&image, vec![]).await;
    let cache = Server::new(&image, plans).await;
    let mut base = cache.source.url.clone();
    base.set_path("/");
    base.set_query(None);
    origin.source.cache = Some(base);
    (origin, cache)
}

/// The second of two tries, as the sequence makes them, goes to the origin.
async fn leads_to_the_origin(server: &mut Server, cache: &Server, what: &str) {
    let error = server.install().await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("from the image cache: ") && text.contains(what),
        "{what}: {text}"
    );
    assert_eq!(server.ranges().len(), 0, "{what}: {error}");
    let asked = cache.ranges().len();
    assert!(asked > 0, "{what}: {error}");
    assert!(server.source.leave_cache(&error), "{what}: {error}");
    server.target = Target::new();
    server.install().await.unwrap();
    assert!(server.content_is_whole());
    let counts = (server.ranges().len(), cache.ranges().len());
    assert_eq!(counts, (1, asked), "{what}");
    assert!(!server.source.leave_cache(&error), "{what}: only once");
}

#[tokio::test]
async fn a_cache_that_breaks_off_leads_to_the_origin() {
    let status = |code| Plan {
        status: Some(code),
        ..Plan::default()
    };
    let changed = Plan {
        etag: Some("\"two\""),
        ..Plan::default()
    };
    for (what, plans) in [
        ("broken off", vec![cut(300_000), cut(0)]),
        ("changed", vec![cut(300_000), changed]),
        ("404", vec![cut(300_000), status(404)]),
        ("Content-Range", vec![cut(300_000), status(206)]),
    ] {
        let (mut server, cache) = behind_cache(plans).await;
        leads_to_the_origin(&mut server, &cache, what).await;
    }
}

#[tokio::test]
async fn what_only_the_content_tells_of_a_cache_leads_to_the_origin() {
    let whole = image();
    // The size of the first block: seven bytes in, after magic and descriptor.
    let mut damaged = whole.clone();
    damaged[9] ^= 0x40;
    let refused = lz4(&archive(&[file(b"../x", b"")]));
    let tar = lz4(&file(b"big", b"and no end")[..700]);
    for (what, content) in [
        ("data is damaged", damaged),
        ("truncated", whole[..900_000].to_vec()),
        ("tar archive", tar),
        ("refused tar entry", refused),
        ("not an image", b"<html>sign in</html>".to_vec()),
    ] {
        let (mut server, cache) = behind_cache(vec![]).await;
        // The cache's own checksum fits: only the content itself is wrong.
        let md5 = digest(Algorithm::Md5, &content);
        cache.put(&format!("{PATH}.md5"), md5);
        cache.put(PATH, content);
        leads_to_the_origin(&mut server, &cache, what).await;
    }
}

#[test]
fn only_the_source_leads_to_the_origin() {
    let write = |errno: nix::errno::Errno| Error::Write {
        entry: String::new(),
        operation: "",
        source: errno.into(),
    };
    let full = Error::DiskFull {
        entry: String::new(),
        operation: "",
        size: 0,
        available: 0,
        inodes: 0,
        free_inodes: 0,
        unpacked: 0,
    };
    let not_kept = Error::NotKept {
        path: String::new(),
        at: 0,
    };
    for error in [
        full,
        not_kept,
        write(nix::errno::Errno::EIO),
        Error::Pipeline(String::new()),
    ] {
        let error = error.of_cache();
        assert!(!error.retry_from_origin(), "{error}");
    }
    // A flipped bit makes a link to nothing.
    assert!(
        write(nix::errno::Errno::ENOENT)
            .of_cache()
            .retry_from_origin()
    );
}

#[tokio::test]
async fn a_probe_of_a_bad_cache_goes_on_to_the_origin() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let (server, cache) = behind_cache(vec![]).await;
    cache.put(PATH, "<html>sign in</html>");
    crate::image::probe(&client, &server.source).await.unwrap();
    assert_eq!((server.ranges().len(), cache.ranges().len()), (1, 1));

    // The probe is about the image: what is wrong at the origin too is an error.
    server.put(PATH, "<html>sign in</html>");
    let error = crate::image::probe(&client, &server.source)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
}

#[tokio::test]
async fn a_target_that_is_not_there() {
    let server = Server::new(&image(), vec![]).await;
    std::fs::remove_dir(server.target.root()).unwrap();
    let error = server.install().await.unwrap_err();
    assert!(matches!(error, Error::Root { .. }), "{error}");
    assert_eq!(server.ranges().len(), 0);
}

#[tokio::test]
async fn a_disk_image_is_probed_written_and_verified() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    crate::efi::gpt::tests::disk(&path, 512, uuid::Uuid::from_u128(1));
    let mut image = std::fs::read(&path).unwrap();
    image[1 << 20..][..noise().len().min(1 << 19)].copy_from_slice(&noise()[..1 << 19]);
    let packed = lz4(&image);
    let server = Server::new(&packed, vec![Plan::default()]).await;
    let url = "/images/img.raw.lz4";
    server.put(url, packed.clone());
    let md5 = digest(Algorithm::Md5, &packed);
    server.put(&format!("{url}.md5"), format!("{md5}  img.raw.lz4\n"));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut source = server.source.clone();
    source.url.set_path(url);
    let size = image.len() as u64;

    crate::image::probe_disk(&client, &source, "/dev/x", size, 512)
        .await
        .unwrap();
    for (size, block, expected) in [(size - 512, 512, "needs 2097152"), (size, 4096, "blocks")] {
        let probed = crate::image::probe_disk(&client, &source, "/dev/x", size, block).await;
        let error = probed.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    let file = || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    };
    let silent = |_: Progress| {};
    let target = crate::image::DiskTarget::new(file(), "/dev/x", size, 512);
    let (verified, mut written) = crate::image::install_disk(&client, &source, target, &silent)
        .await
        .unwrap();
    assert_eq!(verified.summary().digest, md5);
    let mut found = Vec::new();
    std::io::Seek::rewind(&mut written).unwrap();
    std::io::Read::read_to_end(&mut written, &mut found).unwrap();
    assert!(found == image);
    crate::image::verify(&client, &source, &silent)
        .await
        .unwrap();

    // A wrong digest: the table is not written.
    server.put(&format!("{url}.md5"), format!("{:032x}  img.raw.lz4\n", 7));
    let kept = file();
    let target = kept.try_clone().unwrap();
    let target = crate::image::DiskTarget::new(target, "/dev/x", size, 512);
    let failed = crate::image::install_disk(&client, &source, target, &silent).await;
    assert!(matches!(failed, Err(Error::ChecksumMismatch { .. })));
    assert!(
        crate::efi::gpt::geometry(&{
            use std::os::unix::fs::FileExt;
            let mut head = vec![0; 1 << 20];
            kept.read_exact_at(&mut head, 0).unwrap();
            head
        })
        .is_err()
    );
}
