//! NUMA nodes, from `/sys/devices/system/node` (Documentation/ABI/stable/sysfs-devices-node).

use std::fs;
use std::path::Path;

use super::memory::mem_total;
use super::types::Node;
use super::{attribute, read};

/// CONFIG_NODES_SHIFT allows no more.
const MAX_NODES: usize = 1024;

/// Every node by number; none when the kernel knows nothing of NUMA.
pub(super) fn nodes(sys: &Path) -> Vec<Node> {
    let directory = sys.join("devices/system/node");
    let mut nodes: Vec<Node> = fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let node = name.to_str()?.strip_prefix("node")?.parse().ok()?;
            Some((node, directory.join(&name)))
        })
        .take(MAX_NODES)
        .map(|(node, path)| Node {
            node,
            cpus: attribute(&path.join("cpulist")).unwrap_or_default(),
            memory: read(&path.join("meminfo"), 64 << 10)
                .ok()
                .and_then(|text| mem_total(&text))
                .unwrap_or_default(),
        })
        .collect();
    nodes.sort_unstable_by_key(|it| it.node);
    nodes
}
