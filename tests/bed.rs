//! Tests of the test bed itself: a bed that is too kind, or broken, hides the agent's faults.

mod support;

use std::process::Command;
use std::time::Duration;

use support::bed::Bed;
use support::console::Console;
use support::images::{Image, lz4, md5_line, raw};
use support::netns::{LEAVES, SERVICE};
use support::services::Helper;

#[test]
fn the_console_is_searched_by_line_from_a_place() {
    let dir = tempfile::tempdir().expect("directory");
    let text = b"\x1b[2J\x1b[01;01Hone two\r\nthree\nlogin: ";
    let console = Console::read(&text[..], &dir.path().join("log"), None);
    let limit = Duration::from_secs(5);
    let (line, at) = console.find(&["two"], 0, limit).expect("first line");
    assert_eq!(line, "one two");
    assert!(console.find(&["two"], at, limit).is_err());
    assert!(console.find(&["log"], 0, limit).is_err(), "half a line");
    assert_eq!(
        console.find(&["thr"], at, limit).expect("second").0,
        "three"
    );
    assert_eq!(
        console.find(&["login: "], 0, limit).expect("prompt").0,
        "login: "
    );
}

#[test]
fn a_hostile_entry_reaches_the_archive_as_it_is() {
    let mut out = tar::Builder::new(Vec::new());
    raw(&mut out, "../evil", tar::EntryType::Regular, "", b"x");
    raw(&mut out, "link", tar::EntryType::Symlink, "/etc", b"");
    let bytes = out.into_inner().expect("tar");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let names: Vec<String> = archive
        .entries()
        .expect("entries")
        .map(|e| String::from_utf8_lossy(&e.expect("entry").path_bytes()).into_owned())
        .collect();
    assert_eq!(names, ["../evil", "link"]);
}

#[test]
fn a_flipped_byte_changes_the_content_and_not_the_md5() {
    let good = Image::of(lz4(b"content of an image"));
    let bad = good.clone().with_flipped_byte(5);
    assert_eq!(good.md5, bad.md5);
    assert_ne!(good.bytes(), bad.bytes());
    assert_ne!(md5_line(&bad.bytes()), bad.md5.expect("md5"));
}

#[test]
fn the_services_answer_inside_the_namespace_and_go_with_it() {
    let body = "this is not JSON";
    let bed = Bed::plan("bed")
        .helper(Helper::Canned(503, body.to_owned()))
        .start();
    let namespaces = || {
        let output = Command::new("ip").args(["netns", "list"]).output();
        String::from_utf8_lossy(&output.expect("ip").stdout).into_owned()
    };
    let own = format!("ma-{}-", std::process::id());
    assert!(namespaces().contains(&own));

    let curl = |url: &str| {
        bed.run(
            "curl",
            &["-s", "-g", "-m", "10", "-w", " %{http_code}", url],
        )
    };
    let helper = curl(&format!("http://[{SERVICE}]:4242/config/{}", bed.machine));
    assert_eq!(helper, format!("{body} 503"));

    let image = Image::of(lz4(b"content of an image"));
    let url = bed.publish("small", &image);
    let sum = curl(&format!("{url}.md5"));
    assert_eq!(sum, format!("{} 200", image.md5.expect("md5")));
    assert!(
        curl(&bed.slow(&url)).ends_with(" 200"),
        "the slow way to the same image"
    );
    assert!(curl(&url.replace("small", "none")).ends_with(" 404"));
    assert!(bed.downloads().contains("/small/img.tar.lz4.md5"));

    let api = format!("http://[{SERVICE}]:8080/metalstack.infra.v2.BootService/SendEvent");
    let answer = bed.run(
        "curl",
        &[
            "-s",
            "-g",
            "-m",
            "10",
            "-d",
            "{}",
            "-H",
            "Content-Type: application/json",
            &api,
        ],
    );
    assert!(answer.contains("unauthenticated"), "{answer}");
    assert_eq!(bed.standin.record().len(), 1);

    for leaf in &LEAVES {
        let chassis = bed.lldp(leaf, &["show", "chassis"]);
        for wanted in [leaf.name, leaf.mac, "Bridge, on", "Router, on"] {
            assert!(chassis.contains(wanted), "{wanted} is not in {chassis}");
        }
    }
    drop(bed);
    assert!(!namespaces().contains(&own));
}
