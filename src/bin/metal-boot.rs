//! metal-boot: the boot helper. See `metal_anvil::boot_helper`.

use std::process::ExitCode;

use clap::Parser;
use metal_anvil::boot_helper::{self, options::Options};

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(boot_helper::run(&options)),
        Err(error) => {
            tracing::error!("metal-boot: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("metal-boot: {error}");
            ExitCode::FAILURE
        }
    }
}
