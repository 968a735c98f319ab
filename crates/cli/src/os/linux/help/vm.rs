//! Topics of `hvsock vm`.

use crate::help::Topic;

pub const TOPICS: &[Topic] = &[
    Topic {
        command: "vm",
        examples: &[
            ("hvsock vm add web --cid 42", "make a partition for it"),
            (
                "qemu-system-x86_64 $(hvsock vm show web --memory 2G)",
                "start it",
            ),
            (
                "sudo hvsock vm add db --vmm libvirt",
                "print XML for libvirt",
            ),
            ("hvsock connect web 'HV Socket Demo'", "use a service in it"),
        ],
        see_also: &["container", "exec", "kvp"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm add",
        notes: &[
            "The command prints what gives the virtual machine its device: options to add to the \
             VMM's command line, XML to add to a libvirt domain, or calls of libkrun. --vmm selects \
             the VMM.",
            "QEMU's options place the device behind a PCI Express port of its own, so that `hvsock \
             vm reconnect` can exchange it. For a machine type without PCI Express, give the type \
             with --machine.",
            "A VMM that takes away memory that it shares loses its own device only. A program that \
             has the broker in it and handles SIGBUS itself cannot promise that: there VMMs that do \
             not seal their memory (Cloud Hypervisor, libkrun, OpenVMM, User-mode Linux) need \
             --unsealed-memory.",
        ],
        examples: &[
            ("hvsock vm add web --cid 42", "print QEMU's options"),
            (
                "hvsock vm add db --user libvirt-qemu --vmm libvirt",
                "print XML for libvirt",
            ),
            ("hvsock vm add old --machine pc", "without PCI Express"),
            ("hvsock vm add um --vmm uml", "for User-mode Linux"),
            ("hvsock vm add ci --group build", "in a sibling group"),
            ("hvsock vm add fc --hybrid /run/fc.sock", "its uds_path"),
            ("hvsock vm add kv --kernel-cid 42", "by vhost-vsock"),
        ],
        see_also: &["vm show", "vm remove"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm list",
        examples: &[
            ("hvsock vm list", ""),
            (
                "hvsock vm list --json | jq -r '.[].name'",
                "names for programs",
            ),
        ],
        see_also: &["vm show", "status"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm id",
        examples: &[("id=$(hvsock vm id web)", "")],
        see_also: &["vm show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm show",
        examples: &[
            ("hvsock vm show web", "everything about it"),
            ("qemu-system-x86_64 $(hvsock vm show web --memory 2G)", ""),
            ("hvsock vm show web --vmm libvirt", "XML for its domain"),
        ],
        see_also: &["vm list", "vm add"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm wait",
        examples: &[
            (
                "hvsock vm wait web && hvsock exec web -- uptime",
                "until it is ready",
            ),
            (
                "hvsock vm wait web --for off --timeout 60",
                "at most a minute",
            ),
        ],
        see_also: &["vm shutdown", "exec"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm shutdown",
        examples: &[
            ("hvsock vm shutdown web", "power it off"),
            (
                "hvsock vm shutdown web --reboot --reason update",
                "reboot it",
            ),
            (
                "hvsock vm shutdown web --force",
                "do not wait for its programs",
            ),
        ],
        see_also: &["vm wait"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm reconnect",
        notes: &[
            "QEMU does not connect to a broker that was restarted. This command exchanges its vsock \
             device while the guest runs: the guest releases the device and gets a new one, on a new \
             connection to the broker. Programs in the guest that listen go on.",
            "The device must be behind a PCI Express port of its own, as `hvsock vm add` prints it, \
             and the guest must support PCI hot-plug. QEMU's monitor serves one client at a time.",
            "The command succeeds only once the broker has the device. One that ended early can be \
             repeated.",
        ],
        examples: &[(
            "hvsock vm reconnect web --qmp /run/web.qmp",
            "after a restart of the broker",
        )],
        see_also: &["vm add", "vm wait"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm discover",
        notes: &[
            "The command asks libvirt, Incus and systemd-machined, and reads the command lines of \
             QEMU, Firecracker, Cloud Hypervisor, crosvm, OpenVMM and User-mode Linux. It lists each \
             virtual machine with its state and how it can be reached: by a CID of the kernel's \
             vhost-vsock, by a socket of its VMM, or by a vhost-user device, which may be the \
             broker's own.",
            "--add makes partitions of those that run and can be reached. What a process of another \
             user claims is added by its name only.",
            "A manager that is not there or cannot be asked is a note, not an error.",
        ],
        examples: &[
            ("hvsock vm discover", "what runs here"),
            ("hvsock vm discover --add", "make partitions of all"),
            ("hvsock vm discover --add web", "of one"),
        ],
        see_also: &["vm add", "vm list"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm time",
        examples: &[
            ("hvsock vm time web", "show the last measurement"),
            ("hvsock vm time web --sync", "measure and correct it now"),
        ],
        see_also: &["vm integration"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm pause",
        notes: &[
            "Only the traffic of hvsock is paused. The virtual machine runs on. Its VMM pauses the \
             virtual machine itself, which hvsock then follows.",
            "Connections with HVSOCKET_CONNECTED_SUSPEND (`connect --connected-suspend`, `listen \
             --connected-suspend`) are suspended. All others are closed.",
        ],
        examples: &[("hvsock vm pause web", "")],
        see_also: &["vm resume"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm resume",
        examples: &[("hvsock vm resume web", "")],
        see_also: &["vm pause"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm groups",
        notes: &["Partitions of one sibling group can reach each other."],
        examples: &[
            (
                "hvsock vm groups web build backend",
                "in exactly these groups",
            ),
            ("hvsock vm groups web", "in none"),
        ],
        see_also: &["vm show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm remove",
        examples: &[("hvsock vm remove web", "")],
        see_also: &["vm add"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm integration",
        notes: &[
            "A disabled service is refused, and its connections are closed. This is for one guest. \
             `hvsock service disable` without --vm disables a service for all.",
        ],
        examples: &[
            ("hvsock vm integration web", "list the services"),
            (
                "hvsock vm integration web disable session copy",
                "forbid exec and cp",
            ),
            ("hvsock vm integration web enable session", "allow exec"),
        ],
        see_also: &["service disable", "exec", "cp"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm integration enable",
        examples: &[("hvsock vm integration web enable session copy", "")],
        see_also: &["vm integration disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm integration disable",
        examples: &[("hvsock vm integration web disable session copy", "")],
        see_also: &["vm integration enable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm freeze",
        notes: &[
            "Programs in the guest that write wait until the thaw. With a command, hvsock runs it \
             on this machine while the filesystems are frozen, and thaws them when it ends. \
             Without one they stay frozen until `hvsock vm thaw`.",
            "The guest thaws by itself when the time limit is over. The command then fails, \
             because the snapshot is not consistent.",
        ],
        examples: &[
            (
                "hvsock vm freeze web -- ./snapshot web",
                "while ./snapshot runs",
            ),
            (
                "hvsock vm freeze web --timeout 30 --mount /srv",
                "one filesystem",
            ),
            ("hvsock vm thaw web", ""),
        ],
        exit_status: &[
            (
                "0",
                "The filesystems were frozen until the thaw, and the command succeeded.",
            ),
            ("1", "The freeze failed, or ended before the thaw."),
            ("2", "Wrong usage."),
            ("other", "The exit status of the command."),
        ],
        see_also: &["vm thaw"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm thaw",
        notes: &[
            "The command fails if the filesystems were not frozen until now. A snapshot made in \
             the meantime is not consistent.",
        ],
        examples: &[
            ("hvsock vm thaw web", ""),
            ("hvsock vm thaw web --id 7", "only the freeze with this id"),
        ],
        see_also: &["vm freeze"],
        ..Topic::EMPTY
    },
];
