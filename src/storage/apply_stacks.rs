//! Makes the arrays, volume groups and logical volumes of a plan.

use std::path::Path;

use super::apply::ApplyError;
use super::md::{self, Create};
use super::plan::{Base, Plan};
use super::tools::{self, Tools};
use super::{device, lvm, wipe};

/// Makes all of them, each on members that are empty.
///
/// # Errors
/// What could not be made, and what the command said.
pub(super) fn make(plan: &Plan, tools: &Tools) -> Result<(), ApplyError> {
    for array in plan.arrays() {
        let create = Create {
            node: &array.node,
            level: array.level,
            metadata: array.metadata,
            members: &nodes(plan, &array.members)?,
            spares: array.spares,
            name: array.name.strip_prefix("/dev/md/"),
            options: &array.create_options,
        };
        run(&tools.mdadm, &md::arguments(&create), &array.name, tools)?;
        clear(&array.node)?;
        tracing::info!("array {} was made", array.name);
    }
    for group in plan.groups() {
        let members = nodes(plan, &group.members)?;
        let what = format!("volume group {}", group.name);
        for member in &members {
            run(&tools.lvm, &lvm::pvcreate(member), &what, tools)?;
        }
        let arguments = lvm::vgcreate(&group.name, &group.tags, &members);
        run(&tools.lvm, &arguments, &what, tools)?;
        tracing::info!("{what} was made");
    }
    for volume in plan.volumes() {
        let group = plan.groups().get(volume.group).ok_or(ApplyError::Plan)?;
        let members = nodes(plan, &group.members)?;
        let what = format!("logical volume {}/{}", group.name, volume.name);
        let no_room = |problem: String| ApplyError::NoRoom {
            what: what.clone(),
            problem,
        };
        // An array's exact size is known only now.
        let answer = run(&tools.lvm, &lvm::free_extents(&members), &what, tools)?;
        let mut free = lvm::parse_free(&answer, &members)
            .ok_or_else(|| no_room("lvm does not say what its group has free".into()))?;
        let extents = lvm::allocate(&mut free, volume.kind, volume.extents)
            .map_err(|available| no_room(format!("its group has room for {available} extents")))?;
        let arguments = lvm::lvcreate(&group.name, &volume.name, volume.kind, extents, &members);
        run(&tools.lvm, &arguments, &what, tools)?;
        clear(&volume.node)?;
        tracing::info!("{what} was made");
    }
    Ok(())
}

fn nodes<'p>(plan: &'p Plan, members: &[Base]) -> Result<Vec<&'p Path>, ApplyError> {
    let nodes = members.iter().map(|member| plan.node(*member));
    nodes.collect::<Option<Vec<_>>>().ok_or(ApplyError::Plan)
}

/// What an older array or volume had in the same place would come back to life.
fn clear(node: &Path) -> Result<(), ApplyError> {
    let (file, size) = device::open_new(node)?;
    wipe::clear_partition(&file, size).map_err(device::failed("clear", node))?;
    Ok(())
}

fn run(
    program: &Path,
    arguments: &[String],
    what: &str,
    tools: &Tools,
) -> Result<String, ApplyError> {
    tools::run(program, arguments, tools.deadline).map_err(|source| ApplyError::Stacked {
        what: what.to_owned(),
        source,
    })
}
