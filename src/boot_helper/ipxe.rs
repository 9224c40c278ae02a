//! `boot.ipxe`: what iPXE loads, as the apiserver says for the partition.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::Url;
use uuid::Uuid;

use super::infra::{Infra, InfraError};
use crate::control::text::printable;

const BOOT: &str = "metalstack.infra.v2.BootService/Boot";
/// The event PXE_BOOTING: sent for a machine that asks for its script, and for nothing else.
const DHCP: &str = "metalstack.infra.v2.BootService/Dhcp";
/// Initial RAM disks of one boot.
const INITRDS: usize = 16;
/// Longest word and longest command line that are passed on, bytes. Linux takes 2048.
const LONGEST: usize = 2048;

/// Why there is no script.
#[derive(Debug, Error)]
pub enum ScriptError {
    #[error(transparent)]
    Infra(#[from] InfraError),
    #[error("the apiserver's {what} is {text:?}; expected {expected}")]
    Unusable {
        what: &'static str,
        text: String,
        expected: &'static str,
    },
}

/// `BootServiceBootResponse`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Boot {
    #[serde(default)]
    kernel: String,
    #[serde(default)]
    init_ram_disks: Vec<String>,
    #[serde(default)]
    cmdline: Option<String>,
}

/// An answer without fields.
#[derive(Deserialize)]
struct Empty {}

/// A machine that asks.
#[derive(Debug, PartialEq, Eq)]
pub struct Asker {
    pub uuid: Uuid,
    /// Six hexadecimal pairs with colons between.
    pub mac: String,
}

/// `?uuid=&mac=` as iPXE fills them in: both or neither.
///
/// # Errors
/// What is wrong with them.
pub fn asker(query: Option<&str>) -> Result<Option<Asker>, &'static str> {
    let value = |key: &str| {
        let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        pairs.find_map(|(name, value)| (name == key).then(|| value.into_owned()))
    };
    match (value("uuid"), value("mac")) {
        (None, None) => Ok(None),
        (Some(uuid), Some(mac)) => {
            let uuid = Uuid::parse_str(&uuid).map_err(|_| "uuid is no UUID")?;
            if uuid.is_nil() || uuid.is_max() {
                return Err("this uuid is no machine's");
            }
            let pairs: Vec<&str> = mac.split(':').collect();
            let is_pair =
                |pair: &&str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
            if pairs.len() != 6 || !pairs.iter().all(is_pair) {
                return Err("mac is no MAC address with colons");
            }
            let mac = mac.to_ascii_lowercase();
            Ok(Some(Asker { uuid, mac }))
        }
        _ => Err("expected uuid and mac, or neither"),
    }
}

/// Whether this can be a partition's name: 2 to 128 characters that mean nothing in a URL or a
/// script.
#[must_use]
pub fn is_partition(name: &str) -> bool {
    (2..=128).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The first script: iPXE asks again and says who it is. `Boot` wants a MAC, and a medium
/// that knows only this helper's URL cannot be asked for one.
#[must_use]
pub fn introduction() -> String {
    "#!ipxe\n\
     # metal-boot: asks again and says which machine this is\n\
     isset ${netX/mac} && set mac ${netX/mac} || set mac ${net0/mac}\n\
     chain --replace boot.ipxe?uuid=${uuid}&mac=${mac}\n"
        .into()
}

/// The second script: what the apiserver says for `partition`, told that this helper is at
/// `base`.
///
/// # Errors
/// Any [`ScriptError`].
pub async fn script(
    infra: &Infra,
    partition: &str,
    asker: &Asker,
    base: Option<&Url>,
) -> Result<String, ScriptError> {
    #[derive(Serialize)]
    struct DhcpRequest<'a> {
        uuid: Uuid,
        partition: &'a str,
    }
    let text = write(&ask(infra, partition, &asker.mac).await?, base)?;
    let request = DhcpRequest {
        uuid: asker.uuid,
        partition,
    };
    // The machine boots all the same; its operator sees one event less.
    if let Err(error) = infra.call::<_, Empty>(DHCP, &request).await {
        tracing::warn!(machine = %asker.uuid, "{DHCP}: {error}");
    }
    Ok(text)
}

async fn ask(infra: &Infra, partition: &str, mac: &str) -> Result<Boot, InfraError> {
    #[derive(Serialize)]
    struct Request<'a> {
        mac: &'a str,
        partition: &'a str,
    }
    infra.call(BOOT, &Request { mac, partition }).await
}

