//! What the boot has to tell: one type for everything, so that every listener hears the same.

use std::time::Duration;

use tracing::Level;
use uuid::Uuid;

use crate::image::Progress;
use crate::sequence::failure::Step;

/// Longest line of a log, bytes. An installer or a peer may print without end.
const MAX_LINE: usize = 2048;
/// What stands for the rest of a line that is longer.
const CUT: &str = "...";

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A step begins, for the `attempt`th time in a row.
    Started {
        step: Step,
        attempt: u32,
    },
    Finished {
        step: Step,
        took: Duration,
        tries: u32,
    },
    Failed {
        step: Step,
        took: Duration,
        tries: u32,
        /// May have several lines.
        cause: String,
    },
    /// What the step in hand does or waits for, and how long that may take.
    Doing {
        what: String,
        limit: Option<Duration>,
    },
    /// The machine stays as it is until somebody decides.
    Holding {
        why: String,
    },
    /// How far the image of the step in hand has come.
    Progress(Progress),
    /// Who and what this machine is.
    Machine(Machine),
    /// The network ports, all of them, whenever one changes.
    Ports(Vec<Port>),
    /// The machine resets in so many seconds.
    Countdown {
        seconds: u64,
    },
    Line(Line),
}

/// Who and what this machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub id: Uuid,
    /// Maker, product and firmware.
    pub hardware: String,
}

/// A network port with its switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub mac: String,
    pub carrier: bool,
    /// The address that a conversation can start from.
    pub address: Option<String>,
    /// Switch and port on the other end, as far as LLDP told.
    pub switch: Option<String>,
    /// What to look at while there is no address.
    pub check: String,
}

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Agent,
    /// The kernel, which has not shown it on the consoles itself when `unseen`.
    Kernel {
        unseen: bool,
    },
}

/// A line of the log; the text of an error may have several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub level: Level,
    pub origin: Origin,
    pub text: String,
}

impl Line {
    /// A line that no terminal can take for an order: control characters become spaces, and
    /// what is beyond the limit is cut.
    #[must_use]
    pub fn new(level: Level, origin: Origin, text: &str) -> Self {
        let plain = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        let mut text: String = text.chars().map(plain).collect();
        if text.len() > MAX_LINE {
            let mut end = MAX_LINE - CUT.len();
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(CUT);
        }
        Self {
            level,
            origin,
            text,
        }
    }
}

/// What goes first when a listener falls behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    Low,
    Normal,
    High,
}

impl Priority {
    /// How many there are.
    pub const COUNT: usize = 3;
}

impl Event {
    /// What is replaced soon goes first, what explains a failure goes last.
    #[must_use]
    pub fn priority(&self) -> Priority {
        match self {
            Self::Progress(_) | Self::Countdown { .. } => Priority::Low,
            Self::Line(line) if line.level >= Level::DEBUG => Priority::Low,
            Self::Line(Line {
                origin: Origin::Kernel { .. },
                level,
                ..
            }) if *level >= Level::INFO => Priority::Low,
            Self::Line(line) if line.level >= Level::INFO => Priority::Normal,
            Self::Doing { .. } => Priority::Normal,
            _ => Priority::High,
        }
    }

    /// The event as a line of the log, with its level; what a line of its own tells has none.
    #[must_use]
    pub fn as_line(&self) -> Option<(Level, String)> {
        match self {
            Self::Started { step, attempt: 1 } => Some((Level::INFO, format!("step: {step}"))),
            Self::Started { step, attempt } => {
                Some((Level::INFO, format!("step: {step}, try {attempt}")))
            }
            Self::Doing { what, limit: None } => Some((Level::INFO, what.clone())),
            Self::Doing {
                what,
                limit: Some(limit),
            } => Some((
                Level::INFO,
                format!("{what}, {} s at most", limit.as_secs()),
            )),
            Self::Holding { why } => Some((Level::WARN, format!("holding: {why}"))),
            Self::Progress(progress) => Some((Level::INFO, progress.to_string())),
            Self::Line(line) => Some((line.level, line.text.clone())),
            Self::Finished { .. }
            | Self::Failed { .. }
            | Self::Machine(_)
            | Self::Ports(_)
            | Self::Countdown { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_orders_no_terminal_about_and_has_an_end() {
        let line = Line::new(Level::INFO, Origin::Agent, "a\x1b[2J\r\tb\nc\u{9b}1m");
        assert_eq!(line.text, "a [2J  b\nc 1m");
        let long = Line::new(Level::INFO, Origin::Agent, &"é".repeat(MAX_LINE));
        assert!(
            long.text.len() <= MAX_LINE && long.text.ends_with("é..."),
            "{}",
            long.text.len()
        );
    }

    #[test]
    fn what_explains_a_failure_is_worth_most() {
        let line = |level, origin| Event::Line(Line::new(level, origin, "x")).priority();
        let kernel = Origin::Kernel { unseen: true };
        for (priority, expected) in [
            (
                Event::Progress(Progress::default()).priority(),
                Priority::Low,
            ),
            (line(Level::DEBUG, Origin::Agent), Priority::Low),
            (line(Level::INFO, kernel), Priority::Low),
            (line(Level::INFO, Origin::Agent), Priority::Normal),
            (line(Level::WARN, kernel), Priority::High),
            (line(Level::ERROR, Origin::Agent), Priority::High),
            (Event::Ports(Vec::new()).priority(), Priority::High),
        ] {
            assert_eq!(priority, expected);
        }
    }
}
