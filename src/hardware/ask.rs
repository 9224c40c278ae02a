//! What sysfs does not say and only the device does: permanent MAC addresses, firmware of
//! network cards, the health of disks. By ioctl on a live machine; from files of the
//! answers for a recorded one, so that what is made of them can be tested.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::read_bytes;

/// An answer is a page of a log at most.
const MAX_ANSWER: u64 = 4096;
/// How long a disk may think about one command; the kernel aborts it then.
const PATIENCE_MS: u32 = 2000;
/// How long all devices together may take. A command that a dead disk keeps in the kernel
/// is left behind there.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Devices that are asked at the same time.
const AT_ONCE: usize = 64;

/// A question to one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A link's `ETHTOOL_GPERMADDR`: the bytes of its permanent address.
    PermanentMac(String),
    /// A link's `ETHTOOL_GDRVINFO`: `struct ethtool_drvinfo`.
    DriverInfo(String),
    /// A disk's NVMe SMART / Health Information log (NVMe base specification, log 02h).
    NvmeHealth(PathBuf),
    /// An ATA disk's SMART RETURN STATUS: the sense data that holds its registers.
    AtaHealth(PathBuf),
    /// A SCSI disk's Informational Exceptions log page (SPC, 2Fh).
    ScsiHealth(PathBuf),
}

impl Question {
    /// Where a recorded machine keeps the answer: `permanent-mac/eth0`.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        let (kind, device) = match self {
            Self::PermanentMac(link) => ("permanent-mac", link.clone()),
            Self::DriverInfo(link) => ("driver-info", link.clone()),
            Self::NvmeHealth(disk) => ("nvme-health", disk_file(disk)),
            Self::AtaHealth(disk) => ("ata-health", disk_file(disk)),
            Self::ScsiHealth(disk) => ("scsi-health", disk_file(disk)),
        };
        Path::new(kind).join(device)
    }
}

/// `/dev/cciss/c0d0` as one file name.
fn disk_file(disk: &Path) -> String {
    let path = disk.to_string_lossy();
    path.trim_start_matches("/dev/").replace('/', "!")
}

/// Whoever can put questions to devices.
pub trait Ask: fmt::Debug + Send + Sync {
    /// The answer's bytes; `None`: the device has none, or is not asked.
    fn ask(&self, question: &Question) -> Option<Vec<u8>>;
}

/// Reads answers that [`Question::file`] names below a directory.
#[derive(Debug)]
pub struct Recorded(pub PathBuf);

impl Ask for Recorded {
    fn ask(&self, question: &Question) -> Option<Vec<u8>> {
        read_bytes(&self.0.join(question.file()), MAX_ANSWER).ok()
    }
}

/// Asks the devices of this machine.
#[derive(Debug)]
pub struct Live;

impl Ask for Live {
    fn ask(&self, question: &Question) -> Option<Vec<u8>> {
        let answer = match question {
            Question::PermanentMac(link) => permanent_mac(link),
            Question::DriverInfo(link) => driver_info(link),
            Question::NvmeHealth(disk) => nvme_health(disk),
            Question::AtaHealth(disk) => ata_health(disk),
            Question::ScsiHealth(disk) => scsi_health(disk),
        };
        answer
            .inspect_err(|error| tracing::debug!("{}: {error}", question.file().display()))
            .ok()
    }
}

