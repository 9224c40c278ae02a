//! The first state: what the machine knows of itself before it has a network.

use std::fs;
use std::path::Path;

use uuid::Uuid;

use super::come_back;
use super::failure::{During, Failure, Lifeline, Step};
use crate::config::cmdline;
use crate::config::layer::Layer;
use crate::config::{Settings, Source, file, medium};
use crate::decide::Journal;
use crate::efi::vars::Vars;
use crate::efi::{self, boot, journal};
use crate::hardware::{self, Roots};
use crate::report::event::{Event, Machine};
use crate::report::log::Verbosity;
use crate::report::{steps, stream};
use crate::watchdog::Progress;

/// Where the boot medium is mounted for the moment it takes to read it.
const MEDIUM_MOUNT: &str = "/run/medium";

/// What the machine is told before it has looked at itself.
pub struct Told {
    pub(super) lifeline: Lifeline,
    verbosity: Verbosity,
    layers: Vec<(Source, Layer)>,
    /// What the layers come to, without the boot helper's answer.
    pub(super) settings: Settings,
    pub(super) medium: Vec<String>,
    /// The firmware's variables, or why there are none.
    pub(super) efi: Result<Vars, efi::Error>,
}

/// A machine that runs the agent, and what it was told so far.
pub struct Booted {
    pub(super) lifeline: Lifeline,
    pub(super) verbosity: Verbosity,
    /// What medium and command line say; the boot helper's answer joins them later.
    pub(super) layers: Vec<(Source, Layer)>,
    /// Kernel names of the devices that this boot came from.
    pub(super) medium: Vec<String>,
    pub(super) machine: Uuid,
    pub(super) efi: Vars,
    /// The firmware starts only what a key of its own vouches for, and this kernel with it.
    pub(super) secure_boot: bool,
}

impl Told {
    /// Reads command line and boot medium. From here on whatever ends the boot leads back to the
    /// medium: a BMC's "boot once" is spent, and the disk may hold half an OS.
    ///
    /// # Errors
    /// The medium is gone or damaged, or a policy cannot be used.
    pub fn read(
        lifeline: Lifeline,
        verbosity: Verbosity,
        progress: &Progress,
    ) -> Result<Self, Failure> {
        steps::begin(Step::Start);
        let efi = Vars::open(Path::new(efi::EFIVARS));
        if let Ok(efi) = &efi {
            lifeline.use_efi(efi);
            come_back_to_a_cut_install(efi);
        }
        let line = fs::read_to_string("/proc/cmdline").during(Step::Start)?;
        let command_line = cmdline::parse(&line);
        let refused = refuse_half_a_policy("kernel command line", &command_line.problems);
        let medium = refused.and_then(|()| match &command_line.medium {
            Some(label) => read_medium(label),
            None => Ok((Layer::default(), Vec::new())),
        });
        let (file, medium) = match medium {
            // What could be lost by that is not written to in any case.
            Err(failure) if command_line.layer.rescue == Some(true) => {
                tracing::warn!("{failure}; going on for the rescue's sake");
                (Layer::default(), Vec::new())
            }
            read => read?,
        };
        let layers = vec![
            (Source::CommandLine, command_line.layer),
            (Source::File, file),
        ];
        let settings = Settings::from_layers(layers.clone());
        verbosity(settings.debug);
        lifeline.follow(&settings.policy);
        progress.beat();
        #[cfg(debug_assertions)]
        crate::init::fault::strike();
        Ok(Self {
            lifeline,
            verbosity,
            layers,
            settings,
            medium,
            efi,
        })
    }

    /// Looks which machine this is.
    ///
    /// # Errors
    /// No machine id, no UEFI, or settings that forbid what this agent is.
    pub fn start(self) -> Result<Booted, Failure> {
        let Self {
            lifeline, settings, ..
        } = self;
        let efi = self.efi.during(Step::Start)?;
        if !settings.ipv6 {
            let why =
                "metal.config says ipv6: false, but this agent speaks IPv6 only; remove the key";
            return Err(Failure::new(Step::Start, why));
        }
        let secure_boot = boot::secure_boot(&efi);
        if secure_boot {
            tracing::info!(
                "Secure Boot is on: kexec starts only a kernel that is signed with a key of the firmware's db"
            );
        }
        let machine = identify().during(Step::Start)?;
        if let Some(hostname) = &settings.hostname
            && let Err(errno) = nix::unistd::sethostname(hostname)
        {
            tracing::warn!("cannot set the host name {hostname:?}: {errno}");
        }
        Ok(Booted {
            lifeline,
            verbosity: self.verbosity,
            layers: self.layers,
            medium: self.medium,
            machine,
            efi,
            secure_boot,
        })
    }
}

/// A reset before the next step that aims the next boot would start what the cut install left.
fn come_back_to_a_cut_install(efi: &Vars) {
    match journal::read(efi, None) {
        Ok(Journal::Installing { .. }) => come_back(efi),
        Ok(_) => {}
        Err(error) => tracing::warn!("{error}"),
    }
}

/// The machine's id, told to whoever listens.
pub(super) fn identify() -> Result<Uuid, hardware::Error> {
    let machine = hardware::machine_id(&Roots::live())?;
    tracing::info!("machine {machine}");
    stream::tell(Event::Machine(Machine {
        id: machine,
        hardware: hardware::title(Path::new("/sys")),
    }));
    Ok(machine)
}

impl Booted {
    /// The settings as they stand without the boot helper's answer.
    pub(super) fn settings(&self) -> Settings {
        Settings::from_layers(self.layers.clone())
    }
}

/// Reads `metal.config` from the medium. A file that makes no sense does not end the boot: the
/// kernel command line may hold all that is needed. A medium that is gone, or cannot be read,
/// does: it may exclude disks from being written, and be a disk itself.
fn read_medium(label: &str) -> Result<(Layer, Vec<String>), Failure> {
    let (sys, dev) = (Path::new("/sys"), Path::new("/dev"));
    let medium = medium::read(sys, dev, label, Path::new(MEDIUM_MOUNT)).during(Step::Start)?;
    tracing::info!("boot medium {label} is {}", medium.names.join(", "));
    let Some(config) = medium.config else {
        tracing::warn!(
            "the boot medium holds no boot/metal.config; going on with the kernel command line alone"
        );
        return Ok((Layer::default(), medium.names));
    };
    match file::parse(&config) {
        Ok((layer, problems)) => {
            refuse_half_a_policy("metal.config", &problems)?;
            Ok((layer, medium.names))
        }
        Err(error) => {
            tracing::warn!("{error}; going on with the kernel command line alone");
            Ok((Layer::default(), medium.names))
        }
    }
}

/// Logs what could not be used. A policy that cannot be read may have excluded disks from
/// being written, and a rescue all of them, so the boot does not go on without it.
fn refuse_half_a_policy(source: &str, problems: &[file::Problem]) -> Result<(), Failure> {
    for problem in problems {
        tracing::warn!("{source}, {problem}");
    }
    match problems
        .iter()
        .find(|problem| ["policy", "rescue"].contains(&problem.key.as_str()))
    {
        Some(problem) => Err(Failure::new(Step::Start, format!("{source}, {problem}"))),
        None => Ok(()),
    }
}
