//! LVM: names, what fits into a volume group, and what `lvm` is told.

use std::path::{Path, PathBuf};

use super::plan::MIB;

/// Size of an extent, LVM's default, in bytes.
pub(super) const EXTENT: u64 = 4 * MIB;
/// Limits of LVM2 (`lib/metadata/metadata-exported.h`: NAME_LEN 128 for both names together
/// with the separators of /dev/mapper; tags 1024).
const MAX_NAMES: usize = 100;
const MAX_TAG: usize = 128;
const MAX_TAGS: usize = 64;
/// Parts of names that LVM keeps for its own sub-volumes (lvm(8), reserved names).
const RESERVED: [&str; 12] = [
    "_cdata", "_cmeta", "_corig", "_imeta", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta",
    "_tdata", "_tmeta", "_vorigin",
];

/// How a volume spreads its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Linear,
    /// Over all physical volumes of the group.
    Striped,
    /// On two physical volumes.
    Mirror,
}

impl Kind {
    /// The type that the API calls `name`; linear when it says nothing.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        match name {
            "LVM_TYPE_LINEAR" | "LVM_TYPE_UNSPECIFIED" | "" => Ok(Self::Linear),
            "LVM_TYPE_STRIPED" => Ok(Self::Striped),
            "LVM_TYPE_RAID1" => Ok(Self::Mirror),
            other => Err(format!(
                "its type is {:?}; expected LVM_TYPE_LINEAR, LVM_TYPE_STRIPED or LVM_TYPE_RAID1",
                other.chars().take(40).collect::<String>()
            )),
        }
    }

    /// lvcreate's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Striped => "striped",
            Self::Mirror => "raid1",
        }
    }
}

/// Checks the name of a group or a volume (lvm(8), "Valid names").
pub(super) fn name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    let is_fine = (1..=MAX_NAMES / 2).contains(&name.len())
        && name.chars().all(is_plain)
        && !name.starts_with('-')
        && !matches!(name, "." | ".." | "snapshot" | "pvmove")
        && !name.starts_with("snapshot")
        && !name.starts_with("pvmove")
        && !RESERVED.iter().any(|part| name.contains(part));
    if is_fine {
        Ok(())
    } else {
        Err(format!(
            "its name is not usable; expected 1 to {} letters, digits and +_.- that LVM does not reserve",
            MAX_NAMES / 2
        ))
    }
}

/// Checks the tags of a group (lvm(8), "TAGS").
pub(super) fn tags(tags: &[String]) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:#&".contains(c);
    let is_fine = |tag: &String| {
        (1..=MAX_TAG).contains(&tag.len()) && !tag.starts_with('-') && tag.chars().all(is_plain)
    };
    if tags.len() > MAX_TAGS {
        return Err(format!(
            "it has {} tags; expected at most {MAX_TAGS}",
            tags.len()
        ));
    }
    match tags.iter().find(|tag| !is_fine(tag)) {
        Some(tag) => Err(format!(
            "the tag {:?} is not usable; expected at most {MAX_TAG} letters, digits and _+.-/=!:#&",
            tag.chars().take(40).collect::<String>()
        )),
        None => Ok(()),
    }
}

/// Below `/dev/mapper`, hyphens of the names are doubled.
#[must_use]
pub(super) fn node(group: &str, volume: &str) -> PathBuf {
    let escape = |name: &str| name.replace('-', "--");
    PathBuf::from(format!("/dev/mapper/{}-{}", escape(group), escape(volume)))
}

/// Group and volume of a name below `/dev/mapper`.
#[must_use]
pub(super) fn names_of(mapped: &str) -> Option<(String, String)> {
    let marked = mapped.replace("--", "\0");
    let (group, volume) = marked.split_once('-')?;
    let plain = |name: &str| name.replace('\0', "-");
    Some((plain(group), plain(volume)))
}

/// Extents of a physical volume of `size` bytes whose data starts at `first` bytes.
#[must_use]
pub(super) fn extents(size: u64, first: u64) -> u64 {
    size.saturating_sub(first) / EXTENT
}

