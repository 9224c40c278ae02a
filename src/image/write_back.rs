//! Sending what was written to the disk while more is being unpacked.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::unistd::syncfs;

use super::error::Error;
use super::pipe;

/// A thread that flushes file systems when it is nudged.
pub struct WriteBack {
    nudges: SyncSender<Vec<Arc<OwnedFd>>>,
    thread: JoinHandle<Result<(), Errno>>,
}

impl WriteBack {
    /// # Errors
    /// The thread could not be started.
    pub fn start() -> Result<Self, Error> {
        let (nudges, asked) = sync_channel::<Vec<Arc<OwnedFd>>>(1);
        // The kernel tells an error to each open file once: what this thread hears, nobody
        // else will (syncfs(2), since Linux 5.8).
        let thread = pipe::start("image-sync", move || {
            let mut flushes = asked.iter().flatten();
            flushes.try_for_each(|fd| syncfs(&*fd))
        })?;
        Ok(Self { nudges, thread })
    }

    /// Asks for a flush, without waiting for it; while one is under way and another waits,
    /// nothing is added.
    pub fn nudge(&self, file_systems: &[(u64, Arc<OwnedFd>)]) {
        let fds = file_systems.iter().map(|(_, fd)| Arc::clone(fd)).collect();
        // Full: it is at work. Closed: it failed, which `finish` tells.
        let _ = self.nudges.try_send(fds);
    }

    /// Waits for the flush under way.
    ///
    /// # Errors
    /// What the disk could not take.
    pub fn finish(self) -> Result<(), Errno> {
        drop(self.nudges);
        // A thread that panicked flushed nothing that can be relied on.
        self.thread.join().unwrap_or(Err(Errno::EIO))
    }
}
