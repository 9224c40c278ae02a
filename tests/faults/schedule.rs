//! Which faults hit a run, and when: everything follows from the seed.

use std::fmt;
use std::time::Duration;

/// The random numbers of a seed (splitmix64, Steele et al. 2014): the same for ever, whatever
/// becomes of a library.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `least..=most`.
    fn range(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.range(0, all.len() as u64 - 1) as usize]
    }
}

/// What breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// No router advertisements.
    NoRouter,
    /// A cable is out.
    Cable(usize),
    /// The boot helper is killed, and started again.
    HelperDies,
    /// The apiserver is there and does not answer.
    ApiserverHangs,
    /// The apiserver is killed, and started again.
    ApiserverDies,
    /// A method is answered with a bare HTTP status.
    ApiserverFails(&'static str, u16),
    /// The machine's tokens are revoked.
    TokensRevoked,
    /// Tokens that are given out live so many seconds.
    TokensShort(u64),
    /// The image server is killed, and started again.
    ImageServerDies,
    /// The image has a wrong byte.
    ImageDamaged,
    /// The image server sends so many bytes a second; what was open breaks.
    ImageDrips(u64),
    /// TCP connections of the services are reset, at so many of a thousand packets.
    ConnectionsReset(u64),
    /// Packets from and to the machine are lost, percent.
    Loss(u64),
    /// Packets from and to the machine wait up to so many milliseconds each.
    Delay(u64),
    /// Packets from and to the machine are overtaken by others, percent.
    Reorder(u64),
    /// Packets from and to the machine come twice, percent.
    Duplicate(u64),
    /// The way to the machine is narrow, kbit/s.
    Narrow(u64),
    /// The disk serves so few requests a second.
    DiskSlow(u64),
    /// So many reads or writes of the disk fail; 0: all.
    DiskErrors(&'static str, u64),
    /// Nothing more fits below the disk: what it did not hold yet cannot be written.
    DiskFull,
    /// The plug is pulled.
    PowerCut,
    /// The reset button is pressed.
    Reset,
}

/// When something is about to happen, by what the console says.
pub const PHASES: [(&str, &str); 9] = [
    ("power-on", ""),
    ("network", "waiting for an IPv6 address"),
    ("helper", "asking the boot helper"),
    ("switches", "listening for switches"),
    ("wipe", "wiping "),
    ("wait", "waiting for an allocation"),
    ("image", "image: download begins"),
    ("installer", "the installer runs"),
    ("kexec", "the installed kernel is loaded"),
];

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub fault: Fault,
    /// Index into [`PHASES`]: the phase that it waits for.
    pub phase: usize,
    /// From the phase's begin to the fault.
    pub after: Duration,
    /// How long it lasts.
    pub lasts: Duration,
}

impl Fault {
    /// What two faults must not do at once: the second one waits until the first is over.
    pub fn works_on(self) -> Option<&'static str> {
        match self {
            Self::ApiserverHangs
            | Self::ApiserverDies
            | Self::ApiserverFails(..)
            | Self::TokensRevoked
            | Self::TokensShort(_) => Some("apiserver"),
            Self::ImageServerDies | Self::ImageDrips(_) => Some("image server"),
            Self::DiskErrors(..) | Self::DiskFull => Some("disk"),
            _ => None,
        }
    }

    /// Its name, without numbers.
    pub fn kind(self) -> String {
        let text = format!("{self:?}");
        text.split('(').next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:.1}s after {} for {}s",
            self.fault,
            self.after.as_secs_f64(),
            PHASES[self.phase].0,
            self.lasts.as_secs()
        )
    }
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub faults: Vec<Planned>,
    /// The allocation comes only once the machine waits for it.
    pub waits: bool,
    /// The image comes slowly.
    pub slow_image: bool,
    /// What the hardware clock says, when it is wrong.
    pub clock: Option<&'static str>,
}

impl Schedule {
    /// The run of a seed.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let waits = dice.range(0, 2) == 0;
        let slow_image = dice.range(0, 2) == 0;
        let clock = dice.one_of(&[None, None, Some("2019-01-01"), Some("2031-05-05")]);
        let mut faults: Vec<Planned> = Vec::new();
        for _ in 0..dice.range(1, 4) {
            let fault = fault(&mut dice);
            let phase = dice.range(0, PHASES.len() as u64 - 1) as usize;
            let planned = Planned {
                fault,
                phase,
                after: Duration::from_millis(dice.range(0, 3000)),
                lasts: Duration::from_secs(dice.range(2, 25)),
            };
            // Two of a kind would end each other.
            let kind = std::mem::discriminant(&fault);
            if !faults
                .iter()
                .any(|it| std::mem::discriminant(&it.fault) == kind)
            {
                faults.push(planned);
            }
        }
        Self {
            seed,
            faults,
            waits,
            slow_image,
            clock,
        }
    }
}

/// A change here changes every seed: results before it say nothing about seeds after it.
fn fault(dice: &mut Dice) -> Fault {
    match dice.range(0, 21) {
        0 => Fault::NoRouter,
        1 => Fault::Cable(dice.range(0, 1) as usize),
        2 => Fault::HelperDies,
        3 => Fault::ApiserverHangs,
        4 => {
            let method = dice.one_of(&["SendEvent", "Register", "Wait", "SuperUserPassword"]);
            Fault::ApiserverFails(method, dice.one_of(&[500, 502, 503, 429]))
        }
        5 => Fault::TokensRevoked,
        6 => Fault::ImageServerDies,
        7 => Fault::ImageDamaged,
        8 => Fault::Loss(dice.range(5, 40)),
        9 => Fault::Delay(dice.range(20, 400)),
        10 => Fault::Narrow(dice.range(64, 2000)),
        11 => Fault::DiskSlow(dice.range(2, 200)),
        12 => Fault::PowerCut,
        13 => Fault::Reset,
        14 => Fault::ApiserverDies,
        15 => Fault::TokensShort(dice.range(3, 30)),
        16 => Fault::ImageDrips(dice.range(20, 2000)),
        17 => Fault::ConnectionsReset(dice.range(5, 200)),
        18 => Fault::Reorder(dice.range(5, 40)),
        19 => Fault::Duplicate(dice.range(5, 40)),
        20 => Fault::DiskErrors(dice.one_of(&["read", "write"]), dice.one_of(&[0, 1, 3])),
        _ => Fault::DiskFull,
    }
}
