//! The vhost-user device with the front ends of Cloud Hypervisor, crosvm, libkrun and OpenVMM: the test kit sends
//! their messages, in their order, as their sources have them. None of these programs runs. The guest is the test
//! kit's, so the driver, its queues and its sockets are those of the other tests.

mod configuration;
mod falsified;
mod memory;
mod reconnects;
mod restarts;
mod snapshots;
mod traffic;
mod vmms;

#[path = "../vm/traffic.rs"]
mod data;
