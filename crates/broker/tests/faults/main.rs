//! Bad input and faults, end to end: what processes, operators, disks and the system can do to a
//! broker, and what everybody else then sees. Where a broker has to be killed, or its descriptors
//! counted, it is a process of its own ([`part`]).

mod containers;
mod crowds;
mod cuts;
mod deaths;
mod descriptors;
mod files;
mod folders;
mod leases;
mod limits;
mod listeners;
mod messages;
mod part;
mod pauses;
mod raw;
mod rings;
mod vms;
mod world;
