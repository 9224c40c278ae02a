//! pax extended header records (POSIX.1-2017, pax, "pax Extended Header").

/// More than any tool writes for one entry.
pub const MAX_HEADER: u64 = 1024 * 1024;
/// `XATTR_SIZE_MAX` of `linux/limits.h`.
const MAX_XATTR: usize = 65536;
const SELINUX: &[u8] = b"security.selinux";

/// What the records say of the entry that follows them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Records {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// `SCHILY.xattr.<name>` and `RHT.security.selinux`: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `SCHILY.acl.access` and `SCHILY.acl.default`, text as acl(5) describes it.
    pub acls: Acls,
    pub sparse: Option<Sparse>,
}

/// The access control lists of an entry, as text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Acls {
    pub access: Option<Vec<u8>>,
    pub default: Option<Vec<u8>>,
}

/// `GNU.sparse.*` (GNU tar's manual, "Sparse Formats"). In 1.0 the map stands at the head
/// of the content; in 0.0 and 0.1 it is here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// Offset and length of each part, of the formats before 1.0.
    pub parts: Vec<(u64, u64)>,
    /// An offset whose length has not come yet.
    offset: Option<u64>,
}

impl Records {
    /// Adds the records of one extended header.
    ///
    /// # Errors
    /// A sentence that says which record is wrong.
    pub fn add(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() {
            let (body, rest) = record(data)?;
            let Some(equals) = body.iter().position(|&b| b == b'=') else {
                return Err("a pax record without `=`".to_owned());
            };
            self.set(&body[..equals], &body[equals + 1..])?;
            data = rest;
        }
        Ok(())
    }

    /// Whether these may stand in a global header, where they count for every later entry.
    pub fn may_be_global(&self) -> bool {
        let Self {
            path: None,
            link_path: None,
            size: None,
            sparse: None,
            xattrs,
            acls,
            ..
        } = self
        else {
            return false;
        };
        xattrs.is_empty() && *acls == Acls::default()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let shown = || String::from_utf8_lossy(key).into_owned();
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if value.len() > MAX_XATTR || name.is_empty() || name.contains(&0) {
                return Err(format!(
                    "{}: longer than the kernel takes, or no name",
                    shown()
                ));
            }
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        let number = || {
            std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| format!("{}: not a number", shown()))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => {
                self.mtime = Some(time(value).ok_or_else(|| format!("{}: not a time", shown()))?);
            }
            b"GNU.sparse.major" => self.sparse().major = Some(number()?),
            b"GNU.sparse.minor" => self.sparse().minor = Some(number()?),
            b"GNU.sparse.name" => self.sparse().name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse().real_size = Some(number()?);
            }
            b"GNU.sparse.offset" => self.sparse().offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let length = number()?;
                let sparse = self.sparse();
                let offset = sparse.offset.take();
                let offset = offset.ok_or("GNU.sparse.numbytes without an offset before it")?;
                sparse.parts.push((offset, length));
            }
            b"GNU.sparse.map" => {
                self.sparse().parts = map(value).ok_or("GNU.sparse.map: not pairs of numbers")?;
            }
            // The number of parts, which are counted here anyway.
            _ if key.starts_with(b"GNU.sparse.") => {
                self.sparse();
            }
            b"RHT.security.selinux" => {
                // The kernel's value ends in a zero byte (security/selinux/hooks.c).
                let label = [value, b"\0"].concat();
                self.xattrs.retain(|(known, _)| known != SELINUX);
                self.xattrs.push((SELINUX.to_vec(), label));
            }
            b"SCHILY.acl.access" => self.acls.access = Some(value.to_vec()),
            b"SCHILY.acl.default" => self.acls.default = Some(value.to_vec()),
            // Times that Linux cannot set, names that ids make superfluous, comments, vendors' own.
            _ => {}
        }
        Ok(())
    }

    fn sparse(&mut self) -> &mut Sparse {
        self.sparse.get_or_insert_default()
    }
}

/// `offset,length,offset,length…`
fn map(value: &[u8]) -> Option<Vec<(u64, u64)>> {
    let text = std::str::from_utf8(value).ok()?;
    let numbers: Vec<u64> = text
        .split(',')
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| {
        pairs
            .iter()
            .map(|&[offset, length]| (offset, length))
            .collect()
    })
}

/// Splits the body of one `<length> <key>=<value>\n` from the rest. The value may hold any byte.
fn record(data: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let wrong = || "a pax record is malformed".to_owned();
    let space = data
        .iter()
        .take(20)
        .position(|&b| b == b' ')
        .ok_or_else(wrong)?;
    let length: usize = std::str::from_utf8(&data[..space])
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(wrong)?;
    if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
        return Err(wrong());
    }
    Ok((&data[space + 1..length - 1], &data[length..]))
}

/// `[-]seconds[.fraction]`; what is beyond a nanosecond is cut off towards the past.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One record, its length computed.
    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn records_of_an_entry() {
        let capability = b"\x01\0\0\x02\0\n=\0\0";
        let data = [
            line("path", b"a/\xff b"),
            line("mtime", b"1700000000.123456789"),
            line("size", b"8589934592"),
            line("SCHILY.xattr.security.capability", capability),
            line("comment", b"x"),
        ]
        .concat();
        let mut records = Records::default();
        records.add(&data).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a/\xff b"[..]));
        assert_eq!(records.mtime, Some((1_700_000_000, 123_456_789)));
        assert_eq!(records.size, Some(8_589_934_592));
        assert_eq!(
            records.xattrs,
            [(b"security.capability".to_vec(), capability.to_vec())]
        );
        assert!(!records.may_be_global());
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.0000000019", Some((12, 1))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("x", None),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn malformed_records() {
        for data in [
            &b"5 a=b"[..],
            b"x a=b\n",
            b"99 a=b\n",
            b"3 \n",
            b"0 a=b\n",
            b"6 a b\n",
            b"11 size=abc\n",
            b"12 mtime=1:0\n",
            b"18446744073709551615 a=b\n",
        ] {
            let result = Records::default().add(data);
            assert!(result.is_err(), "{:?}", String::from_utf8_lossy(data));
        }
        let huge = line("SCHILY.xattr.user.a", &vec![0; MAX_XATTR + 1]);
        assert!(Records::default().add(&huge).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse_or_fail(data: Vec<u8>) {
            let _ = Records::default().add(&data);
        }
    }
}
