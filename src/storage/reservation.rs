//! Reservations that other hosts hold on shared disks.
//!
//! This program never reserves a disk, so whatever reservation is found is another host's, or that
//! of an OS that ran here and still counts on it. Numbers: SPC-5 6.16 (PERSISTENT RESERVE IN), NVM
//! Express Base Specification 2.0c 7.4 (Reservation Report).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::device;
use super::disks::{Disk, Transport};
use super::drive::OpenDrive;
use super::eligible::is_listed;
use super::nvme::Command;
use super::scope::ScopedDisks;
use crate::watchdog::Vital;

/// Bytes that are asked for: all that stands before the registered hosts.
pub(super) const SCSI_SIZE: usize = 24;
pub(super) const NVME_SIZE: usize = 64;

/// Milliseconds for the command, and how long all disks together may take to answer.
pub(super) const ANSWER_MS: u32 = 5_000;
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a drive is asked that answers with an error.
const QUESTIONS: usize = 3;

/// The key that this program registers in order to clear, and clears with.
const KEY: u64 = u64::from_be_bytes(*b"m-anvil\0");

/// Kernel, `include/uapi/linux/pr.h`: the same for SCSI and NVMe.
mod ioctl {
    nix::ioctl_write_ptr!(register, b'p', 200, super::Registration);
    nix::ioctl_write_ptr!(clear, b'p', 205, super::Clear);
}

/// `struct pr_registration`.
#[repr(C)]
pub struct Registration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    pad: u32,
}

/// `PR_FL_IGNORE_KEY`: whatever key is registered so far.
const IGNORE_KEY: u32 = 1;

/// `struct pr_clear`.
#[repr(C)]
pub struct Clear {
    key: u64,
    flags: u32,
    pad: u32,
}

/// Why a reservation stays.
#[derive(Debug, Error)]
enum NotCleared {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error("cannot {step}: {source}")]
    Refused {
        step: &'static str,
        source: io::Error,
    },
    #[error("the drive took the command, and is still reserved")]
    Kept,
}

/// Clears the reservations on those disks in scope that policy lists. One that stays keeps the
/// wipe from writing, which then says so.
pub fn clear(scoped: &ScopedDisks, listed: &[String]) {
    for disk in to_clear(scoped, listed, held) {
        let path = disk.path.display();
        match clear_one(&disk) {
            Ok(()) => tracing::warn!(
                "{path} was reserved, which was cleared: policy.clear_reservations lists it"
            ),
            Err(error) => tracing::error!("{path} stays reserved: {error}"),
        }
    }
}

/// The disks that policy lists and that are reserved; no other disk is even asked.
fn to_clear(
    scoped: &ScopedDisks,
    listed: &[String],
    held: impl FnOnce(&[Disk]) -> Vec<String>,
) -> Vec<Disk> {
    let listed = scoped.only(|disk| is_listed(disk, listed));
    let held = held(listed.disks());
    let listed = listed.disks().iter();
    listed
        .filter(|disk| held.contains(&disk.name))
        .cloned()
        .collect()
}

/// A host that registers may clear, whoever else holds the reservation (SPC-5, CLEAR service
/// action; NVM Express Base Specification, Reservation Release).
fn clear_one(disk: &Disk) -> Result<(), NotCleared> {
    let file = device::open_to_read(disk)?;
    let (register, clear) = orders();
    let fd = file.as_raw_fd();
    // SAFETY: the kernel reads one structure that lives through the call.
    let registered = unsafe { ioctl::register(fd, &raw const register) };
    taken(registered, "register a key")?;
    // SAFETY: as above.
    taken(unsafe { ioctl::clear(fd, &raw const clear) }, "clear it")?;
    match is_held(disk) {
        false => Ok(()),
        true => Err(NotCleared::Kept),
    }
}

fn orders() -> (Registration, Clear) {
    let register = Registration {
        old_key: 0,
        new_key: KEY,
        flags: IGNORE_KEY,
        pad: 0,
    };
    let clear = Clear {
        key: KEY,
        flags: 0,
        pad: 0,
    };
    (register, clear)
}

