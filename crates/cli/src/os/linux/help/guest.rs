//! Topics of the commands that use the agent in a guest.

use crate::help::Topic;

pub const TOPICS: &[Topic] = &[
    Topic {
        command: "exec",
        notes: &[
            "Standard output and standard error stay separate, except with -t.",
            "SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on. The third signal \
             that should end the command closes the session, and so does ~. at the start of a line \
             with -t. When the session closes, the guest ends the command and all processes that \
             descend from it.",
            "If standard input cannot be read, the guest ends the command, which sees no end of \
             its input.",
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
            "A path in a guest is NAME:PATH, in a container in the VM web it is web/NAME:PATH. A \
             relative PATH begins at the root. Write ./a:b or ./a/b:c for a local file whose name \
             contains a colon.",
            "- is standard input as the source and standard output as the destination. Write ./- \
             for a file of this name.",
            "A file gets its name after all of it has arrived with the right checksum. Until then \
             it is .NAME.hvsock.part in the same folder. Sparse files stay sparse.",
            "A file that is overwritten keeps its mode, owner and attributes, unless -p or -a is \
             given. A named device, pipe or symbolic link is written to or through. A file that \
             cannot be replaced, such as a mounted one, is overwritten in place.",
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
            ("hvsock cp web:/etc/os-release -", "print a file"),
            ("date | hvsock cp - web:/tmp/now", "from standard input"),
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
            "With --fd-pass the connection's descriptor is sent over standard output, which must be a \
             Unix socket, as ssh expects it from a ProxyCommand with ProxyUseFdpass=yes. The \
             descriptor of a service is the connection itself; for a socket in a guest a process \
             stays and copies.",
        ],
        examples: &[
            ("hvsock nc web tcp:80", ""),
            ("hvsock nc web unix:/run/app.sock </dev/null", ""),
        ],
        see_also: &["forward", "ssh"],
        ..Topic::EMPTY
    },
    Topic {
        command: "ssh",
        notes: &[
            "The command runs ssh with `hvsock nc VM ssh` as its ProxyCommand. That reaches the \
             guest's SSH server wherever it listens, or starts an sshd. All other arguments are \
             ssh's, so a program that calls ssh (rsync, git) can call `hvsock ssh`.",
            "For ssh the VM's name is hvsock/VM/ssh. A `Host` block for a machine of the network \
             with the same name does not apply to it; `Host hvsock/*` does, and a pattern with * at \
             both ends, such as `*web*`. No control socket is used unless -S or -o ControlPath \
             names one, and no KnownHostsCommand or GlobalKnownHostsFile unless -o names it.",
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
