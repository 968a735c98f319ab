//! Notes, examples, environment variables and exit statuses of the commands, for Linux shells: a file for
//! each group of commands.

mod connection;
mod container;
mod general;
mod guest;
mod service;
mod vm;

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

/// One topic for each command, by group.
pub const TOPICS: &[&[Topic]] = &[
    general::TOPICS,
    service::TOPICS,
    vm::TOPICS,
    container::TOPICS,
    guest::TOPICS,
    connection::TOPICS,
];
