//! Topics of `hvsock container`.

use crate::help::Topic;

pub const TOPICS: &[Topic] = &[
    Topic {
        command: "container",
        examples: &[
            ("podman run $(hvsock container add web) IMAGE", ""),
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
            "The line of output is an option for podman and docker: --device with the container's CDI device, or \
             --mount where engines do not look for such devices.",
            "If the command fails and its output is not a terminal, it prints an option that no engine has. So \
             `podman run $(hvsock container add web) IMAGE` starts nothing without the mount.",
            "With --if-absent, a container that exists with the same settings is as good as a new one.",
            "With --unmodified, the output is a seccomp profile for a file, and stderr says how to use it. It has the rules of \
             the container's own profile (--seccomp-base), and those by which the broker answers calls on sockets of \
             AF_VSOCK and AF_HYPERV.",
        ],
        examples: &[
            ("hvsock container add web", "print its option"),
            (
                "hvsock container add db --group backend",
                "in a sibling group",
            ),
            ("podman run $(hvsock container add web) IMAGE", ""),
            (
                "hvsock -q container add web --format oci",
                "for the config.json of runc",
            ),
            (
                "hvsock container add web --unmodified > web.json",
                "for unmodified programs",
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
            ("podman run $(hvsock container show web --mount) IMAGE", ""),
            (
                "hvsock container show web --mount --format kubernetes",
                "parts of a Pod",
            ),
            (
                "hvsock container show web --seccomp-profile > web.json",
                "the seccomp profile",
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
            (
                "hvsock container wait web --for exited",
                "until it has ended",
            ),
        ],
        see_also: &["exec"],
        ..Topic::EMPTY
    },
    Topic {
        command: "nri",
        notes: &[
            "A container or Pod with the annotation or label hvsock.dev/name gets the endpoint of this partition, which \
             is added for it and removed with it (hvsock.dev/ephemeral: \"false\": not removed). \
             hvsock.dev/container.NAME names one container of a Pod, hvsock.dev/groups the sibling groups.",
            "In a name, {namespace}, {pod}, {uid}, {container} and {id} are replaced.",
            "If the runtime starts this program itself, the variables NRI_PLUGIN_SOCKET, NRI_PLUGIN_NAME and \
             NRI_PLUGIN_IDX take the place of --socket and --index.",
        ],
        examples: &[
            ("hvsock nri", "beside the machine's broker"),
            ("hvsock nri --namespace prod --prefix web-", ""),
        ],
        see_also: &["oci-hook", "container add"],
        ..Topic::EMPTY
    },
    Topic {
        command: "seccomp-agent",
        notes: &[
            "A container's runtime gives the listener of its seccomp filter to this agent, which answers the calls on \
             sockets of AF_VSOCK and AF_HYPERV. The profile says so: `hvsock container add NAME --unmodified`.",
            "A broker is the agent itself, unless it was started with --no-seccomp-agent.",
            "For each process that a runtime starts there is a process that answers. It runs on when this one ends, since \
             no socket of the container would work without it.",
        ],
        examples: &[(
            "hvsock seccomp-agent",
            "beside `hvsock broker --no-seccomp-agent`",
        )],
        see_also: &["container add", "broker"],
        ..Topic::EMPTY
    },
    Topic {
        command: "oci-hook",
        notes: &[
            "A container runtime runs these hooks and gives them the container's state on standard \
             input. Each ends within 2 seconds.",
            "With them the state of a container is known: running, paused by its runtime, exited. A \
             container without hooks has the state unknown, and can be used all the same.",
            "Who runs a hook must be an operator of the broker: root or its user.",
        ],
        examples: &[(
            "runc state c1 | hvsock oci-hook create-runtime --name web",
            "by hand",
        )],
        see_also: &["container show", "container wait"],
        ..Topic::EMPTY
    },
    Topic {
        command: "oci-hook create-runtime",
        notes: &[
            "The hook fails, and so the container does not start, if another container that runs has \
             the place, and by default also if no broker answers.",
            "With --annotation, a container that has the annotation hvsock.dev/name is added for the \
             time that it runs, in the sibling groups of the annotation hvsock.dev/groups (a,b).",
        ],
        examples: &[(
            "hvsock oci-hook create-runtime --name web",
            "a hook's path and args",
        )],
        see_also: &["oci-hook poststop", "container add"],
        ..Topic::EMPTY
    },
    Topic {
        command: "oci-hook poststop",
        examples: &[(
            "hvsock oci-hook poststop --name web",
            "a hook's path and args",
        )],
        see_also: &["oci-hook create-runtime"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container oci-hooks",
        notes: &[
            "Who sets annotations chooses the partition's name. On Kubernetes that is every author of \
             a pod. So an annotation adds a container and takes none that an operator has added, \
             unless --existing is given.",
        ],
        examples: &[
            ("hvsock container oci-hooks install", "for podman and CRI-O"),
            (
                "podman run --annotation hvsock.dev/name=job IMAGE",
                "a container that has it",
            ),
        ],
        see_also: &["oci-hook create-runtime"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container oci-hooks install",
        examples: &[
            ("hvsock container oci-hooks install", "for podman and CRI-O"),
            (
                "hvsock container oci-hooks install --prefix pod-",
                "only names like pod-1",
            ),
        ],
        see_also: &["container oci-hooks show"],
        ..Topic::EMPTY
    },
    Topic {
        command: "container oci-hooks show",
        examples: &[("hvsock container oci-hooks show", "what install writes")],
        see_also: &["container oci-hooks install"],
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
];
