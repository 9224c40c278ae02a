//! The table of a boot's steps: their order on the dashboard, and what each counts for.

use super::failure::Step;

/// The way of a machine that gets installed, in order.
pub const WAY: [Step; 14] = [
    Step::Start,
    Step::Network,
    Step::BootHelper,
    Step::SwitchPorts,
    Step::Registration,
    Step::Allocation,
    Step::Wipe,
    Step::Wait,
    Step::Preflight,
    Step::Partitioning,
    Step::Image,
    Step::Installer,
    Step::BootEntry,
    Step::Report,
];

impl Step {
    /// Its share of the whole way in percent: about what it takes of the time. The wait for an
    /// allocation has none, for nobody knows how long it is.
    #[must_use]
    pub const fn weight(self) -> u64 {
        match self {
            Self::Start | Self::Preflight | Self::BootEntry | Self::Report => 2,
            Self::Network | Self::BootHelper | Self::Partitioning => 4,
            Self::Registration | Self::Allocation => 6,
            Self::Installer => 8,
            Self::Wipe => 10,
            Self::SwitchPorts => 12,
            Self::Image => 38,
            Self::Wait | Self::BootDisk | Self::Rescue | Self::Agent => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_a_hundred_percent() {
        assert_eq!(WAY.iter().map(|step| step.weight()).sum::<u64>(), 100);
    }
}
