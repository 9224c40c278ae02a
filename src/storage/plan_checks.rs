//! What a layout's texts may be: mount points, labels, options. They come from the
//! control plane and end up as arguments of commands, in GPT entries and in fstab.

use crate::control::api::Format;

use super::superblock::MAX_SWAP_LABEL;

/// Options of one file system, and length of each in bytes.
const MAX_OPTIONS: usize = 64;
const MAX_OPTION: usize = 256;
/// Longest mount point, in bytes; far below PATH_MAX.
const MAX_PATH: usize = 1024;
/// UEFI 2.10 §5.3.3: 72 bytes of UTF-16.
const MAX_GPT_LABEL: usize = 36;
/// Kernel, `fs/ext4/ext4.h`, `EXT4_LABEL_MAX`.
const MAX_EXT_LABEL: usize = 16;
/// Microsoft FAT specification, `BS_VolLab`.
const MAX_FAT_LABEL: usize = 11;
/// Characters that a FAT label must not have (dosfstools, `mkfs.fat`; the FAT
/// specification's rules for short names).
const NOT_IN_FAT_LABEL: &str = "*?.,;:/\\|+=<>[]\"";

/// Options of `mke2fs` that take a value and are let through. Missing on purpose: `-d`,
/// `-l` and `-z` (read or write other files), `-n` (makes nothing), `-S`, `-V`, and what
/// the agent itself sets: `-t`, `-L`, `-U`.
const MKE2FS_VALUES: &str = "bCeEgGiIJmMNoOrT";
const MKE2FS_FLAGS: &str = "cDFjKqv";
/// The same for `mkfs.vfat`; missing: `-C`, `-l` and what the agent sets: `-i`, `-n`.
const MKFS_VFAT_VALUES: &str = "bDfFghMrRsS";
const MKFS_VFAT_FLAGS: &str = "aIv";

/// A mount point without a trailing slash.
pub(super) fn mount_point(path: &str) -> Result<String, String> {
    let shown = || path.chars().take(100).collect::<String>();
    if path.len() > MAX_PATH {
        return Err(format!(
            "the mount point {:?}... is too long; expected at most {MAX_PATH} bytes",
            shown()
        ));
    }
    let Some(relative) = path.strip_prefix('/') else {
        return Err(format!(
            "the mount point {:?} is not absolute; expected for example /var",
            shown()
        ));
    };
    let relative = relative.strip_suffix('/').unwrap_or(relative);
    let is_clean = relative.is_empty()
        || relative
            .split('/')
            .all(|name| !matches!(name, "" | "." | "..") && name.len() <= 255);
    if !is_clean || path.contains(char::is_control) {
        return Err(format!(
            "the mount point {:?} is not usable; expected names between slashes, without `.`, `..`, empty names and control characters",
            shown()
        ));
    }
    Ok(format!("/{relative}"))
}

/// A partition's label.
pub(super) fn gpt_label(label: &str) -> Result<(), String> {
    let length = label.encode_utf16().count();
    if length > MAX_GPT_LABEL {
        return Err(format!(
            "its label has {length} UTF-16 units; expected at most {MAX_GPT_LABEL}"
        ));
    }
    no_controls("label", label)
}

/// A file system's label.
pub(super) fn filesystem_label(format: Format, label: &str) -> Result<(), String> {
    no_controls("label", label)?;
    let max = match format {
        Format::Vfat => MAX_FAT_LABEL,
        Format::Ext3 | Format::Ext4 => MAX_EXT_LABEL,
        Format::Swap => MAX_SWAP_LABEL,
        Format::Tmpfs | Format::None | Format::Unspecified => return Ok(()),
    };
    if label.len() > max {
        return Err(format!(
            "its label {label:?} has {} bytes; expected at most {max}",
            label.len()
        ));
    }
    let is_fat_label = |c: char| c.is_ascii() && !NOT_IN_FAT_LABEL.contains(c);
    if format == Format::Vfat && !label.chars().all(is_fat_label) {
        return Err(format!(
            "its label {label:?} has characters that FAT does not know; expected ASCII without {NOT_IN_FAT_LABEL}"
        ));
    }
    Ok(())
}

/// Mount options, one each, from elements that may hold several with commas between.
pub(super) fn mount_options(options: &[String]) -> Result<Vec<String>, String> {
    let single = options.iter().flat_map(|element| element.split(','));
    single
        .map(|option| {
            if option.is_empty() || option.contains(|c: char| c.is_control() || c.is_whitespace()) {
                Err(format!(
                    "the mount option {option:?} is empty or has blanks or control characters"
                ))
            } else {
                Ok(option.to_owned())
            }
        })
        .collect()
}

