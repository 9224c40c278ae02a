//! Linux software RAID: what `mdadm --create` is told, and what a superblock tells of an
//! array that is left alone.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::plan::MIB;

/// Options of `mdadm --create` that a layout may set, each with a value: long and short
/// name. Missing on purpose: what the agent sets itself (`--level`, `--raid-devices`,
/// `--spare-devices`, `--run`), and what reads or writes other files and devices.
const VALUES: [(&str, &str); 8] = [
    ("--bitmap", "-b"),
    ("--chunk", "-c"),
    ("--consistency-policy", "-k"),
    ("--homehost", ""),
    ("--layout", "-p"),
    ("--metadata", "-e"),
    ("--name", "-N"),
    ("--write-behind", ""),
];
const FLAGS: [&str; 4] = ["--assume-clean", "--failfast", "--force", "-f"];
/// Options of one array, and length of each in bytes.
const MAX_OPTIONS: usize = 32;
const MAX_OPTION: usize = 128;
/// Minor numbers have 20 bits.
const MAX_NUMBER: u32 = 1 << 20;

/// How an array spreads its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// RAID 0.
    Stripe,
    /// RAID 1.
    Mirror,
}

impl Level {
    /// The level that the API calls `name`.
    ///
    /// # Errors
    /// When it is none of the two.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        match name {
            "RAID_LEVEL_0" => Ok(Self::Stripe),
            "RAID_LEVEL_1" => Ok(Self::Mirror),
            other => Err(format!(
                "its level is {:?}; expected RAID_LEVEL_0 or RAID_LEVEL_1",
                other.chars().take(40).collect::<String>()
            )),
        }
    }

    /// The number that mdadm and people use.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Stripe => 0,
            Self::Mirror => 1,
        }
    }
}

/// Format of an array's superblock (md(4)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metadata {
    /// 0.90, in the last 64 KiB.
    V0,
    /// 1.0, near the end.
    V1End,
    /// 1.1, at the start.
    V1Start,
    /// 1.2, 4 KiB from the start; mdadm's default.
    V1Offset,
}

impl Metadata {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "0" | "0.90" => Ok(Self::V0),
            "1.0" => Ok(Self::V1End),
            "1.1" => Ok(Self::V1Start),
            "1" | "1.2" | "default" => Ok(Self::V1Offset),
            other => Err(format!(
                "its metadata is {other:?}; expected 0.90, 1.0, 1.1 or 1.2"
            )),
        }
    }

    /// Whether a member looks like what the array holds.
    #[must_use]
    pub fn is_at_the_end(self) -> bool {
        matches!(self, Self::V0 | Self::V1End)
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V0 => "0.90",
            Self::V1End => "1.0",
            Self::V1Start => "1.1",
            Self::V1Offset => "1.2",
        })
    }
}

/// What a layout's create options say, checked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `None`: not said.
    pub metadata: Option<Metadata>,
    /// Whether `--homehost` is among them.
    pub homehost: bool,
    pub name: bool,
}

