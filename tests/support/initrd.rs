//! Small initramfs images of our own, and the programs that go into them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::process::run;
use super::root;

/// Builds a target of this package and answers its executable (cargo is quick when it is built).
pub fn built(kind: &str, name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo sets for a test it runs would count as a change to build scripts that look at it.
    for (key, _) in std::env::vars() {
        let ours = ["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&key.as_str());
        if key.starts_with("CARGO") && !ours {
            cargo.env_remove(key);
        }
    }
    cargo.env_remove("LD_LIBRARY_PATH").current_dir(root());
    cargo.args(["build", "--message-format=json-render-diagnostics"]);
    let output = run(cargo.args([kind, name]));
    output
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .unwrap_or_else(|| panic!("cargo built no {name}"))
}

/// An uncompressed newc archive of executables, with the directories that their names ask for
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
pub fn newc(files: &[(&str, PathBuf)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut entry = |name: &str, mode: u32, data: &[u8], inode: usize| {
        let fields = [
            inode as u32,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        let hex: String = fields.iter().map(|f| format!("{f:08x}")).collect();
        out.extend_from_slice(format!("070701{hex}{name}\0").as_bytes());
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    let mut inode = 0;
    let mut made = BTreeSet::new();
    for (name, path) in files {
        for (end, _) in name.match_indices('/') {
            if made.insert(&name[..end]) {
                inode += 1;
                entry(&name[..end], 0o040_755, &[], inode);
            }
        }
        inode += 1;
        let data = fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        entry(name, 0o100_755, &data, inode);
    }
    entry("TRAILER!!!", 0, &[], 0);
    out
}

/// Several archives as one file: the kernel unpacks them one after the other, each from a multiple
/// of four bytes on.
pub fn joined(archives: &[PathBuf]) -> Vec<u8> {
    let mut out = Vec::new();
    for path in archives {
        out.resize(usize::next_multiple_of(out.len(), 4), 0);
        let data = fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        out.extend(data);
    }
    out
}

/// The names in an archive that is packed with zstd.
pub fn names(path: &std::path::Path) -> Vec<String> {
    let file = fs::File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let archive = zstd::decode_all(file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut names = Vec::new();
    let mut at = 0;
    loop {
        let header = &archive[at..at + 110];
        assert!(header.starts_with(b"070701"), "no header at byte {at}");
        let field = |number: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * number..][..8]).expect("digits");
            usize::from_str_radix(digits, 16).expect("a number")
        };
        let (size, length) = (field(6), field(11));
        let name = String::from_utf8_lossy(&archive[at + 110..][..length - 1]).into_owned();
        if name == "TRAILER!!!" {
            return names;
        }
        names.push(name);
        at = (at + 110 + length).next_multiple_of(4) + size.next_multiple_of(4);
    }
}
