//! The wire between a guest's network card and its leaf switch, for weather that no kernel of the
//! test's host has to know (netem is a module that not every host has): each frame, in both
//! directions, may be lost, delayed, overtaken or doubled.
//!
//! QEMU's end is a datagram socket (`-netdev dgram`), the switch's end its tap. While the weather
//! is calm a frame goes through at once. Everything is bounded: [`LONGEST`] frames wait at most,
//! and none longer than its delay.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::netns::LEAVES;

/// Frames that wait in one direction; more are lost, as in a switch.
pub const LONGEST: usize = 1000;
/// How far behind the others an overtaken frame and a frame's double come, milliseconds.
const BEHIND: (u64, u64) = (5, 60);
/// A frame: what the tap's MTU allows, and the header.
const FRAME: usize = 2048;
/// Datagrams that a socket takes before its reader has read one (`net.unix.max_dgram_qlen`).
const SOCKET_QUEUE: &str = "512";

/// What happens to frames. Nothing, by default.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Percent that are lost.
    pub lost: u64,
    /// Percent that wait until others have passed.
    pub overtaken: u64,
    /// Percent that come twice.
    pub doubled: u64,
    /// Each waits up to so many milliseconds; the order stays.
    pub delayed: u64,
}

/// How many frames something happened to.
#[derive(Default, Debug)]
pub struct Counts {
    pub lost: AtomicU64,
    pub overtaken: AtomicU64,
    pub doubled: AtomicU64,
    pub delayed: AtomicU64,
}

/// The weather on all wires of a machine, over all its power-ons.
#[derive(Default, Debug)]
pub struct Weather {
    rules: Mutex<Rules>,
    pub counts: Counts,
}

impl Weather {
    /// Changes the rules from the next frame on.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn rules(&self) -> Rules {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a machine needs to be plugged in by such wires.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// The bed's network namespace.
    pub namespace: String,
    pub weather: Arc<Weather>,
    /// For the dice.
    pub seed: u64,
}

/// Where the two ends of card `number`'s wire are: QEMU's socket, ours.
pub fn ends(sockets: &Path, number: usize) -> (PathBuf, PathBuf) {
    let end = |name: &str| sockets.join(format!("{name}{number}"));
    (end("card"), end("wire"))
}

/// A plugged wire; unplugged when dropped.
pub struct Wire {
    thread: Option<JoinHandle<()>>,
    // Closing it ends the thread.
    stop: Option<PipeWriter>,
}

