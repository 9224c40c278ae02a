//! The log server of a test: `loki.py`, which judges what it gets.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::bed::Bed;
use super::netns::SERVICE;
use super::process::Process;
use super::root;

const PORT: u16 = 3100;
/// What it wants to be asked with; it must be in no log.
pub const PASSWORD: &str = "loki-s3cret-of-the-test";

/// Writes the boot helper's `--logging` file for the test `name` and answers the option.
pub fn option(name: &str) -> String {
    let dir = root().join("target/e2e");
    fs::create_dir_all(&dir).expect("target/e2e");
    let file = dir.join(format!("{name}.logging.json"));
    let logging = json!({
        "endpoint": format!("http://[{SERVICE}]:{PORT}/loki/api/v1/push"),
        "log_type": "loki",
        "basic_auth": {"user": "logger", "password": PASSWORD},
    });
    fs::write(&file, logging.to_string()).expect("write the logging file");
    format!("--logging={}", file.display())
}

/// Starts it in the bed.
pub fn start(bed: &mut Bed) {
    let mut command = bed.command(root().join("target/venv/bin/python"));
    command
        .arg(root().join("tests/support/loki.py"))
        .args([SERVICE, &PORT.to_string(), &format!("logger:{PASSWORD}")])
        .arg(file(bed));
    let process = Process::start("loki", command, bed.dir());
    bed.also(process);
}

fn file(bed: &Bed) -> PathBuf {
    bed.dir.join("loki.json")
}

/// The lines that arrived, in order. None was refused, and all have the machine's labels.
pub fn lines(bed: &Bed) -> Vec<String> {
    let text = fs::read_to_string(file(bed)).unwrap_or_default();
    let records = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("own JSON"));
    records
        .map(|record: Value| {
            assert!(record["refused"].is_null(), "a push was refused: {record}");
            let labels = json!({"component": "metal-anvil", "machine_id": bed.machine,
                "partition": "test-part"});
            assert_eq!(record["labels"], labels);
            record["line"].as_str().expect("a line").to_owned()
        })
        .collect()
}

/// The story of a boot arrived completely: these words, in this order.
pub fn assert_story(bed: &Bed, words: &[&str]) {
    let lines = lines(bed);
    let mut rest = lines.iter();
    for word in words {
        assert!(
            rest.any(|line| line.contains(word)),
            "{word:?} is missing, or out of order, in the remote log:\n{}",
            lines.join("\n")
        );
    }
}
