//! Hostile input and faults, end to end. Covers malformed messages, floods, full tables, killed and
//! stopped processes, withdrawn services, pauses, full disks, invalid files and exhausted
//! descriptors. Each test also checks that other connections are unaffected. A test that kills a
//! broker or counts its descriptors runs it as a child process ([`child`]).

mod arena_changes;
mod arenas;
mod attached;
mod audit;
mod bindings;
mod cdi;
mod child;
mod cids;
mod closed;
mod containers;
mod deaths;
mod descriptors;
mod direct;
mod files;
mod floods;
mod folders;
mod leases;
mod limits;
mod listeners;
mod messages;
mod offers;
mod other_stores;
mod partition_files;
mod pauses;
mod raw;
mod rings;
mod shares;
mod text;
mod text_listeners;
mod vms;
