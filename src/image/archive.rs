//! A tar stream taken apart: ustar, GNU and pax headers, long names, sparse maps.
//!
//! The `tar` crate reads the fields of a header block. The stream itself is read here,
//! because the crate's iterator holds extended headers of any size in memory, splits
//! binary xattrs at newlines and takes a cut-off archive for a finished one.

use std::io::BufRead;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::error::Error;
use super::pax::{Acls, MAX_HEADER, Records, Sparse};
use super::pipe::{Stop, is_cut_off};

const BLOCK: u64 = 512;
/// `PATH_MAX` of `linux/limits.h`; a GNU long name may not be longer.
pub const MAX_PATH: usize = 4096;
/// Parts of one sparse file; the map is held in memory.
const MAX_PARTS: usize = 100_000;

/// One member of the archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// As stored: not yet looked at.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub acls: Acls,
}

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its content is read with [`Archive::content`], part after part.
    File {
        size: u64,
        /// Offset and length of what is stored; the rest is holes.
        parts: Vec<(u64, u64)>,
    },
    Directory,
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    /// Major and minor number.
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// A tar stream.
pub struct Archive<R> {
    source: R,
    /// Bytes read so far.
    at: u64,
    /// Bytes of the current member that are still to be read, and the padding after them.
    content: u64,
    padding: u64,
    global: Records,
}

impl<R: BufRead> Archive<R> {
    /// An archive that is read from `source`.
    pub fn new(source: R) -> Self {
        Self {
            source,
            at: 0,
            content: 0,
            padding: 0,
            global: Records::default(),
        }
    }

