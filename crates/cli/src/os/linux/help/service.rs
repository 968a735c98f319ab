//! Topics of `hvsock service`.

use crate::help::Topic;

pub const TOPICS: &[Topic] = &[
    Topic {
        command: "service",
        notes: &["Partitions can use a service only after it is registered on the host."],
        examples: &[
            (
                "hvsock service register 'HV Socket Demo'",
                "allow a service",
            ),
            (
                "hvsock service disable backup --vm web",
                "for one virtual machine",
            ),
            ("hvsock service export --reg > services.reg", "for Windows"),
        ],
        see_also: &["listen", "connect", "why"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service register",
        examples: &[
            (
                "id=$(hvsock service register 'HV Socket Demo')",
                "keep its GUID",
            ),
            (
                "hvsock service register backup --port 2761",
                "with vsock port 2761",
            ),
            (
                "hvsock service register ci --partition @ci",
                "for the group ci",
            ),
            ("hvsock service register trial --lease", "until Ctrl-C"),
        ],
        see_also: &["service unregister", "service show", "listen"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service list",
        examples: &[
            ("hvsock service list", ""),
            ("hvsock service list --all", "with built-in services"),
            (
                "hvsock service list --json | jq -r '.[].name'",
                "names for programs",
            ),
        ],
        see_also: &["service show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service show",
        examples: &[
            ("hvsock service show 'HV Socket Demo'", "by name"),
            ("hvsock service show 2761", "by vsock port"),
        ],
        see_also: &["service list", "why"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service enable",
        examples: &[
            ("hvsock service enable backup", "for all"),
            (
                "hvsock service enable backup --vm web",
                "for web, as for all",
            ),
            (
                "hvsock service enable backup --vm web --override",
                "an exception",
            ),
        ],
        notes: &[
            "Enabled for one partition, a service has no setting for that partition any more and \
             follows what holds for all.",
        ],
        see_also: &["service disable", "vm integration"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service disable",
        notes: &[
            "New listens and connects are refused. Existing listeners and connections are closed.",
            "Partitions for which it was enabled as an exception are listed and stay so, unless \
             --everywhere is given.",
        ],
        examples: &[
            ("hvsock service disable backup", "for every partition"),
            (
                "hvsock service disable backup --everywhere",
                "without exceptions",
            ),
            ("hvsock service disable backup --vm web", "for web only"),
        ],
        see_also: &["service enable", "vm integration"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service allow",
        notes: &[
            "Root, the broker's own user and the members of its group of operators may always \
             connect and listen. Whoever may connect to `hvsock session`, `hvsock copy` or `hvsock \
             forward` is root in the guest.",
        ],
        examples: &[
            (
                "hvsock service allow 'hvsock session' --user alice",
                "for hvsock exec",
            ),
            (
                "hvsock service allow 'hvsock copy' --group ops --vm web",
                "for web only",
            ),
            (
                "hvsock service allow backup --bind --user backup",
                "who may listen",
            ),
        ],
        see_also: &["service deny", "service reset", "service show", "why"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service deny",
        notes: &["Connections that exist stay open."],
        examples: &[
            (
                "hvsock service deny 'hvsock session' --user alice",
                "undo allow",
            ),
            ("hvsock service deny backup --user '*'", "no user at all"),
        ],
        see_also: &["service allow", "service reset", "service disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service reset",
        notes: &["Whether the service is enabled, and its transport, do not change."],
        examples: &[
            ("hvsock service reset 'hvsock session'", "all rules"),
            (
                "hvsock service reset 'hvsock session' --vm web",
                "those for web",
            ),
        ],
        see_also: &["service allow", "service show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service transport",
        notes: &[
            "Connections that exist stay as they are. With `direct`, both processes get the ends of one \
             socket pair: its bytes are not counted, and a pause closes the connection. Connections with \
             guests are never direct.",
        ],
        examples: &[
            ("hvsock service transport backup direct", ""),
            (
                "hvsock service transport backup auto --vm web",
                "but not with web",
            ),
            (
                "hvsock service transport backup inherit",
                "as defaults.toml says",
            ),
        ],
        see_also: &["service register", "service show", "connections"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service unregister",
        examples: &[("hvsock service unregister 'HV Socket Demo'", "")],
        see_also: &["service register", "service disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service export",
        examples: &[
            (
                "hvsock service export > services.json",
                "for another Linux machine",
            ),
            ("hvsock service export --reg > services.reg", "for Windows"),
        ],
        see_also: &["service import"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service import",
        notes: &[
            "Either all services of the file are registered, or none. The services that a .reg \
             file deletes are removed first, also if the registration then fails.",
        ],
        examples: &[
            ("hvsock service import services.json", ""),
            (
                "ssh other hvsock service export | hvsock service import -",
                "",
            ),
        ],
        see_also: &["service export"],
        ..Topic::EMPTY
    },
];
