//! Notes, examples, environment variables and exit statuses of the commands, for Linux shells.

use crate::help::Topic;

/// The environment variables that every command reads.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("HVSOCK_DIR", "The broker's folder. --dir overrides it."),
    (
        "HVSOCK_ENDPOINT",
        "The endpoint socket through which this process reaches services. `vsock` selects the \
         kernel's AF_VSOCK, the default in a virtual machine without a broker.",
    ),
    ("NO_COLOR", "Turns colours off."),
];

/// The exit statuses of a command that has none of its own.
pub const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "The command succeeded."),
    ("1", "The operation was refused or failed."),
    ("2", "Wrong usage."),
];

/// One topic for each command.
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
            "With --vm the second partition is a Linux guest under QEMU, which reaches the broker \
             through a virtio-vsock device. This takes about 30 seconds and no KVM. It needs \
             packages: on Debian, apt-get install qemu-system-x86 linux-image-cloud-amd64 \
             busybox-static.",
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
                "NOTIFY_SOCKET",
                "The socket of the service manager, see sd_notify(3).",
            ),
        ],
        see_also: &["status", "events"],
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
            ("hvsock service enable backup", "for every partition"),
            ("hvsock service enable backup --vm web", "for web only"),
        ],
        see_also: &["service disable", "vm integration"],
        ..Topic::EMPTY
    },
    Topic {
        command: "service disable",
        notes: &[
            "New listens and connects are refused. Existing listeners and connections are closed.",
        ],
        examples: &[
            ("hvsock service disable backup", "for every partition"),
            ("hvsock service disable backup --vm web", "for web only"),
        ],
        see_also: &["service enable", "vm integration"],
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
    Topic {
        command: "vm",
        examples: &[
            ("hvsock vm add web --cid 42", "make a partition for it"),
            (
                "qemu-system-x86_64 $(hvsock vm show web --memory 2G)",
                "start it",
            ),
            ("sudo hvsock vm add db --libvirt", "print XML for libvirt"),
            ("hvsock connect web 'HV Socket Demo'", "use a service in it"),
        ],
        see_also: &["container", "exec", "kvp"],
        ..Topic::EMPTY
    },
    Topic {
        command: "vm add",
        notes: &[
            "The command prints the options to add to QEMU's command line, or with --libvirt the \
             XML to add to the domain.",
        ],
        examples: &[
            ("hvsock vm add web --cid 42", "print QEMU's options"),
            (
                "hvsock vm add db --user libvirt-qemu --libvirt",
                "print XML for libvirt",
            ),
            ("hvsock vm add ci --group build", "in a sibling group"),
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
            ("hvsock vm show web --libvirt", "XML for its domain"),
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
    Topic {
        command: "container",
        examples: &[
            (
                "podman run $(hvsock -q container add web | head -1) IMAGE",
                "",
            ),
            (
                "hvsock container add db --group backend",
                "in a sibling group",
            ),
            ("hvsock connect web 'HV Socket Demo'", "use a service in it"),
        ],
        see_also: &["vm", "exec"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container add",
        notes: &[
            "The first line of output is the --mount option for podman and docker. The second is \
             the `mounts` entry of an OCI runtime's config.json.",
        ],
        examples: &[
            ("hvsock container add web", "print its mount"),
            (
                "hvsock container add db --group backend",
                "in a sibling group",
            ),
            (
                "podman run $(hvsock -q container add web | head -1) IMAGE",
                "",
            ),
        ],
        see_also: &["container show", "container remove"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container list",
        examples: &[
            ("hvsock container list", ""),
            (
                "hvsock container list --json | jq -r '.[].name'",
                "names for programs",
            ),
        ],
        see_also: &["container show", "status"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container id",
        examples: &[("id=$(hvsock container id web)", "")],
        see_also: &["container show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container show",
        examples: &[
            ("hvsock container show web", "everything about it"),
            (
                "hvsock container show web --json | jq -r .mount",
                "its mount option",
            ),
        ],
        see_also: &["container list", "container add"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container wait",
        examples: &[
            (
                "hvsock container wait web && hvsock exec web -- id",
                "until it is ready",
            ),
            (
                "hvsock container wait web --for agent --timeout 60",
                "at most a minute",
            ),
        ],
        see_also: &["exec"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container pause",
        notes: &[
            "Only the traffic of hvsock is paused. The container's processes run on.",
            "Connections with HVSOCKET_CONNECTED_SUSPEND (`connect --connected-suspend`, `listen \
             --connected-suspend`) are suspended. All others are closed.",
        ],
        examples: &[("hvsock container pause web", "")],
        see_also: &["container resume"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container resume",
        examples: &[("hvsock container resume web", "")],
        see_also: &["container pause"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container groups",
        notes: &["Partitions of one sibling group can reach each other."],
        examples: &[
            (
                "hvsock container groups web build backend",
                "in exactly these groups",
            ),
            ("hvsock container groups web", "in none"),
        ],
        see_also: &["container show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container remove",
        examples: &[("hvsock container remove web", "")],
        see_also: &["container add"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container integration",
        notes: &[
            "A disabled service is refused, and its connections are closed. This is for one guest. \
             `hvsock service disable` without --vm disables a service for all.",
        ],
        examples: &[
            ("hvsock container integration web", "list the services"),
            (
                "hvsock container integration web disable session",
                "forbid exec",
            ),
            (
                "hvsock container integration web enable session",
                "allow exec",
            ),
        ],
        see_also: &["service disable", "exec", "cp"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container integration enable",
        examples: &[("hvsock container integration web enable session", "")],
        see_also: &["container integration disable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container integration disable",
        examples: &[("hvsock container integration web disable session", "")],
        see_also: &["container integration enable"],
        ..Topic::EMPTY
    },
    Topic {
        command: "exec",
        notes: &[
            "Standard output and standard error stay separate, except with -t.",
            "SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on. The third signal \
             that should end the command closes the session, and so does ~. at the start of a line \
             with -t. When the session closes, the guest ends the command and its child processes.",
        ],
        examples: &[
            ("hvsock exec web -- uname -a", ""),
            ("hvsock exec web -it -- top", "with a terminal"),
            ("hvsock exec web -u postgres -- pg_dump shop > shop.sql", ""),
            (
                "hvsock exec web -i -- tar -x -C /srv < site.tar",
                "with input",
            ),
        ],
        exit_status: EXEC_STATUS,
        see_also: &["shell", "cp", "ssh"],
        ..Topic::EMPTY
    },
    Topic {
        command: "shell",
        notes: &[
            "This is the user's login shell. Type ~. at the start of a line to leave a shell that \
             does not answer.",
        ],
        examples: &[
            ("hvsock shell web", ""),
            ("hvsock shell web -u alice", "as another user"),
            ("hvsock shell web < script", "run a script"),
        ],
        exit_status: EXEC_STATUS,
        see_also: &["exec", "ssh"],
        ..Topic::EMPTY
    },
    Topic {
        command: "cp",
        notes: &[
            "A path in a guest is NAME:PATH. A relative PATH begins at the root. Write ./a:b for a \
             local file whose name contains a colon.",
            "A file gets its name after all of it has arrived with the right checksum. Until then \
             it is .NAME.hvsock.part in the same folder. Sparse files stay sparse. Devices, \
             sockets and pipes are not copied.",
        ],
        examples: &[
            ("hvsock cp app.conf web:/etc/", "into an existing folder"),
            ("hvsock cp app.conf web:/etc/new.conf", "under a new name"),
            (
                "hvsock cp -r site web:/var/www",
                "a folder with its contents",
            ),
            (
                "hvsock cp -r web:/var/log/. logs/",
                "only the contents of a folder",
            ),
            (
                "hvsock cp -a web:/home/alice /backup",
                "with times, modes and owners",
            ),
            (
                "hvsock cp disk.img web:/images/",
                "resume after an interruption",
            ),
        ],
        see_also: &["exec", "vm integration"],
        ..Topic::EMPTY
    },
    Topic {
        command: "forward",
        notes: &[
            "Each SIDE is [VM:]SOCKET, and exactly one side of each pair is in a virtual machine or \
             container. Connections to the first side are forwarded to the second.",
            "SOCKET is tcp:[HOST:]PORT or unix:PATH. A side of a guest to connect to may also be ssh \
             for its SSH server, or vsock:PORT or service:NAME for a service of hvsock. HOST \
             defaults to localhost. Port 0 selects a free port, which is printed.",
            "The command runs until Ctrl-C. Every user of this machine can connect to its TCP \
             ports. A Unix socket is only for the user who created it.",
        ],
        examples: &[
            ("hvsock forward tcp:8080 web:tcp:80", "its web server, here"),
            (
                "hvsock forward web:tcp:5432 tcp:db:5432",
                "a database, for it",
            ),
            ("hvsock forward unix:/tmp/kvp web:vsock:913", "a service"),
            (
                "hvsock forward tcp:0 web:tcp:80 tcp:0 web:ssh",
                "two at once",
            ),
        ],
        see_also: &["nc", "ssh"],
        ..Topic::EMPTY
    },
    Topic {
        command: "nc",
        notes: &[
            "SOCKET is tcp:[HOST:]PORT or unix:PATH as the guest sees it, ssh for the guest's SSH \
             server, or vsock:PORT or service:NAME for a service of hvsock.",
        ],
        examples: &[
            ("hvsock nc web tcp:80", ""),
            ("ssh -o ProxyCommand='hvsock nc web ssh' root@web", ""),
        ],
        see_also: &["forward", "ssh"],
        ..Topic::EMPTY
    },
    Topic {
        command: "ssh",
        notes: &[
            "The command runs ssh with `hvsock nc VM ssh` as its ProxyCommand. That reaches the \
             guest's SSH server wherever it listens, or starts an sshd. Arguments after VM are \
             passed to ssh.",
            "ssh stores the guest's host key under hvsock/ID, where ID is the GUID of the VM, and \
             accepts it the first time: the connection leads to the VM with this GUID, so no \
             other machine can intercept it. A key that changes is refused.",
        ],
        examples: &[
            ("hvsock ssh root@web", ""),
            (
                "hvsock ssh root@web -L 8080:localhost:80",
                "with an option of ssh",
            ),
            ("hvsock ssh web uname -a", "run a command"),
        ],
        exit_status: &[
            ("1", "ssh could not be started."),
            ("2", "Wrong usage."),
            ("other", "The exit status of ssh."),
        ],
        see_also: &["nc", "exec"],
        ..Topic::EMPTY
    },
    Topic {
        command: "kvp",
        notes: &[
            "There are the four pools of Hyper-V. The host's are `external`, which `set` and \
             `unset` change, and `auto-external`, facts about the host. The guest's are `guest`, \
             written by programs in it, and `auto`, facts about the guest such as its addresses.",
        ],
        examples: &[
            ("hvsock kvp list web", ""),
            (
                "hvsock kvp get web NetworkAddressIPv4",
                "an address of the guest",
            ),
            ("hvsock kvp set web role frontend", "a value for the guest"),
            ("hvsock kvp watch web --pool guest", "follow changes"),
        ],
        see_also: &["vm integration"],
        ..Topic::EMPTY
    },
    Topic {
        command: "kvp get",
        notes: &[
            "Without --pool the pools are searched in the order auto, guest, external, \
             auto-external.",
        ],
        examples: &[
            ("hvsock kvp get web NetworkAddressIPv4", ""),
            ("hvsock kvp get web role --pool external", "from one pool"),
        ],
        see_also: &["kvp list", "kvp set"],
        ..Topic::EMPTY
    },
    Topic {
        command: "kvp set",
        examples: &[("hvsock kvp set web role frontend", "")],
        see_also: &["kvp get", "kvp unset"],
        ..Topic::EMPTY
    },
    Topic {
        command: "kvp unset",
        examples: &[("hvsock kvp unset web role colour", "")],
        see_also: &["kvp set"],
        ..Topic::EMPTY
    },
    Topic {
        command: "kvp list",
        examples: &[
            ("hvsock kvp list web", ""),
            (
                "hvsock kvp list web --pool auto --json",
                "facts about the guest",
            ),
        ],
        see_also: &["kvp get", "kvp watch"],
        ..Topic::EMPTY
    },
    Topic {
        command: "kvp watch",
        examples: &[
            ("hvsock kvp watch web", ""),
            ("hvsock kvp watch web role --json", "one key, for programs"),
        ],
        see_also: &["kvp list"],
        ..Topic::EMPTY
    },
    Topic {
        command: "listen",
        notes: &[
            "The command after -- has the connection as its standard input and output. Without \
             --keep, hvsock ends with the first connection.",
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
    Topic {
        command: "events",
        examples: &[
            ("hvsock events", ""),
            (
                "hvsock events --json | jq 'select(.event==\"refused\")'",
                "refusals",
            ),
        ],
        see_also: &["status", "connections"],
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

/// The exit statuses of `exec` and `shell`, which docker exec and timeout share.
const EXEC_STATUS: &[(&str, &str)] = &[
    ("2", "Wrong usage."),
    ("124", "The time limit of --timeout is over."),
    (
        "125",
        "The command was not run, or its exit status is unknown.",
    ),
    ("126", "The command is not executable."),
    ("127", "The command was not found."),
    ("128+N", "Signal N ended the command."),
    ("other", "The exit status of the command."),
];
