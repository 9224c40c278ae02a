//! The test's handle on the stand-in apiserver: orders and the record, over its control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::{Value, json};

/// Speaks to `tests/apiserver/control.py`.
pub struct Standin {
    socket: PathBuf,
}

impl Standin {
    /// A handle on the stand-in that listens at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// One order, one answer; panics when the stand-in refuses it.
    pub fn order(&self, order: Value) -> Value {
        self.try_order(&order)
            .unwrap_or_else(|e| panic!("stand-in: {order}: {e}"))
    }

    fn try_order(&self, order: &Value) -> Result<Value, String> {
        let stream = UnixStream::connect(&self.socket).map_err(|e| e.to_string())?;
        (&stream)
            .write_all(format!("{order}\n").as_bytes())
            .map_err(|e| e.to_string())?;
        let mut line = String::new();
        BufReader::new(&stream)
            .read_line(&mut line)
            .map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_str(&line).map_err(|e| e.to_string())?;
        match answer["ok"].as_bool() {
            Some(true) => Ok(answer),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// Gives the machine an allocation.
    pub fn allocate(&self, machine: &str, allocation: &Value) {
        self.order(json!({"do": "allocate", "uuid": machine, "allocation": allocation}));
    }

    /// Takes the machine's allocation away.
    pub fn clear(&self, machine: &str) {
        self.order(json!({"do": "clear", "uuid": machine}));
    }

    /// Answers `method` with a Connect error from now on.
    pub fn refuse(&self, method: &str, code: &str, message: &str) {
        self.order(json!({"do": "error", "method": method, "code": code, "message": message}));
    }

    /// Answers `method` with a bare HTTP status, `times` times.
    pub fn fail(&self, method: &str, status: u16, times: u32) {
        self.order(json!({"do": "error", "method": method, "status": status, "times": times}));
    }

    /// Changes settings (`wait_seconds`, `machine_token`, `token_seconds`, ...).
    pub fn set(&self, settings: Value) {
        self.order(json!({"do": "set", "settings": settings}));
    }

    /// The whole record so far.
    pub fn record(&self) -> Vec<Value> {
        match self.order(json!({"do": "record"}))["record"].take() {
            Value::Array(lines) => lines,
            other => panic!("stand-in: record is {other}"),
        }
    }

    /// Waits for the `count`-th good call of `method` by the machine and answers its message.
    pub fn wait_call(&self, machine: &str, method: &str, count: usize, seconds: u64) -> Value {
        self.wait(
            json!({"do": "await", "method": method, "uuid": machine, "verdict": "ok",
                         "count": count, "seconds": seconds}),
        )
    }

    /// Waits for the `count`-th event of this kind (short name: `CRASHED`) and answers its message text.
    pub fn wait_event(&self, machine: &str, event: &str, count: usize, seconds: u64) -> String {
        let line = self.wait(
            json!({"do": "await", "method": "SendEvent", "uuid": machine,
                                    "event": event, "count": count, "seconds": seconds}),
        );
        line["message"]["event"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until the machine has a Wait open.
    pub fn wait_open(&self, machine: &str, seconds: u64) {
        self.wait(
            json!({"do": "await", "method": "Wait", "uuid": machine, "verdict": "open",
                         "seconds": seconds}),
        );
    }

    /// Waits until `count` Waits of the machine were cut by the server.
    pub fn wait_cut(&self, machine: &str, count: usize, seconds: u64) {
        self.wait(
            json!({"do": "await", "method": "Wait", "uuid": machine, "verdict": "cut",
                         "count": count, "seconds": seconds}),
        );
    }

    /// How many Waits of the machine were cut so far.
    pub fn cuts(&self, machine: &str) -> usize {
        let cut = |line: &&Value| line["verdict"] == "cut" && line["uuid"] == machine;
        self.record().iter().filter(cut).count()
    }

    fn wait(&self, order: Value) -> Value {
        let mut answer = self.order(order.clone());
        if answer["timeout"] == true {
            panic!("stand-in: did not come in time: {order}\n{}", self.story());
        }
        answer["lines"]
            .as_array_mut()
            .and_then(Vec::pop)
            .unwrap_or_else(|| panic!("stand-in: no line for {order}"))
    }

    /// The machine's events so far, short names in order, without ALIVE.
    pub fn events(&self, machine: &str) -> Vec<String> {
        self.record()
            .iter()
            .filter(|line| line["method"] == "SendEvent" && line["uuid"] == machine)
            .filter_map(|line| line["event"].as_str().map(str::to_owned))
            .filter(|event| event != "ALIVE")
            .collect()
    }

    /// Lines of the record whose verdict is a refusal of what the machine or the helper sent.
    pub fn refusals(&self) -> Vec<String> {
        self.record()
            .iter()
            .filter(|line| {
                !matches!(
                    line["verdict"].as_str(),
                    Some("ok" | "cut" | "left" | "open" | "pending")
                )
            })
            .map(|line| format!("{}: {}", line["method"], line["verdict"]))
            .collect()
    }

    /// The record as a short story for a failed test or the demo.
    pub fn story(&self) -> String {
        let mut text = String::from("the stand-in apiserver's record:\n");
        for line in self.record() {
            let get = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let message = line["message"]["event"]["message"]
                .as_str()
                .unwrap_or_default();
            text += &format!(
                "  {} {:<22} {:<18} {} {message}\n",
                get("time").get(11..23).unwrap_or_default(),
                get("method"),
                get("event"),
                get("verdict"),
            );
        }
        text
    }
}
