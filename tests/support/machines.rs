//! The recorded machines of `tests/fixtures/machines`, unpacked into trees.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where they are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machines")
}

/// Their names, sorted.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory())
        .expect("the fixtures")
        .map(|entry| entry.expect("the fixtures").path())
        .filter(|path| path.join("machine.txt").exists())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort_unstable();
    names
}

/// Makes the tree of the machine `name` below `to`, and answers its regular files. The format
/// is described in `make.py`, beside the machines.
pub fn unpack(name: &str, to: &Path) -> Vec<PathBuf> {
    let source = directory().join(name).join("machine.txt");
    let text = fs::read_to_string(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    let mut lines = text.lines().peekable();
    let mut directory = to.to_owned();
    let mut files = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(path) = line.strip_prefix("> ") {
            directory = to.join(path);
            fs::create_dir_all(&directory).unwrap();
            continue;
        }
        let mut words = line.splitn(3, ' ');
        let (name, sign) = (words.next().unwrap(), words.next().unwrap());
        let (path, value) = (directory.join(name), words.next().unwrap_or_default());
        let content = match sign {
            "@" => {
                symlink(value, path).unwrap();
                continue;
            }
            "=" => format!("{value}\n").into_bytes(),
            ":" => bytes(value),
            "|" => {
                let mut content = String::new();
                while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
                    content.push_str(&line[1..]);
                    content.push('\n');
                }
                content.into_bytes()
            }
            _ => panic!("{}: {line:?}", source.display()),
        };
        fs::write(&path, content).unwrap();
        files.push(path);
    }
    files
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}
