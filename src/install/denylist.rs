//! Machines that do not survive a kexec, by what the operator says of them.

use std::fs;
use std::path::Path;

/// What a firmware says of its machine (Documentation/ABI/testing/sysfs-firmware-dmi-tables).
const DMI: [&str; 5] = [
    "sys_vendor",
    "product_name",
    "product_version",
    "board_name",
    "bios_version",
];

/// Longest text of the firmware that is read, in bytes.
const MAX_TEXT: usize = 256;

/// The first entry of `list` that fits this machine: the whole of one of its DMI texts, or the
/// `vendor:device` of one of its PCI devices in hexadecimal; case does not count.
#[must_use]
pub fn entry_that_fits<'l>(sys: &Path, list: &'l [String]) -> Option<&'l str> {
    if list.is_empty() {
        return None;
    }
    let dmi = DMI.iter().map(|name| sys.join("class/dmi/id").join(name));
    let mut facts: Vec<String> = dmi.filter_map(|path| text(&path)).collect();
    let devices = fs::read_dir(sys.join("bus/pci/devices"));
    for device in devices.into_iter().flatten().flatten() {
        let id = |name| {
            text(&device.path().join(name))?
                .strip_prefix("0x")
                .map(str::to_owned)
        };
        if let (Some(vendor), Some(device)) = (id("vendor"), id("device")) {
            facts.push(format!("{vendor}:{device}"));
        }
    }
    let fits = |entry: &&String| {
        facts
            .iter()
            .any(|fact| fact.eq_ignore_ascii_case(entry.trim()))
    };
    list.iter().find(fits).map(String::as_str)
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty() && text.len() <= MAX_TEXT).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dmi_texts_and_pci_devices() {
        let sys = tempfile::tempdir().unwrap();
        let dmi = sys.path().join("class/dmi/id");
        let pci = sys.path().join("bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(&dmi).unwrap();
        fs::create_dir_all(&pci).unwrap();
        fs::write(dmi.join("product_name"), "PowerThing R6\n").unwrap();
        fs::write(dmi.join("board_name"), "\n").unwrap();
        fs::write(pci.join("vendor"), "0x8086\n").unwrap();
        fs::write(pci.join("device"), "0x15AB\n").unwrap();
        let table = [
            ("powerthing r6", true),
            (" PowerThing R6 ", true),
            ("PowerThing", false),
            ("8086:15ab", true),
            ("8086:15ac", false),
            ("", false),
        ];
        for (entry, fits) in table {
            let list = ["nothing".to_owned(), entry.to_owned()];
            assert_eq!(
                entry_that_fits(sys.path(), &list),
                fits.then_some(entry),
                "{entry:?}"
            );
        }
        assert_eq!(entry_that_fits(sys.path(), &[]), None);
        assert_eq!(
            entry_that_fits(Path::new("/nonexistent"), &["x".to_owned()]),
            None
        );
    }
}
