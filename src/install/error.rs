//! What can go wrong after the image is in place.

use std::io;

use thiserror::Error;

/// Why the installed system could not be finished or started.
#[derive(Debug, Error)]
pub enum Error {
    /// A file in the target could not be read or written.
    #[error("target file {path}: {operation} failed: {source}")]
    File {
        path: String,
        operation: &'static str,
        source: io::Error,
    },
    /// A file in the target does not say what it has to.
    #[error("target file {path}: {reason}")]
    Content { path: String, reason: String },
    /// A value of the allocation or the machine cannot go into a file.
    #[error("{what}: {reason}")]
    Fact { what: &'static str, reason: String },
    /// One of the file systems that an installer needs could not be mounted.
    #[error("mounting {what} on {path}: {source}")]
    Mount {
        what: &'static str,
        path: String,
        source: io::Error,
    },
    /// The installer could not be started.
    #[error(
        "starting the installer {installer} in the target: {source}{}",
        interpreter(source)
    )]
    Start {
        installer: &'static str,
        source: io::Error,
    },
    /// The installer failed.
    #[error("the installer {installer} failed ({status}); its last lines:\n{tail}")]
    Failed {
        installer: &'static str,
        status: String,
        tail: String,
    },
    /// The installer did not come to an end.
    #[error("the installer {installer} was stopped after {seconds} s; its last lines:\n{tail}")]
    Deadline {
        installer: &'static str,
        seconds: u64,
        tail: String,
    },
    /// The installer named by the boot helper could not be fetched.
    #[error("fetching the installer: {0}")]
    Fetch(#[from] crate::image::Error),
    /// What was fetched is not what the boot helper described.
    #[error("the installer from {url}: {reason}")]
    Fetched { url: String, reason: String },
    /// A disk image in which nothing to start by kexec was found.
    #[error("the disk image's kernel is known to its own boot loader only")]
    NoKernel,
    /// The kernel refused the new kernel.
    #[error("kexec of {kernel}: {reason}")]
    Kexec { kernel: String, reason: String },
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] crate::password::NoRandom),
}

impl Error {
    pub(super) fn file(path: &str, operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            path: path.to_owned(),
            operation,
            source,
        }
    }

    pub(super) fn content(path: &str, reason: impl Into<String>) -> Self {
        Self::Content {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// The kernel answers "not found" for a missing interpreter, too.
fn interpreter(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound {
        " (the file is there: its interpreter, named in its first line or ELF header, is not)"
    } else {
        ""
    }
}
