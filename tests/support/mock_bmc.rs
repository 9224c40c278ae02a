//! A mock BMC: no emulator can be told to be busy, to refuse or to have IPv6 addresses.
//!
//! It speaks OpenIPMI's "VM" serial protocol with QEMU's `ipmi-bmc-extern` (QEMU's
//! hw/ipmi/ipmi_bmc_extern.c) over a Unix socket; what it answers is the test's.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use super::ipmi;

/// Ends a message; ends a command about the line itself; marks that bit 4 was set in the next byte.
const MESSAGE: u8 = 0xa0;
const COMMAND: u8 = 0xa1;
const ESCAPE: u8 = 0xaa;

/// An answer, completion code first.
pub type Answer = Vec<u8>;

/// A BMC whose answers a function gives, from network function, command and data.
pub struct MockBmc {
    socket: tempfile::TempDir,
}

impl MockBmc {
    /// Listens for one guest. What the kernel's driver asks to get going is answered well.
    pub fn start(mut answer: impl FnMut(u8, u8, &[u8]) -> Answer + Send + 'static) -> Self {
        // A socket's path has 107 bytes at most.
        let socket = tempfile::Builder::new()
            .prefix("ma-bmc-")
            .tempdir_in("/tmp")
            .expect("directory for the BMC's socket");
        let listener = UnixListener::bind(socket.path().join("ipmi")).expect("BMC's socket");
        thread::spawn(move || {
            let (stream, _) = listener.accept().expect("QEMU connects");
            serve(stream, |netfn, command, data| {
                for_the_driver(netfn, command).unwrap_or_else(|| answer(netfn, command, data))
            });
        });
        Self { socket }
    }

    /// QEMU arguments for this BMC on a KCS interface.
    pub fn arguments(&self) -> Vec<String> {
        ipmi::extern_at(&format!("path={}/ipmi", self.socket.path().display()))
    }
}

/// Get Device ID, and the commands about events and flags (drivers/char/ipmi/ipmi_si_intf.c).
fn for_the_driver(netfn: u8, command: u8) -> Option<Answer> {
    match (netfn, command) {
        (0x06, 0x01) => Some(vec![0, 0x20, 1, 2, 0x45, 2, 0xbf, 0x7c, 0x2a, 0, 0, 8]),
        (0x06, 0x2e | 0x30) => Some(vec![0]),
        (0x06, 0x2f | 0x31) => Some(vec![0, 0]),
        // GUID, watchdog, event buffer, power: not there.
        (0x06, 0x08 | 0x22 | 0x24 | 0x25 | 0x35 | 0x37) | (0x00 | 0x04 | 0x2c, _) => {
            Some(vec![0xc1])
        }
        _ => None,
    }
}

fn serve(mut stream: UnixStream, mut answer: impl FnMut(u8, u8, &[u8]) -> Answer) {
    let mut message = Vec::new();
    let mut escaped = false;
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() {
        match byte[0] {
            ESCAPE => escaped = true,
            // Version and capabilities of the line.
            COMMAND => message.clear(),
            MESSAGE => {
                if let [id, netfn, command, data @ .., _checksum] = message.as_slice() {
                    let reply = answer(netfn >> 2, *command, data);
                    let head = [*id, netfn | 0x04, *command];
                    let bytes = framed(&[&head, reply.as_slice()].concat());
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                }
                message.clear();
            }
            other => {
                message.push(if escaped { other & !0x10 } else { other });
                escaped = false;
            }
        }
    }
}

/// Adds the checksum, hides the marks, and ends the message.
fn framed(message: &[u8]) -> Vec<u8> {
    let checksum = message
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    let mut bytes = Vec::new();
    for byte in message.iter().chain([&checksum]) {
        match *byte {
            MESSAGE | COMMAND | ESCAPE => bytes.extend([ESCAPE, byte | 0x10]),
            byte => bytes.push(byte),
        }
    }
    bytes.push(MESSAGE);
    bytes
}
