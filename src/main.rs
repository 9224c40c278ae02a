//! `metal-anvil`: PID 1 of the boot medium, and a small CLI everywhere else.

use std::process::ExitCode;

use metal_anvil::{cli, init};

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run()
    }
    cli::run()
}
