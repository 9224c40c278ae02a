//! POSIX ACLs: from the text in a tar archive (acl(5), "ACL TEXT FORMS") to the value of the
//! kernel's xattr (`linux/posix_acl_xattr.h`).

use std::path::Path;

use super::root::RootDir;

/// `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;
/// `ACL_UNDEFINED_ID`: the entries of owner, owning group, mask and others.
const NO_ID: u32 = u32::MAX;
/// More entries than fit into one xattr of 64 KiB.
const MAX_ENTRIES: usize = 8000;
/// Account databases of an image; a larger one is not read.
const MAX_ACCOUNTS: u64 = 4 << 20;

/// Names to ids, as the image itself has them. The host's accounts are none of its business.
pub struct Accounts {
    users: String,
    groups: String,
}

impl Accounts {
    /// Reads `/etc/passwd` and `/etc/group` of a tree; what cannot be read has no names.
    pub fn of(root: &RootDir) -> Self {
        let read = |path: &str| {
            let bytes = root.read(Path::new(path), MAX_ACCOUNTS).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self {
            users: read("/etc/passwd"),
            groups: read("/etc/group"),
        }
    }

    /// `name:password:id:…`, passwd(5) and group(5).
    fn id(&self, tag: Tag, name: &str) -> Option<u32> {
        let database = match tag {
            Tag::User => &self.users,
            _ => &self.groups,
        };
        let line = database
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split(':').nth(1)?.parse().ok()
    }
}

/// `e_tag` of `struct posix_acl_xattr_entry`; the kernel wants entries in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

/// The xattr's value for a list in long or short text form, entries on lines of their own
/// or between commas. A fourth field, which star and GNU tar write, is the id of a name.
///
/// # Errors
/// A sentence that says which entry is wrong.
pub fn encode(text: &[u8], accounts: &Accounts) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "an ACL that is not text".to_owned())?;
    let mut entries = Vec::new();
    for line in text.split(['\n', ',']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |why: &str| format!("ACL entry {:?}: {why}", shortened(line));
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let [tag, name, permissions, rest @ ..] = fields.as_slice() else {
            return Err(wrong("expected type, name and permissions"));
        };
        let tag = match (*tag, name.is_empty()) {
            ("user" | "u", true) => Tag::Owner,
            ("user" | "u", false) => Tag::User,
            ("group" | "g", true) => Tag::OwningGroup,
            ("group" | "g", false) => Tag::Group,
            ("mask" | "m", true) => Tag::Mask,
            ("other" | "o", true) => Tag::Other,
            _ => return Err(wrong("no such type")),
        };
        let id = if name.is_empty() {
            NO_ID
        } else {
            let numeric = rest.first().and_then(|id| id.parse().ok());
            numeric
                .or_else(|| name.parse().ok())
                .or_else(|| accounts.id(tag, name))
                .filter(|id| *id != NO_ID)
                .ok_or_else(|| wrong("the image's own /etc/passwd and /etc/group lack this name"))?
        };
        let permissions = bits(permissions).ok_or_else(|| wrong("permissions other than rwx"))?;
        if entries.len() == MAX_ENTRIES {
            return Err(format!("an ACL of more than {MAX_ENTRIES} entries"));
        }
        entries.push((tag, id, permissions));
    }
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&(tag as u16).to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Ok(value)
}

fn bits(text: &str) -> Option<u16> {
    text.chars().try_fold(0, |bits, c| match c {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    })
}

fn shortened(line: &str) -> String {
    line.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            users: "root:x:0:0::/:/bin/sh\ndaemon:x:1:1::/:\nweb:x:990:990::/:\n".into(),
            groups: "root:x:0:\nadm:x:4:web\n".into(),
        }
    }

    /// What setfacl(1) itself makes of the first text, read back with getfattr(1).
    const KNOWN: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x01\0\0\0\
        \x02\0\x06\0\x39\x30\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x06\0\xff\xff\xff\xff\
        \x20\0\x04\0\xff\xff\xff\xff";

    #[test]
    fn both_text_forms() {
        for text in [
            "user::rw-\nuser:daemon:r--\nuser:12345:rw-\ngroup::r--\nmask::rw-\nother::r--\n",
            "u::rw,u:12345:rw,g::r,m::rw,o::r,u:daemon:r",
            "user::rw-,user:nobody-here:r--:1,user:x:rw-:12345,group::r--,mask::rw-,other::r--",
            "user::rw-\t#effective:rw-\nuser:1:r--\nuser:12345:rw-\ngroup::r--\nmask::rw-\nother::r--",
        ] {
            assert_eq!(
                encode(text.as_bytes(), &accounts()).unwrap(),
                KNOWN,
                "{text:?}"
            );
        }
        let group = encode(b"group:adm:x", &accounts()).unwrap();
        assert_eq!(group[4..], [8, 0, 1, 0, 4, 0, 0, 0]);
    }

    #[test]
    fn entries_that_make_no_sense() {
        for (text, reason) in [
            (&b"user"[..], "expected type"),
            (b"user:adm:r", "lack this name"),
            (b"group:daemon:r", "lack this name"),
            (b"mask:1:r", "no such type"),
            (b"user::rwz", "other than rwx"),
            (b"user:4294967295:r", "lack this name"),
            (b"\xff", "not text"),
        ] {
            let error = encode(text, &accounts()).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
