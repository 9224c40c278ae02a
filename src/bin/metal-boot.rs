//! metal-boot: the boot helper. See `metal_anvil::boot_helper`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use metal_anvil::boot_helper::bmc::{self, BmcOptions};
use metal_anvil::boot_helper::options::{LogFormat, Options};
use metal_anvil::boot_helper::{self, check, config_file};

/// The verb that checks instead of serving; it has the same options.
const CHECK: &str = "check";
/// The verb that talks to a server's BMC; it has none of them.
const BMC: &str = "bmc";
/// The BMC's password, where it is in no file.
const BMC_PASSWORD: &str = "METAL_BOOT_BMC_PASSWORD";

/// What the command line asks for.
enum Job {
    Serve(Box<Options>),
    Check(Box<Options>),
    Bmc(Box<BmcOptions>),
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let job = match read(&arguments) {
        Ok(job) => job,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("metal-boot: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match job {
        Job::Serve(options) => {
            log(&options);
            match runtime.block_on(boot_helper::run(&options)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
        Job::Check(options) => {
            log(&options);
            match runtime.block_on(check::run(&options, std::io::stdout())) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => failed(&error),
            }
        }
        Job::Bmc(options) => {
            let password = std::env::var(BMC_PASSWORD).ok().map(Into::into);
            match runtime.block_on(bmc::run(&options, password)) {
                Ok(state) => {
                    println!("{state}");
                    ExitCode::SUCCESS
                }
                Err(error) => failed(&error),
            }
        }
    };
    // A resolver that hangs must not hold up the end.
    runtime.shutdown_background();
    code
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("metal-boot: {error}");
    ExitCode::FAILURE
}

/// Command line, environment and file.
fn read(arguments: &[OsString]) -> Result<Job, ExitCode> {
    let mut serve = Options::command();
    let rest = arguments.get(1..).unwrap_or_default();
    if let Some(path) = config_file::named(rest, config_file::variable()) {
        serve = match config_file::with_file(serve, &path) {
            Ok(filled) => filled,
            Err(error) => return Err(failed(&error)),
        };
    }
    let about = "Try everything that a booting machine needs, and say what works";
    let check = serve.clone().name(CHECK).about(about).long_about(None);
    let command = serve
        .subcommand(check)
        .subcommand(BmcOptions::command().name(BMC))
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true);
    let matches = command.get_matches_from(arguments);
    let job = match matches.subcommand() {
        Some((BMC, matches)) => {
            BmcOptions::from_arg_matches(matches).map(|options| Job::Bmc(Box::new(options)))
        }
        Some((_, matches)) => {
            Options::from_arg_matches(matches).map(|options| Job::Check(Box::new(options)))
        }
        None => Options::from_arg_matches(&matches).map(|options| Job::Serve(Box::new(options))),
    };
    job.map_err(|error| error.exit())
}

fn log(options: &Options) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(options.log_level)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    match options.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
}