/// A positive answer is the drive's status (`enum pr_status`), and no success.
fn taken(answer: nix::Result<i32>, step: &'static str) -> Result<(), NotCleared> {
    let source = match answer {
        Ok(0) => return Ok(()),
        Ok(status) => io::Error::other(format!("the drive answers status {status:#x}")),
        Err(errno) => errno.into(),
    };
    Err(NotCleared::Refused { step, source })
}

/// PERSISTENT RESERVE IN, READ RESERVATION.
#[must_use]
pub(super) fn scsi_cdb() -> [u8; 10] {
    [0x5e, 0x01, 0, 0, 0, 0, 0, 0, SCSI_SIZE as u8, 0]
}

/// Whether the answer to [`scsi_cdb`] names a reservation: its list is not empty.
#[must_use]
pub(super) fn scsi_is_held(answer: &[u8; SCSI_SIZE]) -> bool {
    answer[4..8] != [0; 4]
}

/// Reservation Report. `extended`: the form for host identifiers of 128 bits, which a
/// controller that uses them insists on.
#[must_use]
pub(super) fn nvme_report(nsid: u32, extended: bool) -> Command {
    Command {
        opcode: 0x0e,
        nsid,
        data_len: NVME_SIZE as u32,
        cdw10: NVME_SIZE as u32 / 4 - 1,
        cdw11: u32::from(extended),
        timeout_ms: ANSWER_MS,
        ..Command::default()
    }
}

/// Whether the answer to [`nvme_report`] names a reservation: its type is not 0, in either form.
#[must_use]
pub(super) fn nvme_is_held(answer: &[u8; NVME_SIZE]) -> bool {
    answer[4] != 0
}