    /// Bytes of the tar stream read so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next member; what was not read of the one before is skipped. `None` is the
    /// archive's proper end, after which the stream held nothing but zeros.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Stop> {
        let mut records = self.global.clone();
        let mut long_name = None;
        let mut long_link = None;
        // Each header may be small, but nothing else says how many there are.
        let mut extended = 0_u64;
        loop {
            let Some(header) = self.header()? else {
                if records != self.global || long_name.is_some() || long_link.is_some() {
                    return self.wrong("an extended header without the entry it is for");
                }
                return Ok(None);
            };
            let limit = MAX_HEADER.saturating_sub(extended);
            if is_extension(&header) {
                extended = extended.saturating_add(self.content);
            }
            match header.entry_type() {
                EntryType::XHeader => {
                    let data = self.extension(limit)?;
                    records.add(&data).or_else(|reason| self.wrong(reason))?;
                }
                EntryType::XGlobalHeader => {
                    let data = self.extension(limit)?;
                    let mut global = Records::default();
                    global.add(&data).or_else(|reason| self.wrong(reason))?;
                    if !global.may_be_global() {
                        return self.wrong(
                            "a global pax header gives all entries one name, size or xattr",
                        );
                    }
                    self.global = global.clone();
                    records = global;
                }
                EntryType::GNULongName => long_name = Some(self.long_name(limit)?),
                EntryType::GNULongLink => long_link = Some(self.long_name(limit)?),
                _ => return self.entry(&header, records, long_name, long_link).map(Some),
            }
        }
    }

    /// Hands the next `length` bytes of the current member to `sink`.
    pub fn content(
        &mut self,
        length: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut left = length;
        while left > 0 {
            let at = self.at;
            let available = self.source.fill_buf().map_err(|e| broken(&e, at))?;
            if available.is_empty() {
                return self.wrong("it ends in the middle of a file (truncated?)");
            }
            let count = available
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(&available[..count])?;
            self.source.consume(count);
            self.at += count as u64;
            self.content = self.content.saturating_sub(count as u64);
            left -= count as u64;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &Header,
        records: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Stop> {
        let sparse_name = records.sparse.as_ref().and_then(|s| s.name.clone());
        let path = sparse_name
            .or(records.path)
            .or(long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = records
            .link_path
            .or(long_link)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let size = match records.size {
            Some(size) => size,
            None => header.entry_size().or_else(|e| self.wrong(e.to_string()))?,
        };
        let entry_type = header.entry_type();
        if records.sparse.is_some() && entry_type != EntryType::Regular {
            return self.wrong(format!(
                "{}: a sparse map for something that is no file",
                shown(&path)
            ));
        }
        let kind = match entry_type {
            // Before ustar a directory was a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                self.member(size)?;
                match records.sparse {
                    None => Kind::File {
                        size,
                        parts: vec![(0, size)],
                    },
                    Some(sparse) => self.pax_sparse(sparse, &path)?,
                }
            }
            EntryType::GNUSparse => {
                self.member(size)?;
                self.gnu_sparse(header, &path)?
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Link => Kind::HardLink(link),
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => self.device(header, Kind::Char)?,
            EntryType::Block => self.device(header, Kind::Block)?,
            other => {
                return self.wrong(format!(
                    "{}: entry type {:?} is not supported",
                    shown(&path),
                    char::from(other.as_byte())
                ));
            }
        };
        let uid = self.id(records.uid.map_or_else(|| header.uid(), Ok))?;
        let gid = self.id(records.gid.map_or_else(|| header.gid(), Ok))?;
        let mode = header.mode().or_else(|e| self.wrong(e.to_string()))? & 0o7777;
        let mtime = match records.mtime {
            Some(time) => time,
            None => {
                let seconds = header.mtime().or_else(|e| self.wrong(e.to_string()))?;
                // A base-256 field may hold a time before 1970 in two's complement.
                (seconds.cast_signed(), 0)
            }
        };
        Ok(Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs: records.xattrs,
            acls: records.acls,
        })
    }

    /// The next header block that is not zero; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, Stop> {
        self.skip()?;
        let mut header = Header::new_old();
        let at_end = self.block(header.as_mut_bytes())?;
        if at_end {
            return self.wrong("it ends without an end-of-archive block (truncated?)");
        }
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            self.only_zeros()?;
            return Ok(None);
        }
        if !sum_is_right(&header) {
            return self.wrong("a header's checksum is wrong");
        }
        if is_extension(&header) {
            let size = header.entry_size().or_else(|e| self.wrong(e.to_string()))?;
            self.member(size)?;
        }
        Ok(Some(header))
    }

    /// Fills one block; true when the stream ends exactly before it.
    fn block(&mut self, into: &mut [u8; BLOCK as usize]) -> Result<bool, Stop> {
        let mut filled = 0;
        while filled < into.len() {
            let at = self.at;
            let available = self.source.fill_buf().map_err(|e| broken(&e, at))?;
            let count = available.len().min(into.len() - filled);
            if count == 0 {
                if filled == 0 {
                    return Ok(true);
                }
                return self.wrong("it ends in the middle of a block (truncated?)");
            }
            into[filled..filled + count].copy_from_slice(&available[..count]);
            self.source.consume(count);
            self.at += count as u64;
            filled += count;
        }
        Ok(false)
    }

    /// A block of the current member's content.
    fn content_block(&mut self) -> Result<[u8; BLOCK as usize], Stop> {
        let mut block = [0; BLOCK as usize];
        if self.content < BLOCK {
            return self.wrong("a sparse map that is longer than its entry");
        }
        if self.block(&mut block)? {
            return self.wrong("it ends in the middle of a file (truncated?)");
        }
        self.content -= BLOCK;
        Ok(block)
    }

    fn member(&mut self, size: u64) -> Result<(), Stop> {
        if size > i64::MAX.cast_unsigned() {
            return self.wrong(format!("an entry of {size} bytes"));
        }
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }

    fn skip(&mut self) -> Result<(), Stop> {
        let left = self.content + self.padding;
        self.content(left, |_| Ok(()))?;
        self.content = 0;
        self.padding = 0;
        Ok(())
    }

    fn extension(&mut self, limit: u64) -> Result<Vec<u8>, Stop> {
        let size = self.content;
        if size > limit {
            return self.wrong(format!(
                "an extended header of {size} bytes, at most {limit} are accepted"
            ));
        }
        let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        self.content(size, |bytes| {
            data.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(data)
    }

    fn long_name(&mut self, limit: u64) -> Result<Vec<u8>, Stop> {
        let mut name = self.extension(limit.min(MAX_PATH as u64 + 1))?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Old GNU sparse format: up to four parts in the header, 21 in each block that follows.
    fn gnu_sparse(&mut self, header: &Header, path: &[u8]) -> Result<Kind, Stop> {
        let Some(gnu) = header.as_gnu() else {
            return self.wrong(format!(
                "{}: a sparse file without a GNU header",
                shown(path)
            ));
        };
        let size = gnu.real_size().or_else(|e| self.wrong(e.to_string()))?;
        let mut parts = Vec::new();
        self.gnu_parts(&gnu.sparse, &mut parts)?;
        let mut more = gnu.is_extended();
        while more {
            // These blocks stand between header and content and are not counted in its size.
            let mut extension = GnuExtSparseHeader::new();
            if self.block(extension.as_mut_bytes())? {
                return self.wrong("it ends in the middle of a sparse map (truncated?)");
            }
            self.gnu_parts(extension.sparse(), &mut parts)?;
            more = extension.is_extended();
        }
        self.sparse_file(size, parts, path)
    }

    fn gnu_parts(
        &self,
        listed: &[GnuSparseHeader],
        parts: &mut Vec<(u64, u64)>,
    ) -> Result<(), Stop> {
        for part in listed.iter().filter(|part| !part.is_empty()) {
            let offset = part.offset().or_else(|e| self.wrong(e.to_string()))?;
            let length = part.length().or_else(|e| self.wrong(e.to_string()))?;
            parts.push((offset, length));
        }
        if parts.len() > MAX_PARTS {
            return self.wrong(format!("a sparse file of more than {MAX_PARTS} parts"));
        }
        Ok(())
    }

    /// The pax sparse formats 0.0 and 0.1 (map in the header) and 1.0 (map in the content).
    fn pax_sparse(&mut self, sparse: Sparse, path: &[u8]) -> Result<Kind, Stop> {
        match (sparse.major, sparse.minor, sparse.real_size) {
            (Some(1), Some(0), Some(size)) => {
                let parts = self.map_in_content()?;
                self.sparse_file(size, parts, path)
            }
            (None | Some(0), None | Some(0 | 1), Some(size)) => {
                self.sparse_file(size, sparse.parts, path)
            }
            _ => self.wrong(format!(
                "{}: pax sparse format {}.{} is not supported, or has no size",
                shown(path),
                sparse.major.unwrap_or(0),
                sparse.minor.unwrap_or(0)
            )),
        }
    }

    /// Decimal numbers, one a line, in whole blocks before the data: how many parts, then
    /// offset and length of each.
    fn map_in_content(&mut self) -> Result<Vec<(u64, u64)>, Stop> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut text = Vec::new();
        let mut expected = None;
        while expected.is_none_or(|count| numbers.len() < count) {
            for byte in self.content_block()? {
                if byte != b'\n' {
                    text.push(byte);
                    // Twenty digits hold any u64.
                    if text.len() > 20 {
                        return self.wrong("a number in a sparse map is too long");
                    }
                    continue;
                }
                let number = std::str::from_utf8(&text).ok().and_then(|t| t.parse().ok());
                let Some(number) = number else {
                    return self.wrong("a sparse map that is not made of numbers");
                };
                text.clear();
                if expected.is_none() {
                    let count = usize::try_from(number).unwrap_or(usize::MAX);
                    if count > MAX_PARTS {
                        return self.wrong(format!("a sparse file of more than {MAX_PARTS} parts"));
                    }
                    expected = Some(count * 2);
                } else {
                    numbers.push(number);
                }
                if expected.is_some_and(|count| numbers.len() >= count) {
                    break;
                }
            }
        }
        let (pairs, _) = numbers.as_chunks::<2>();
        Ok(pairs
            .iter()
            .map(|&[offset, length]| (offset, length))
            .collect())
    }

    /// Parts must ascend, fit the file, and together be exactly what is stored.
    fn sparse_file(
        &self,
        size: u64,
        mut parts: Vec<(u64, u64)>,
        path: &[u8],
    ) -> Result<Kind, Stop> {
        if parts.len() > MAX_PARTS {
            return self.wrong(format!("a sparse file of more than {MAX_PARTS} parts"));
        }
        parts.retain(|&(_, length)| length > 0);
        let mut end = 0_u64;
        let mut stored = 0_u64;
        for (index, &(offset, length)) in parts.iter().enumerate() {
            let next = offset
                .checked_add(length)
                .filter(|&n| offset >= end && n <= size);
            // Every part begins on a block; only the last may end within one.
            let aligned = length.is_multiple_of(BLOCK) || index + 1 == parts.len();
            let (Some(next), true) = (next, aligned) else {
                return self.wrong(format!(
                    "{}: the sparse map contradicts itself",
                    shown(path)
                ));
            };
            end = next;
            stored += length;
        }
        if stored != self.content || size > i64::MAX.cast_unsigned() {
            return self.wrong(format!(
                "{}: the sparse map lists {stored} bytes, stored are {}",
                shown(path),
                self.content
            ));
        }
        Ok(Kind::File { size, parts })
    }

    fn device(&self, header: &Header, kind: fn(u32, u32) -> Kind) -> Result<Kind, Stop> {
        match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok(kind(major, minor)),
            _ => self.wrong("a device without major and minor number"),
        }
    }

    fn id(&self, value: std::io::Result<u64>) -> Result<u32, Stop> {
        match value.map(u32::try_from) {
            // u32::MAX is chown's "leave as it is".
            Ok(Ok(id)) if id != u32::MAX => Ok(id),
            _ => self.wrong("an owner that is not a 32-bit id"),
        }
    }

    fn only_zeros(&mut self) -> Result<(), Stop> {
        loop {
            let at = self.at;
            let available = self.source.fill_buf().map_err(|e| broken(&e, at))?;
            if available.is_empty() {
                return Ok(());
            }
            if available.iter().any(|&byte| byte != 0) {
                return self.wrong("there is data after the end of the archive");
            }
            let count = available.len();
            self.source.consume(count);
            self.at += count as u64;
        }
    }

    fn wrong<T>(&self, reason: impl Into<String>) -> Result<T, Stop> {
        Err(Stop::Failed(Error::Tar {
            at: self.at,
            reason: reason.into(),
        }))
    }
}

