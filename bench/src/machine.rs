//! Describes the machine of a run.

use std::fmt;

use serde::Serialize;

/// The properties of a machine that affect figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's model name.
    pub cpu: String,
    /// Count of processors that this process may use.
    pub cores: usize,
    /// The kernel's version.
    pub kernel: String,
    /// Whether this is a virtual machine, which may share its processors.
    pub virtual_machine: bool,
}

impl Machine {
    /// This machine. Missing properties are "unknown".
    pub fn current() -> Self {
        let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::read(&processors, &kernel, cores)
    }

    fn read(processors: &str, kernel: &str, cores: usize) -> Self {
        let field = |name: &str| {
            processors.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| value.trim())
            })
        };
        let or_unknown = |text: &str| match text.trim() {
            "" => "unknown".to_owned(),
            text => text.to_owned(),
        };
        Self {
            cpu: or_unknown(field("model name").unwrap_or_default()),
            cores,
            kernel: or_unknown(kernel),
            virtual_machine: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = if self.cores == 1 { "core" } else { "cores" };
        let kind = if self.virtual_machine {
            ", a virtual machine"
        } else {
            ""
        };
        let Self { cpu, kernel, .. } = self;
        write!(f, "{cpu}, {} {cores}{kind}, Linux {kernel}", self.cores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_properties_are_unknown() {
        let text = "processor\t: 0\nmodel name\t: Fast 9\nflags\t\t: fpu hypervisor sse\n";
        let machine = Machine::read(text, "6.1.0\n", 2);
        assert_eq!(
            machine.to_string(),
            "Fast 9, 2 cores, a virtual machine, Linux 6.1.0"
        );
        assert_eq!(
            Machine::read("", "", 1).to_string(),
            "unknown, 1 core, Linux unknown"
        );
    }
}
