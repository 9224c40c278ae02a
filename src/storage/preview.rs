//! What a layout would become on a machine, without touching it: the boot's own planner,
//! over a sysfs that may have been captured elsewhere.

use std::path::Path;

use thiserror::Error;
use uuid::Uuid;

use super::disks;
use super::eligible::{Exclusions, erasable};
use super::plan::{Plan, PlanError, plan};
use super::scope::{self, disks_in_scope};
use crate::control::api::FilesystemLayout;
use crate::decide::{Adopt, Age, Answer, Decision, Extent, Journal, WipeScope, decide};

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum Error {
    #[error(
        "this is no filesystem layout: {0}; expected the JSON of a filesystemLayout, or of an allocation with one"
    )]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Disks(#[from] disks::Error),
    #[error(transparent)]
    Scope(#[from] scope::Error),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("the decision table gives no scope to plan for; this is a defect of the agent")]
    NoScope,
}

/// Plans `json`, a layout or an allocation, for the disks below `sys`.
///
/// # Errors
/// What would end the boot before its first write.
pub fn preview(json: &[u8], sys: &Path, extent: Extent) -> Result<Plan, Error> {
    let mut value: serde_json::Value = serde_json::from_slice(json)?;
    for key in ["filesystemLayout", "filesystem_layout"] {
        if let Some(layout) = value.get_mut(key) {
            value = layout.take();
        }
    }
    let layout: FilesystemLayout = serde_json::from_value(value)?;
    let sorted = erasable(disks::discover(sys)?, None, &Exclusions::default());
    let scope = scope(extent).ok_or(Error::NoScope)?;
    let scoped = disks_in_scope(&scope, &sorted, Some(&layout))?;
    Ok(plan(&layout, &sorted, &scoped)?)
}

/// The scope of a first install, or of an ordered re-install.
fn scope(extent: Extent) -> Option<WipeScope> {
    let allocation = Uuid::nil();
    let journal = match extent {
        Extent::EveryDisk => Journal::Wiped,
        Extent::RootDisks => Journal::Installed { allocation },
    };
    let answer = Answer::Allocation {
        uuid: allocation,
        age: Age::Standing,
        ordered: true,
    };
    match decide(&journal, answer, Adopt::Hold) {
        Decision::Install(scope) | Decision::WipeAndInstall(scope) => Some(scope),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A captured sysfs with virtio disks of these sizes in GiB.
    pub fn captured(disks: &[(&str, u64)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (index, (name, gib)) in disks.iter().enumerate() {
            let dir = root
                .path()
                .join("devices/pci0000:00")
                .join(format!("virtio{index}/block/{name}"));
            fs::create_dir_all(dir.join("queue")).unwrap();
            fs::create_dir_all(root.path().join("block")).unwrap();
            for (file, text) in [
                ("dev", format!("253:{}", index * 16)),
                ("size", (gib << 21).to_string()),
                ("ro", "0".into()),
                ("removable", "0".into()),
                ("queue/logical_block_size", "512".into()),
                ("queue/rotational", "0".into()),
            ] {
                fs::write(dir.join(file), text).unwrap();
            }
            std::os::unix::fs::symlink(&dir, root.path().join("block").join(name)).unwrap();
        }
        root
    }

    const LAYOUT: &str = r#"{"id": "one", "disks": [{"device": "/dev/vda", "partitions": [
        {"number": 1, "size": "100", "gptType": "GPT_TYPE_BOOT"}, {"number": 2}]}, {"device": "/dev/vdb",
        "partitions": [{"number": 1}]}], "filesystems": [
        {"device": "/dev/vda1", "format": "FORMAT_VFAT", "path": "/boot/efi"},
        {"device": "/dev/vda2", "format": "FORMAT_EXT4", "path": "/"},
        {"device": "/dev/vdb1", "format": "FORMAT_EXT4", "path": "/data"}]}"#;

    #[test]
    fn a_layout_and_an_allocation_are_planned_alike() {
        let sys = captured(&[("vda", 10), ("vdb", 20)]);
        let plan = preview(LAYOUT.as_bytes(), sys.path(), Extent::EveryDisk).unwrap();
        assert_eq!(plan.disks().len(), 2);
        let allocation = format!(r#"{{"uuid": "x", "filesystemLayout": {LAYOUT}}}"#);
        assert_eq!(
            preview(allocation.as_bytes(), sys.path(), Extent::EveryDisk).unwrap(),
            plan
        );
        let plan = preview(LAYOUT.as_bytes(), sys.path(), Extent::RootDisks).unwrap();
        assert_eq!(plan.disks().len(), 1);
        assert!(
            plan.to_string().contains("/dev/vdb1: kept as it is"),
            "{plan}"
        );
    }

    #[test]
    fn what_cannot_be_planned_says_why() {
        let sys = captured(&[("vda", 10)]);
        let error = |json: &str, sys: &Path| {
            preview(json.as_bytes(), sys, Extent::EveryDisk)
                .unwrap_err()
                .to_string()
        };
        assert!(error("[", sys.path()).contains("no filesystem layout"));
        assert!(error("{\"disks\": 7}", sys.path()).contains("no filesystem layout"));
        assert!(
            error(LAYOUT, sys.path())
                .contains("there is no disk /dev/vdb; this machine has /dev/vda")
        );
        assert!(error(LAYOUT, Path::new("/nonexistent")).contains("is sysfs mounted?"));
    }
}
