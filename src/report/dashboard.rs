//! What a technician sees on the screen: from events to a grid. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tracing::Level;

use super::event::{Event, Line, Machine, Origin, Port};
use super::screen::{Grid, Style};
use super::stream::Record;
use crate::image::Progress;
use crate::sequence::PROGRAM;
use crate::sequence::failure::Step;
use crate::sequence::steps::WAY;

/// Lines of the log that are kept: more than any screen has rows.
const LOG_LINES: usize = 256;
/// Rows that the cause of a failure may take.
const CAUSE_ROWS: usize = 4;
/// Columns of a step with its time.
const STEP_COLUMNS: usize = 38;
/// Characters of the progress bar.
const BAR: usize = 30;

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Running { since: Duration, attempt: u32 },
    Done { took: Duration, tries: u32 },
    Failed { took: Duration, tries: u32 },
}

/// What the headline says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Headline {
    Doing {
        what: String,
        since: Duration,
        limit: Option<Duration>,
    },
    Holding {
        why: String,
        since: Duration,
    },
    Failed(String),
}

/// The boot as far as events told it.
#[derive(Debug)]
pub struct Dashboard {
    machine: Option<Machine>,
    ports: Vec<Port>,
    steps: Vec<(Step, Status)>,
    headline: Headline,
    progress: Option<Progress>,
    /// When the machine resets, since the kernel started.
    reset: Option<Duration>,
    log: VecDeque<(Level, String)>,
}

impl Default for Dashboard {
    fn default() -> Self {
        Self {
            machine: None,
            ports: Vec::new(),
            steps: Vec::new(),
            headline: Headline::Doing {
                what: "starting".to_owned(),
                since: Duration::ZERO,
                limit: None,
            },
            progress: None,
            reset: None,
            log: VecDeque::new(),
        }
    }
}

impl Dashboard {
    /// Whether the dashboard has a place for the event.
    #[must_use]
    pub fn wants(event: &Event) -> bool {
        match event {
            Event::Line(Line {
                origin: Origin::Kernel { .. },
                level,
                ..
            }) => *level <= Level::WARN,
            _ => true,
        }
    }

    /// Takes in what happened.
    pub fn apply(&mut self, record: &Record) {
        let at = record.at;
        match &record.event {
            Event::Started { step, attempt } => {
                let since = at;
                let attempt = *attempt;
                self.set(*step, Status::Running { since, attempt });
                self.progress = None;
                self.headline = Headline::Doing {
                    what: step.to_string(),
                    since,
                    limit: None,
                };
            }
            Event::Finished { step, took, tries } => {
                let (took, tries) = (*took, *tries);
                self.set(*step, Status::Done { took, tries });
            }
            Event::Failed {
                step,
                took,
                tries,
                cause,
            } => {
                let (took, tries) = (*took, *tries);
                self.set(*step, Status::Failed { took, tries });
                self.headline = Headline::Failed(cause.clone());
            }
            Event::Doing { what, limit } => {
                // What the failure's handling does must not push the failure off the screen.
                if !matches!(self.headline, Headline::Failed(_)) {
                    self.headline = Headline::Doing {
                        what: what.clone(),
                        since: at,
                        limit: *limit,
                    };
                }
            }
            Event::Holding { why } => {
                let why = why.clone();
                self.headline = Headline::Holding { why, since: at };
            }
            Event::Progress(progress) => self.progress = Some(*progress),
            Event::Machine(machine) => self.machine = Some(machine.clone()),
            Event::Ports(ports) => self.ports.clone_from(ports),
            Event::Countdown { seconds } => {
                self.reset = Some(at + Duration::from_secs(*seconds));
            }
            Event::Line(line) => self.note(line),
        }
    }

    fn set(&mut self, step: Step, status: Status) {
        match self.steps.iter_mut().find(|(known, _)| *known == step) {
            Some((_, known)) => *known = status,
            None => self.steps.push((step, status)),
        }
    }

    fn note(&mut self, line: &Line) {
        for text in line.text.lines() {
            if self.log.len() >= LOG_LINES {
                self.log.pop_front();
            }
            let text = match line.origin {
                Origin::Agent => text.to_owned(),
                Origin::Kernel { .. } => format!("kernel: {text}"),
            };
            self.log.push_back((line.level, text));
        }
    }

