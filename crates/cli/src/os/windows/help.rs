//! Notes, examples, environment variables and exit statuses of the commands, for PowerShell.
//!
//! Windows' own tar is bsdtar. Its default archive is a tape, hence `-f -`. PowerShell before 7.4
//! converts the data of a pipe to text
//! (learn.microsoft.com/powershell/scripting/learn/experimental-features,
//! `PSNativeCommandPreserveBytePipe`).

use crate::help::Topic;

/// The environment variables that every command reads.
pub const ENVIRONMENT: &[(&str, &str)] = &[("NO_COLOR", "Turns colours off.")];

/// The exit statuses of a command that has none of its own.
pub const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "The command succeeded."),
    ("1", "The operation was refused or failed."),
    ("2", "Wrong usage."),
];

const NO_ACCESS_RULES: &str = "Windows keeps access rules with each virtual machine, as security \
                               descriptors of Hyper-V. This command refuses to change them.";
const ADMINISTRATOR: &str = "This needs the rights of an administrator.";
const BINARY_PIPES: &str = "In PowerShell before 7.4, a pipe or > changes binary data. In cmd they \
                            do not.";

/// One topic for each command.
pub const TOPICS: &[&[Topic]] = &[ALL];

const ALL: &[Topic] = &[
    Topic {
        command: "",
        notes: &[
            "Windows itself is the broker: services are in its registry, and virtual machines are \
             Hyper-V's. The commands that need a broker (demo, broker, container, connections, \
             events, bench) or the agent in a guest (exec, shell, cp, forward, ssh, nc, kvp) exist \
             on Linux only.",
        ],
        examples: &[
            (
                "hvsock service register 'HV Socket Demo'",
                "as administrator",
            ),
            ("hvsock vm list", "see the virtual machines"),
            (
                "hvsock listen 'HV Socket Demo' --from web",
                "offer it to web",
            ),
            ("hvsock connect web 'HV Socket Demo'", "use what web offers"),
            ("hvsock why web 'HV Socket Demo'", "explain a refusal"),
        ],
        see_also: &["service", "vm", "listen", "connect"],
        ..Topic::EMPTY
    },
    Topic {
        command: "status",
        examples: &[("hvsock status", "")],
        see_also: &["vm list", "service list"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service",
        notes: &[
            "Services are keys in the registry, under HKLM\\SOFTWARE\\Microsoft\\Windows \
             NT\\CurrentVersion\\Virtualization\\GuestCommunicationServices. Changing them \
             needs the rights of an administrator.",
            "A service that is disabled for all is moved to another key, because Windows cannot \
             store that. A service that is disabled for one virtual machine has a policy of \
             Hyper-V.",
        ],
        examples: &[
            (
                "hvsock service register 'HV Socket Demo'",
                "allow a service",
            ),
            (
                "hvsock service disable backup --vm 'Windows 11'",
                "for one VM",
            ),
            (
                "hvsock service export --reg --output services.reg",
                "for a copy",
            ),
        ],
        see_also: &["listen", "connect", "why"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service register",
        notes: &[ADMINISTRATOR],
        examples: &[
            (
                "$id = hvsock service register 'HV Socket Demo'",
                "keep its GUID",
            ),
            ("hvsock service register Demo --clip", "copy its GUID"),
            (
                "hvsock service register backup --port 2761",
                "with vsock port 2761",
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
            ("hvsock service list --all", "with those of Windows"),
        ],
        see_also: &["service show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service show",
        examples: &[("hvsock service show 'HV Socket Demo'", "")],
        see_also: &["service list", "why"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service enable",
        notes: &[ADMINISTRATOR],
        examples: &[
            ("hvsock service enable backup", "for all"),
            (
                "hvsock service enable backup --vm 'Windows 11'",
                "for one VM",
            ),
        ],
        see_also: &["service disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service disable",
        notes: &[ADMINISTRATOR],
        examples: &[
            ("hvsock service disable backup", "for all"),
            (
                "hvsock service disable backup --vm 'Windows 11'",
                "for one VM",
            ),
        ],
        see_also: &["service enable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service allow",
        notes: &[NO_ACCESS_RULES],
        examples: &[("hvsock service allow backup --user alice", "on Linux")],
        see_also: &["service disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service deny",
        notes: &[NO_ACCESS_RULES],
        examples: &[("hvsock service deny backup --user alice", "on Linux")],
        see_also: &["service disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service reset",
        notes: &[NO_ACCESS_RULES],
        examples: &[("hvsock service reset backup", "on Linux")],
        see_also: &["service disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service transport",
        notes: &["Windows chooses the transport of every connection."],
        examples: &[("hvsock service transport backup direct", "on Linux")],
        ..Topic::EMPTY
    },
    Topic {
        command: "service unregister",
        notes: &[ADMINISTRATOR],
        examples: &[("hvsock service unregister 'HV Socket Demo'", "")],
        see_also: &["service register", "service disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service export",
        examples: &[
            ("hvsock service export --output services.json", ""),
            (
                "hvsock service export --reg --output services.reg",
                "for reg import",
            ),
        ],
        see_also: &["service import"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service import",
        notes: &[
            "Either all services of the file are registered, or none. The services that a .reg \
             file deletes are removed first, also if the registration then fails.",
            ADMINISTRATOR,
        ],
        examples: &[("hvsock service import services.json", "")],
        see_also: &["service export"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm",
        notes: &[
            "A virtual machine is found by its GUID, by its name in Hyper-V, or by its name as a \
             partition, which `hvsock vm list` shows. The virtual machine of WSL is listed while it \
             runs. Hyper-V adds and removes virtual machines.",
        ],
        examples: &[
            ("hvsock vm list", ""),
            ("hvsock vm id 'Windows 11'", ""),
            ("hvsock connect web 'HV Socket Demo'", "use a service in it"),
        ],
        see_also: &["status"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm list",
        examples: &[("hvsock vm list", "")],
        see_also: &["vm show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm id",
        examples: &[("hvsock vm id 'Windows 11'", "")],
        see_also: &["vm show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm show",
        examples: &[("hvsock vm show 'Windows 11'", "")],
        see_also: &["vm list"],
        ..Topic::EMPTY
    },
    Topic {
        command: "listen",
        notes: &[
            "The command after -- has the connection as its standard input and output. Without \
             --keep, hvsock ends with the first connection.",
            BINARY_PIPES,
        ],
        examples: &[
            ("hvsock listen 'HV Socket Demo'", "one connection"),
            (
                "hvsock listen clock --keep -- cmd /c time /t",
                "the time for each",
            ),
            ("hvsock listen backup --from web -- tar -cf - C:\\Data", ""),
            (
                "hvsock listen 2761 --from web > received",
                "store what web sends",
            ),
        ],
        environment: &[
            (
                "HVSOCK_SERVICE",
                "Set for the command: the service as given.",
            ),
            (
                "HVSOCK_CONNECTION",
                "Set for the command: the id of the connection.",
            ),
            (
                "HVSOCK_PEER_PARTITION",
                "Set for the command: the peer's partition.",
            ),
            (
                "HVSOCK_PEER_VM_ID",
                "Set for the command: the GUID of that partition.",
            ),
        ],
        see_also: &["connect", "service register", "why"],
        ..Topic::EMPTY
    },
    Topic {
        command: "connect",
        notes: &[
            "A URL is hvsock://PARTITION/SERVICE.",
            "The end of standard input shuts down the sending half only. hvsock ends with status 0 \
             when the peer ends its half. If the connection is reset, hvsock prints the reason and \
             ends with status 1.",
            BINARY_PIPES,
        ],
        examples: &[
            ("echo hi | hvsock connect loopback 'HV Socket Demo'", ""),
            ("hvsock connect parent 2761", "from a virtual machine"),
            ("hvsock connect 'Windows 11' 2761", "by its name in Hyper-V"),
            ("hvsock connect hvsock://web/HV%20Socket%20Demo", "by URL"),
            ("hvsock connect web backup -- tar -xf -", "run tar on it"),
        ],
        environment: &[(
            "HVSOCK_SERVICE",
            "Set for the command: the service as given.",
        )],
        see_also: &["listen", "why"],
        ..Topic::EMPTY
    },
    Topic {
        command: "why",
        examples: &[
            ("hvsock why parent 'HV Socket Demo'", "for this process"),
            (
                "hvsock why web backup --listen",
                "a listen instead of a connect",
            ),
        ],
        exit_status: &[
            ("0", "Nothing prevents the connect or listen."),
            ("1", "It would be refused, or the explanation failed."),
            ("2", "Wrong usage."),
        ],
        see_also: &["connect", "listen", "service show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "completions",
        examples: &[
            ("hvsock completions powershell >> $PROFILE", ""),
            (
                "hvsock completions powershell | Out-String | iex",
                "in this shell only",
            ),
        ],
        see_also: &["man"],
        ..Topic::EMPTY
    },
    Topic {
        command: "man",
        examples: &[("hvsock man --output man", "write all pages")],
        see_also: &["completions"],
        ..Topic::EMPTY
    },
];