/// Checks create options: only known ones pass, each a word of its own on mdadm's command
/// line. A word that is no option would be taken for a member.
///
/// # Errors
/// The first word that is not let through.
pub(super) fn options(words: &[String]) -> Result<Options, String> {
    if words.len() > MAX_OPTIONS {
        return Err(format!(
            "it has {} create options; expected at most {MAX_OPTIONS}",
            words.len()
        ));
    }
    let mut found = Options::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let shown: String = word.chars().take(40).collect();
        let (name, attached) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.as_str(), None),
        };
        if FLAGS.contains(&name) && attached.is_none() {
            continue;
        }
        let known = VALUES
            .iter()
            .find(|(long, short)| *long == name || (!short.is_empty() && *short == name));
        let Some((long, _)) = known else {
            return Err(format!(
                "the create option {shown:?} is not allowed for mdadm; expected one of {}",
                VALUES
                    .map(|(long, _)| long)
                    .iter()
                    .chain(&FLAGS)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(" ")
            ));
        };
        let value = match attached {
            Some(value) if name.starts_with("--") => value,
            Some(_) => return Err(format!("the create option {shown:?} is not understood")),
            None => rest.next().map_or("", String::as_str),
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._:-+".contains(c);
        let is_fine = !value.is_empty()
            && value.len() <= MAX_OPTION
            && !value.starts_with('-')
            && value.chars().all(is_plain);
        if !is_fine {
            return Err(format!(
                "the create option {shown:?} needs a value of letters, digits and ._:-+"
            ));
        }
        match *long {
            "--metadata" => found.metadata = Some(Metadata::parse(value)?),
            "--homehost" => found.homehost = true,
            "--name" => found.name = true,
            "--bitmap" if !matches!(value, "internal" | "none") => {
                return Err(format!(
                    "its bitmap is {value:?}; expected internal or none"
                ));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// How an array is called: `/dev/md7` has a number, `/dev/md/boot` a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name<'n> {
    Number(u32),
    Text(&'n str),
}

/// What the layout calls the array.
///
/// # Errors
/// When it is none of the two forms.
pub(super) fn name(array: &str) -> Result<Name<'_>, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if let Some(name) = array.strip_prefix("/dev/md/")
        && (1..=32).contains(&name.len())
        && name.chars().all(is_plain)
        && !name.starts_with(['.', '-'])
    {
        return Ok(Name::Text(name));
    }
    array
        .strip_prefix("/dev/md")
        .filter(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .filter(|number| *number < MAX_NUMBER && array == format!("/dev/md{number}"))
        .map(Name::Number)
        .ok_or_else(|| {
            "its name is not usable; expected for example /dev/md0 or /dev/md/data".into()
        })
}

/// The least size of an array over members of these sizes, in bytes. mdadm keeps 1/1024 of
/// a member, up to 128 MiB, for later reshapes, and whole MiB for superblock and bitmap.
#[must_use]
pub(super) fn least_size(level: Level, members: &[u64]) -> u64 {
    let smallest = members.iter().copied().min().unwrap_or(0);
    let kept = (smallest >> 10).clamp(MIB, 128 * MIB) + 2 * MIB;
    let usable = smallest.saturating_sub(kept);
    match level {
        Level::Mirror => usable,
        Level::Stripe => usable.saturating_mul(members.len() as u64),
    }
}

/// What `mdadm --create` needs to know.
pub(super) struct Create<'c> {
    pub node: &'c Path,
    pub level: Level,
    pub metadata: Metadata,
    /// With the spares.
    pub members: &'c [&'c Path],
    pub spares: usize,
    /// A name for `/dev/md/NAME`.
    pub name: Option<&'c str>,
    /// Checked by [`options`].
    pub options: &'c [String],
}

/// mdadm(8), create mode. `--homehost=any`: the new OS has another name than this host, and
/// shall find its arrays its own all the same.
#[must_use]
pub(super) fn arguments(create: &Create<'_>) -> Vec<String> {
    let said = options(create.options).unwrap_or_default();
    let mut arguments = vec![
        "--create".to_owned(),
        create.node.to_string_lossy().into_owned(),
        "--run".to_owned(),
        "--quiet".to_owned(),
        format!("--level={}", create.level.number()),
        format!("--raid-devices={}", create.members.len() - create.spares),
    ];
    if create.spares > 0 {
        arguments.push(format!("--spare-devices={}", create.spares));
    }
    if said.metadata.is_none() {
        arguments.push(format!("--metadata={}", create.metadata));
    }
    if !said.homehost && create.metadata != Metadata::V0 {
        arguments.push("--homehost=any".to_owned());
    }
    if let Some(name) = create.name
        && !said.name
    {
        arguments.push(format!("--name={name}"));
    }
    arguments.extend(create.options.iter().cloned());
    arguments.extend(
        create
            .members
            .iter()
            .map(|m| m.to_string_lossy().into_owned()),
    );
    arguments
}

/// Where the first bytes of an array's data are on `member`, in bytes, if this member has
/// them: of a mirror each active one, of stripes the first. Reads the version 1 superblock
/// (kernel, `include/uapi/linux/raid/md_p.h`); nothing is assembled or written.
///
/// # Errors
/// When the device cannot be read.
pub(super) fn data_on(member: &File, size: u64) -> io::Result<Option<u64>> {
    Ok(superblock_on(member, size)?.and_then(|found| found.data))
}

/// The UUID of the array that `member` belongs to, if it has a version 1 superblock. Only
/// reads.
///
/// # Errors
/// When the device cannot be read.
pub fn array_on(member: &File, size: u64) -> io::Result<Option<ArrayId>> {
    Ok(superblock_on(member, size)?.map(|found| found.array))
}

/// What tells one array from all others (`set_uuid`).
pub type ArrayId = [u8; 16];

/// What a member's superblock says.
#[derive(Debug, PartialEq, Eq)]
struct MemberSuperblock {
    array: ArrayId,
    /// Where the array's first bytes are on this member, in bytes, if it has them.
    data: Option<u64>,
}

fn superblock_on(member: &File, size: u64) -> io::Result<Option<MemberSuperblock>> {
    let at_the_end = (size / 512)
        .checked_sub(16)
        .map(|sector| (sector & !7) * 512);
    for at in [Some(4096), Some(0), at_the_end].into_iter().flatten() {
        let mut block = [0; 512];
        match member.read_exact_at(&mut block, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            other => other?,
        }
        if let Some(found) = parse(&block, at) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn parse(block: &[u8; 512], at: u64) -> Option<MemberSuperblock> {
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&block[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let is_superblock =
        word(0) == 0xa92b_4efc && word(4) == 1 && long(144).checked_mul(512) == Some(at);
    if !is_superblock {
        return None;
    }
    let mut array = [0; 16];
    array.copy_from_slice(&block[16..32]);
    let level = word(72);
    let dev_number = word(160) as usize;
    // The roles follow the 256 bytes of the header; a member's own number is its index.
    let role_at = 256 + 2 * dev_number.min(128);
    let has_start = block.get(role_at..role_at + 2).is_some_and(|bytes| {
        let role = u16::from_le_bytes([bytes[0], bytes[1]]);
        match level {
            0 => role == 0,
            1 => role < 0xfffd,
            _ => false,
        }
    });
    Some(MemberSuperblock {
        array,
        data: long(128).checked_mul(512).filter(|_| has_start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn create_options_are_known_ones() {
        let long = "x".repeat(MAX_OPTION + 1);
        type Case<'c> = (&'c [&'c str], Result<Option<Metadata>, &'c str>);
        let table: [Case; 18] = [
            (&[], Ok(None)),
            (&["--metadata=1.0"], Ok(Some(Metadata::V1End))),
            (&["--metadata", "1.0"], Ok(Some(Metadata::V1End))),
            (&["-e", "0.90", "--assume-clean"], Ok(Some(Metadata::V0))),
            (
                &["--chunk=64", "--bitmap=internal", "--name", "a:b"],
                Ok(None),
            ),
            (&["--metadata=2"], Err("expected 0.90")),
            (&["--metadata"], Err("needs a value")),
            (&["--metadata", "--force"], Err("needs a value")),
            (&["--metadata="], Err("needs a value")),
            (&["-e=1.0"], Err("not understood")),
            (&["--bitmap=/tmp/file"], Err("needs a value")),
            (&["--bitmap", "clustered"], Err("expected internal")),
            (&["/dev/sdz"], Err("not allowed for mdadm")),
            (&["--assume-clean", "missing"], Err("not allowed for mdadm")),
            (&["--stop"], Err("not allowed for mdadm")),
            (&["--write-journal=/dev/sdz"], Err("not allowed for mdadm")),
            (&["--name", "a b;reboot"], Err("needs a value")),
            (&["--name", &long], Err("needs a value")),
        ];
        for (words, expected) in table {
            let found = options(&strings(words)).map(|options| options.metadata);
            match (expected, found) {
                (Ok(expected), Ok(found)) => assert_eq!(found, expected, "{words:?}"),
                (Err(expected), Err(found)) => {
                    assert!(found.contains(expected), "{words:?}: {found}")
                }
                (_, found) => panic!("{words:?}: {found:?}"),
            }
        }
        assert!(options(&strings(&["-f"; MAX_OPTIONS + 1])).is_err());
    }

    #[test]
    fn names() {
        for (text, expected) in [
            ("/dev/md0", Some(Name::Number(0))),
            ("/dev/md127", Some(Name::Number(127))),
            ("/dev/md/boot", Some(Name::Text("boot"))),
            ("/dev/md", None),
            ("/dev/md/", None),
            ("/dev/md007", None),
            ("/dev/md1048576", None),
            ("/dev/md99999999999", None),
            ("/dev/md/../sda", None),
            ("/dev/md/-x", None),
            ("/dev/sda", None),
            ("md0", None),
        ] {
            assert_eq!(name(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn the_command_line() {
        let members = ["/dev/sda1", "/dev/sdb1", "/dev/sdc1"].map(Path::new);
        let options = strings(&["--chunk=64"]);
        let create = Create {
            node: Path::new("/dev/md1"),
            level: Level::Mirror,
            metadata: Metadata::V1End,
            members: &members,
            spares: 1,
            name: None,
            options: &options,
        };
        assert_eq!(
            arguments(&create).join(" "),
            "--create /dev/md1 --run --quiet --level=1 --raid-devices=2 --spare-devices=1 \
             --metadata=1.0 --homehost=any --chunk=64 /dev/sda1 /dev/sdb1 /dev/sdc1"
        );
        let options = strings(&["-e", "1.1", "--homehost", "h", "--name=n"]);
        let create = Create {
            level: Level::Stripe,
            metadata: Metadata::V1Start,
            spares: 0,
            name: Some("boot"),
            options: &options,
            ..create
        };
        assert_eq!(
            arguments(&create).join(" "),
            "--create /dev/md1 --run --quiet --level=0 --raid-devices=3 \
             -e 1.1 --homehost h --name=n /dev/sda1 /dev/sdb1 /dev/sdc1"
        );
    }

    #[test]
    fn sizes() {
        let gib = 1 << 30;
        assert_eq!(least_size(Level::Mirror, &[gib, 2 * gib]), gib - 3 * MIB);
        assert_eq!(least_size(Level::Stripe, &[gib, gib]), 2 * (gib - 3 * MIB));
        assert_eq!(
            least_size(Level::Mirror, &[1 << 42, 1 << 42]),
            (1 << 42) - 130 * MIB
        );
        assert_eq!(least_size(Level::Mirror, &[MIB]), 0);
        assert_eq!(least_size(Level::Stripe, &[]), 0);
    }

    fn superblock(level: u32, dev_number: u32, role: u16, at: u64) -> [u8; 512] {
        let mut block = [0; 512];
        block[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
        block[4] = 1;
        block[72..76].copy_from_slice(&level.to_le_bytes());
        block[128..136].copy_from_slice(&2048_u64.to_le_bytes());
        block[144..152].copy_from_slice(&(at / 512).to_le_bytes());
        block[160..164].copy_from_slice(&dev_number.to_le_bytes());
        if dev_number < 128 {
            let at = 256 + 2 * dev_number as usize;
            block[at..at + 2].copy_from_slice(&role.to_le_bytes());
        }
        block
    }

    #[test]
    fn the_start_of_the_data_is_found_where_it_is() {
        let size = 64 * MIB + 512;
        for at in [4096, 0, 64 * MIB + 512 - 8192 - 512] {
            for (level, role, expected) in [
                (1, 0, Some(MIB)),
                (1, 1, Some(MIB)),
                (1, 0xffff, None),
                (0, 0, Some(MIB)),
                (0, 1, None),
                (5, 0, None),
            ] {
                let file = tempfile::tempfile().unwrap();
                file.set_len(size).unwrap();
                file.write_all_at(&superblock(level, 1, role, at), at)
                    .unwrap();
                assert_eq!(
                    data_on(&file, size).unwrap(),
                    expected,
                    "{at} {level} {role}"
                );
            }
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(data_on(&file, 0).unwrap(), None);
        file.set_len(size).unwrap();
        file.write_all_at(&superblock(1, u32::MAX, 0, 4096), 4096)
            .unwrap();
        assert_eq!(data_on(&file, size).unwrap(), None);
    }
}