    /// The screen at `now` (since the kernel started), `columns` by `rows`.
    #[must_use]
    pub fn render(&self, now: Duration, columns: usize, rows: usize) -> Grid {
        let mut grid = Grid::new(columns, rows);
        self.title(&mut grid, now);
        let mut row = 1;
        if let Some(machine) = &self.machine {
            grid.put(row, 0, Style::Plain, &machine.hardware);
            row += 1;
        }
        row = self.headline(&mut grid, row, now);
        row = self.show_ports(&mut grid, row);
        row = self.show_steps(&mut grid, row, now);
        self.show_log(&mut grid, row);
        grid
    }

    fn title(&self, grid: &mut Grid, now: Duration) {
        let machine = self.machine.as_ref();
        let id = machine.map_or_else(String::new, |machine| format!("  machine {}", machine.id));
        let seconds = now.as_secs();
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        let right = format!(
            "{hours}:{minutes:02}:{:02}  {:>3}%",
            seconds % 60,
            self.percent()
        );
        grid.bar(0, Style::Title, &format!("{PROGRAM}{id}"));
        let column = grid.columns().saturating_sub(right.len());
        grid.put(0, column, Style::Title, &right);
    }

    /// How much of the whole way is done.
    fn percent(&self) -> u64 {
        let share = |(step, status): &(Step, Status)| match status {
            Status::Done { .. } => step.weight() * 100,
            Status::Running { .. } => step.weight() * self.progress.map_or(0, percent_of),
            Status::Failed { .. } => 0,
        };
        self.steps.iter().map(share).sum::<u64>() / 100
    }

    /// What is being done, or why nothing is any more.
    fn headline(&self, grid: &mut Grid, mut row: usize, now: Duration) -> usize {
        let (style, text) = match &self.headline {
            Headline::Doing { what, since, limit } => {
                let seconds = now.saturating_sub(*since).as_secs();
                let of = limit.map_or(String::new(), |limit| format!(" of {}", limit.as_secs()));
                (Style::Strong, format!("> {what}: {seconds}{of} s"))
            }
            Headline::Holding { why, since } => {
                let seconds = now.saturating_sub(*since).as_secs();
                (Style::Warning, format!("HOLDING for {seconds} s: {why}"))
            }
            Headline::Failed(cause) => (Style::Bad, format!("FAILED: {cause}")),
        };
        let first = text.lines().next().unwrap_or_default();
        for part in wrapped(first, grid.columns()).into_iter().take(CAUSE_ROWS) {
            grid.put(row, 0, style, part);
            row += 1;
        }
        if let Some(reset) = self.reset {
            let seconds = reset.saturating_sub(now).as_secs();
            let text = format!("rebooting in {seconds} s");
            grid.put(row, 0, Style::Warning, &text);
            return row + 1;
        }
        if let Some(progress) = &self.progress {
            let filled = usize::try_from(percent_of(*progress)).unwrap_or(0) * BAR / 100;
            let bar = format!("[{}{}] ", "#".repeat(filled), "-".repeat(BAR - filled));
            let column = grid.put(row, 0, Style::Good, &bar);
            grid.put(row, column, Style::Plain, &progress.to_string());
            return row + 1;
        }
        row
    }

    fn show_ports(&self, grid: &mut Grid, mut row: usize) -> usize {
        if self.ports.is_empty() {
            return row;
        }
        row = rule(grid, row, "ports");
        // A machine with many ports needs its steps and its log all the same.
        let end = row + (grid.rows() / 3).max(2);
        for (number, port) in self.ports.iter().enumerate() {
            let rest = self.ports.len() - number;
            if row + 1 == end && rest > 1 {
                grid.put(row, 0, Style::Faint, &format!("and {rest} more"));
                return row + 1;
            }
            let cable = if port.carrier {
                "carrier"
            } else {
                "no carrier"
            };
            let (style, address) = match &port.address {
                Some(address) => (Style::Good, address.as_str()),
                None => (Style::Warning, "no address"),
            };
            let name = format!("{:<8} {} {cable:<10} ", port.name, port.mac);
            let column = grid.put(row, 0, Style::Plain, &name);
            let column = grid.put(row, column, style, address);
            if let Some(switch) = &port.switch {
                grid.put(row, column, Style::Plain, &format!("  {switch}"));
            }
            row += 1;
            if port.address.is_none() && row + 1 < end {
                let check = format!("         check: {}", port.check);
                grid.put(row, 0, Style::Warning, &check);
                row += 1;
            }
            if row >= end {
                break;
            }
        }
        row
    }

