//! Programs of this package for a guest: built by cargo, packed into an initramfs.

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

/// An uncompressed newc archive of executables (Documentation/driver-api/early-userspace/buffer-format.rst).
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
    for (number, (name, path)) in files.iter().enumerate() {
        let data = fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        entry(name, 0o100_755, &data, number + 1);
    }
    entry("TRAILER!!!", 0, &[], 0);
    out
}
