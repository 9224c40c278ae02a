//! Small files filled beside the unpacker.
//!
//! To make a file's name and to fill the file cost the kernel about the same. Names have an
//! order, in which the archive may replace them; what is done through a file's descriptor has
//! none, so a second thread does it. Large files are not worth the copy.

use std::fs::File;
use std::io::{BufRead, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::archive::{Archive, Entry, Kind};
use super::error::Error;
use super::metadata::file_metadata;
use super::pax::Acls;
use super::pipe::{self, Stop};
use super::unpack::{numbers_for_full_disk, write_error};

/// Bytes of the largest file that is taken.
const LARGEST: u64 = 64 * 1024;
/// Bytes of its extended attributes, which wait in memory as well.
const XATTRS: usize = 4096;
/// A batch that holds so many bytes, or files, is given to the thread: to wake it for each
/// file would cost as much as the file. Each file of a batch is an open descriptor.
const BATCH_BYTES: usize = 256 * 1024;
const BATCH_FILES: usize = 32;
/// Batches that wait for the thread.
const CHANNEL: usize = 2;

/// Files that were made, and what goes into them.
#[derive(Default)]
struct Batch {
    content: Vec<u8>,
    files: Vec<Unfilled>,
}

struct Unfilled {
    file: File,
    entry: Entry,
    /// Where in the batch its content is.
    content: Range<usize>,
    /// Bytes of the archive up to its end.
    unpacked: u64,
}

/// The thread, and the next batch for it.
pub struct SmallFiles {
    next: Batch,
    batches: SyncSender<Batch>,
    spent: Receiver<Batch>,
    thread: JoinHandle<Result<(), Stop>>,
}

impl SmallFiles {
    /// # Errors
    /// The thread could not be started.
    pub fn start() -> Result<Self, Error> {
        let (batches, given) = sync_channel::<Batch>(CHANNEL);
        let (back, spent) = sync_channel(CHANNEL);
        let thread = pipe::start("image-files", move || {
            for mut batch in given {
                fill(&mut batch)?;
                // A full or closed channel only means that this batch is freed instead.
                let _ = back.try_send(batch);
            }
            Ok(())
        })?;
        Ok(Self {
            next: Batch::default(),
            batches,
            spent,
            thread,
        })
    }

    /// Whether an entry is one for [`Self::add`].
    pub fn takes(entry: &Entry) -> bool {
        let Kind::File { size, parts } = &entry.kind else {
            return false;
        };
        let cost = |pair: &(Vec<u8>, Vec<u8>)| pair.0.len() + pair.1.len() + size_of_val(pair);
        *size <= LARGEST
            && *parts == [(0, *size)]
            && entry.xattrs.iter().map(cost).sum::<usize>() <= XATTRS
    }

    /// Whether the thread has given up, which [`Self::finish`] tells more of.
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Reads the content of a file that was just made; the rest is done some time later.
    ///
    /// # Errors
    /// The archive's; `Below` when the thread has failed.
    pub fn add<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        file: File,
        size: u64,
        mut entry: Entry,
    ) -> Result<(), Stop> {
        let start = self.next.content.len();
        archive.content(size, |bytes| {
            self.next.content.extend_from_slice(bytes);
            Ok(())
        })?;
        // What nobody needs any more may be large.
        entry.kind = Kind::File {
            size,
            parts: Vec::new(),
        };
        entry.acls = Acls::default();
        self.next.files.push(Unfilled {
            file,
            entry,
            content: start..self.next.content.len(),
            unpacked: archive.position(),
        });
        if self.next.content.len() < BATCH_BYTES && self.next.files.len() < BATCH_FILES {
            return Ok(());
        }
        let empty = self.spent.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.next, empty);
        self.batches.send(full).map_err(|_| Stop::Below)
    }

    /// Waits until every file is filled.
    ///
    /// # Errors
    /// What could not be written.
    pub fn finish(self) -> Result<(), Stop> {
        // Refused by a thread that has failed: its outcome says why.
        let _ = self.batches.send(self.next);
        drop(self.batches);
        let died = || Error::Pipeline("the thread image-files panicked".to_owned());
        self.thread.join().unwrap_or_else(|_| Err(died().into()))
    }
}

/// Writes a batch's files and empties it.
fn fill(batch: &mut Batch) -> Result<(), Stop> {
    for mut unfilled in batch.files.drain(..) {
        let content = &batch.content[unfilled.content];
        let (file, entry) = (&mut unfilled.file, &unfilled.entry);
        file.write_all(content)
            .map_err(|error| write_error(&entry.path, "write", error))
            .and_then(|()| file_metadata(file, entry))
            .map_err(|stop| numbers_for_full_disk(stop, file.as_fd(), unfilled.unpacked))?;
    }
    batch.content.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_fill_the_memory_is_not_taken() {
        let taken = |size, parts: Vec<(u64, u64)>, xattrs: &[(usize, usize)]| {
            let xattr = |&(name, value): &(usize, usize)| (vec![b'n'; name], vec![0; value]);
            SmallFiles::takes(&Entry {
                path: b"file".to_vec(),
                kind: Kind::File { size, parts },
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                xattrs: xattrs.iter().map(xattr).collect(),
                acls: Acls::default(),
            })
        };
        assert!(taken(0, vec![(0, 0)], &[]));
        assert!(taken(LARGEST, vec![(0, LARGEST)], &[(20, 100), (20, 100)]));
        assert!(!taken(LARGEST + 1, vec![(0, LARGEST + 1)], &[]));
        // Holes are the unpacker's.
        assert!(!taken(8, vec![(4, 4)], &[]));
        assert!(!taken(8, vec![], &[]));
        assert!(!taken(8, vec![(0, 8)], &[(20, XATTRS)]));
        assert!(!taken(8, vec![(0, 8)], &[(6, 0); 100]));
    }
}
