//! What the boot helper offers beyond a token, used by the agent: the way to the apiserver, an image
//! cache, an installer.

use std::fs;
use std::io::Read;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::images::{Edit, Image, tiny_with};
use crate::support::media::{self, helper_url};
use crate::support::netns::SERVICE;
use crate::support::services::IMAGE_PORT;

/// tiny's own installer, as a file that is brought to images without one.
fn installer() -> Vec<u8> {
    let tar = fs::File::open(crate::support::root().join("target/images/tiny/img.tar"));
    let mut tar = tar::Archive::new(tar.expect("built image"));
    for entry in tar.entries().expect("built tar") {
        let mut entry = entry.expect("built tar");
        if &*entry.path_bytes() == b"./install-go" {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("built tar");
            return bytes;
        }
    }
    panic!("tiny has no installer");
}

#[test]
fn proxy_cache_with_its_origin_behind_it_and_installer_are_used() {
    let installer = installer();
    let sum: String = Sha256::digest(&installer)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let base = format!("http://[{SERVICE}]:{IMAGE_PORT}");
    let bed = Bed::plan("helper_offers")
        .helper_options(&[
            "--proxy-apiserver",
            // What a machine without the proxy would try: nothing listens there.
            "--machine-apiserver-url",
            "http://[2001:db8:ff::dead]:1",
            "--public-url",
            &helper_url(),
            "--image-cache",
            &format!("{base}/cache"),
            "--os-installer-url",
            &format!("{base}/os-installer"),
            "--os-installer-sha256",
            &sum,
            "--os-installer-drop-field",
            "futureField",
        ])
        .start();
    fs::write(bed.dir.join("www/os-installer"), &installer).expect("publish the installer");
    let machine = bed.machine(media::agent(), vec![used_disk(&bed, "disk")]);
    let url = bed.publish("bare", &tiny_with(&[Edit::Without("./install-go")]));
    let allocation = Allocation::new(&url, "/dev/vda")
        .with_field("futureField", json!({"a": 1}))
        .with_field("otherField", json!("kept"));
    let mut guest = install(&bed, &machine, &allocation);
    guest.wait_for("TINY-OS DONE", 60);

    assert_eq!(bed.standin.events(&bed.machine), GOOD);
    for line in bed.standin.record() {
        assert_eq!(line["peer"], SERVICE, "not through the helper: {line}");
    }
    // The cache has nothing: it is asked first, and the origin gives the image.
    let downloads = bed.downloads();
    let cached = downloads
        .find("GET /cache/bare/img.tar.lz4")
        .expect("the cache was asked");
    let origin = downloads
        .find("GET /bare/img.tar.lz4 ")
        .expect("the origin was asked");
    assert!(cached < origin, "{downloads}");
    assert!(downloads.contains("GET /os-installer "), "{downloads}");
    let text = guest.text();
    assert!(
        text.contains("TINY-OS allocation=otherField"),
        "kept as it was sent"
    );
    assert!(
        !text.contains("TINY-OS allocation=futureField"),
        "left out for the installer"
    );
    assert_no_secret_in_logs(&bed);
}

#[test]
fn the_helpers_own_cache_brings_the_image() {
    let cache = tempfile::tempdir().expect("directory");
    let bed = Bed::plan("helper_cache")
        .helper_options(&[
            "--public-url",
            &helper_url(),
            "--cache-dir",
            &cache.path().display().to_string(),
            "--cache-origin",
            &format!("http://[{SERVICE}]:{IMAGE_PORT}"),
        ])
        .start();
    let machine = bed.machine(media::agent(), vec![used_disk(&bed, "disk")]);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    assert_eq!(bed.downloads().matches("GET /tiny/img.tar.lz4 ").count(), 1);
    for line in bed.downloads().lines() {
        assert!(
            line.starts_with(SERVICE),
            "the agent asked the origin: {line}"
        );
    }
    let kept = fs::read_dir(cache.path()).expect("cache").count();
    assert_eq!(kept, 1, "the image is in the cache");
    drop(guest);
}