impl Wire {
    /// Plugs card `number` into its leaf; QEMU may come later.
    pub fn plug(wiring: &Wiring, sockets: &Path, number: usize) -> Self {
        let (card, own) = ends(sockets, number);
        // Not for children: whoever holds the other end keeps the wire in.
        let (stopped, stop) = std::io::pipe().expect("a pipe");
        let wiring = wiring.clone();
        let (ready, plugged) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let opened = open(&wiring.namespace, LEAVES[number].tap, &own);
            let (tap, socket) = match opened {
                Ok(both) => both,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            let seed = wiring.seed.wrapping_mul(2).wrapping_add(number as u64);
            carry(&tap, &socket, &card, &stopped, &wiring.weather, seed);
        });
        match plugged.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("the wire of card {number}: {error}"),
            Err(_) => panic!("the wire of card {number} broke"),
        }
        Self {
            thread: Some(thread),
            stop: Some(stop),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens both ends in the namespace, which this thread stays in.
fn open(namespace: &str, tap: &str, own: &Path) -> std::io::Result<(File, UnixDatagram)> {
    let handle = File::open(Path::new("/run/netns").join(namespace))?;
    setns(handle, CloneFlags::CLONE_NEWNET)?;
    // The namespace's own: what is there depends on who asks.
    std::fs::write("/proc/sys/net/unix/max_dgram_qlen", SOCKET_QUEUE)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is a valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(tap.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads the ifreq, which outlives the call (Linux, drivers/net/tun.c).
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: sets a flag of a descriptor that is ours.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    let socket = UnixDatagram::bind(own)?;
    socket.set_nonblocking(true)?;
    Ok((file, socket))
}

/// A frame on its way, the next one first.
#[derive(PartialEq, Eq)]
struct Waiting {
    due: Instant,
    number: u64,
    frame: Vec<u8>,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One direction.
pub struct Lane {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Nobody in the order leaves before this.
    latest: Instant,
    number: u64,
    dice: u64,
}

impl Lane {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        Self {
            waiting: BinaryHeap::new(),
            latest: Instant::now(),
            number: 0,
            dice: seed,
        }
    }

    /// One of `least..=most` (splitmix64).
    fn roll(&mut self, least: u64, most: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        least + (z ^ (z >> 31)) % (most - least + 1)
    }

    fn happens(&mut self, percent: u64, count: &AtomicU64) -> bool {
        let it = percent > 0 && self.roll(1, 100) <= percent;
        if it {
            count.fetch_add(1, Relaxed);
        }
        it
    }

    /// Takes a frame that came in at `now`.
    pub fn take(&mut self, frame: &[u8], now: Instant, weather: &Weather) {
        let rules = weather.rules();
        let counts = &weather.counts;
        if self.happens(rules.lost, &counts.lost) {
            return;
        }
        let mut due = now;
        if rules.delayed > 0 {
            counts.delayed.fetch_add(1, Relaxed);
            due += Duration::from_millis(self.roll(0, rules.delayed));
        }
        due = due.max(self.latest);
        let behind = |lane: &mut Self| due + Duration::from_millis(lane.roll(BEHIND.0, BEHIND.1));
        if self.happens(rules.doubled, &counts.doubled) {
            let second = behind(self);
            self.push(second, frame);
        }
        if self.happens(rules.overtaken, &counts.overtaken) {
            due = behind(self);
        } else {
            self.latest = due;
        }
        self.push(due, frame);
    }

    fn push(&mut self, due: Instant, frame: &[u8]) {
        if self.waiting.len() < LONGEST {
            self.number += 1;
            self.waiting.push(Reverse(Waiting {
                due,
                number: self.number,
                frame: frame.to_vec(),
            }));
        }
    }

    /// Hands on what is due; false when the other end is full and has to be waited for.
    pub fn give(&mut self, now: Instant, mut send: impl FnMut(&[u8]) -> Sent) -> bool {
        while let Some(Reverse(next)) = self.waiting.peek() {
            if next.due > now {
                break;
            }
            if send(&next.frame) == Sent::Full {
                return false;
            }
            self.waiting.pop();
        }
        true
    }

    /// Frames that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn next(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(next)| next.due)
    }
}

/// What became of a frame that was handed on.
#[derive(PartialEq, Eq)]
pub enum Sent {
    /// Or gone: nobody is there.
    Done,
    /// The other end takes no more for now.
    Full,
}

fn sent<T>(result: std::io::Result<T>) -> Sent {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Full,
        _ => Sent::Done,
    }
}

/// Carries frames until the other end of `stopped` is closed.
fn carry(
    mut tap: &File,
    socket: &UnixDatagram,
    card: &Path,
    stopped: &PipeReader,
    weather: &Weather,
    seed: u64,
) {
    let mut up = Lane::new(seed);
    let mut down = Lane::new(!seed);
    let mut buffer = [0; FRAME];
    loop {
        let now = Instant::now();
        let up_flows = up.give(now, |frame| sent(tap.write(frame)));
        let down_flows = down.give(now, |frame| sent(socket.send_to(frame, card)));
        // What cannot be handed on is not read either: the queues before it fill, and tell.
        let pause = Duration::from_millis(1);
        let mut timeout = None;
        for (lane, flows) in [(&up, up_flows), (&down, down_flows)] {
            let wait = match (flows, lane.next()) {
                (false, _) => pause,
                (true, Some(due)) => due.saturating_duration_since(now) + pause,
                (true, None) => continue,
            };
            timeout = Some(timeout.map_or(wait, |least: Duration| least.min(wait)));
        }
        let timeout = match timeout {
            None => -1,
            Some(wait) => i32::try_from(wait.as_millis()).unwrap_or(i32::MAX),
        };
        let events = |flows: bool| if flows { libc::POLLIN } else { 0 };
        let end = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let mut ends = [
            end(stopped.as_raw_fd(), libc::POLLIN),
            end(socket.as_raw_fd(), events(up_flows)),
            end(tap.as_raw_fd(), events(down_flows)),
        ];
        // SAFETY: three pollfd of open descriptors, which outlive the call.
        if unsafe { libc::poll(ends.as_mut_ptr(), 3, timeout) } == -1 {
            continue;
        }
        let [over, from_card, from_tap] = ends.map(|end| end.revents != 0);
        if over {
            return;
        }
        let now = Instant::now();
        if from_card && let Ok(length) = socket.recv(&mut buffer) {
            up.take(&buffer[..length], now, weather);
        }
        if from_tap && let Ok(length) = tap.read(&mut buffer) {
            down.take(&buffer[..length], now, weather);
        }
    }
}
