//! Layouts that do not fit the machine: known before the first write.

use serde_json::json;

use crate::common::crash_before_the_first_write;

#[test]
fn a_disk_that_is_not_there() {
    crash_before_the_first_write(
        "layout_missing_disk",
        &["disk"],
        |allocation| {
            allocation
                .with("/filesystemLayout/disks/0/device", json!("/dev/sdz"))
                .with("/filesystemLayout/filesystems/0/device", json!("/dev/sdz1"))
                .with("/filesystemLayout/filesystems/1/device", json!("/dev/sdz2"))
        },
        &["/dev/sdz"],
    );
}

#[test]
fn a_disk_that_is_too_small() {
    crash_before_the_first_write(
        "layout_too_small",
        &["disk", "data"],
        |allocation| allocation.with("/filesystemLayout/disks/0/partitions/0/size", json!("4096")),
        &["/dev/vda"],
    );
}
