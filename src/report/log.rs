//! `tracing` as a source of the event stream: each of its events becomes a line.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, reload};

use super::event::{Event, Line, Origin};
use super::stream;

/// Turns the logging's detail up or down.
pub type Verbosity = Box<dyn Fn(bool) + Send + Sync>;

/// Tells log lines: the agent's at `info` (`debug` when asked for), its libraries' only when they
/// warn. Settings that ask for `debug` are read later than the first line is written, hence the
/// switch that is returned.
#[must_use]
pub fn start() -> Verbosity {
    let (levels, handle) = reload::Layer::new(filter(false));
    let lines = Lines.with_filter(levels);
    // Fails only when a subscriber is set already, and then that one is right.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines));
    Box::new(move |debug| {
        // Fails only when the subscriber is gone, and with it every line.
        let _ = handle.reload(filter(debug));
    })
}

fn filter(debug: bool) -> Targets {
    let own = if debug { Level::DEBUG } else { Level::INFO };
    Targets::new()
        .with_default(Level::WARN)
        .with_target(env!("CARGO_CRATE_NAME"), own)
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = *event.metadata().level();
        let text = text.message + &text.fields;
        stream::tell(Event::Line(Line::new(level, Origin::Agent, &text)));
    }
}

/// The message, then `name=value` for each field.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::report::stream::Queue;

    #[test]
    fn a_line_has_its_message_and_its_fields() {
        let queue = Arc::new(Queue::new(
            100,
            |event| matches!(event, Event::Line(line) if line.text.contains("own-mark")),
        ));
        stream::subscribe(&queue);
        let subscriber = tracing_subscriber::registry().with(Lines.with_filter(filter(false)));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(path = "/own-mark", count = 3, "written");
            tracing::debug!("own-mark: not at this level");
        });
        let lines = std::iter::from_fn(|| queue.next(Some(Duration::ZERO)));
        let lines: Vec<_> = lines.filter_map(|record| record.event.as_line()).collect();
        let expected = "written path=\"/own-mark\" count=3".to_owned();
        assert_eq!(lines, [(Level::INFO, expected)]);
    }
}
