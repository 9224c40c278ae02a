//! A shell on the consoles, and an ssh server, for somebody who has to look at a machine.
//!
//! The programs for it are no part of the usual initramfs: they come in a second archive, which
//! `scripts/build-rescue` makes and a medium may hold. What it holds does nothing by itself; the
//! word has to be on the medium or the kernel command line.

pub mod keys;
pub mod shell;
pub mod ssh;

use std::path::{Path, PathBuf};

pub use keys::PublicKey;

/// Where the part has its programs.
const DIRECTORY: &str = "usr/sbin";

/// The part, as far as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The shell and all its commands.
    pub busybox: PathBuf,
    pub ssh: Option<Server>,
}

/// The ssh server and the maker of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub program: PathBuf,
    pub keygen: PathBuf,
}

impl Part {
    /// Looks for the part's programs below `root`.
    #[must_use]
    pub fn find(root: &Path) -> Option<Self> {
        let found = |name: &str| {
            let path = root.join(DIRECTORY).join(name);
            path.is_file().then_some(path)
        };
        let server = |program| {
            let keygen = found("dropbearkey")?;
            Some(Server { program, keygen })
        };
        Some(Self {
            busybox: found("busybox")?,
            ssh: found("dropbear").and_then(server),
        })
    }
}

/// What becomes of the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It goes on, and nobody gets a shell.
    Boot,
    /// It goes on, with a shell beside it.
    ShellBeside,
    /// A shell instead of it: nothing is written.
    Shell,
    /// A shell is wanted and there is none: nothing is written all the same.
    NoShell,
}

/// What medium and command line (`rescue`, `debug`) make of a boot with or without the part.
#[must_use]
pub fn decide(rescue: bool, debug: bool, has_part: bool) -> Decision {
    match (rescue, debug, has_part) {
        (true, _, true) => Decision::Shell,
        (true, _, false) => Decision::NoShell,
        (false, true, true) => Decision::ShellBeside,
        (false, true, false) | (false, false, _) => Decision::Boot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn no_shell_without_a_word_and_no_install_with_rescue() {
        let table = [
            ((false, false, false), Decision::Boot),
            ((false, false, true), Decision::Boot),
            ((false, true, false), Decision::Boot),
            ((false, true, true), Decision::ShellBeside),
            ((true, false, false), Decision::NoShell),
            ((true, false, true), Decision::Shell),
            ((true, true, false), Decision::NoShell),
            ((true, true, true), Decision::Shell),
        ];
        for ((rescue, debug, part), expected) in table {
            assert_eq!(
                decide(rescue, debug, part),
                expected,
                "{rescue} {debug} {part}"
            );
        }
    }

    #[test]
    fn the_part_is_told_by_its_programs() {
        let root = tempfile::tempdir().unwrap();
        let sbin = root.path().join(DIRECTORY);
        fs::create_dir_all(&sbin).unwrap();
        assert_eq!(Part::find(root.path()), None);
        // A server without the shell is no part, one that gets no key no server.
        fs::write(sbin.join("dropbear"), "").unwrap();
        assert_eq!(Part::find(root.path()), None);
        fs::write(sbin.join("busybox"), "").unwrap();
        let part = Part::find(root.path()).unwrap();
        assert_eq!((part.busybox, part.ssh), (sbin.join("busybox"), None));
        fs::write(sbin.join("dropbearkey"), "").unwrap();
        let server = Part::find(root.path()).unwrap().ssh.unwrap();
        assert_eq!(server.program, sbin.join("dropbear"));
    }
}
