//! The command line on an ordinary host: the same functions as the boot, one at a time.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Settings, Source, file};
use crate::control::http::{self, Trust};
use crate::hardware::{self, Roots, capture};
use crate::image::{self, ImageSource, Progress};
use crate::net::lldp::live::{self, Format};

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
    /// Print what this machine is made of
    Inventory {
        /// JSON, as docs/inventory.schema.json describes it
        #[arg(long)]
        json: bool,
        /// A machine that `capture` recorded, instead of this one
        #[arg(long, value_name = "DIR")]
        recorded: Option<PathBuf>,
    },
    /// Record what `inventory` reads, for a ticket or a test
    Capture {
        /// An empty directory, or one that does not exist yet
        dir: PathBuf,
    },
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
        Verb::Inventory { json, recorded } => inventory(json, recorded.as_deref()),
        Verb::Capture { dir } => capture(&dir),
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

fn inventory(json: bool, recorded: Option<&Path>) -> Done {
    let roots = recorded.map_or_else(Roots::live, Roots::recorded);
    let inventory = hardware::inspect(&roots, None)?;
    let text = if json {
        serde_json::to_string_pretty(&inventory)?
    } else {
        inventory.table(true).join("\n")
    };
    // A reader that has seen enough (`| head`) is no failure.
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn capture(dir: &Path) -> Done {
    let files = capture::capture(&Roots::live(), dir)?;
    println!("{files} files in {}", dir.display());
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
