//! The core thread. It owns the endpoints, the sessions and the fabric, so a verdict and its effects
//! happen in one step.
//!
//! The event loop waits for sockets, for reports of the data threads, and for calls of a
//! [`Handle`](crate::Handle). A call is a closure that runs on this thread with `&mut Core`, so each
//! call sees a consistent state and needs no message protocol. Callers do blocking work (files, user
//! lookups) before they call.
//!
//! Each part of the state has an owner, which keeps its tables consistent and knows none of the
//! others. The first group makes no system call:
//!
//! - [`sessions`]: clients that are not connections yet, listen, or hold a lease;
//! - [`listeners`], [`leases`], [`connections`]: what became of them;
//! - [`arenas`]: pairs of processes that open connections by themselves, and what was seen of those;
//! - [`stored`]: origins of what the stores of registrations hold; [`problems`]: what does not work;
//! - [`containers`]: which containers of runtimes they are, and their run state;
//! - [`left_folders`]: the folders of removed containers; [`devices`]: the CDI devices of containers;
//! - [`vms`]: the run state and CIDs of VMs; [`uplinks`]: the brokers in their guests;
//! - [`liveness`]: heartbeats of guests;
//! - [`offers`]: connections that wait for their listener; [`parked`]: connects that wait for processes
//!   to read what was sent to them ([`in_flight`]);
//! - [`outer`]: the host of this virtual machine, if it is one, with the requests that wait for it
//!   ([`outer_waits`], [`outer_held`]);
//! - [`telemetry`]: events, and [`counters`] for metrics;
//! - [`endpoints`]: the sockets that clients connect to; [`session_io`]: I/O on their sessions;
//! - [`data_threads`]: the threads that own connections between processes, with the descriptors of
//!   [`resources`] by the transport that [`preference`] selects; [`reports`]: what they report.
//!
//! The tables can be [handed over](hand_over) to another process while everything is [frozen](freeze), which
//! [resumes](resume) them, and handles the [requests that waited](waiting_requests) again
//! ([`replays`]).
//!
//! [`state`] composes them to the `Core`, [`event_loop`] drives it. The methods of `Core` coordinate
//! the owners:
//!
//! - [`clients`]: accepts clients, reads their messages, closes their sessions;
//! - [`attach_requests`]: connects sockets that processes bring themselves, of [`attachments`], some of which are
//!   [`attaching`];
//! - [`requests`]: handles the messages; [`cid_requests`]: those about context ids, of [`cids`];
//! - [`connect`]: connects two sessions; [`offering`]: passes a listener its connections; [`guests`]: requests of the guests of VMs, and what their
//!   links report; [`guest_connects`]: connects to guests, which are [`pending`] until the guest
//!   accepts; [`guest_ends`]: both ends of such connections;
//! - [`uplink_server`]: serves guests at the host's port for the broker itself; [`uplink_sessions`]: brokers in
//!   guests, with their containers ([`uplink_children`]), the connects to and from these
//!   ([`uplink_connects`]), what they know of the host ([`uplink_mirror`]), and what they add to
//!   explanations ([`uplink_explanations`]);
//! - [`hybrid_server`]: connects processes that know only hybrid vsock, with [`hybrid_answers`];
//! - [`text_server`]: serves the text protocol, with [`text_accepts`] for its [listeners](text_listeners) and
//!   [`text_answers`]; [`line_requests`]: reads the lines of both;
//! - [`arena_connects`]: grants an arena in place of a connection; [`arena_scans`]: reads what a pair did in
//!   it; [`arena_grants`]: judges the grants again, and closes and suspends what is in it; [`arena_handover`]:
//!   goes on with those of a broker before this one;
//! - [`share_refusals`]: refuses what a share does not allow;
//! - [`effects`]: applies the fabric's effects and the data threads' reports;
//! - [`outer_events`]: what the host says; [`outer_partitions`]: what it is told; [`outer_requests`]: requests that
//!   wait for it;
//! - [`links`]: which link reaches a partition;
//! - [`partitions`], [`partition_files`], [`registrations`]: the operator's changes;
//! - [`container_states`]: what is reported of containers;
//! - [`problem_reports`]: raises and clears problems, with their events; [`device_reports`]: what became of
//!   CDI devices;
//! - [`audit`]: records of who did what;
//! - [`view`]: snapshots for operators; [`labels`]: the names that they contain;
//! - [`guest_reports`]: entry points of guests' reports.
//! - [`guest_shares`]: how a VM's connections share its buffer bytes.

mod arena_connects;
mod arena_grants;
mod arena_handover;
mod arena_scans;
mod arenas;
mod attach_requests;
mod attaching;
mod attachments;
mod audit;
mod cid_requests;
mod cids;
mod clients;
mod connect;
mod connection_handover;
mod connections;
mod container_states;
mod containers;
mod counters;
mod data_threads;
mod device_reports;
mod devices;
mod effects;
mod endpoints;
mod event_loop;
mod freeze;
mod gone_sessions;
mod guest_arenas;
mod guest_connects;
mod guest_ends;
mod guest_grants;
mod guest_reports;
mod guest_shares;
mod guests;
mod hand_over;
#[cfg(test)]
mod hand_over_tests;
mod host_ports;
mod hybrid_answers;
mod hybrid_server;
mod in_flight;
mod labels;
mod leases;
mod left_folders;
mod limits;
mod line_requests;
mod links;
mod listeners;
mod liveness;
mod offered_services;
mod offering;
mod offers;
mod outer;
mod outer_events;
mod outer_held;
mod outer_partitions;
mod outer_requests;
mod outer_waits;
mod parked;
mod partition_files;
mod partitions;
mod pending;
mod port_problems;
mod preference;
mod problem_reports;
mod problems;
mod registrations;
mod replays;
mod reports;
mod requests;
mod resources;
mod resume;
mod session_io;
mod sessions;
mod share_refusals;
#[cfg(test)]
mod snapshot_tests;
mod spare;
mod start_hints;
mod state;
mod stored;
mod telemetry;
mod text_accepts;
mod text_answers;
mod text_listeners;
mod text_server;
mod tokens;
mod uplink_children;
mod uplink_connects;
mod uplink_explanations;
mod uplink_hand_over;
mod uplink_mirror;
mod uplink_server;
mod uplink_sessions;
mod uplinks;
mod view;
mod vms;
mod waiting_requests;

pub(crate) use container_states::{BindFailure, BoundContainer, ToBind, UnboundContainer};
pub(crate) use containers::BindingNumber;
pub(crate) use event_loop::{CoreCall, CoreLink, Loop};
pub(crate) use freeze::HandOver;
pub(crate) use hand_over::CoreDocument;
pub(crate) use partitions::AddError;
pub(crate) use problem_reports::Watched;
pub(crate) use problems::Wakeup;
pub(crate) use state::Core;
pub(crate) use uplink_explanations::{AskedGuest, GUEST_TIMEOUT};
