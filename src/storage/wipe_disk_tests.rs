use std::cell::{Cell, RefCell};

use super::*;
use crate::storage::ata;
use crate::storage::testing::disk;
use crate::storage::wipe::WipeError;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 300 * MIB;

/// A disk with a GPT of one partition at 100 MiB, marks in it, and data in the middle.
fn used() -> (File, Disk) {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let mut gpt = gptman::GPT::new_from(&mut file, 512, [1; 16]).unwrap();
    gpt[1] = gptman::GPTPartitionEntry {
        partition_type_guid: [2; 16],
        unique_partition_guid: [3; 16],
        starting_lba: 100 * MIB / 512,
        ending_lba: 200 * MIB / 512 - 1,
        attribute_bits: 0,
        partition_name: "old".into(),
    };
    gptman::GPT::write_protective_mbr_into(&mut file, 512).unwrap();
    gpt.write_into(&mut file).unwrap();
    file.write_all_at(b"LUKS\xba\xbe", 100 * MIB).unwrap();
    file.write_all_at(b"SKUL\xba\xbe", 100 * MIB + 0x40_0000)
        .unwrap();
    file.write_all_at(&[b's'; 1 << 20], 150 * MIB).unwrap();
    let mut disk = disk("sda", SIZE);
    disk.partitions.clear();
    (file, disk)
}

fn byte(file: &File, at: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0]
}

fn other(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

/// A drive whose rungs do what a test says; what it does not name is not supported.
struct Fake<'f, F: Fn(Rung) -> Option<io::Result<()>>> {
    act: F,
    facts: Facts,
    asked: &'f RefCell<Vec<Rung>>,
    beats: Cell<usize>,
}

impl<F: Fn(Rung) -> Option<io::Result<()>>> Drive for Fake<'_, F> {
    fn make_ready(&self) -> io::Result<()> {
        Ok(())
    }

    fn facts(&self) -> Facts {
        self.facts
    }

    fn erase(&self, rung: Rung) -> io::Result<()> {
        self.asked.borrow_mut().push(rung);
        (self.act)(rung).unwrap_or_else(|| Err(io::ErrorKind::Unsupported.into()))
    }

    fn beat(&self) {
        self.beats.set(self.beats.get() + 1);
    }
}

/// A drive that is told nothing: only marks are cleared.
fn marks_only(asked: &RefCell<Vec<Rung>>) -> Fake<'_, impl Fn(Rung) -> Option<io::Result<()>>> {
    Fake {
        act: |_| None,
        facts: Facts::default(),
        asked,
        beats: Cell::new(0),
    }
}

fn wiped(
    file: &File,
    disk: &Disk,
    depth: Depth,
    act: impl Fn(Rung) -> Option<io::Result<()>>,
) -> (Result<Done, DiskError>, Vec<Rung>) {
    let asked = RefCell::new(Vec::new());
    let drive = Fake {
        act,
        facts: Facts {
            scsi_sanitize_block: true,
            ..Facts::default()
        },
        asked: &asked,
        beats: Cell::new(0),
    };
    let done = wipe_open(&drive, file, disk, &[], Extent::EveryDisk, depth);
    (done, asked.into_inner())
}

#[test]
fn marks_are_removed_and_nothing_else() {
    let (file, disk) = used();
    assert!(!signatures::find(&file, &(0..SIZE)).unwrap().is_empty());
    let (done, asked) = wiped(&file, &disk, Depth::Marks, |_| None);
    let done = done.unwrap();
    assert_eq!((done.rung, asked.len()), (Rung::Marks, 0));
    assert_eq!(done.verified, done.bytes / 4096);
    assert_eq!(signatures::find(&file, &(0..SIZE)).unwrap(), []);
    let partition = 100 * MIB..200 * MIB;
    assert_eq!(signatures::find(&file, &partition).unwrap(), []);
    assert_eq!(byte(&file, 150 * MIB), b's');
}

#[test]
fn quick_discards_without_asking_for_proof() {
    for result in [Some(Ok(())), None, Some(Err(other("broken")))] {
        let (file, disk) = used();
        let result = RefCell::new(result);
        let (done, asked) = wiped(&file, &disk, Depth::Quick, |_| result.borrow_mut().take());
        assert_eq!(done.unwrap().rung, Rung::Marks);
        assert_eq!(asked, [Rung::Discard]);
        assert_eq!(signatures::find(&file, &(0..SIZE)).unwrap(), []);
        assert_eq!(byte(&file, 150 * MIB), b's');
    }
}

#[test]
fn a_partition_only_the_kernel_knows_is_cleared_too() {
    let (file, disk) = used();
    file.write_all_at(b"LUKS\xba\xbe", 220 * MIB).unwrap();
    let asked = RefCell::new(Vec::new());
    let drive = marks_only(&asked);
    let known = std::slice::from_ref(&(220 * MIB..230 * MIB)).to_vec();
    wipe_open(
        &drive,
        &file,
        &disk,
        &known,
        Extent::EveryDisk,
        Depth::Marks,
    )
    .unwrap();
    assert_eq!(byte(&file, 220 * MIB), 0);
}

