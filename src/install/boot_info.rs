//! `/etc/metal/boot-info.yaml`: which kernel an installed system wants to be started with.

use std::fs::File;
use std::path::Path;

use serde::Deserialize;

use super::error::Error;
use crate::image::root::RootDir;

/// Where installers write it.
pub const PATH: &str = "/etc/metal/boot-info.yaml";
const MAX_FILE: u64 = 64 * 1024;
/// `COMMAND_LINE_SIZE` of x86 (`arch/x86/include/asm/setup.h`), its zero byte included.
pub const MAX_COMMAND_LINE: usize = 2048;

/// What to boot, opened: the file systems may not be unmounted before this is dropped.
#[derive(Debug)]
pub struct BootInfo {
    pub kernel: File,
    /// Its path in the target, for messages.
    pub kernel_path: String,
    /// `None` when the kernel needs none.
    pub initrd: Option<File>,
    /// The next kernel's command line, unchanged.
    pub command_line: String,
    /// The directory of the boot loader under `EFI/` on the EFI system partition; `None`
    /// when the installer named none.
    pub bootloader_id: Option<String>,
}

#[derive(Deserialize)]
struct Wire {
    kernel: String,
    #[serde(default)]
    initrd: Option<String>,
    cmdline: String,
    #[serde(default)]
    bootloader_id: Option<String>,
}

/// Reads the file and opens what it names, inside the target root.
///
/// # Errors
/// It is missing, is not such a file, or names something that cannot be booted.
pub fn read(root: &RootDir) -> Result<BootInfo, Error> {
    let content = root
        .read(Path::new(PATH), MAX_FILE)
        .map_err(Error::file(PATH, "read"))?;
    let wire = parse(&content).map_err(|reason| Error::content(PATH, reason))?;
    let open = |path: &str| -> Result<File, Error> {
        let file = root
            .open_file(Path::new(path))
            .map_err(Error::file(path, "open (named by boot-info.yaml)"))?;
        let length = file.metadata().map_err(Error::file(path, "stat"))?.len();
        if length == 0 {
            return Err(Error::content(path, "empty, but named by boot-info.yaml"));
        }
        Ok(file)
    };
    Ok(BootInfo {
        kernel: open(&wire.kernel)?,
        initrd: wire.initrd.as_deref().map(open).transpose()?,
        kernel_path: wire.kernel,
        command_line: wire.cmdline,
        bootloader_id: wire.bootloader_id,
    })
}