/// Options for the command that makes a file system of `format`. Only known options pass:
/// a word that is no option would be taken for the device to format.
pub(super) fn create_options(format: Format, options: &[String]) -> Result<(), String> {
    let (tool, values, flags) = match format {
        Format::Ext3 | Format::Ext4 => ("mke2fs", MKE2FS_VALUES, MKE2FS_FLAGS),
        Format::Vfat => ("mkfs.vfat", MKFS_VFAT_VALUES, MKFS_VFAT_FLAGS),
        Format::Swap | Format::Tmpfs | Format::None | Format::Unspecified => return Ok(()),
    };
    if options.len() > MAX_OPTIONS || options.iter().any(|word| word.len() > MAX_OPTION) {
        return Err(format!(
            "its create options are too many or too long; expected at most {MAX_OPTIONS} of {MAX_OPTION} bytes"
        ));
    }
    let mut words = options.iter();
    while let Some(word) = words.next() {
        no_controls("create option", word)?;
        let mut letters = word.strip_prefix('-').unwrap_or("").chars();
        let Some(letter) = letters.next() else {
            return Err(format!("the create option {word:?} is no option of {tool}"));
        };
        let attached = letters.as_str();
        if flags.contains(letter) && attached.is_empty() {
            continue;
        }
        if !values.contains(letter) {
            return Err(format!(
                "the create option {word:?} is not allowed for {tool}; expected one of -{}",
                format!("{values}{flags}")
                    .chars()
                    .map(String::from)
                    .collect::<Vec<_>>()
                    .join(" -")
            ));
        }
        let value = if attached.is_empty() {
            words.next().map_or("", String::as_str)
        } else {
            attached
        };
        no_controls("create option", value)?;
        if value.trim().is_empty() || value.starts_with('-') {
            return Err(format!("the create option {word:?} needs a value"));
        }
        if value.contains("device=") || value.contains("offset=") {
            return Err(format!(
                "the create option {word:?} {value:?} writes outside the file system's own place"
            ));
        }
    }
    Ok(())
}

/// Whether the layout chooses the size of FAT entries itself.
pub(super) fn chooses_fat_size(options: &[String]) -> bool {
    options.iter().any(|word| word.starts_with("-F"))
}

fn no_controls(what: &str, text: &str) -> Result<(), String> {
    if text.contains(char::is_control) {
        Err(format!("its {what} {text:?} has control characters"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn mount_points() {
        for (path, expected) in [
            ("/", "/"),
            ("/var", "/var"),
            ("/var/", "/var"),
            ("//", "/"),
            ("/a b/ü", "/a b/ü"),
        ] {
            assert_eq!(mount_point(path).as_deref(), Ok(expected));
        }
        let long = format!("/{}", "x".repeat(MAX_PATH));
        let long_name = format!("/{}", "x".repeat(256));
        for path in [
            "", "var", "/a//b", "/..", "/a/../b", "/./a", "/a\n", "/a\0", &long, &long_name,
        ] {
            let error = mount_point(path).unwrap_err();
            assert!(
                error.contains("mount point") && error.len() < 400,
                "{error}"
            );
        }
    }

    #[test]
    fn labels() {
        use Format::{Ext3, Ext4, Swap, Tmpfs, Vfat};
        for (format, label, fine) in [
            (Vfat, "ELEVENCHARS", true),
            (Vfat, "TWELVE CHARS", false),
            (Vfat, "ü", false),
            (Vfat, "a.b", false),
            (Vfat, "", true),
            (Ext4, "sixteen-letters!", true),
            (Ext4, "seventeen-letters", false),
            (Ext3, "a\n", false),
            (Swap, "fifteen-letters", true),
            (Swap, "sixteen-letters!", false),
            (Tmpfs, "whatever it is, nobody sees it", true),
        ] {
            assert_eq!(
                filesystem_label(format, label).is_ok(),
                fine,
                "{format:?} {label:?}"
            );
        }
        assert!(gpt_label(&"x".repeat(36)).is_ok());
        assert!(gpt_label(&"x".repeat(37)).is_err());
        assert!(gpt_label(&"😀".repeat(19)).is_err());
        assert!(gpt_label("a\u{1b}").is_err());
    }

    #[test]
    fn mount_options_are_split_and_checked() {
        assert_eq!(
            mount_options(&strings(&["noatime,nodev", "size=1G"])).unwrap(),
            ["noatime", "nodev", "size=1G"]
        );
        for wrong in ["", "a,,b", "a b", "a\n/dev/sda1 / ext4", "a,"] {
            assert!(mount_options(&strings(&[wrong])).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn create_options_are_known_ones() {
        let table: [(Format, &[&str], bool); 20] = [
            (Format::Ext4, &[], true),
            (
                Format::Ext4,
                &["-I", "256", "-m0", "-O", "^has_journal"],
                true,
            ),
            (Format::Ext4, &["-E", "stride=2,stripe_width=4", "-v"], true),
            (Format::Vfat, &["-F 32"], true),
            (Format::Vfat, &["-F", "32", "-a"], true),
            (Format::Swap, &["-f"], true),
            (Format::Ext4, &["/dev/sdb"], false),
            (Format::Ext4, &["-v", "/dev/sdb"], false),
            (Format::Ext4, &["-vn"], false),
            (Format::Ext4, &["-n"], false),
            (Format::Ext4, &["-d", "/etc"], false),
            (Format::Ext4, &["-J", "device=/dev/sdb1"], false),
            (Format::Ext4, &["-Eoffset=4096"], false),
            (Format::Ext4, &["-I"], false),
            (Format::Ext4, &["-I", "-v"], false),
            (Format::Ext4, &["-U", "clear"], false),
            (Format::Ext4, &["--"], false),
            (Format::Ext4, &[""], false),
            (Format::Vfat, &["-C", "/x"], false),
            (Format::Vfat, &["-s", "1\n"], false),
        ];
        for (format, options, fine) in table {
            let result = create_options(format, &strings(options));
            assert_eq!(result.is_ok(), fine, "{format:?} {options:?}: {result:?}");
        }
        let many = vec!["-v".to_owned(); MAX_OPTIONS + 1];
        let long = vec!["-b".to_owned(), "1".repeat(MAX_OPTION + 1)];
        for options in [many, long] {
            let error = create_options(Format::Ext4, &options).unwrap_err();
            assert!(error.contains("too many or too long"), "{error}");
        }
    }
}
