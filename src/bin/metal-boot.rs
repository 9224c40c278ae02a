//! metal-boot: the boot helper. See `metal_anvil::boot_helper`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use metal_anvil::boot_helper::options::{LogFormat, Options};
use metal_anvil::boot_helper::{self, check, config_file};

/// The verb that checks instead of serving; it has the same options.
const CHECK: &str = "check";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let (checking, options) = match read(&arguments) {
        Ok(read) => read,
        Err(code) => return code,
    };
    log(&options);
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
    let outcome = if checking {
        runtime.block_on(check::run(&options, std::io::stdout()))
    } else {
        runtime.block_on(boot_helper::run(&options)).map(|()| true)
    };
    // A resolver that hangs must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Command line, environment and file.
fn read(arguments: &[OsString]) -> Result<(bool, Options), ExitCode> {
    let mut serve = Options::command();
    let rest = arguments.get(1..).unwrap_or_default();
    if let Some(path) = config_file::named(rest, config_file::variable()) {
        serve = match config_file::with_file(serve, &path) {
            Ok(filled) => filled,
            Err(error) => {
                eprintln!("metal-boot: {error}");
                return Err(ExitCode::FAILURE);
            }
        };
    }
    let about = "Try everything that a booting machine needs, and say what works";
    let check = serve.clone().name(CHECK).about(about).long_about(None);
    let command = serve
        .subcommand(check)
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true);
    let matches = command.get_matches_from(arguments);
    let (checking, matches) = match matches.subcommand() {
        Some((_, matches)) => (true, matches),
        None => (false, &matches),
    };
    match Options::from_arg_matches(matches) {
        Ok(options) => Ok((checking, options)),
        Err(error) => error.exit(),
    }
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
