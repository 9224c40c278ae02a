//! The TOML file: its values become the defaults of the options, so that there is one list of
//! names, one reader of values and one precedence (flags, environment, file, built in).

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Command;
use thiserror::Error;
use toml::{Table, Value};

/// Largest file, bytes.
const LIMIT: u64 = 1 << 20;
/// The option that names the file.
const OPTION: &str = "config";
const VARIABLE: &str = "METAL_BOOT_CONFIG";

/// A file that says nothing usable.
#[derive(Debug, Error)]
pub enum ConfigFileError {
    #[error("--config: cannot read {path}: {reason}", path = .path.display())]
    Read { path: PathBuf, reason: String },
    #[error("--config: {path} is not TOML: {reason}", path = .path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("--config: {path}: there is no option {key:?}; metal-boot --help lists them", path = .path.display())]
    Unknown { path: PathBuf, key: String },
    #[error("--config: {path}: {key} is {kind}; expected {expected}", path = .path.display())]
    Kind {
        path: PathBuf,
        key: String,
        kind: &'static str,
        expected: &'static str,
    },
}

/// The file that the arguments or the environment name. The arguments are not judged here.
#[must_use]
pub fn named(arguments: &[OsString], variable: Option<OsString>) -> Option<PathBuf> {
    let flag = format!("--{OPTION}");
    let mut found = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if *argument == *flag {
            found = rest.next().cloned();
        } else if let Some(value) = text.strip_prefix(&format!("{flag}=")) {
            found = Some(value.into());
        }
    }
    found
        .or(variable)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// The variable that names the file.
#[must_use]
pub fn variable() -> Option<OsString> {
    std::env::var_os(VARIABLE)
}

/// `command` with the file's values as its defaults.
///
/// # Errors
/// A file that cannot be read, is not TOML, or holds a key that is no option's.
pub fn with_file(command: Command, path: &Path) -> Result<Command, ConfigFileError> {
    let text = read(path).map_err(|reason| ConfigFileError::Read {
        path: path.into(),
        reason,
    })?;
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigFileError::Syntax {
            path: path.into(),
            reason: error.to_string().trim_end().replace('\n', "; "),
        })?;
    with_table(command, &table, path)
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(LIMIT + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > LIMIT {
        return Err(format!("it has more than {LIMIT} bytes"));
    }
    Ok(text)
}

fn with_table(
    mut command: Command,
    table: &Table,
    path: &Path,
) -> Result<Command, ConfigFileError> {
    for (key, value) in table {
        let is_option = command
            .get_arguments()
            .any(|arg| arg.get_id() == key.as_str());
        if !is_option || key == OPTION {
            return Err(ConfigFileError::Unknown {
                path: path.into(),
                key: key.clone(),
            });
        }
        let kind = |expected| ConfigFileError::Kind {
            path: path.into(),
            key: key.clone(),
            kind: value.type_str(),
            expected,
        };
        let values = match value {
            Value::Array(values) => values
                .iter()
                .map(|value| scalar(value).ok_or_else(|| kind("a list of text and numbers")))
                .collect::<Result<Vec<_>, _>>()?,
            Value::Table(_) if key == "policy" => {
                vec![serde_json::to_string(value).map_err(|_| kind("a table that JSON can hold"))?]
            }
            value => vec![scalar(value).ok_or_else(|| kind("text, a number, or true or false"))?],
        };
        // clap wants defaults that live for ever, and these do: they are read once, at the
        // start of the process.
        let values: Vec<&'static str> = values
            .into_iter()
            .map(|value| &*String::leak(value))
            .collect();
        command = command.mut_arg(key.as_str(), |arg| {
            arg.required(false).default_values(values)
        });
    }
    Ok(command)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(is) => Some(is.to_string()),
        Value::Float(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::boot_helper::options::Options;

    const FILE: &str = r#"
        listen = ["[2001:db8::1]:4242", "[2001:db8::2]:4242"]
        apiserver_url = "https://api.example.org"
        token_file = "/run/token"
        partition = "fra-equ01"
        rate_per_address = 7
        debug = true
        allow = "2001:db8::/32"

        [policy]
        wait_hours = 12
        lldp = { interfaces = 1 }
    "#;

    fn options(file: &str, arguments: &[&str]) -> Result<Options, String> {
        let table: Table = file.parse().unwrap();
        let command = with_table(Options::command(), &table, Path::new("f.toml"))
            .map_err(|error| error.to_string())?;
        command
            .try_get_matches_from(["metal-boot"].iter().chain(arguments))
            .and_then(|matches| Options::from_arg_matches(&matches))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_fills_in_what_the_command_line_leaves_out() {
        let given = options(FILE, &["--partition=other", "--rate-per-network=9"]).unwrap();
        assert_eq!(given.partition, "other");
        assert_eq!(given.listen.len(), 2);
        assert_eq!(given.apiserver_url.as_str(), "https://api.example.org/");
        assert_eq!((given.rate_per_address, given.rate_per_network), (7, 9));
        assert!(given.debug);
        assert!(!given.ntp);
        let policy = given.policy.unwrap();
        assert_eq!(policy, r#"{"lldp":{"interfaces":1},"wait_hours":12}"#);
        // A list on the command line replaces the file's.
        let given = options(FILE, &["--listen=[::1]:1"]).unwrap();
        assert_eq!(given.listen, ["[::1]:1".parse().unwrap()]);
    }

    #[test]
    fn what_the_file_cannot_say_is_named() {
        for (text, expected) in [
            ("partitoin = \"x\"", "no option \"partitoin\""),
            ("config = \"x\"", "no option \"config\""),
            ("partition = 1.5", "partition is float"),
            ("listen = [[\"x\"]]", "listen is array"),
            ("logging = { endpoint = \"x\" }", "logging is table"),
            ("rate_per_address = 0", "rate-per-address"),
            ("debug = \"maybe\"", "maybe"),
            ("listen = \"0.0.0.0:1\"", "--listen"),
        ] {
            let error = options(text, &["--partition=fra"]).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error = options("debug = true", &[]).unwrap_err();
        assert!(error.contains("--apiserver-url"), "still required: {error}");
    }

    #[test]
    fn files_that_are_no_toml() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.toml");
        std::fs::write(&path, "partition = 1\nx").unwrap();
        let error = with_file(Options::command(), &path)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("f.toml is not TOML") && error.contains("line 2"),
            "{error}"
        );
        let error = with_file(Options::command(), dir.path()).unwrap_err();
        assert!(error.to_string().contains("cannot read"), "{error}");
    }

    #[test]
    fn the_file_is_named_once() {
        let find = |arguments: &[&str], variable: Option<&str>| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            named(&arguments, variable.map(OsString::from))
        };
        assert_eq!(find(&["--config", "a"], Some("b")), Some("a".into()));
        assert_eq!(find(&["--x", "--config=a"], None), Some("a".into()));
        assert_eq!(find(&["check"], Some("b")), Some("b".into()));
        assert_eq!(find(&["--config"], None), None);
        assert_eq!(find(&[], Some("")), None);
    }
}
