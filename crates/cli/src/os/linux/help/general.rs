//! Topics of the broker, the demo, and what this program prints about itself.

use crate::help::Topic;

pub const TOPICS: &[Topic] = &[
    Topic {
        command: "",
        examples: &[
            ("hvsock demo", "see the whole system"),
            ("hvsock broker", "run the broker"),
            (
                "hvsock service register 'HV Socket Demo'",
                "allow a service",
            ),
            ("hvsock listen 'HV Socket Demo' --keep -- cat", "offer it"),
            ("hvsock connect loopback 'HV Socket Demo'", "use it"),
        ],
        see_also: &["demo", "broker", "service", "vm", "container"],
        ..Topic::EMPTY
    },
    Topic {
        command: "demo",
        notes: &[
            "The demo needs no privileges. It starts its own broker in a temporary folder and \
             leaves nothing behind.",
            "With --vm the second partition is a Linux guest, which reaches the broker through a \
             virtio-vsock device. This takes about 30 seconds and no KVM. It needs packages: on \
             Debian, apt-get install busybox-static and either user-mode-linux, or qemu-system-x86 \
             and linux-image-cloud-amd64 for QEMU.",
        ],
        examples: &[
            ("hvsock demo", ""),
            ("hvsock demo --vm", "with a virtual machine"),
            (
                "hvsock demo --vm --fetch-kernel",
                "fetch a kernel without installing it",
            ),
        ],
        see_also: &["broker", "bench"],
        ..Topic::EMPTY
    },
    Topic {
        command: "broker",
        notes: &[
            "The broker runs in the foreground. It prints one line when clients can reach it, and \
             notifies a service manager that started it with Type=notify.",
            "Each user has a broker of their own. Root's broker is the machine's.",
        ],
        examples: &[
            ("hvsock broker", "your own, or the machine's as root"),
            (
                "hvsock --dir /tmp/try broker",
                "with all state in one folder",
            ),
            ("RUST_LOG=hvsock=debug hvsock broker", "with a detailed log"),
        ],
        environment: &[
            (
                "RUST_LOG",
                "Filters the log, such as hvsock=debug. The default is info.",
            ),
            (
                "HVSOCK_UPLINK",
                "auto, off or required, as --uplink, which overrides it.",
            ),
            (
                "NOTIFY_SOCKET",
                "The socket of the service manager, see sd_notify(3).",
            ),
            (
                "WATCHDOG_USEC",
                "After how long a silence the service manager restarts the broker, see sd_watchdog_enabled(3).",
            ),
            (
                "FDSTORE",
                "How many descriptors the service manager stores. If it is set, the broker stores its state \
                 at SIGTERM, and the next one goes on with it.",
            ),
        ],
        see_also: &["keeper", "status", "events"],
        ..Topic::EMPTY
    },
    Topic {
        command: "keeper",
        notes: &[
            "The keeper starts a broker that has died again, with a growing delay. If the broker gets SIGTERM, or the \
             keeper SIGUSR1, the broker leaves its connections with the keeper, and the next one goes on with \
             them.",
            "SIGINT and SIGTERM end the keeper and its broker. SIGHUP has the broker read its files again.",
        ],
        examples: &[
            ("hvsock keeper -- hvsock broker", "in place of systemd"),
            ("pkill -USR1 -f 'hvsock keeper'", "restart the broker"),
        ],
        see_also: &["broker", "upgrade"],
        ..Topic::EMPTY
    },
    Topic {
        command: "upgrade",
        notes: &[
            "The broker starts the program at the path that it was started from, with its own arguments, and \
             hands over its sockets and all that it knows. The new one checks its version, the configuration and \
             the state before it goes on. If anything fails, or takes longer than the limit, the running broker goes \
             on.",
            "In a unit of systemd, ExecReload=hvsock upgrade makes `systemctl reload` the upgrade.",
        ],
        examples: &[
            (
                "hvsock upgrade --dry-run",
                "whether it would work, and the standstill",
            ),
            ("hvsock upgrade", "after a new version was installed"),
        ],
        see_also: &["broker", "status"],
        ..Topic::EMPTY
    },
    Topic {
        command: "status",
        examples: &[
            ("hvsock status", ""),
            ("hvsock status --json | jq .partitions", "for programs"),
        ],
        see_also: &["connections", "events"],
        ..Topic::EMPTY
    },
    Topic {
        command: "events",
        notes: &[
            "Connections in an arena that end within a tenth of a second may be counted in one \
             event instead of having two each.",
        ],
        examples: &[
            ("hvsock events", ""),
            (
                "hvsock events --json | jq 'select(.event==\"refused\")'",
                "refusals",
            ),
        ],
        see_also: &["status", "connections", "audit"],
        ..Topic::EMPTY
    },
    Topic {
        command: "audit",
        notes: &[
            "Root and the broker's user see all records, any other user those about itself. The \
             broker keeps the newest 2048 of each kind: changes, the use of guests' services, and \
             other connections. Where the system has a journal, all of them are there, too: \
             journalctl SYSLOG_IDENTIFIER=hvsock",
            "What follows `says` is what the process says about itself, such as the command line. \
             Everything else is what the broker saw.",
        ],
        examples: &[
            ("hvsock audit --since 1h", "the last hour"),
            (
                "hvsock audit --user alice --action exec",
                "commands of alice",
            ),
            ("hvsock audit --partition web --failed", "what went wrong"),
            ("hvsock audit --follow --json", "for programs"),
        ],
        see_also: &["events", "connections", "broker"],
        ..Topic::EMPTY
    },
    Topic {
        command: "bench",
        notes: &[
            "hvsock and the Unix socket take turns. The ratio is computed for each turn, so that \
             it holds even if the machine's speed changes. Each figure is the median of all turns.",
        ],
        examples: &[
            ("hvsock bench", ""),
            (
                "hvsock bench --turns 21 --time 300 --json",
                "longer, for programs",
            ),
        ],
        see_also: &["demo"],
        ..Topic::EMPTY
    },
    Topic {
        command: "completions",
        notes: &[
            "In bash, zsh and fish, names of virtual machines, containers and services and ids of \
             connections are completed as well. The script runs `hvsock`, which must be in PATH, \
             at each Tab.",
            "Install the script where your shell loads completions, or load it from your shell's \
             startup file.",
        ],
        examples: &[
            ("source <(hvsock completions bash)", "in ~/.bashrc"),
            (
                "source <(hvsock completions zsh)",
                "in ~/.zshrc, after compinit",
            ),
            (
                "hvsock completions fish | source",
                "in ~/.config/fish/config.fish",
            ),
            (
                "eval (hvsock completions elvish | slurp)",
                "in ~/.config/elvish/rc.elv",
            ),
        ],
        see_also: &["man"],
        ..Topic::EMPTY
    },
    Topic {
        command: "man",
        examples: &[
            ("hvsock man | man -l -", "read the first page"),
            ("hvsock man --output ~/.local/share/man/man1", "install all"),
        ],
        see_also: &["completions"],
        ..Topic::EMPTY
    },
];