/// Puts all questions, many at a time, and waits for the answers no longer than `deadline`.
/// Answers are in the order of their questions.
pub(super) fn ask_all(
    ask: &Arc<dyn Ask>,
    questions: Vec<Question>,
    deadline: Duration,
) -> Vec<Option<Vec<u8>>> {
    let count = questions.len();
    let mut answers = vec![None; count];
    let questions = Arc::new(questions);
    let next = Arc::new(AtomicUsize::new(0));
    let (send, receive) = mpsc::channel();
    for _ in 0..count.min(AT_ONCE) {
        let (ask, questions) = (Arc::clone(ask), Arc::clone(&questions));
        let (next, send) = (Arc::clone(&next), send.clone());
        let work = move || {
            while let Some((index, question)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                questions.get(index).map(|question| (index, question))
            } {
                if send.send((index, ask.ask(question))).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("health".into()).spawn(work) {
            tracing::warn!("cannot ask devices: no thread: {error}");
        }
    }
    drop(send);
    let end = Instant::now() + deadline;
    for _ in 0..count {
        match receive.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((index, answer)) => answers[index] = answer,
            Err(_) => {
                tracing::warn!("not all disks said how they are within {deadline:?}");
                break;
            }
        }
    }
    answers
}

/// include/uapi/linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GPERMADDR: u32 = 0x20;
/// include/uapi/linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `struct ethtool_drvinfo`.
const DRIVER_INFO: usize = 196;
/// `struct ethtool_perm_addr` without the address.
const ADDRESS_AT: usize = 8;

/// One ethtool command on a link; `data` begins with the command and takes the answer.
fn ethtool(link: &str, data: &mut [u8]) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    if link.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    let socket = socket(
        AddressFamily::Inet6,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: request and data outlive the call, and data has the size that its command
    // makes the kernel write.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    nix::errno::Errno::result(done)?;
    Ok(())
}

fn driver_info(link: &str) -> io::Result<Vec<u8>> {
    let mut data = vec![0; DRIVER_INFO];
    data[..4].copy_from_slice(&ETHTOOL_GDRVINFO.to_ne_bytes());
    ethtool(link, &mut data)?;
    Ok(data)
}

fn permanent_mac(link: &str) -> io::Result<Vec<u8>> {
    /// MAX_ADDR_LEN, include/linux/netdevice.h.
    const LONGEST: u32 = 32;
    let mut data = vec![0; ADDRESS_AT + LONGEST as usize];
    data[..4].copy_from_slice(&ETHTOOL_GPERMADDR.to_ne_bytes());
    data[4..8].copy_from_slice(&LONGEST.to_ne_bytes());
    ethtool(link, &mut data)?;
    let length = u32::from_ne_bytes([data[4], data[5], data[6], data[7]]).min(LONGEST);
    Ok(data[ADDRESS_AT..ADDRESS_AT + length as usize].to_vec())
}

/// `struct nvme_passthru_cmd`, include/uapi/linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    cdw2_3: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_length: u32,
    data_length: u32,
    cdw10_15: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

nix::ioctl_readwrite!(nvme_admin_command, b'N', 0x41, NvmeCommand);

fn nvme_health(disk: &Path) -> io::Result<Vec<u8>> {
    const GET_LOG_PAGE: u8 = 0x02;
    const HEALTH_LOG: u32 = 0x02;
    let mut page = vec![0; 512];
    let mut command = NvmeCommand {
        opcode: GET_LOG_PAGE,
        // The controller's log, not one namespace's.
        namespace: u32::MAX,
        address: page.as_mut_ptr() as u64,
        data_length: 512,
        // The number of double words less one, and the log.
        cdw10_15: [(512 / 4 - 1) << 16 | HEALTH_LOG, 0, 0, 0, 0, 0],
        timeout_ms: PATIENCE_MS,
        ..NvmeCommand::default()
    };
    let device = File::open(disk)?;
    // SAFETY: command and page outlive the call; the kernel writes data_length bytes at most.
    let status = unsafe { nvme_admin_command(device.as_raw_fd(), &raw mut command) }?;
    match status {
        0 => Ok(page),
        status => Err(io::Error::other(format!("NVMe status {status:#x}"))),
    }
}

/// `struct sg_io_hdr`, include/scsi/sg.h.
#[repr(C)]
struct SgHeader {
    interface: i32,
    direction: i32,
    command_length: u8,
    sense_size: u8,
    segments: u16,
    data_length: u32,
    data: *mut u8,
    command: *const u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    id: i32,
    user: *mut u8,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_length: u8,
    host_status: u16,
    driver_status: u16,
    residue: i32,
    duration: u32,
    info: u32,
}

nix::ioctl_readwrite_bad!(sg_io, 0x2285, SgHeader);

struct Scsi {
    status: u8,
    sense: Vec<u8>,
}

/// One SCSI command that reads into `data` (or moves no data when that is empty).
fn scsi(disk: &Path, command: &[u8], data: &mut [u8]) -> io::Result<Scsi> {
    const NO_DATA: i32 = -1;
    const FROM_DEVICE: i32 = -3;
    let mut sense = vec![0; 64];
    let mut header = SgHeader {
        interface: i32::from(b'S'),
        direction: if data.is_empty() {
            NO_DATA
        } else {
            FROM_DEVICE
        },
        command_length: command.len() as u8,
        sense_size: sense.len() as u8,
        segments: 0,
        data_length: data.len() as u32,
        data: data.as_mut_ptr(),
        command: command.as_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: PATIENCE_MS,
        flags: 0,
        id: 0,
        user: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_length: 0,
        host_status: 0,
        driver_status: 0,
        residue: 0,
        duration: 0,
        info: 0,
    };
    let device = File::open(disk)?;
    // SAFETY: header, command, data and sense outlive the call and have the lengths given.
    unsafe { sg_io(device.as_raw_fd(), &raw mut header) }?;
    if header.host_status != 0 {
        let what = format!("SCSI host status {:#x}", header.host_status);
        return Err(io::Error::other(what));
    }
    sense.truncate(usize::from(header.sense_length));
    Ok(Scsi {
        status: header.status,
        sense,
    })
}

/// SMART RETURN STATUS (ACS-3 §7.48.8) by ATA PASS-THROUGH (16) (SAT-3 §12.2.3), which
/// gives the registers back as sense data.
fn ata_health(disk: &Path) -> io::Result<Vec<u8>> {
    const NO_DATA_PROTOCOL: u8 = 3 << 1;
    const CHECK_CONDITION: u8 = 1 << 5;
    let mut command = [0; 16];
    command[0] = 0x85;
    command[1] = NO_DATA_PROTOCOL;
    command[2] = CHECK_CONDITION;
    command[4] = 0xda;
    command[10] = 0x4f;
    command[12] = 0xc2;
    command[14] = 0xb0;
    Ok(scsi(disk, &command, &mut [])?.sense)
}

/// LOG SENSE (SPC-5 §6.8), current cumulative values.
fn scsi_health(disk: &Path) -> io::Result<Vec<u8>> {
    const LENGTH: usize = 64;
    let command = [0x4d, 0, 0x40 | 0x2f, 0, 0, 0, 0, 0, LENGTH as u8, 0];
    let mut page = vec![0; LENGTH];
    match scsi(disk, &command, &mut page)?.status {
        0 => Ok(page),
        status => Err(io::Error::other(format!("SCSI status {status:#x}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<NvmeCommand>(), 72);
        assert_eq!(size_of::<SgHeader>(), 88);
    }

    /// Answers with the disk's own name; `sdz` never does.
    #[derive(Debug)]
    struct Echo;

    impl Ask for Echo {
        fn ask(&self, question: &Question) -> Option<Vec<u8>> {
            let name = question.file().file_name()?.to_str()?.to_owned();
            if name == "sdz" {
                thread::sleep(Duration::from_secs(3600));
            }
            Some(name.into_bytes())
        }
    }

    #[test]
    fn answers_keep_their_order_and_a_dead_disk_stops_nobody() {
        let names: Vec<String> = (0..200).map(|n| format!("sd{n}")).collect();
        let mut questions: Vec<Question> = names
            .iter()
            .map(|name| Question::AtaHealth(Path::new("/dev").join(name)))
            .collect();
        questions.insert(7, Question::AtaHealth("/dev/sdz".into()));
        let ask: Arc<dyn Ask> = Arc::new(Echo);
        let mut answers = ask_all(&ask, questions, Duration::from_millis(500));
        assert_eq!(answers.remove(7), None);
        let answers: Vec<String> = answers
            .into_iter()
            .map(|answer| String::from_utf8(answer.unwrap()).unwrap())
            .collect();
        assert_eq!(answers, names);
    }

    #[test]
    fn the_loopback_link_has_a_driver_answer_or_an_error_never_a_crash() {
        assert_eq!(
            Live.ask(&Question::DriverInfo("no-such-link-at-all-here".into())),
            None
        );
        assert_eq!(Live.ask(&Question::NvmeHealth("/dev/null".into())), None);
        assert_eq!(Live.ask(&Question::AtaHealth("/dev/null".into())), None);
        assert_eq!(Live.ask(&Question::ScsiHealth("/nowhere".into())), None);
    }
}