/// The kernel names of those `disks` that are reserved. A disk without reservations refuses the
/// question, which counts as not reserved; so does one that does not answer, with a line in the
/// log: what comes next will tell about a disk that hangs.
#[must_use]
pub fn held(disks: &[Disk]) -> Vec<String> {
    let (tell, answers) = mpsc::channel();
    let mut asked = 0;
    for disk in disks {
        if !matches!(disk.transport, Transport::Scsi | Transport::Nvme) {
            continue;
        }
        let (disk, tell) = (disk.clone(), tell.clone());
        // Not scoped: a drive that hangs must not hold up the boot.
        thread::spawn(move || {
            let held = is_held(&disk);
            let _ = tell.send((disk.name, held));
        });
        asked += 1;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut held = Vec::new();
    for missing in (1..=asked).rev() {
        let left = deadline.saturating_duration_since(Instant::now());
        match answers.recv_timeout(left) {
            Ok((name, true)) => held.push(name),
            Ok((_, false)) => {}
            Err(_) => {
                tracing::warn!("{missing} disks do not say whether another host has reserved them");
                break;
            }
        }
    }
    held
}

fn is_held(disk: &Disk) -> bool {
    // A short question, whose asker has its own patience: nobody watches for signs of life.
    let progress = Vital::default().expect("reservations", PATIENCE);
    let ask = || {
        let file = device::open_to_read(disk).map_err(io::Error::other)?;
        let drive = OpenDrive {
            file: &file,
            disk,
            progress: &progress,
        };
        drive.is_reserved()
    };
    first_answer(ask).unwrap_or_else(|error| {
        tracing::debug!("{}: no reservations: {error}", disk.path.display());
        false
    })
}

/// Asks again after an error: what another host has just changed is told as an error of the
/// next command, once (SPC-5, unit attention).
fn first_answer(mut ask: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let mut answer = ask();
    for _ in 1..QUESTIONS {
        match answer {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(true),
            Err(_) => answer = ask(),
        }
    }
    match answer {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::eligible::{Reason, Sorted};
    use crate::storage::scope::disks_in_scope;
    use crate::storage::testing::{disk, every_disk};

    #[test]
    fn questions_byte_for_byte() {
        assert_eq!(scsi_cdb(), [0x5e, 1, 0, 0, 0, 0, 0, 0, 24, 0]);
        let report = nvme_report(3, false);
        assert_eq!((report.opcode, report.nsid), (0x0e, 3));
        assert_eq!((report.cdw10, report.cdw11, report.data_len), (15, 0, 64));
        assert_eq!(nvme_report(1, true).cdw11, 1);
    }

    #[test]
    fn only_what_is_listed_and_reserved_is_cleared() {
        let sorted = Sorted {
            erasable: ["sda", "sdb", "sdc"].map(|name| disk(name, 1)).to_vec(),
            left_alone: vec![(disk("sdd", 1), Reason::ReadOnly)],
        };
        let scoped = disks_in_scope(&every_disk(), &sorted, None).unwrap();
        let listed = ["SER-sda", "SER-sdb", "SER-sdd"].map(str::to_owned);
        // All are reserved, but for sda.
        let held = |asked: &[Disk]| -> Vec<String> {
            let names: Vec<String> = asked.iter().map(|disk| disk.name.clone()).collect();
            assert_eq!(names, ["sda", "sdb"]);
            vec!["sdb".to_owned(), "sdc".to_owned(), "sdd".to_owned()]
        };
        let found = to_clear(&scoped, &listed, held);
        assert_eq!(found, [disk("sdb", 1)]);
        let nothing = to_clear(&scoped, &[], |asked| {
            assert_eq!(asked, []);
            Vec::new()
        });
        assert_eq!(nothing, []);
    }

    #[test]
    fn orders_as_the_kernel_takes_them() {
        let bytes = |value: u64| value.to_ne_bytes().to_vec();
        let (register, clear) = orders();
        assert_eq!(size_of_val(&register), 24);
        assert_eq!(size_of_val(&clear), 16);
        assert_eq!(bytes(register.new_key), bytes(clear.key));
        assert_ne!(clear.key, 0, "0 is no key");
        assert_eq!((register.old_key, register.flags, clear.flags), (0, 1, 0));
    }

    #[test]
    fn only_a_clean_answer_is_success() {
        assert!(taken(Ok(0), "clear it").is_ok());
        let error = taken(Ok(0x18), "clear it").unwrap_err().to_string();
        assert_eq!(error, "cannot clear it: the drive answers status 0x18");
        let error = taken(Err(nix::errno::Errno::EOPNOTSUPP), "register a key");
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("cannot register a key: Operation not supported"));
    }

    #[test]
    fn errors_are_asked_again_and_a_conflict_is_an_answer() {
        use io::ErrorKind::{Other, ResourceBusy};
        type Said<'a> = &'a [Result<bool, io::ErrorKind>];
        let table: [(Said<'_>, Option<bool>, usize); 5] = [
            (&[Ok(false)], Some(false), 1),
            (&[Err(Other), Ok(true)], Some(true), 2),
            (&[Err(ResourceBusy)], Some(true), 1),
            (&[Err(Other), Err(Other), Err(ResourceBusy)], Some(true), 3),
            (&[Err(Other), Err(Other), Err(Other)], None, 3),
        ];
        for (said, found, questions) in table {
            let mut asked = 0;
            let answer = first_answer(|| {
                asked += 1;
                said[asked - 1].map_err(io::Error::from)
            });
            assert_eq!((answer.ok(), asked), (found, questions), "{said:?}");
        }
    }

    #[test]
    fn answers() {
        let scsi = |bytes: &[u8]| {
            let mut answer = [0; SCSI_SIZE];
            answer[..bytes.len()].copy_from_slice(bytes);
            scsi_is_held(&answer)
        };
        // Three registrations so far and no reservation; then one, write exclusive.
        assert!(!scsi(&[0, 0, 0, 3, 0, 0, 0, 0]));
        let key = [0xa, 0xb, 0xc, 0xd, 0, 0, 0, 1];
        let held = [&[0, 0, 0, 3, 0, 0, 0, 16][..], &key, &[0, 0, 0, 0, 0, 1]].concat();
        assert!(scsi(&held));

        let nvme = |kind, registered| {
            let mut answer = [0; NVME_SIZE];
            (answer[0], answer[4], answer[5]) = (7, kind, registered);
            nvme_is_held(&answer)
        };
        assert!(!nvme(0, 2));
        assert!(nvme(1, 2) && nvme(6, 1));
    }
}