/// The kernel that `partition` boots, when there is a script for it.
///
/// # Errors
/// Any [`ScriptError`].
pub async fn boot(infra: &Infra, partition: &str, mac: &str) -> Result<String, ScriptError> {
    let boot = ask(infra, partition, mac).await?;
    write(&boot, None)?;
    link("kernel", &boot.kernel)
}

/// Pure: the script for what the apiserver answered.
fn write(boot: &Boot, base: Option<&Url>) -> Result<String, ScriptError> {
    let kernel = link("kernel", &boot.kernel)?;
    if boot.init_ram_disks.len() > INITRDS {
        return Err(ScriptError::Unusable {
            what: "list of initRamDisks",
            text: format!("{} long", boot.init_ram_disks.len()),
            expected: "at most 16",
        });
    }
    let mut initrds = String::new();
    // Named for kernels that look for their initrd by its name (the EFI stub before 5.8).
    let mut words = String::new();
    for (number, disk) in boot.init_ram_disks.iter().enumerate() {
        let disk = link("initRamDisk", disk)?;
        initrds += &format!("initrd --name initrd{number} {disk} || goto failed\n");
        words += &format!(" initrd=initrd{number}");
    }
    let given = boot.cmdline.as_deref().unwrap_or_default();
    for word in command_line(given)?.split_ascii_whitespace() {
        words += &format!(" {word}");
    }
    let says = |key: &str| {
        let mut given = given.split_ascii_whitespace();
        given.any(|word| word.starts_with(key))
    };
    if let Some(base) = base
        && !says("PIXIE_API_URL=")
    {
        words += &format!(" PIXIE_API_URL={}", base.as_str().trim_end_matches('/'));
    }
    // As on the media: the installed OS must not find the boot's secrets in memory.
    if !says("init_on_free=") {
        words += " init_on_free=1";
    }
    Ok(format!(
        "#!ipxe\n\
         echo metal-boot: loading {kernel}\n\
         kernel --name kernel {kernel}{words} || goto failed\n\
         {initrds}\
         boot || goto failed\n\
         :failed\n\
         echo metal-boot: cannot load what the apiserver names for this partition; again in 10 s\n\
         imgfree\n\
         sleep 10\n\
         exit 1\n"
    ))
}

/// An http(s) URL without anything that a script would act on.
fn link(what: &'static str, text: &str) -> Result<String, ScriptError> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .filter(|url| url.as_str().len() <= LONGEST && is_plain(url.as_str()))
        .map(String::from)
        .ok_or_else(|| ScriptError::Unusable {
            what,
            text: printable(text, 200),
            expected: "an http or https URL",
        })
}

fn command_line(text: &str) -> Result<&str, ScriptError> {
    if text.len() <= LONGEST
        && text
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic())
        && is_plain(text)
    {
        return Ok(text);
    }
    Err(ScriptError::Unusable {
        what: "cmdline",
        text: printable(text, 200),
        expected: "one printable line of at most 2048 bytes without ${, || or &&",
    })
}

/// Whether iPXE takes the text as it stands: neither a setting nor the end of a command.
fn is_plain(text: &str) -> bool {
    !["${", "||", "&&", "\n", "\r"]
        .iter()
        .any(|mark| text.contains(mark))
}

