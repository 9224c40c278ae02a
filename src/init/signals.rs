//! What PID 1 is told from outside: Ctrl-Alt-Del arrives as SIGINT, `kill 1` as SIGTERM.

use nix::sys::reboot::set_cad_enabled;
use tokio::signal::unix::{SignalKind, signal};

/// Waits until somebody asks for a reboot, and says how. Never where signals cannot be heard.
pub async fn reboot_asked_for() -> &'static str {
    // Left enabled, Ctrl-Alt-Del resets the machine at once, past every flush (reboot(2)).
    if let Err(errno) = set_cad_enabled(false) {
        tracing::warn!("Ctrl-Alt-Del will reset at once: {errno}");
    }
    let heard = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    let (Ok(mut interrupt), Ok(mut terminate)) = heard else {
        tracing::warn!("signals cannot be heard");
        return std::future::pending().await;
    };
    tokio::select! {
        Some(()) = interrupt.recv() => "Ctrl-Alt-Del was pressed, or SIGINT sent",
        Some(()) = terminate.recv() => "SIGTERM was sent",
        else => std::future::pending().await,
    }
}