/// A table of thousands of partitions keeps a slow disk busy for longer than anybody may be silent.
#[test]
fn clearing_many_places_gives_signs_of_life() {
    let (file, disk) = used();
    let asked = RefCell::new(Vec::new());
    let drive = marks_only(&asked);
    let known: Vec<_> = (20..60)
        .map(|at| at * 4 * MIB..(at * 4 + 1) * MIB)
        .collect();
    assert!(old_table::places_in(&known).len() >= known.len());
    clear_marks(&drive, &file, &disk, &known, false).unwrap();
    // Each is written, read back and searched.
    assert!(drive.beats.get() >= 3 * known.len(), "{:?}", drive.beats);
}

#[test]
fn a_long_place_is_cleared_in_steps() {
    let places = [0..4096, MIB..MIB + 2 * STEP + 1, u64::MAX - 1..u64::MAX];
    let steps: Vec<_> = steps(&places).collect();
    let lengths: Vec<_> = steps.iter().map(|step| step.end - step.start).collect();
    assert_eq!(lengths, [4096, STEP, STEP, 1, 1]);
    assert!(steps.is_sorted_by(|a, b| a.end <= b.start));
}

#[test]
fn the_first_rung_that_holds_is_the_last_one_taken() {
    let (file, disk) = used();
    let (done, asked) = wiped(&file, &disk, Depth::Secure, |rung| {
        (rung == Rung::Discard).then(|| zero(&file, &(0..SIZE)))
    });
    let done = done.unwrap();
    assert_eq!((done.rung, done.bytes), (Rung::Discard, SIZE));
    assert!(done.verified > SAMPLES && done.failed.is_empty());
    assert_eq!(
        asked,
        [Rung::ScsiSanitizeBlock, Rung::SecureDiscard, Rung::Discard]
    );
    assert_eq!(first_nonzero(&file, &(0..SIZE)).unwrap(), None);
}

#[test]
fn a_drives_own_erase_may_leave_noise_but_not_the_pattern() {
    let (file, disk) = used();
    let noise: Vec<u8> = (0..MIB as usize)
        .map(|at| ((at * 7919) >> 3) as u8 | 1)
        .collect();
    let (done, _) = wiped(&file, &disk, Depth::Secure, |rung| {
        (rung == Rung::ScsiSanitizeBlock).then(|| {
            (0..SIZE)
                .step_by(MIB as usize)
                .try_for_each(|at| file.write_all_at(&noise, at))
        })
    });
    assert_eq!(done.unwrap().rung, Rung::ScsiSanitizeBlock);
    assert_eq!(signatures::find(&file, &(0..SIZE)).unwrap(), []);
    assert_ne!(byte(&file, 150 * MIB), b's');
    // A discard that leaves the same noise is not believed.
    let (file, disk) = used();
    let (done, _) = wiped(&file, &disk, Depth::Secure, |rung| match rung {
        Rung::Discard => Some(
            (0..SIZE)
                .step_by(MIB as usize)
                .try_for_each(|at| file.write_all_at(&noise, at)),
        ),
        Rung::ZeroOut => Some(zero(&file, &(0..SIZE))),
        _ => None,
    });
    let done = done.unwrap();
    assert_eq!(done.rung, Rung::ZeroOut);
    assert!(
        done.failed[0].why.contains("was not erased"),
        "{:?}",
        done.failed
    );
}

#[test]
fn an_erase_that_leaves_the_ends_is_completed() {
    let (file, disk) = used();
    let (done, _) = wiped(&file, &disk, Depth::Secure, |rung| {
        (rung == Rung::Discard).then(|| {
            zero(&file, &(0..SIZE))?;
            file.write_all_at(b"left", SIZE - 4)
        })
    });
    assert_eq!(done.unwrap().rung, Rung::Discard);
    assert_eq!(byte(&file, SIZE - 4), 0);
}

#[test]
fn rungs_that_lie_or_fail_are_named_and_the_next_one_is_taken() {
    let (file, disk) = used();
    let (done, asked) = wiped(&file, &disk, Depth::Secure, |rung| match rung {
        Rung::ScsiSanitizeBlock => Some(Err(other("the drive answers status 0x02"))),
        Rung::Discard | Rung::ZeroOut => Some(Ok(())),
        Rung::Overwrite => Some(overwrite(&file, SIZE, &Progress::unwatched())),
        _ => None,
    });
    let done = done.unwrap();
    assert_eq!(done.rung, Rung::Overwrite);
    assert_eq!(asked.len(), 5);
    let failed: Vec<_> = done.failed.iter().map(|failed| failed.rung).collect();
    assert_eq!(
        failed,
        [Rung::ScsiSanitizeBlock, Rung::Discard, Rung::ZeroOut]
    );
    assert!(
        done.failed[0]
            .to_string()
            .contains("SANITIZE (block erase): the drive answers")
    );
    assert_eq!(first_nonzero(&file, &(0..SIZE)).unwrap(), None);
}