    /// The whole way, in as many columns as fit.
    fn show_steps(&self, grid: &mut Grid, row: usize, now: Duration) -> usize {
        let row = rule(grid, row, "steps");
        let known = |step: Step| self.steps.iter().find(|(it, _)| *it == step);
        let aside = self.steps.iter().map(|(step, _)| *step);
        let shown: Vec<Step> = WAY
            .into_iter()
            .chain(aside.filter(|step| !WAY.contains(step)))
            .collect();
        let across = (grid.columns() / (STEP_COLUMNS + 1)).clamp(1, 3);
        let down = shown.len().div_ceil(across);
        for (number, step) in shown.iter().enumerate() {
            let (style, text) = step_line(*step, known(*step).map(|(_, status)| *status), now);
            let (column, row) = (number / down * (STEP_COLUMNS + 1), row + number % down);
            grid.put(row, column, style, &text);
        }
        row + down
    }

    /// The last lines of the log, as many as there is room for.
    fn show_log(&self, grid: &mut Grid, row: usize) {
        if row + 1 >= grid.rows() {
            return;
        }
        let top = rule(grid, row, "log");
        let room = grid.rows() - top;
        let mut parts: Vec<(Style, &str)> = Vec::new();
        for (level, text) in self.log.iter().rev() {
            let style = match *level {
                Level::ERROR => Style::Bad,
                Level::WARN => Style::Warning,
                _ => Style::Plain,
            };
            let lines = wrapped(text, grid.columns());
            parts.extend(lines.into_iter().rev().map(|line| (style, line)));
            if parts.len() >= room {
                break;
            }
        }
        for (number, (style, text)) in parts.iter().take(room).rev().enumerate() {
            grid.put(top + number, 0, *style, text);
        }
    }
}

/// A step with its mark and its time.
fn step_line(step: Step, status: Option<Status>, now: Duration) -> (Style, String) {
    let again = |tries| match tries {
        0 | 1 => String::new(),
        tries => format!(", try {tries}"),
    };
    let (style, mark, time) = match status {
        None => (Style::Faint, "  ", String::new()),
        Some(Status::Running { since, attempt }) => {
            let seconds = now.saturating_sub(since).as_secs();
            (
                Style::Strong,
                "> ",
                format!("{seconds} s{}", again(attempt)),
            )
        }
        Some(Status::Done { took, tries }) => {
            let seconds = took.as_secs_f64();
            (Style::Good, "ok", format!("{seconds:.1} s{}", again(tries)))
        }
        Some(Status::Failed { took, tries }) => {
            let seconds = took.as_secs_f64();
            (Style::Bad, "!!", format!("{seconds:.1} s{}", again(tries)))
        }
    };
    (style, format!("{mark} {:<15} {time}", step.to_string()))
}

/// A heading across the screen; the row below it.
fn rule(grid: &mut Grid, row: usize, name: &str) -> usize {
    let rule = format!("-- {name} {}", "-".repeat(grid.columns()));
    grid.put(row, 0, Style::Faint, &rule);
    row + 1
}

/// Percent of an image that came in.
fn percent_of(progress: Progress) -> u64 {
    let total = progress.total.unwrap_or_default().max(1);
    (u128::from(progress.downloaded) * 100 / u128::from(total)).min(100) as u64
}

/// A text in pieces of at most `columns` characters, cut at blanks where there are any.
fn wrapped(text: &str, columns: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while let Some((end, _)) = rest.char_indices().nth(columns) {
        let (head, _) = rest.split_at(end);
        let cut = match head.rfind(' ') {
            // A blank at the very beginning is an indentation.
            Some(blank) if blank > columns / 2 => blank,
            _ => end,
        };
        let (part, after) = rest.split_at(cut);
        parts.push(part);
        rest = after.trim_start();
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests;
