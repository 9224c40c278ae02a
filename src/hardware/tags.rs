//! Parts of the inventory as tags of the machine, where the operator asks for them.

use super::Inventory;
use super::text::meaningful;

/// Longest value, in characters; the server sets no limit, its users' screens do.
const MAX_VALUE: usize = 96;

/// A tag `anvil.<name>=<value>` for each name that is known and has a value.
pub(super) fn tags(inventory: &Inventory, names: &[String]) -> Vec<String> {
    let mut tags: Vec<String> = Vec::new();
    for name in names {
        let Some(value) = value(inventory, name) else {
            tracing::warn!(
                "policy.inventory_tags: there is no tag {:?}; there are {}",
                name.chars().take(40).collect::<String>(),
                NAMES.join(", ")
            );
            continue;
        };
        let value = meaningful(&value, MAX_VALUE);
        let tag = format!("anvil.{name}={value}");
        if !value.is_empty() && !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

/// What can be asked for.
const NAMES: [&str; 10] = [
    "manufacturer",
    "product",
    "serial",
    "firmware",
    "secure-boot",
    "tpm",
    "numa-nodes",
    "dimms",
    "cpu",
    "unhealthy-disks",
];

/// `None`: no such name. Empty: this machine has nothing to say there.
fn value(inventory: &Inventory, name: &str) -> Option<String> {
    let Inventory {
        system, firmware, ..
    } = inventory;
    Some(match name {
        "manufacturer" => system.manufacturer.clone(),
        "product" => system.product.clone(),
        "serial" => system.serial.clone(),
        "firmware" => firmware.version.clone(),
        "secure-boot" => match firmware.secure_boot {
            Some(true) => "on".into(),
            Some(false) => "off".into(),
            None => String::new(),
        },
        "tpm" => inventory
            .tpm
            .as_ref()
            .and_then(|tpm| tpm.version)
            .map(|version| format!("version {version}"))
            .unwrap_or_default(),
        "numa-nodes" => inventory.numa.len().to_string(),
        "dimms" => {
            let modules = &inventory.memory.modules;
            let full = modules.iter().filter(|module| module.size > 0).count();
            format!("{full} of {}", modules.len())
        }
        "cpu" => inventory.cpus[..]
            .first()
            .map(|socket| socket.model.clone())
            .unwrap_or_default(),
        "unhealthy-disks" => {
            let ill = inventory.disks.iter().filter(|disk| {
                let health = disk.health.as_ref();
                health.is_some_and(|health| !health.good)
            });
            ill.map(|disk| disk.name.clone())
                .collect::<Vec<_>>()
                .join(" ")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known() {
        let machine = super::super::tests::Machine::bare();
        let inventory = machine.inspect().unwrap();
        for name in NAMES {
            assert!(value(&inventory, name).is_some(), "{name}");
        }
        assert_eq!(value(&inventory, "nonsense"), None);
    }

    #[test]
    fn only_what_is_asked_for_and_known_becomes_a_tag() {
        let machine = super::super::tests::Machine::bare();
        machine
            .file("sys/class/dmi/id/product_name", "Model\t1")
            .file("sys/class/dmi/id/product_serial", "To be filled by O.E.M.");
        let inventory = machine.inspect().unwrap();
        let names = ["product", "serial", "nonsense", "product", "dimms"].map(String::from);
        let found = tags(&inventory, &names);
        assert_eq!(found, ["anvil.product=Model 1", "anvil.dimms=0 of 0"]);
        assert_eq!(tags(&inventory, &[]), Vec::<String>::new());
    }
}
