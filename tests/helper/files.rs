//! Boot files and images.

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sha2::{Digest, Sha256, Sha512};

use crate::bed::{
    Helper, body, body_json, get, header, machine, read_head, response, server, status, until,
};

const CONTENT: &[u8] = b"0123456789abcdef";

fn serving(files: &tempfile::TempDir) -> Helper {
    fs::write(files.path().join("vmlinuz"), CONTENT).expect("file");
    Helper::start(&["--static-dir", &files.path().display().to_string()])
}

#[test]
fn boot_files_are_served_whole_in_part_and_not_again() {
    let files = tempfile::tempdir().expect("directory");
    let helper = serving(&files);
    let whole = helper.get("/static/vmlinuz");
    assert_eq!((status(&whole), body(&whole)), (200, "0123456789abcdef"));
    assert_eq!(header(&whole, "content-length"), Some("16"));
    assert_eq!(header(&whole, "accept-ranges"), Some("bytes"));
    let tag = header(&whole, "etag").expect("tag").to_owned();
    let modified = header(&whole, "last-modified").expect("date").to_owned();

    let with = |headers: &str| helper.get_with("/static/vmlinuz", headers);
    let part = with("range: bytes=4-7\r\n");
    assert_eq!((status(&part), body(&part)), (206, "4567"));
    assert_eq!(header(&part, "content-range"), Some("bytes 4-7/16"));
    assert_eq!(body(&with("range: bytes=-3\r\n")), "def");
    let beyond = with("range: bytes=16-\r\n");
    assert_eq!(status(&beyond), 416);
    assert_eq!(header(&beyond, "content-range"), Some("bytes */16"));
    assert_eq!(status(&with(&format!("if-none-match: {tag}\r\n"))), 304);
    assert_eq!(status(&with("if-none-match: \"other\"\r\n")), 200);
    assert_eq!(
        status(&with(&format!("if-modified-since: {modified}\r\n"))),
        304
    );
    let resumed = with(&format!("range: bytes=8-\r\nif-range: {tag}\r\n"));
    assert_eq!((status(&resumed), body(&resumed)), (206, "89abcdef"));
    let anew = with("range: bytes=8-\r\nif-range: \"old\"\r\n");
    assert_eq!((status(&anew), body(&anew)), (200, "0123456789abcdef"));

    let head = helper.ask(&get("/static/vmlinuz", "").replacen("GET", "HEAD", 1));
    assert_eq!((status(&head), body(&head)), (200, ""));
    assert_eq!(header(&head, "content-length"), Some("16"));
    let post = helper.ask(&get("/static/vmlinuz", "").replacen("GET", "POST", 1));
    assert_eq!(
        (status(&post), header(&post, "allow")),
        (405, Some("GET, HEAD"))
    );
    // Another file under the same name is another file.
    fs::write(files.path().join("new"), CONTENT).expect("file");
    fs::rename(files.path().join("new"), files.path().join("vmlinuz")).expect("rename");
    assert_eq!(status(&with(&format!("if-none-match: {tag}\r\n"))), 200);
}

#[test]
fn images_lead_to_the_configured_cache() {
    let helper = Helper::start(&["--image-cache", "http://cache.example:8080/"]);
    let answer = helper.get("/image/os/img.tar.lz4");
    assert_eq!(status(&answer), 307);
    let to = header(&answer, "location");
    assert_eq!(to, Some("http://cache.example:8080/os/img.tar.lz4"));
    assert_eq!(status(&helper.get("/image/../x")), 404);
    assert_eq!(status(&Helper::start(&[]).get("/image/a")), 404);
}

/// An origin: an image, its checksum, and how often the image was asked for.
struct Origin {
    url: String,
    asked: Arc<AtomicUsize>,
}