/// Takes the extents of one volume from what the physical volumes have free, as lvcreate
/// will, and answers how many the volume has; `wanted` is `None` for all that fit.
///
/// # Errors
/// How many could be had, when fewer than wanted or none. Nothing is taken then.
pub(super) fn allocate(free: &mut [u64], kind: Kind, wanted: Option<u64>) -> Result<u64, u64> {
    let legs = free.len() as u64;
    let mut by_size: Vec<usize> = (0..free.len()).collect();
    by_size.sort_by_key(|index| std::cmp::Reverse(free[*index]));
    let available = match kind {
        Kind::Linear => free.iter().sum(),
        Kind::Striped => free.iter().min().copied().unwrap_or(0) * legs,
        // Each leg has an extent of metadata beside it.
        Kind::Mirror => by_size
            .get(1)
            .map_or(0, |index| free[*index])
            .saturating_sub(1),
    };
    let wanted = match (wanted, kind) {
        (Some(wanted), Kind::Striped) => wanted.div_ceil(legs.max(1)).saturating_mul(legs),
        (Some(wanted), _) => wanted,
        (None, _) => available,
    };
    if wanted == 0 || wanted > available {
        return Err(available);
    }
    match kind {
        Kind::Linear => {
            let mut left = wanted;
            for free in free.iter_mut() {
                let taken = left.min(*free);
                *free -= taken;
                left -= taken;
            }
        }
        Kind::Striped => free.iter_mut().for_each(|free| *free -= wanted / legs),
        Kind::Mirror => by_size
            .iter()
            .take(2)
            .for_each(|index| free[*index] -= wanted + 1),
    }
    Ok(wanted)
}

