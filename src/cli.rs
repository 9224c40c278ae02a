//! The command line on an ordinary host: the same functions as the boot, one at a time.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use reqwest::Client;
use tokio::runtime::Runtime;

use crate::config::{Settings, Source, file};
use crate::control::http::{self, Trust};
use crate::decide::Extent;
use crate::hardware::{self, Roots, capture};
use crate::image::{self, DiskTarget, ImageSource, Progress};
use crate::net::lldp::live::{self, Format};
use crate::storage::preview::preview;
use crate::storage::{device, disk_image, disks};

/// Authorities of one site: a few certificates.
const MAX_PEM: u64 = 1 << 20;

/// Longest layout file that is read, in bytes.
const MAX_LAYOUT: u64 = 1 << 20;

/// Bare-metal boot stage. As PID 1 of its boot medium it installs the machine; anywhere
/// else it is this command line, which writes to a disk only when told to by `image write`.
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
    /// Filesystem layouts
    #[command(subcommand)]
    Layout(LayoutVerb),
    /// Fetch, check and unpack OS images
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
    /// Stream the image at URL into DIR, or a disk image onto a disk, and verify it, as an install does
    ///
    /// Download, checksum, unpacking and writing go on at the same time, nothing is stored on
    /// the way, and a broken connection is resumed. Owners, devices and capabilities need root.
    /// After a failure DIR holds a part of the image, perhaps a wrong one.
    ///
    /// A block device gets a disk image (*.raw, or that packed). What was on it is lost; its
    /// partition table comes last, with the backup at the end of the disk.
    #[command(after_help = IMAGE_HELP)]
    Write {
        #[command(flatten)]
        image: Box<ImageArgs>,
        /// Directory to unpack into, which must exist and should be empty; or a whole disk
        #[arg(value_name = "DIR|DISK")]
        target: PathBuf,
    },
    /// Download the image at URL and check all of it, writing nothing
    ///
    /// Checks what an install would: the checksum beside it, its length, the end of the packed
    /// stream, and that every tar entry can be understood and is not refused for its name.
    #[command(after_help = IMAGE_HELP)]
    Verify {
        #[command(flatten)]
        image: Box<ImageArgs>,
    },
}

const IMAGE_HELP: &str = "\
An image is a tar archive (ustar, pax or GNU), plain or packed with lz4, zstd, gzip or xz; its
first bytes tell, not its name. A disk image is told by its name, which ends in .raw before the
packer's suffix. URL.sha512, URL.sha256 or URL.md5 holds its checksum as sha256sum
prints it; the strongest that exists counts.

Progress is shown on standard error once a second. Exit status: 0 the image is in order, 1 it is
not or could not be fetched, 2 wrong usage.";

#[derive(Args)]
struct ImageArgs {
    /// http:// or https:// URL of the image
    url: url::Url,
    /// Base URL of an image cache: replaces scheme and host of URL, which is tried next
    #[arg(long, value_name = "URL")]
    cache: Option<url::Url>,
    /// PEM file with an authority to trust in addition to the public ones
    #[arg(long, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// Accept an image that has no checksum beside it
    #[arg(long)]
    without_checksum: bool,
    /// Refuse an image that unpacks to more than this
    #[arg(long, value_name = "GIB", default_value_t = image::DEFAULT_LIMIT >> 30)]
    max_gib: u64,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// Runs one verb.
#[must_use]
pub fn run() -> ExitCode {
    let verb = Cli::parse().verb;
    let done = match verb {
        Verb::Inventory { json, recorded } => inventory(json, recorded.as_deref()),
        Verb::Capture { dir } => capture(&dir),
        Verb::Config(ConfigVerb::Check { file }) => check_config(&file),
        Verb::Lldp(LldpVerb::Listen { interface, json }) => listen(&interface, json),
        Verb::Image(ImageVerb::Write { image, target }) => write_image(&image, &target),
        Verb::Image(ImageVerb::Verify { image }) => verify_image(&image),
        Verb::Layout(LayoutVerb::Plan {
            file,
            machine,
            reinstall,
        }) => plan_layout(&file, &machine, reinstall),
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

fn write_image(args: &ImageArgs, target: &Path) -> Done {
    let (runtime, client, source) = args.prepare()?;
    let show = |progress| args.show(progress);
    let is_disk = fs::metadata(target).is_ok_and(|found| found.file_type().is_block_device());
    if is_disk != image::is_disk_image(source.url.path()) {
        return Err("a disk image (*.raw, *.raw.zst, *.raw.lz4, *.raw.gz, *.raw.xz) goes to a disk, any other to a directory".into());
    }
    let image = if is_disk {
        // By sysfs, so that no partition and no disk in use is written.
        let real = fs::canonicalize(target)?;
        let disks = disks::discover(Path::new("/sys"))?;
        let Some(disk) = disks.into_iter().find(|disk| disk.path == real) else {
            return Err(format!("{} is no whole disk", target.display()).into());
        };
        let file = device::open_exclusive(&disk)?;
        let (path, block) = (disk.path.to_string_lossy(), disk.logical_block_size);
        let opened = DiskTarget::new(file, &path, disk.size, block.into());
        let written = image::install_disk(&client, &source, opened, &show);
        let (image, mut file) = runtime.block_on(written)?;
        disk_image::settle(&mut file, &disk)?;
        image
    } else {
        runtime.block_on(image::install(&client, &source, target, &show))?
    };
    println!("{}", image.summary());
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

fn plan_layout(file: &Path, sys: &Path, reinstall: bool) -> Done {
    let extent = match reinstall {
        true => Extent::RootDisks,
        false => Extent::EveryDisk,
    };
    print!("{}", preview(&read(file, MAX_LAYOUT)?, sys, extent)?);
    Ok(())
}

fn verify_image(args: &ImageArgs) -> Done {
    let (runtime, client, source) = args.prepare()?;
    let show = |progress| args.show(progress);
    let summary = runtime.block_on(image::verify(&client, &source, &show))?;
    println!("{summary}");
    Ok(())
}

impl ImageArgs {
    fn prepare(&self) -> Result<(Runtime, Client, ImageSource), Box<dyn std::error::Error>> {
        let pem = match &self.ca_cert {
            Some(path) => Some(String::from_utf8(read(path, MAX_PEM)?)?),
            None => None,
        };
        let trust = pem.as_deref().map_or(Trust::Public, Trust::PublicAnd);
        let source = ImageSource {
            cache: self.cache.clone(),
            without_checksum: self.without_checksum,
            limit: self.max_gib.saturating_mul(1 << 30),
            ..ImageSource::new(self.url.clone())
        };
        // All that waits is one download; its chunks would only travel between workers.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok((runtime, http::download_client(trust)?, source))
    }

    fn show(&self, progress: Progress) {
        if !self.quiet {
            eprintln!("{progress}");
        }
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(bytes)
}