fn parse(content: &[u8]) -> Result<Wire, String> {
    let mut wire: Wire = serde_saphyr::from_slice(content).map_err(|error| {
        // The crate's report draws the source; the console wants one line.
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        format!("expected kernel, initrd, cmdline and bootloader_id as YAML: {line}")
    })?;
    wire.initrd = wire.initrd.filter(|path| !path.is_empty());
    wire.bootloader_id = wire.bootloader_id.filter(|id| !id.is_empty());
    for (name, path) in [
        ("kernel", Some(&wire.kernel)),
        ("initrd", wire.initrd.as_ref()),
    ] {
        let Some(path) = path else { continue };
        if path.is_empty() || path.len() > 4095 || path.chars().any(char::is_control) {
            return Err(format!("{name} is {path:?}, expected a path in the target"));
        }
    }
    if wire.cmdline.len() >= MAX_COMMAND_LINE {
        return Err(format!(
            "cmdline has {} bytes, the kernel takes at most {}",
            wire.cmdline.len(),
            MAX_COMMAND_LINE - 1
        ));
    }
    if wire.cmdline.chars().any(char::is_control) {
        return Err("cmdline holds a control character".to_owned());
    }
    if let Some(id) = &wire.bootloader_id {
        let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
        if id.len() > 64 || !id.chars().all(harmless) || id.starts_with('.') {
            return Err(format!(
                "bootloader_id is {id:?}, expected one directory name"
            ));
        }
    }
    Ok(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "initrd: /boot/initrd.img-6.1\ncmdline: console=ttyS0 root=UUID=x ro\n\
                        kernel: /boot/vmlinuz-6.1\nbootloader_id: metal-debian\nlater_field: 1\n";

    #[test]
    fn what_os_installer_writes() {
        let wire = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(wire.kernel, "/boot/vmlinuz-6.1");
        assert_eq!(wire.initrd.as_deref(), Some("/boot/initrd.img-6.1"));
        assert_eq!(wire.cmdline, "console=ttyS0 root=UUID=x ro");
        assert_eq!(wire.bootloader_id.as_deref(), Some("metal-debian"));
        let short = parse(b"kernel: /k\ncmdline: \"\"\ninitrd: \"\"\n").unwrap();
        assert_eq!((short.initrd, short.bootloader_id), (None, None));
        let null = parse(b"kernel: /k\ncmdline: a\ninitrd: null\nbootloader_id: ~\n").unwrap();
        assert_eq!((null.initrd, null.bootloader_id), (None, None));
    }

    #[test]
    fn what_nobody_can_boot() {
        let long = format!("kernel: /k\ncmdline: {}\n", "a".repeat(MAX_COMMAND_LINE));
        for (text, reason) in [
            ("", "expected kernel"),
            ("just text", "expected kernel"),
            ("kernel: [", "expected kernel"),
            ("cmdline: a\n", "kernel"),
            ("kernel: /k\n", "cmdline"),
            ("kernel: \"\"\ncmdline: a\n", "kernel is \"\""),
            ("kernel: \"/k\\0\"\ncmdline: a\n", "kernel is"),
            (&long, "the kernel takes at most 2047"),
            ("kernel: /k\ncmdline: \"a\\nb\"\n", "control character"),
            (
                "kernel: /k\ncmdline: a\nbootloader_id: ../evil\n",
                "bootloader_id",
            ),
            (
                "kernel: /k\ncmdline: a\nbootloader_id: a/b\n",
                "bootloader_id",
            ),
            (
                "kernel: /k\ncmdline: a\nbootloader_id: \"a\\\\b\"\n",
                "bootloader_id",
            ),
        ] {
            let error = parse(text.as_bytes())
                .err()
                .unwrap_or_else(|| panic!("{text:?} passed"));
            assert!(error.contains(reason), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_files_are_opened_inside_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        let missing = read(&root).unwrap_err().to_string();
        assert!(
            missing.contains(PATH) && missing.contains("No such file"),
            "{missing}"
        );

        root.write(Path::new(PATH), GOOD.as_bytes(), 0o700).unwrap();
        assert!(
            read(&root)
                .unwrap_err()
                .to_string()
                .contains("/boot/vmlinuz-6.1")
        );
        root.write(Path::new("/boot/vmlinuz-6.1"), b"MZ", 0o644)
            .unwrap();
        root.write(Path::new("/boot/initrd.img-6.1"), b"", 0o644)
            .unwrap();
        assert!(read(&root).unwrap_err().to_string().contains("empty"));
        root.write(Path::new("/boot/initrd.img-6.1"), b"x", 0o644)
            .unwrap();
        let info = read(&root).unwrap();
        assert!(info.initrd.is_some());
        assert_eq!(info.kernel_path, "/boot/vmlinuz-6.1");

        // An absolute link means the target's root, not ours.
        std::fs::remove_file(dir.path().join("boot/vmlinuz-6.1")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("boot/vmlinuz-6.1")).unwrap();
        assert!(
            read(&root)
                .unwrap_err()
                .to_string()
                .contains("No such file")
        );
        std::fs::remove_file(dir.path().join("boot/vmlinuz-6.1")).unwrap();
        std::fs::create_dir(dir.path().join("boot/vmlinuz-6.1")).unwrap();
        assert!(
            read(&root)
                .unwrap_err()
                .to_string()
                .contains("regular file")
        );
    }
}
