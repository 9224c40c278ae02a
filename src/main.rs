//! `metal-anvil`: PID 1 of the boot medium, and a small CLI everywhere else.

use std::process::ExitCode;

use metal_anvil::install::forget;
use metal_anvil::{cli, init};

fn main() -> ExitCode {
    if std::process::id() == 1 {
        let mut words = std::env::args_os().skip(1);
        let order = words.next();
        // The kernel hands unknown words of its command line on: only this very word counts, and
        // it does nothing unless a kernel is loaded.
        if order.is_some_and(|order| order.as_encoded_bytes() == forget::LEAVE.to_bytes()) {
            forget::leave(words.next().as_deref())
        }
        init::run()
    }
    cli::run()
}
