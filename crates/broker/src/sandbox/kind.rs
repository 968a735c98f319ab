//! The kinds of the broker's threads.

/// What a thread does, and so what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The core: decides, makes sockets, looks at the processes of clients.
    Core,
    /// Copies bytes between processes.
    Data,
    /// Serves a VM's virtqueues.
    VmData,
    /// Speaks vhost-user with a VMM.
    Vmm,
    /// Serves the sockets of a VMM that has its own.
    Hybrid,
    /// Accepts and connects with the kernel's vsock.
    KernelVsock,
    /// Speaks with the broker of the host.
    Uplink,
    /// Follows the containers of runtimes.
    Observer,
    /// Writes the audit.
    Audit,
    /// Serves the control API, with the threads that block for it.
    Control,
    /// Tries again what has failed with files.
    Retry,
    /// Applies changes of files by others.
    Watch,
    /// Waits for a successor.
    Handover,
    /// Offers the integration services of a host to guests.
    Services,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 14] = [
        Self::Core,
        Self::Data,
        Self::VmData,
        Self::Vmm,
        Self::Hybrid,
        Self::KernelVsock,
        Self::Uplink,
        Self::Observer,
        Self::Audit,
        Self::Control,
        Self::Retry,
        Self::Watch,
        Self::Handover,
        Self::Services,
    ];

    /// How it is shown.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Data => "data",
            Self::VmData => "VM data",
            Self::Vmm => "VMM",
            Self::Hybrid => "hybrid",
            Self::KernelVsock => "kernel vsock",
            Self::Uplink => "uplink",
            Self::Observer => "observer",
            Self::Audit => "audit",
            Self::Control => "control",
            Self::Retry => "retry",
            Self::Watch => "watch",
            Self::Handover => "handover",
            Self::Services => "services",
        }
    }

    /// How the kind with this number is shown: a filter is tagged with it.
    pub(super) fn name_of(number: u16) -> &'static str {
        Self::ALL
            .get(usize::from(number))
            .map_or("unknown", |kind| kind.name())
    }

    /// Whether it opens no file, by any path, and looks at no other process. Landlock takes both.
    pub(super) const fn needs_no_file(self) -> bool {
        matches!(
            self,
            Self::Data | Self::VmData | Self::Vmm | Self::Audit | Self::Services
        )
    }

    /// The capabilities that it uses, if the broker has them.
    pub(super) const fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Data | Self::VmData | Self::Vmm | Self::Audit | Self::Services => &[],
            Self::KernelVsock | Self::Uplink => &["CAP_NET_BIND_SERVICE", "CAP_SYS_PTRACE"],
            Self::Observer => &["CAP_SYS_PTRACE"],
            Self::Hybrid => &["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"],
            Self::Handover => &["CAP_SYS_RESOURCE"],
            Self::Core | Self::Control | Self::Retry | Self::Watch => &[
                "CAP_CHOWN",
                "CAP_DAC_OVERRIDE",
                "CAP_FOWNER",
                "CAP_NET_BIND_SERVICE",
                "CAP_SYS_PTRACE",
                "CAP_SYS_RESOURCE",
            ],
        }
    }
}