/// What a failing rung has cleared must not speak for the next one.
#[test]
fn every_rung_is_proven_by_itself() {
    let (file, disk) = used();
    let (done, _) = wiped(&file, &disk, Depth::Secure, |rung| match rung {
        Rung::ScsiSanitizeBlock => Some(zero(&file, &(0..SIZE)).and(Err(other("failed late")))),
        Rung::Discard => Some(Ok(())),
        _ => None,
    });
    let error = done.unwrap_err().to_string();
    assert!(
        error.contains("/dev/sda: nothing erases it: SCSI SANITIZE (block erase): failed late; discard: the disk said"),
        "{error}"
    );
}

#[test]
fn a_disk_that_nothing_erases_is_an_error_and_loses_its_marks() {
    let (file, disk) = used();
    let (done, _) = wiped(&file, &disk, Depth::Secure, |_| Some(Ok(())));
    let error = done.unwrap_err();
    assert!(
        matches!(&error, DiskError::NoRung { failed, .. } if failed.len() == 5),
        "{error}"
    );
    assert_eq!(signatures::find(&file, &(0..SIZE)).unwrap(), []);
}

#[test]
fn a_disk_that_refuses_writes_is_an_error() {
    let (file, disk) = used();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let read_only = File::open(format!("/proc/self/fd/{fd}")).unwrap();
    for depth in [Depth::Marks, Depth::Quick, Depth::Secure] {
        let (done, _) = wiped(&read_only, &disk, depth, |_| Some(Ok(())));
        let error = done.unwrap_err().to_string();
        assert!(error.contains("/dev/sda"), "{error}");
        if depth == Depth::Secure {
            assert!(error.contains("cannot write a test pattern"), "{error}");
        }
    }
}

/// The reason must survive where a message is cut.
#[test]
fn a_drive_that_is_kept_from_erasing_itself_says_so_first_and_once() {
    let (file, disk) = used();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let locked = File::open(format!("/proc/self/fd/{fd}")).unwrap();
    for (status, reason) in [
        (0x07, "the drive has an ATA password that is not ours"),
        (0x0f, "the firmware has frozen ATA security"),
    ] {
        let asked = RefCell::new(Vec::new());
        let drive = Fake {
            act: |_| None,
            facts: Facts {
                ata: Some(ata::tests::identified(&[(82, 2), (128, status)])),
                ..Facts::default()
            },
            asked: &asked,
            beats: Cell::new(0),
        };
        let depth = Depth::Secure;
        let error = wipe_open(&drive, &locked, &disk, &[], Extent::EveryDisk, depth).unwrap_err();
        let text = WipeError {
            wiped: vec![],
            failed: vec![error],
        }
        .to_string();
        let expected = format!(
            "1 of 1 disks could not be wiped: /dev/sda: nothing erases it: {reason}; \
             secure discard, discard, zero-out, overwrite: cannot write a test pattern: "
        );
        assert!(text.starts_with(&expected), "{text}");
        assert_eq!(text.matches("test pattern").count(), 1, "{text}");
    }
}

/// A locked drive, or one after a failed Sanitize: it takes no write until it has erased itself.
#[test]
fn a_disk_that_takes_no_writes_is_asked_to_erase_itself_and_then_proven() {
    let (file, disk) = used();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let locked = File::open(format!("/proc/self/fd/{fd}")).unwrap();
    let erases = Cell::new(0);
    let (done, asked) = wiped(&locked, &disk, Depth::Secure, |rung| {
        (rung == Rung::ScsiSanitizeBlock).then(|| {
            erases.set(erases.get() + 1);
            let open = std::os::fd::AsRawFd::as_raw_fd(&locked);
            // SAFETY: both descriptors are open, and `locked` goes on owning its number.
            nix::errno::Errno::result(unsafe { libc::dup2(fd, open) })?;
            zero(&file, &(0..SIZE))
        })
    });
    let done = done.unwrap();
    assert_eq!((done.rung, erases.get()), (Rung::ScsiSanitizeBlock, 2));
    assert_eq!(asked, [Rung::ScsiSanitizeBlock; 2]);
    assert!(done.verified > SAMPLES && done.failed.is_empty());
}

#[test]
fn samples_are_spread_and_inside() {
    for size in [0, 1, 4096, 4097, 1 << 20, 1 << 40] {
        let samples = samples(size);
        assert_eq!(samples.len() as u64, (size / 4096).min(SAMPLES));
        assert!(samples.is_sorted_by(|a, b| a < b));
        assert!(samples.iter().all(|at| at + 4096 <= size && at % 4096 == 0));
    }
}
