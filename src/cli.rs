//! The command line on an ordinary host: the same functions as the boot, one at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Settings, Source, file};
use crate::control::http::{self, Trust};
use crate::decide::Extent;
use crate::hardware::{self, Roots};
use crate::image::{self, ImageSource, Progress};
use crate::storage::disks;
use crate::storage::preview::preview;

/// Longest layout file that is read, in bytes.
const MAX_LAYOUT: u64 = 1 << 20;

/// Bare-metal boot stage. As PID 1 of its boot medium it installs the machine; anywhere
/// else it is this command line, which never writes to a disk.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print what this machine would register as, in JSON
    Inventory,
    /// Check a metal.config before it goes onto a medium
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Filesystem layouts
    #[command(subcommand)]
    Layout(LayoutVerb),
    /// Fetch and unpack OS images
    #[command(subcommand)]
    Image(ImageVerb),
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Print what FILE sets; fails when a key cannot be used
    Check {
        /// A metal.config, JSON
        file: PathBuf,
    },
}

#[derive(Subcommand)]
enum LayoutVerb {
    /// Print what the layout in FILE would become, with sizes; writes nothing
    Plan {
        /// JSON: a filesystemLayout, or an allocation that has one
        file: PathBuf,
        /// A captured sysfs whose disks count; without it this host's do
        #[arg(
            long,
            value_name = "DIR",
            default_value = "/sys",
            hide_default_value = true
        )]
        machine: PathBuf,
        /// Plan a re-install, which writes the root's disks only
        #[arg(long)]
        reinstall: bool,
    },
}

#[derive(Subcommand)]
enum ImageVerb {
    /// Stream the image at URL into DIR and verify it against the checksum beside it
    Write {
        /// http:// or https:// URL of an img.tar.lz4
        url: url::Url,
        /// An empty directory
        dir: PathBuf,
    },
}

/// Runs one verb.
#[must_use]
pub fn run() -> ExitCode {
    let verb = Cli::parse().verb;
    let done = match verb {
        Verb::Inventory => inventory(),
        Verb::Config(ConfigVerb::Check { file }) => check_config(&file),
        Verb::Layout(LayoutVerb::Plan {
            file,
            machine,
            reinstall,
        }) => plan_layout(&file, &machine, reinstall),
        Verb::Image(ImageVerb::Write { url, dir }) => write_image(url, &dir),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("metal-anvil: {error}");
            ExitCode::FAILURE
        }
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn inventory() -> Done {
    let sys = Path::new("/sys");
    let disks: Vec<_> = disks::discover(sys)?
        .into_iter()
        .map(|disk| (disk.path.display().to_string(), disk.size))
        .collect();
    let inventory = hardware::inspect(&Roots::default(), &disks)?;
    let register = hardware::register(&inventory, &[], "unknown", env!("CARGO_PKG_VERSION"))?;
    println!("{}", serde_json::to_string_pretty(&register)?);
    Ok(())
}

fn check_config(path: &Path) -> Done {
    let (layer, problems) = file::parse(&read(path, file::MAX_BYTES as u64 + 1)?)?;
    for line in Settings::from_layers([(Source::File, layer)]).summary() {
        println!("{line}");
    }
    if problems.is_empty() {
        return Ok(());
    }
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Err(format!("{}: {}", path.display(), problems.join("\n  ")).into())
}

fn plan_layout(file: &Path, sys: &Path, reinstall: bool) -> Done {
    let extent = match reinstall {
        true => Extent::RootDisks,
        false => Extent::EveryDisk,
    };
    print!("{}", preview(&read(file, MAX_LAYOUT)?, sys, extent)?);
    Ok(())
}

fn write_image(url: url::Url, dir: &Path) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let client = http::download_client(Trust::Public)?;
    let source = ImageSource { url, cache: None };
    let image = runtime.block_on(image::install(&client, &source, dir, &|_: Progress| ()))?;
    println!("{image}");
    Ok(())
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(bytes)
}