/// This helper as a machine reached it: `Host` of its request, when that is an address and
/// no riddle.
#[must_use]
pub fn base_of(host: Option<&str>) -> Option<Url> {
    let host = host?;
    let url = Url::parse(&format!("http://{host}")).ok()?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.username().is_empty();
    let is_good = matches!(url.host()?, url::Host::Ipv6(address) if address != Ipv6Addr::UNSPECIFIED)
        || matches!(url.host()?, url::Host::Domain(_));
    (is_bare && is_good && is_plain(host)).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kernel: &str, initrds: &[&str], cmdline: &str) -> Boot {
        Boot {
            kernel: kernel.into(),
            init_ram_disks: initrds.iter().map(|&text| text.into()).collect(),
            cmdline: Some(cmdline.into()),
        }
    }

    #[test]
    fn a_script_loads_kernel_and_initrds() {
        let base = Url::parse("http://[2001:db8::1]:4242").unwrap();
        let given = said(
            "http://h/vmlinuz",
            &["http://h/a.img", "https://h/b.img"],
            "console=ttyS0  DEBUG=1",
        );
        let text = write(&given, Some(&base)).unwrap();
        assert!(text.starts_with("#!ipxe\n"), "{text}");
        for line in [
            "kernel --name kernel http://h/vmlinuz initrd=initrd0 initrd=initrd1 console=ttyS0 \
             DEBUG=1 PIXIE_API_URL=http://[2001:db8::1]:4242 init_on_free=1 || goto failed\n",
            "initrd --name initrd0 http://h/a.img || goto failed\n",
            "initrd --name initrd1 https://h/b.img || goto failed\n",
            "\nboot || goto failed\n:failed\n",
        ] {
            assert!(text.contains(line), "{line:?} is missing in {text}");
        }
        let own = said(
            "http://h/k",
            &[],
            "PIXIE_API_URL=http://[::2]:1 init_on_free=0",
        );
        let text = write(&own, Some(&base)).unwrap();
        assert!(
            text.contains("http://h/k PIXIE_API_URL=http://[::2]:1 init_on_free=0 ||"),
            "{text}"
        );
    }

    #[test]
    fn an_apiserver_that_lies_writes_no_commands() {
        let good = "http://h/k";
        for (kernel, initrd, cmdline, what) in [
            ("", good, "", "kernel"),
            ("ftp://h/k", good, "", "kernel"),
            ("file:///etc/passwd", good, "", "kernel"),
            ("http://h/k||shell", good, "", "kernel"),
            (good, "x", "", "initRamDisk"),
            (good, good, "a\nshell", "cmdline"),
            (good, good, "a || shell", "cmdline"),
            (good, good, "a ${net0/mac}", "cmdline"),
            (good, good, "\u{1b}[2J", "cmdline"),
        ] {
            let error = write(&said(kernel, &[initrd], cmdline), None).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("apiserver's {what}")), "{text}");
        }
        // The URL parser drops line breaks and encodes braces; what is left is one word.
        let text = write(&said("http://h/${uuid}", &[], ""), None).unwrap();
        assert!(!text.contains("${"), "{text}");
        let text = write(&said("http://h/a\nshell", &[], ""), None).unwrap();
        assert!(!text.contains("\nshell"), "{text}");
        let many = vec![good; INITRDS + 1];
        assert!(write(&said(good, &many, ""), None).is_err());
        assert!(write(&said(good, &[], &"x".repeat(LONGEST + 1)), None).is_err());
    }

    #[test]
    fn who_asks_is_said_whole_or_not_at_all() {
        let uuid = "7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10";
        let good = format!("uuid={uuid}&mac=52:54:00:AB:cd:01&more=1");
        let asked = asker(Some(&good)).unwrap().unwrap();
        assert_eq!(asked.uuid.to_string(), uuid);
        assert_eq!(asked.mac, "52:54:00:ab:cd:01");
        assert_eq!(asker(None), Ok(None));
        assert_eq!(asker(Some("")), Ok(None));
        for wrong in [
            format!("uuid={uuid}"),
            "mac=52:54:00:ab:cd:01".into(),
            "uuid=x&mac=52:54:00:ab:cd:01".into(),
            format!("uuid={uuid}&mac=525400abcd01"),
            format!("uuid={uuid}&mac=52:54:00:ab:cd:0"),
            format!("uuid={uuid}&mac=52:54:00:ab:cd:01:02"),
            format!("uuid={}&mac=52:54:00:ab:cd:01", Uuid::nil()),
        ] {
            assert!(asker(Some(&wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_and_hosts_that_are_none() {
        assert!(is_partition("fra-equ01"));
        for wrong in ["", "x", "..%2f", "a b", "a/b", "ä-1", &"x".repeat(129)] {
            assert!(!is_partition(wrong), "{wrong}");
        }
        let base = base_of(Some("[2001:db8::1]:4242")).unwrap();
        assert_eq!(base.as_str(), "http://[2001:db8::1]:4242/");
        assert!(base_of(Some("helper.example:4242")).is_some());
        for wrong in [
            "", "a b", "user@h", "h/path", "h?x", "[::]:1", "h||x", "10.0.0.1",
        ] {
            assert!(base_of(Some(wrong)).is_none(), "{wrong}");
        }
        assert!(base_of(None).is_none());
    }
}
