//! Reservations that other hosts hold on shared disks.
//!
//! This program never reserves a disk, so whatever reservation is found is another host's, or that
//! of an OS that ran here and still counts on it. Numbers: SPC-5 6.16 (PERSISTENT RESERVE IN), NVM
//! Express Base Specification 2.0c 7.4 (Reservation Report).

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::device;
use super::disks::{Disk, Transport};
use super::drive::OpenDrive;
use super::nvme::Command;
use crate::watchdog::Vital;

/// Bytes that are asked for: all that stands before the registered hosts.
pub(super) const SCSI_SIZE: usize = 24;
pub(super) const NVME_SIZE: usize = 64;

/// Milliseconds for the command, and how long all disks together may take to answer.
pub(super) const ANSWER_MS: u32 = 5_000;
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a drive is asked that answers with an error.
const QUESTIONS: usize = 3;

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

    #[test]
    fn questions_byte_for_byte() {
        assert_eq!(scsi_cdb(), [0x5e, 1, 0, 0, 0, 0, 0, 0, 24, 0]);
        let report = nvme_report(3, false);
        assert_eq!((report.opcode, report.nsid), (0x0e, 3));
        assert_eq!((report.cdw10, report.cdw11, report.data_len), (15, 0, 64));
        assert_eq!(nvme_report(1, true).cdw11, 1);
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
