//! The machine's UUID: its name in the control plane, and what its token is made out to.

use std::io;

use tracing::warn;
use uuid::{Uuid, uuid};

use super::smbios::Table;
use super::text::meaningful;
use super::types::{IdSource, Machine, Part, Port, System};
use super::{Error, Roots, nic, platform, read};

/// UUIDs that vendors leave in whole series of machines.
const SHARED: [Uuid; 11] = [
    uuid!("03000200-0400-0500-0006-000700080009"),
    // The same, its first three groups in the other byte order (SMBIOS 2.6 changed it).
    uuid!("00020003-0004-0005-0006-000700080009"),
    uuid!("00010203-0405-0607-0809-0a0b0c0d0e0f"),
    uuid!("03020100-0504-0706-0809-0a0b0c0d0e0f"),
    uuid!("00112233-4455-6677-8899-aabbccddeeff"),
    uuid!("33221100-5544-7766-8899-aabbccddeeff"),
    uuid!("11223344-5566-7788-99aa-bbccddeeff00"),
    uuid!("12345678-1234-5678-90ab-cddeefaabbcc"),
    uuid!("78563412-3412-7856-90ab-cddeefaabbcc"),
    // Dell's pattern around a service tag that was never written.
    uuid!("4c4c4544-0000-2010-8020-80c04f202020"),
    uuid!("4c4c4544-0020-2010-8020-a0c04f202020"),
];

/// What the UUIDs made here are versioned under (RFC 4122 §4.3). It must never change:
/// machines are known by the result.
const NAMESPACE: Uuid = uuid!("aa15b5f1-7ba8-41e5-87ff-94db75f50672");

/// Longest part that enters a derived UUID, in characters.
const MAX_PART: usize = 256;

/// The machine's UUID. One that had to be derived is announced in the log.
///
/// # Errors
/// [`Error::NoMachineId`] when the firmware has none that tells machines apart and there is
/// nothing to make one of: two machines of one name would be served each other's token.
pub fn machine_id(roots: &Roots) -> Result<Uuid, Error> {
    let (system, board) = (platform::system(&roots.sys), platform::board(&roots.sys));
    let machine = identify(roots, &system, &board, &nic::ports(roots)?);
    if machine.source == IdSource::Derived {
        warn!("MACHINE ID: {}", machine.note);
    }
    machine.uuid.ok_or(Error::NoMachineId { why: machine.note })
}

pub(super) fn identify(roots: &Roots, system: &System, board: &Part, ports: &[Port]) -> Machine {
    let why = match from_firmware(roots) {
        Ok(uuid) => {
            return Machine {
                uuid: Some(uuid),
                source: IdSource::Smbios,
                note: String::new(),
            };
        }
        Err(NoUuid::Forbidden) => {
            return unknown("reading it needs root".into());
        }
        Err(NoUuid::Useless(why)) => why,
    };
    match derive(system, board, ports) {
        Some(uuid) => Machine {
            uuid: Some(uuid),
            source: IdSource::Derived,
            note: format!(
                "{why}; this machine goes by {uuid} instead, made of its serial numbers and the \
                 MAC of its first network card: it changes with them. Set a real system UUID in \
                 the firmware or the BMC"
            ),
        },
        None => unknown(format!(
            "{why}, and there is neither a serial number nor a PCI network card to make one of; \
             set a real system UUID in the firmware or the BMC"
        )),
    }
}

fn unknown(note: String) -> Machine {
    Machine {
        uuid: None,
        source: IdSource::Unknown,
        note,
    }
}

/// Why the firmware's UUID is of no use.
enum NoUuid {
    /// Only root may read it.
    Forbidden,
    Useless(String),
}

/// `product_uuid`, which the kernel has put into the right byte order; else the table.
fn from_firmware(roots: &Roots) -> Result<Uuid, NoUuid> {
    let path = roots.sys.join("class/dmi/id/product_uuid");
    let uuid = match read(&path, 4096) {
        Ok(text) => parse(text.trim()).ok_or_else(|| {
            let shown: String = text.trim().chars().take(80).collect();
            NoUuid::Useless(format!("the system UUID reads {shown:?}, which is none"))
        })?,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(NoUuid::Forbidden);
        }
        Err(error) => Table::read(&roots.sys)
            .and_then(|table| table.system_uuid())
            .ok_or_else(|| {
                NoUuid::Useless(format!(
                    "the firmware has no system UUID (product_uuid: {error})"
                ))
            })?,
    };
    if is_shared(uuid) {
        let why = format!("the system UUID {uuid} is a placeholder that many machines share");
        return Err(NoUuid::Useless(why));
    }
    Ok(uuid)
}

/// Not the braced, URN or bare forms that the crate's parser also takes.
fn parse(text: &str) -> Option<Uuid> {
    (text.len() == 36)
        .then(|| Uuid::try_parse(text).ok())
        .flatten()
}

/// All bytes alike, or a known placeholder.
fn is_shared(uuid: Uuid) -> bool {
    let bytes = uuid.as_bytes();
    bytes.iter().all(|byte| *byte == bytes[0]) || SHARED.contains(&uuid)
}

/// A UUID of version 5 from serial, board and first permanent MAC. `None` when neither a
/// serial number nor a MAC is there. Only PCI cards count: the USB links of BMCs have the
/// same MAC in every machine of a series.
fn derive(system: &System, board: &Part, ports: &[Port]) -> Option<Uuid> {
    let mac = ports
        .iter()
        .filter(|port| !port.usb)
        .min_by_key(|port| (&port.bus, &port.mac))
        .map_or("", |port| &port.mac);
    let part = |text: &str| meaningful(text, MAX_PART);
    let (serial, board_serial) = (part(&system.serial), part(&board.serial));
    if mac.is_empty() && serial.is_empty() && board_serial.is_empty() {
        return None;
    }
    let parts = [
        serial,
        part(&board.manufacturer),
        part(&board.product),
        board_serial,
        mac.to_owned(),
    ];
    Some(Uuid::new_v5(&NAMESPACE, parts.join("\n").as_bytes()))
}
