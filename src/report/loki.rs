//! Loki's push API: the body of `POST /loki/api/v1/push` in JSON. Pure.
//! <https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs>

use serde_json::{Map, Value, json};

use super::remote::{Entry, Labels};

/// What the `component` label says.
const COMPONENT: &str = "metal-anvil";

/// One stream with all entries, in their order. Times are texts: nanoseconds since 1970 do not fit
/// into the numbers that JSON's readers can be trusted with.
#[must_use]
pub fn body(labels: &Labels, entries: &[Entry]) -> Vec<u8> {
    let value = |entry: &Entry| json!([entry.nanos.to_string(), entry.line()]);
    let mut stream = Map::new();
    stream.insert("component".into(), COMPONENT.into());
    stream.insert("machine_id".into(), labels.machine.to_string().into());
    // An empty value means that there is no such label.
    if !labels.partition.is_empty() {
        stream.insert("partition".into(), labels.partition.clone().into());
    }
    let values: Vec<Value> = entries.iter().map(value).collect();
    let body = json!({"streams": [{"stream": stream, "values": values}]});
    body.to_string().into_bytes()
}
