//! A plan as an operator reads it: from the disks upwards, sizes in MiB.

use std::fmt;

use super::plan::{Base, Kept, MIB, Place, Plan, PlannedFilesystem};

impl Plan {
    /// What uses `base`: `: ext4 at /`, `: member of /dev/md0`.
    fn use_of(&self, base: Base) -> String {
        if let Some(array) = self.arrays.iter().find(|a| a.members.contains(&base)) {
            let spares_from = array.members.len() - array.spares;
            let is_spare = array.members[spares_from..].contains(&base);
            let role = if is_spare { "spare" } else { "member" };
            return format!("{role} of {}", array.name);
        }
        if let Some(group) = self.groups.iter().find(|g| g.members.contains(&base)) {
            return format!("member of group {}", group.name);
        }
        match self
            .filesystems
            .iter()
            .find(|fs| fs.place == Place::New(base))
        {
            Some(filesystem) => filesystem.to_string(),
            None => "no file system".to_owned(),
        }
    }

    fn fmt_stacks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, array) in self.arrays.iter().enumerate() {
            write!(f, "{}", array.name)?;
            if array.node.as_os_str() != array.name.as_str() {
                write!(f, " (now {})", array.node.display())?;
            }
            write!(
                f,
                ": RAID {} of {}, metadata {}, at least {} MiB",
                array.level.number(),
                self.names_of(&array.members),
                array.metadata,
                array.size / MIB
            )?;
            if !array.create_options.is_empty() {
                write!(f, " ({})", array.create_options.join(" "))?;
            }
            writeln!(f, ": {}", self.use_of(Base::Array(index)))?;
        }
        for (index, group) in self.groups.iter().enumerate() {
            write!(
                f,
                "group {} on {}",
                group.name,
                self.names_of(&group.members)
            )?;
            if !group.tags.is_empty() {
                write!(f, ", tags {}", group.tags.join(" "))?;
            }
            writeln!(f)?;
            for (number, volume) in self.volumes.iter().enumerate() {
                if volume.group == index {
                    writeln!(
                        f,
                        "  {} {}, {} MiB: {}",
                        volume.node.display(),
                        volume.kind.name(),
                        volume.size / MIB,
                        self.use_of(Base::Volume(number))
                    )?;
                }
            }
        }
        Ok(())
    }

    fn names_of(&self, members: &[Base]) -> String {
        let nodes = members.iter().filter_map(|member| self.node(*member));
        let names: Vec<_> = nodes.map(|node| node.display().to_string()).collect();
        names.join(" ")
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "layout {:?}, scope {}", self.layout, self.extent)?;
        for (disk, planned) in self.disks.iter().enumerate() {
            if planned.partitions.is_empty() {
                let use_of = self.use_of(Base::Disk(disk));
                writeln!(f, "{}: used whole: {use_of}", planned.disk)?;
                continue;
            }
            writeln!(f, "{}: new GPT", planned.disk)?;
            for (index, partition) in planned.partitions.iter().enumerate() {
                let base = Base::Partition {
                    disk,
                    partition: index,
                };
                writeln!(
                    f,
                    "  {} {:?} {:?} at block {}, {} MiB: {}",
                    partition.path.display(),
                    partition.label,
                    partition.gpt_type,
                    partition.start_lba,
                    partition.size / MIB,
                    self.use_of(base)
                )?;
            }
        }
        self.fmt_stacks(f)?;
        for filesystem in &self.filesystems {
            match &filesystem.place {
                Place::Kept(kept) => writeln!(f, "{kept}: kept as it is: {filesystem}")?,
                Place::Memory => writeln!(f, "memory: {filesystem}")?,
                Place::New(_) => {}
            }
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition(path) | Self::Volume(path) => write!(f, "{}", path.display()),
            Self::Array { name, .. } => f.write_str(name),
        }
    }
}

impl fmt::Display for PlannedFilesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", super::target::type_name(self.format))?;
        if !self.path.is_empty() {
            write!(f, " at {}", self.path)?;
        }
        if !self.mount_options.is_empty() {
            write!(f, " ({})", self.mount_options.join(","))?;
        }
        Ok(())
    }
}
