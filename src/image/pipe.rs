//! The joints between the pipeline's threads: bounded channels read as `BufRead`.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::{Builder, JoinHandle};

use super::error::Error;

/// What travels down the pipe. A channel that closes without `End` was cut off above.
pub enum Part<B> {
    Data(B),
    End,
}

/// Why a stage stopped before its end.
#[derive(Debug)]
pub enum Stop {
    /// Here is the cause.
    Failed(Error),
    /// The stage above stopped first; the cause is there.
    Above,
    /// The stage below stopped first; the cause is there.
    Below,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Starts a thread of the pipeline.
///
/// # Errors
/// The thread could not be started.
pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Error::Pipeline(format!("starting the thread {name}: {error}")))
}

/// The marker that a read carries when the stage above stopped without an end.
#[derive(Debug)]
struct CutOff;

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stage above stopped")
    }
}

impl std::error::Error for CutOff {}

/// Whether a read failed only because the stage above stopped.
pub fn is_cut_off(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<CutOff>())
}

/// Reads the parts of a channel; buffers go back to whoever fills them.
pub struct PipeReader<B> {
    parts: Receiver<Part<B>>,
    recycle: Option<SyncSender<B>>,
    current: Option<B>,
    at: usize,
    ended: bool,
}

impl<B: AsRef<[u8]>> PipeReader<B> {
    pub fn new(parts: Receiver<Part<B>>, recycle: Option<SyncSender<B>>) -> Self {
        Self {
            parts,
            recycle,
            current: None,
            at: 0,
            ended: false,
        }
    }
}

impl<B: AsRef<[u8]>> BufRead for PipeReader<B> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while !self.ended
            && self
                .current
                .as_ref()
                .is_none_or(|b| b.as_ref().len() <= self.at)
        {
            if let (Some(spent), Some(recycle)) = (self.current.take(), &self.recycle) {
                // A full or closed channel only means that this buffer is freed instead.
                let _ = recycle.try_send(spent);
            }
            self.at = 0;
            match self.parts.recv() {
                Ok(Part::Data(buffer)) => self.current = Some(buffer),
                Ok(Part::End) => self.ended = true,
                Err(_) => return Err(io::Error::other(CutOff)),
            }
        }
        Ok(self
            .current
            .as_ref()
            .and_then(|buffer| buffer.as_ref().get(self.at..))
            .unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl<B: AsRef<[u8]>> Read for PipeReader<B> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(into.len());
        into[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
