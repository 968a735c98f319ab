//! Topics of the commands that make, explain and list connections.

use crate::help::Topic;

pub const TOPICS: &[Topic] = &[
    Topic {
        command: "listen",
        notes: &[
            "The command after -- has the connection as its standard input and output. Without \
             --keep, hvsock ends with the first connection.",
            "With --systemd the command is one that takes its socket from systemd: it starts with the \
             first connection and accepts from a listening Unix socket, descriptor 3. With \
             --systemd=accept each connection is descriptor 3 of a process of its own.",
            "With --connected-suspend (HVSOCKET_CONNECTED_SUSPEND) a pause suspends connections. \
             Without it a pause closes them.",
        ],
        examples: &[
            ("hvsock listen 'HV Socket Demo'", "one connection"),
            (
                "hvsock listen 'HV Socket Demo' --keep -- cat",
                "an echo service",
            ),
            (
                "hvsock listen nbd --keep --systemd -- nbdkit memory 1G",
                "a service of systemd",
            ),
            (
                "hvsock listen backup --from web -- tar -c /etc",
                "send files",
            ),
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
            (
                "HVSOCK_PEER_PID, HVSOCK_PEER_UID",
                "Set for the command: the peer's process and user, where they are known.",
            ),
        ],
        see_also: &["connect", "service register", "why"],
        ..Topic::EMPTY
    },
    Topic {
        command: "run",
        notes: &[
            "The program's sockets of AF_VSOCK and AF_HYPERV lead to the partitions that the broker \
             knows: in AF_VSOCK by their context ids, with 1 and on a host 2 for the host itself, \
             and in a container 2 for its parent. Its data does not pass through hvsock run. It \
             can be static, fork, and start other programs.",
            "A port that is not registered accepts connections of the own partition only. hvsock run \
             says so, and --register registers one while the program runs.",
            "The program and its descendants can gain no rights by executing programs, such as sudo.",
            "hvsock run forwards signals, takes the ends of orphans, and ends with the program's \
             status once no process is left whose sockets it serves.",
        ],
        examples: &[
            (
                "hvsock run socat - VSOCK-CONNECT:2:2761",
                "connect to the host",
            ),
            (
                "hvsock run --register disk nbdkit --vsock memory 1G",
                "serve",
            ),
        ],
        exit_status: &[
            (
                "126, 127",
                "The program cannot be executed; there is no such program.",
            ),
            ("128+N", "The signal N ended the program."),
            ("1", "hvsock run itself failed."),
            ("else", "That of the program."),
        ],
        see_also: &["forward", "listen", "service register"],
        ..Topic::EMPTY
    },
    Topic {
        command: "connect",
        notes: &[
            "A URL is hvsock://PARTITION/SERVICE.",
            "The end of standard input shuts down the sending half only. hvsock ends with status 0 \
             when the peer ends its half. If the broker closes the connection, hvsock prints the \
             reason and ends with status 1.",
            "With --connected-suspend (HVSOCKET_CONNECTED_SUSPEND) a pause suspends the connection. \
             Without it a pause closes the connection.",
        ],
        examples: &[
            ("echo hi | hvsock connect loopback 'HV Socket Demo'", ""),
            ("hvsock connect parent 2761", "from a guest or container"),
            ("hvsock connect hvsock://web/HV%20Socket%20Demo", "by URL"),
            (
                "hvsock connect web backup -- tar -x",
                "run tar on the connection",
            ),
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
            (
                "hvsock why parent backup --from web",
                "for a process in web",
            ),
        ],
        exit_status: &[
            ("0", "The connect or listen would succeed."),
            ("1", "It would be refused, or the explanation failed."),
            ("2", "Wrong usage."),
        ],
        see_also: &["connect", "listen", "service show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "connections",
        notes: &[
            "The transport `arena N` is memory that two processes share: they open and close \
             connections in it without asking the broker for each. Those with the same N share it; \
             each is closed by itself. With `arena` and `ring`, the bytes are what the ends report.",
        ],
        examples: &[
            ("hvsock connections", ""),
            (
                "hvsock connections --json | jq -r '.[].id'",
                "ids for programs",
            ),
            ("hvsock connections close 12", "close one"),
        ],
        see_also: &["status", "events"],
        ..Topic::EMPTY
    },
    Topic {
        command: "connections close",
        notes: &["Both ends see a reset (ECONNRESET)."],
        examples: &[("hvsock connections close 12", "")],
        see_also: &["service disable"],
        ..Topic::EMPTY
    },
];