fn origin(image: Vec<u8>, sum: Option<String>) -> Origin {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let url = server(move |mut stream, _| {
        let head = read_head(&mut stream);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let answer = match (path.ends_with(".sha512"), &sum) {
            (true, Some(sum)) => response(200, "", format!("{sum}  img\n").as_bytes()),
            _ if path.ends_with("/img") => {
                counter.fetch_add(1, Ordering::SeqCst);
                response(200, "", &image)
            }
            _ => response(404, "", b""),
        };
        // Slowly, so that others come while it is under way.
        for piece in answer.chunks(64 << 10) {
            if stream.write_all(piece).is_err() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    Origin { url, asked }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn sha512(bytes: &[u8]) -> String {
    Sha512::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// 1 MiB of text that is different everywhere.
fn image() -> Vec<u8> {
    (0..131_072)
        .flat_map(|number| format!("{number:07}\n").into_bytes())
        .collect()
}

fn caching(origin: &Origin, more: &[&str]) -> (Helper, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().display().to_string();
    let url = format!("{}/base", origin.url);
    let base = ["--cache-dir", &path, "--cache-origin", &url];
    let arguments: Vec<&str> = base.iter().chain(more).copied().collect();
    (Helper::start(&arguments), dir)
}

fn held(dir: &tempfile::TempDir) -> usize {
    fs::read_dir(dir.path()).expect("directory").count()
}

#[test]
fn an_image_is_fetched_once_for_all_who_ask() {
    let content = image();
    let origin = origin(content.clone(), Some(sha512(&content)));
    let (helper, dir) = caching(&origin, &[]);
    let request = get("/image/os/img", "");
    let answers: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    crate::bed::enter();
                    helper.ask(&request)
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("client"))
            .collect()
    });
    for answer in &answers {
        assert_eq!(status(answer), 200, "{}", &answer[..200]);
        assert!(
            body(answer).as_bytes() == content,
            "{} bytes",
            body(answer).len()
        );
    }
    assert_eq!(origin.asked.load(Ordering::SeqCst), 1);
    // From the disk, and a part of it.
    let part = helper.get_with("/image/os/img", "range: bytes=8-15\r\n");
    assert_eq!((status(&part), body(&part)), (206, "0000001\n"));
    assert_eq!(header(&part, "etag"), header(&answers[0], "etag"));
    assert_eq!(origin.asked.load(Ordering::SeqCst), 1);
    assert_eq!(
        (held(&dir), helper.metric("metal_boot_cache_misses_total")),
        (1, 1)
    );
    let sum = helper.get("/image/os/img.sha512");
    assert!(body(&sum).starts_with(&sha512(&content)), "{sum}");
    assert_eq!(status(&helper.get("/image/os/none")), 307);
}

#[test]
fn a_damaged_image_is_given_to_nobody_and_not_kept() {
    let content = image();
    let origin = origin(content.clone(), Some(sha512(b"another")));
    let (helper, dir) = caching(&origin, &[]);
    let answer = helper.get("/image/os/img");
    assert!(
        body(&answer).len() < content.len(),
        "the last byte was held back"
    );
    until("it is removed", || held(&dir) == 0);
    assert!(helper.log().contains("sha512"), "{}", helper.log());
}

#[test]
fn what_cannot_be_kept_leads_to_the_origin() {
    let content = image();
    let without_sum = origin(content.clone(), None);
    let (helper, dir) = caching(&without_sum, &[]);
    let answer = helper.get("/image/os/img");
    assert_eq!(status(&answer), 307);
    let expected = format!("{}/base/os/img", without_sum.url);
    assert_eq!(header(&answer, "location"), Some(expected.as_str()));
    assert_eq!(
        (held(&dir), without_sum.asked.load(Ordering::SeqCst)),
        (0, 0)
    );

    let large: Vec<u8> = [image(), image()].concat();
    let too_large = origin(large.clone(), Some(sha512(&large)));
    let (helper, dir) = caching(&too_large, &["--cache-size", "1M"]);
    assert_eq!(status(&helper.get("/image/os/img")), 307);
    assert_eq!(held(&dir), 0);
}

#[test]
fn the_image_used_longest_ago_makes_room() {
    let content = image();
    let origin = origin(content.clone(), Some(sha512(&content)));
    let (helper, dir) = caching(&origin, &["--cache-size", "2M"]);
    // 1 MiB each: two fit.
    for name in ["a", "b", "a", "c"] {
        assert_eq!(
            status(&helper.get(&format!("/image/{name}/img"))),
            200,
            "{name}"
        );
    }
    assert_eq!(held(&dir), 2);
    let before = origin.asked.load(Ordering::SeqCst);
    assert_eq!(before, 3);
    helper.get("/image/a/img");
    assert_eq!(
        origin.asked.load(Ordering::SeqCst),
        before,
        "a was used last and is there"
    );
    helper.get("/image/b/img");
    assert_eq!(
        origin.asked.load(Ordering::SeqCst),
        before + 1,
        "b had to go"
    );
}

/// What the answer of /config says about the installer's place.
fn told(helper: &Helper) -> String {
    let answer = helper.get(&format!("/config/{}", machine()));
    let url = &body_json(&answer)["os_installer"]["url"];
    url.as_str().expect("a URL").to_owned()
}

#[test]
fn the_installer_is_fetched_once_checked_and_given_to_machines() {
    let content = image();
    let origin = origin(content.clone(), None);
    let far = format!("{}/releases/img", origin.url);
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().display().to_string();
    let start = |sum: &str, cached: bool| {
        let public = "http://[2001:db8::99]:4242";
        let mut arguments = vec!["--public-url", public, "--os-installer-url", &far];
        arguments.extend(["--os-installer-sha256", sum]);
        if cached {
            arguments.extend(["--cache-dir", &path]);
        }
        Helper::start(&arguments)
    };
    let sum = sha256(&content);

    let without = start(&sum, false);
    assert_eq!(told(&without), far);
    assert_eq!(status(&without.get("/os-installer")), 404);

    let helper = start(&sum.to_uppercase(), true);
    assert_eq!(told(&helper), "http://[2001:db8::99]:4242/os-installer");
    let request = get("/os-installer", "");
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                crate::bed::enter();
                let answer = helper.ask(&request);
                assert_eq!(status(&answer), 200, "{}", &answer[..200]);
                assert!(body(&answer).as_bytes() == content);
            });
        }
    });
    assert_eq!(origin.asked.load(Ordering::SeqCst), 1);
    assert_eq!(held(&dir), 1);
    // Another process finds it on the disk; a range and a repetition cost the origin nothing.
    let again = start(&sum, true);
    let part = again.get_with("/os-installer", "range: bytes=8-15\r\n");
    assert_eq!((status(&part), body(&part)), (206, "0000001\n"));
    assert_eq!(origin.asked.load(Ordering::SeqCst), 1);
    assert_eq!(status(&again.get("/image/a")), 404, "images have no origin");

    let other = start(&sha256(b"another"), true);
    let answer = other.get("/os-installer");
    assert!(
        body(&answer).len() < content.len(),
        "the last byte is held back"
    );
    until("it is removed", || held(&dir) == 1);
    assert!(other.log().contains("sha256"), "{}", other.log());
}
