//! The guest's disks: sparse files, some with a pattern on them, compared by hash.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::process::run;

/// One MiB.
pub const MIB: u64 = 1 << 20;

/// How a disk is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bus {
    /// virtio-blk: /dev/vdX.
    Virtio,
    /// AHCI: /dev/sdX.
    Sata,
    /// virtio-scsi: /dev/sdX.
    Scsi,
    /// NVMe: /dev/nvmeXn1.
    Nvme,
    /// NVMe with blocks of 4 KiB.
    Nvme4k,
}

impl Bus {
    /// Bytes of a logical block.
    pub fn block(self) -> u64 {
        match self {
            Self::Nvme4k => 4096,
            _ => 512,
        }
    }
}

/// A disk that outlives the power-ons of one test.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// How the guest sees it.
    pub bus: Bus,
    /// Its serial number, empty for none; `None`: one after the place where it is plugged in.
    pub serial: Option<String>,
}

impl Disk {
    /// An empty disk of `mib` MiB.
    pub fn empty(dir: &Path, name: &str, bus: Bus, mib: u64) -> Self {
        let path = dir.join(format!("{name}.raw"));
        File::create(&path)
            .and_then(|file| file.set_len(mib * MIB))
            .unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
        Self {
            path,
            bus,
            serial: None,
        }
    }

    /// A disk with a pattern at its start, in its middle and at its end: data that must survive, or go.
    pub fn with_pattern(dir: &Path, name: &str, bus: Bus, mib: u64) -> Self {
        let disk = Self::empty(dir, name, bus, mib);
        let block: Vec<u8> = b"DATA OF A TENANT\n"
            .iter()
            .copied()
            .cycle()
            .take(MIB as usize)
            .collect();
        let file = OpenOptions::new()
            .write(true)
            .open(&disk.path)
            .expect("own disk");
        for at in [0, mib / 2 * MIB, (mib - 1) * MIB] {
            file.write_all_at(&block, at).expect("write the pattern");
        }
        disk
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        let metadata = std::fs::metadata(&self.path).expect("own disk");
        metadata.len()
    }

    /// Writes `pattern` over and over, from the first byte to the last.
    pub fn fill(&self, pattern: &[u8]) {
        let block: Vec<u8> = pattern.iter().copied().cycle().take(MIB as usize).collect();
        let file = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .expect("own disk");
        for at in (0..self.size()).step_by(MIB as usize) {
            file.write_all_at(&block, at).expect("fill own disk");
        }
    }

    /// The MiB, by number, that hold `pattern` anywhere.
    pub fn places_of(&self, pattern: &[u8]) -> Vec<u64> {
        let file = File::open(&self.path).expect("own disk");
        let mut chunk = vec![0u8; MIB as usize];
        let mut holds = |mib: &u64| {
            file.read_exact_at(&mut chunk, mib * MIB)
                .expect("read own disk");
            // Most are empty, and told to be so much faster.
            chunk.iter().any(|byte| *byte != 0)
                && chunk.windows(pattern.len()).any(|part| part == pattern)
        };
        (0..self.size() / MIB).filter(|mib| holds(mib)).collect()
    }

    /// SHA-256 of the whole content, holes read as zeros.
    pub fn hash(&self) -> String {
        let mut file = File::open(&self.path).expect("own disk");
        let mut hasher = Sha256::new();
        let mut chunk = vec![0u8; MIB as usize];
        loop {
            let n = file.read(&mut chunk).expect("read own disk");
            if n == 0 {
                break;
            }
            hasher.update(&chunk[..n]);
        }
        hasher
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    /// True when nothing but zeros is on it.
    pub fn is_blank(&self) -> bool {
        let mut file = File::open(&self.path).expect("own disk");
        let mut chunk = vec![0u8; MIB as usize];
        loop {
            let n = file.read(&mut chunk).expect("read own disk");
            if n == 0 {
                return true;
            }
            if chunk[..n].iter().any(|b| *b != 0) {
                return false;
            }
        }
    }

    /// True when `needle` is anywhere in the first `limit` bytes.
    pub fn holds(&self, needle: &[u8], limit: u64) -> bool {
        let mut file = File::open(&self.path).expect("own disk");
        let mut data = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("seek own disk");
        file.take(limit)
            .read_to_end(&mut data)
            .expect("read own disk");
        data.windows(needle.len()).any(|w| w == needle)
    }

    /// Its first bytes.
    pub fn head(&self, length: usize) -> Vec<u8> {
        let mut head = vec![0; length];
        let mut file = File::open(&self.path).expect("own disk");
        file.read_exact(&mut head).expect("read own disk");
        head
    }

    /// Overwrites one place, as a fault.
    pub fn scribble(&self, at: u64, bytes: &[u8]) {
        let mut file = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .expect("own disk");
        file.seek(SeekFrom::Start(at)).expect("seek own disk");
        file.write_all(bytes).expect("write own disk");
    }
}

/// What a disk's file lies on: a small file system that can be filled, so that writes to places
/// that hold nothing yet fail. Unmounted when dropped.
pub struct Store {
    /// Where it is mounted.
    pub dir: PathBuf,
}

impl Store {
    /// Room for `mib` MiB.
    pub fn mount(dir: PathBuf, mib: u64) -> Self {
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let store = Self { dir };
        // One that a test which was killed has left.
        while store.unmount() {}
        let size = format!("size={mib}m");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&store.dir));
        store
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        let file = File::create(self.ballast()).expect("the ballast");
        let stat = nix::sys::statvfs::statvfs(&self.dir).expect("statvfs");
        // In steps: the machine may take some meanwhile.
        let mut at = 0;
        let mut step = stat.blocks_available() * stat.fragment_size();
        while step >= stat.fragment_size() {
            let length = step / stat.fragment_size() * stat.fragment_size();
            let whole = nix::fcntl::FallocateFlags::empty();
            match nix::fcntl::fallocate(&file, whole, at as i64, length as i64) {
                Ok(()) => at += length,
                Err(_) => step /= 2,
            }
        }
    }

    /// Gives the room back.
    pub fn relieve(&self) {
        let _ = std::fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    fn unmount(&self) -> bool {
        let umount = Command::new("umount").arg(&self.dir).output();
        umount.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.unmount();
    }
}
