//! Small files filled beside the unpacker.
//!
//! To make a file's name and to fill the file cost the kernel about the same. Names have an
//! order, in which the archive may replace them; what is done through a file's descriptor has
//! none, so a second thread does it. Large files are not worth the copy.

use std::fs::File;
use std::io::{BufRead, Write};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::archive::{Archive, Entry};
use super::error::Error;
use super::metadata::file_metadata;
use super::pipe::Stop;
use super::unpack::write_error;

/// Bytes of the largest file that is taken.
const LARGEST: u64 = 64 * 1024;
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
    files: Vec<(File, Entry, Range<usize>)>,
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
        let thread = Builder::new()
            .name("image-files".to_owned())
            .spawn(move || {
                for mut batch in given {
                    fill(&mut batch)?;
                    // A full or closed channel only means that this batch is freed instead.
                    let _ = back.try_send(batch);
                }
                Ok(())
            })
            .map_err(|error| {
                Error::Pipeline(format!("starting the thread image-files: {error}"))
            })?;
        Ok(Self {
            next: Batch::default(),
            batches,
            spent,
            thread,
        })
    }

    /// Whether a file is one for [`Self::add`].
    pub fn takes(size: u64, parts: &[(u64, u64)]) -> bool {
        size <= LARGEST && parts == [(0, size)]
    }

    /// Reads the content of a file that was just made; the rest is done some time later.
    ///
    /// # Errors
    /// The archive's; `Below` when the thread has failed, which [`Self::finish`] tells.
    pub fn add<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        file: File,
        size: u64,
        entry: Entry,
    ) -> Result<(), Stop> {
        let start = self.next.content.len();
        archive.content(size, |bytes| {
            self.next.content.extend_from_slice(bytes);
            Ok(())
        })?;
        let content = start..self.next.content.len();
        self.next.files.push((file, entry, content));
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
    for (mut file, entry, content) in batch.files.drain(..) {
        file.write_all(&batch.content[content])
            .map_err(|error| write_error(&entry.path, "write", error))?;
        file_metadata(&file, &entry)?;
    }
    batch.content.clear();
    Ok(())
}