/// Whether a file that begins with `head` begins with the header of a tar member.
pub fn is_header(head: &[u8]) -> bool {
    let mut header = Header::new_old();
    match head.get(..BLOCK as usize) {
        Some(block) if block.iter().any(|&byte| byte != 0) => {
            header.as_mut_bytes().copy_from_slice(block);
            sum_is_right(&header)
        }
        _ => false,
    }
}

/// Whether a header says something of the entry that follows.
fn is_extension(header: &Header) -> bool {
    matches!(
        header.entry_type(),
        EntryType::XHeader
            | EntryType::XGlobalHeader
            | EntryType::GNULongName
            | EntryType::GNULongLink
    )
}

fn sum_is_right(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let rest = bytes[..148].iter().chain(&bytes[156..]);
    let sum: u32 = rest.map(|&byte| u32::from(byte)).sum();
    // The checksum field itself counts as eight spaces.
    header.cksum().ok() == Some(sum + 8 * 32)
}

fn broken(error: &std::io::Error, at: u64) -> Stop {
    if is_cut_off(error) {
        return Stop::Above;
    }
    Stop::Failed(Error::Tar {
        at,
        reason: error.to_string(),
    })
}

/// A name from the archive, safe to print on a console.
pub fn shown(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().take(300).collect();
    format!("{text:?}")
}
