//! The command line on an ordinary host: the same functions as the boot, one at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Settings, Source, file};
use crate::control::http::{self, Trust};
use crate::hardware::{self, Roots};
use crate::image::{self, ImageSource, Progress};
use crate::net::lldp::live::{self, Format};
use crate::storage::disks;

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
    /// Fetch and unpack OS images
    #[command(subcommand)]
    Image(ImageVerb),
    /// See which switch ports this host hangs on
    #[command(subcommand)]
    Lldp(LldpVerb),
}

#[derive(Subcommand)]
enum LldpVerb {
    /// Print the LLDP neighbours of IFACE as they come and go; changes nothing
    Listen {
        /// Name of a network interface
        #[arg(value_name = "IFACE")]
        interface: String,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
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
        Verb::Image(ImageVerb::Write { url, dir }) => write_image(url, &dir),
        Verb::Lldp(LldpVerb::Listen { interface, json }) => listen(&interface, json),
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

fn listen(interface: &str, json: bool) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let format = if json { Format::Json } else { Format::Line };
    runtime.block_on(live::listen(interface, format, &mut std::io::stdout()))?;
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
