//! What is counted, and how Prometheus reads it (text exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the buckets of a histogram, seconds.
const BOUNDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 25.0];

/// A counter or gauge.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn subtract(&self, less: u64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Number; BOUNDS.len()],
    count: Number,
    micros: Number,
}

impl Histogram {
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            if seconds <= bound {
                bucket.add(1);
            }
        }
        self.count.add(1);
        self.micros
            .add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        head(text, name, help, "histogram");
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            line(
                text,
                &format!("{name}_bucket{{le=\"{bound}\"}}"),
                bucket.get(),
            );
        }
        line(
            text,
            &format!("{name}_bucket{{le=\"+Inf\"}}"),
            self.count.get(),
        );
        #[allow(clippy::cast_precision_loss)] // 2^52 µs are 142 years
        let seconds = self.micros.get() as f64 / 1e6;
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "{name}_sum {seconds}");
        line(text, &format!("{name}_count"), self.count.get());
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By route and status. Both are few: routes are ours, a status has three digits.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// By reason: what was refused before it cost anything.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    pub tokens: Number,
    /// `/config`, all of it.
    pub config: Histogram,
    /// The apiserver's part of it.
    pub apiserver: Histogram,
    pub connections: Number,
    /// Proxied Waits that are open.
    pub waits: Number,
    pub cache_hits: Number,
    pub cache_misses: Number,
    pub cache_bytes: Number,
    pub ntp_answers: Number,
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, route: &'static str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((route, status)).or_default() += 1;
    }

    /// Counts a refusal.
    pub fn refused(&self, reason: &'static str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(reason).or_default() += 1;
    }

    /// All of it as Prometheus reads it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let to = &mut text;
        let version = env!("CARGO_PKG_VERSION");
        head(to, "metal_boot_info", "Version of metal-boot.", "gauge");
        line(to, &format!("metal_boot_info{{version=\"{version}\"}}"), 1);
        let name = "metal_boot_answers_total";
        head(to, name, "Answers by route and HTTP status.", "counter");
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, status), count) in answers.iter() {
            let labels = format!("{{route=\"{route}\",status=\"{status}\"}}");
            line(to, &format!("{name}{labels}"), *count);
        }
        let name = "metal_boot_refused_total";
        head(
            to,
            name,
            "Refused connections and requests by reason.",
            "counter",
        );
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in refused.iter() {
            line(to, &format!("{name}{{reason=\"{reason}\"}}"), *count);
        }
        let numbers = [
            (
                "tokens_total",
                "Machine tokens given.",
                "counter",
                &self.tokens,
            ),
            (
                "connections",
                "Open connections.",
                "gauge",
                &self.connections,
            ),
            (
                "proxied_waits",
                "Proxied Wait streams that are open.",
                "gauge",
                &self.waits,
            ),
            (
                "cache_hits_total",
                "Images served from the cache.",
                "counter",
                &self.cache_hits,
            ),
            (
                "cache_misses_total",
                "Images fetched into the cache.",
                "counter",
                &self.cache_misses,
            ),
            (
                "cache_bytes",
                "Bytes that the cache holds.",
                "gauge",
                &self.cache_bytes,
            ),
            (
                "ntp_answers_total",
                "NTP requests answered.",
                "counter",
                &self.ntp_answers,
            ),
        ];
        for (name, help, kind, number) in numbers {
            let name = format!("metal_boot_{name}");
            head(to, &name, help, kind);
            line(to, &name, number.get());
        }
        let name = "metal_boot_config_seconds";
        self.config
            .write(to, name, "From a request for /config to its answer.");
        let name = "metal_boot_apiserver_seconds";
        self.apiserver
            .write(to, name, "The apiserver's part of it.");
        text
    }
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, value: u64) {
    let _ = writeln!(text, "{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_reads_it() {
        let metrics = Metrics::default();
        metrics.answered("config", 200);
        metrics.answered("config", 200);
        metrics.answered("proxy", 404);
        metrics.refused("rate");
        metrics.connections.add(3);
        metrics.connections.subtract(1);
        metrics.config.observe(Duration::from_millis(30));
        metrics.config.observe(Duration::from_secs(100));
        let text = metrics.text();
        for expected in [
            "metal_boot_answers_total{route=\"config\",status=\"200\"} 2\n",
            "metal_boot_answers_total{route=\"proxy\",status=\"404\"} 1\n",
            "metal_boot_refused_total{reason=\"rate\"} 1\n",
            "metal_boot_connections 2\n",
            "metal_boot_config_seconds_bucket{le=\"0.025\"} 0\n",
            "metal_boot_config_seconds_bucket{le=\"0.05\"} 1\n",
            "metal_boot_config_seconds_bucket{le=\"25\"} 1\n",
            "metal_boot_config_seconds_bucket{le=\"+Inf\"} 2\n",
            "metal_boot_config_seconds_sum 100.03\n",
            "metal_boot_config_seconds_count 2\n",
            "# TYPE metal_boot_tokens_total counter\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in {text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("metal_boot_"), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