/// A list for `--devices`: LVM sees these and nothing else, so that a group of the same
/// name on a disk that is left alone is no obstacle, and is not even read.
fn devices(members: &[&Path]) -> [String; 2] {
    let list: Vec<_> = members.iter().map(|m| m.to_string_lossy()).collect();
    ["--devices".to_owned(), list.join(",")]
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// pvcreate(8): every mark is gone already, so nothing has to be asked.
#[must_use]
pub(super) fn pvcreate(member: &Path) -> Vec<String> {
    let mut arguments = words(&["pvcreate", "--quiet", "--yes", "-ff"]);
    arguments.extend(devices(&[member]));
    arguments.push(member.to_string_lossy().into_owned());
    arguments
}

/// vgcreate(8).
#[must_use]
pub(super) fn vgcreate(group: &str, tags: &[String], members: &[&Path]) -> Vec<String> {
    let mut arguments = words(&["vgcreate", "--quiet", "--yes"]);
    arguments.extend(devices(members));
    arguments.extend(["--physicalextentsize".to_owned(), format!("{EXTENT}b")]);
    for tag in tags {
        arguments.extend(["--addtag".to_owned(), tag.clone()]);
    }
    arguments.push(group.to_owned());
    arguments.extend(members.iter().map(|m| m.to_string_lossy().into_owned()));
    arguments
}

/// pvs(8): free extents of each member, one line each.
#[must_use]
pub(super) fn free_extents(members: &[&Path]) -> Vec<String> {
    let mut arguments = words(&["pvs", "--quiet", "--noheadings", "--separator", " "]);
    arguments.extend(devices(members));
    arguments.extend(words(&[
        "--options",
        "pv_name,pv_pe_count,pv_pe_alloc_count",
    ]));
    arguments
}

/// What pvs answered to [`free_extents`], in the order of `members`.
#[must_use]
pub(super) fn parse_free(text: &str, members: &[&Path]) -> Option<Vec<u64>> {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    members
        .iter()
        .map(|member| {
            let line = lines
                .iter()
                .find(|line| line.first().is_some_and(|name| Path::new(name) == *member))?;
            let number = |index: usize| line.get(index)?.parse::<u64>().ok();
            number(1)?.checked_sub(number(2)?)
        })
        .collect()
}

/// lvcreate(8). What was on the place before is cleared by the agent, not asked about.
#[must_use]
pub(super) fn lvcreate(
    group: &str,
    volume: &str,
    kind: Kind,
    extents: u64,
    members: &[&Path],
) -> Vec<String> {
    let mut arguments = words(&["lvcreate", "--quiet", "--yes", "--wipesignatures", "n"]);
    arguments.extend(devices(members));
    arguments.extend(["--name".to_owned(), volume.to_owned()]);
    arguments.extend(["--extents".to_owned(), extents.to_string()]);
    arguments.extend(["--type".to_owned(), kind.name().to_owned()]);
    match kind {
        Kind::Linear => {}
        Kind::Striped => arguments.extend(["--stripes".to_owned(), members.len().to_string()]),
        Kind::Mirror => arguments.extend(words(&["--mirrors", "1"])),
    }
    arguments.push(group.to_owned());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits() {
        type Case<'c> = (&'c [u64], Kind, Option<u64>, Result<u64, u64>, &'c [u64]);
        let table: [Case; 14] = [
            (&[10, 5], Kind::Linear, Some(12), Ok(12), &[0, 3]),
            (&[10, 5], Kind::Linear, None, Ok(15), &[0, 0]),
            (&[10, 5], Kind::Linear, Some(16), Err(15), &[10, 5]),
            (&[10, 5], Kind::Striped, Some(3), Ok(4), &[8, 3]),
            (&[10, 5], Kind::Striped, None, Ok(10), &[5, 0]),
            (&[10, 5], Kind::Striped, Some(11), Err(10), &[10, 5]),
            (&[10, 5], Kind::Mirror, Some(4), Ok(4), &[5, 0]),
            (&[10, 5, 9], Kind::Mirror, None, Ok(8), &[1, 5, 0]),
            (&[10, 5], Kind::Mirror, Some(5), Err(4), &[10, 5]),
            (&[10], Kind::Mirror, None, Err(0), &[10]),
            (&[10, 1], Kind::Mirror, None, Err(0), &[10, 1]),
            (&[], Kind::Striped, Some(1), Err(0), &[]),
            (&[0], Kind::Linear, None, Err(0), &[0]),
            (&[1], Kind::Striped, Some(u64::MAX), Err(1), &[1]),
        ];
        for (before, kind, wanted, expected, after) in table {
            let mut free = before.to_vec();
            let found = allocate(&mut free, kind, wanted);
            assert_eq!(
                (found, &free[..]),
                (expected, after),
                "{before:?} {kind:?} {wanted:?}"
            );
        }
    }

    #[test]
    fn names_and_tags() {
        let long = "x".repeat(51);
        for (text, fine) in [
            ("vg0", true),
            ("a-b.c_d+e", true),
            ("", false),
            ("-x", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("root_rimage_0", false),
            ("pvmove0", false),
            (&long, false),
        ] {
            assert_eq!(name(text).is_ok(), fine, "{text:?}");
        }
        for (text, fine) in [
            ("a=b/c#1", true),
            ("", false),
            ("-a", false),
            ("a b", false),
            ("@a", false),
        ] {
            assert_eq!(tags(&[text.to_owned()]).is_ok(), fine, "{text:?}");
        }
        assert!(tags(&vec!["t".to_owned(); MAX_TAGS + 1]).is_err());
        assert_eq!(node("vg-a", "root"), Path::new("/dev/mapper/vg--a-root"));
        let names = |group: &str, volume: &str| Some((group.to_owned(), volume.to_owned()));
        assert_eq!(names_of("vg--a-root"), names("vg-a", "root"));
        assert_eq!(names_of("vg-more--data"), names("vg", "more-data"));
        assert_eq!(names_of("crypt"), None);
    }

    #[test]
    fn the_command_lines() {
        let members = [Path::new("/dev/sda2"), Path::new("/dev/md1")];
        assert_eq!(
            pvcreate(members[1]).join(" "),
            "pvcreate --quiet --yes -ff --devices /dev/md1 /dev/md1"
        );
        assert_eq!(
            vgcreate("vg0", &["a".to_owned(), "b=c".to_owned()], &members).join(" "),
            "vgcreate --quiet --yes --devices /dev/sda2,/dev/md1 --physicalextentsize 4194304b \
             --addtag a --addtag b=c vg0 /dev/sda2 /dev/md1"
        );
        let end = |kind| {
            let line = lvcreate("vg0", "root", kind, 7, &members).join(" ");
            let (_, end) = line.split_once("--extents").unwrap();
            end.to_owned()
        };
        assert_eq!(end(Kind::Linear), " 7 --type linear vg0");
        assert_eq!(end(Kind::Striped), " 7 --type striped --stripes 2 vg0");
        assert_eq!(end(Kind::Mirror), " 7 --type raid1 --mirrors 1 vg0");
    }

    #[test]
    fn free_extents_of_each_member() {
        let members = [Path::new("/dev/sda2"), Path::new("/dev/md1")];
        let text = "  /dev/md1 62 12\n  /dev/sda2 30 0\n";
        assert_eq!(parse_free(text, &members), Some(vec![30, 50]));
        for text in [
            "",
            "/dev/md1 62 12",
            "/dev/md1 1 2\n/dev/sda2 1 1",
            "/dev/md1 a b\n/dev/sda2 1 1",
        ] {
            assert_eq!(parse_free(text, &members), None, "{text:?}");
        }
    }
}
