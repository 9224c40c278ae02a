//! Names of PCI vendors, devices and classes, from the `pci.ids` of the PCI ID project
//! (its syntax is in the file's own head).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{read_bytes, text::clean};

/// The whole database has 1.4 MB.
const MAX_FILE: u64 = 8 << 20;
const MAX_NAME: usize = 128;

/// Where distributions keep it; the first is the boot medium's own.
pub(super) const PLACES: [&str; 2] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];

/// The names that were asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    vendors: BTreeMap<u16, String>,
    devices: BTreeMap<(u16, u16), String>,
    /// By base class and subclass; base classes with subclass `None`.
    classes: BTreeMap<(u8, Option<u8>), String>,
}

/// What names are wanted: `(class, vendor, device)` as sysfs writes them.
pub(super) type Wanted = (String, String, String);

impl Names {
    /// Looks the names up in the first of `places` that can be read; without one there
    /// are none.
    pub(super) fn look_up(places: &[impl AsRef<Path>], wanted: &[Wanted]) -> Self {
        places
            .iter()
            .find_map(|place| read_bytes(place.as_ref(), MAX_FILE).ok())
            .map(|text| Self::parse(&text, wanted))
            .unwrap_or_default()
    }

    /// Reads line by line and keeps what is wanted.
    fn parse(text: &[u8], wanted: &[Wanted]) -> Self {
        let ids: BTreeSet<(u16, u16)> = wanted
            .iter()
            .filter_map(|(_, vendor, device)| Some((number(vendor)?, number(device)?)))
            .collect();
        let vendors: BTreeSet<u16> = ids.iter().map(|(vendor, _)| *vendor).collect();
        let mut names = Self::default();
        let (mut vendor, mut class) = (None, None);
        for line in text.split(|byte| *byte == b'\n') {
            match line {
                [] | [b'#', ..] | [b'\t', b'\t', ..] => {}
                [b'C', b' ', rest @ ..] => {
                    (vendor, class) = (None, None);
                    if let Some((id, name)) = entry(rest, 2) {
                        class = u8::try_from(id).ok();
                        names.classes.extend(class.map(|it| ((it, None), name)));
                    }
                }
                [b'\t', rest @ ..] => {
                    if let Some(class) = class
                        && let Some((id, name)) = entry(rest, 2)
                    {
                        let id = u8::try_from(id).ok();
                        names.classes.insert((class, id), name);
                    } else if let Some(vendor) = vendor
                        && let Some((id, name)) = entry(rest, 4)
                        && ids.contains(&(vendor, id))
                    {
                        names.devices.insert((vendor, id), name);
                    }
                }
                _ => {
                    class = None;
                    let found = entry(line, 4).filter(|(id, _)| vendors.contains(id));
                    vendor = found.as_ref().map(|(id, _)| *id);
                    names.vendors.extend(found);
                }
            }
        }
        names
    }

    /// The vendor's name, or empty.
    pub(super) fn vendor(&self, id: &str) -> &str {
        let name = number(id).and_then(|id| self.vendors.get(&id));
        name.map_or("", String::as_str)
    }

    /// The device's name, or empty.
    pub(super) fn device(&self, vendor: &str, device: &str) -> &str {
        let name = number(vendor)
            .zip(number(device))
            .and_then(|ids| self.devices.get(&ids));
        name.map_or("", String::as_str)
    }

    /// The name of a class `0x020000`: its subclass's, else its base class's, else empty.
    pub(super) fn class(&self, class: &str) -> &str {
        let digits = class.strip_prefix("0x").unwrap_or(class);
        let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        let Some(base) = byte(0) else {
            return "";
        };
        let name = byte(2)
            .and_then(|sub| self.classes.get(&(base, Some(sub))))
            .or_else(|| self.classes.get(&(base, None)));
        name.map_or("", String::as_str)
    }
}

/// `0x8086` of sysfs.
fn number(id: &str) -> Option<u16> {
    u16::from_str_radix(id.strip_prefix("0x")?, 16).ok()
}

/// An ID of `digits` hexadecimal digits, two spaces, a name.
fn entry(line: &[u8], digits: usize) -> Option<(u16, String)> {
    let (id, name) = line.split_at_checked(digits)?;
    let id = u16::from_str_radix(std::str::from_utf8(id).ok()?, 16).ok()?;
    let name = name.strip_prefix(b"  ")?;
    Some((id, clean(&String::from_utf8_lossy(name), MAX_NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# head\n\n1af4  Red Hat, Inc.\n\t1000  Virtio network device\n\t\t01de fffb  Propolis\n\
        8086  Intel Corporation\n\t1572  Ethernet Controller X710\n\t10d3  82574L\nffff  Illegal\n\
        C 02  Network controller\n\t00  Ethernet controller\n\t\t01  x\nC 03  Display controller\n";

    fn wanted(class: &str, vendor: &str, device: &str) -> Wanted {
        (class.into(), vendor.into(), device.into())
    }

    #[test]
    fn names_by_number() {
        let wanted = [
            wanted("0x020000", "0x8086", "0x1572"),
            wanted("", "0x1af4", "0x1001"),
        ];
        let names = Names::parse(FILE.as_bytes(), &wanted);
        assert_eq!(names.vendor("0x8086"), "Intel Corporation");
        assert_eq!(names.device("0x8086", "0x1572"), "Ethernet Controller X710");
        assert_eq!(names.device("0x8086", "0x10d3"), "", "not wanted, not kept");
        assert_eq!(names.vendor("0x1af4"), "Red Hat, Inc.");
        assert_eq!(names.device("0x1af4", "0x1001"), "");
        assert_eq!(names.class("0x020000"), "Ethernet controller");
        assert_eq!(names.class("0x028000"), "Network controller");
        assert_eq!(names.class("0x030200"), "Display controller");
        for odd in ["", "0x", "0xé", "x"] {
            assert_eq!((names.class(odd), names.vendor(odd)), ("", ""));
        }
    }

    #[test]
    fn a_file_that_is_none_has_no_names() {
        let wanted = [wanted("0x020000", "0x8086", "0x1572")];
        for text in [
            &b"\xff\xfe\n\t\n8086\n8086 x\n\t1572  orphan\nC\nC 0\nC zz  y\n"[..],
            b"",
        ] {
            let names = Names::parse(text, &wanted);
            assert_eq!(names.device("0x8086", "0x1572"), "");
            assert_eq!(names.class("0x020000"), "");
        }
        assert_eq!(
            Names::look_up(&["/nowhere/pci.ids"], &wanted),
            Names::default()
        );
    }
}
