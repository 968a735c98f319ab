//! VMs behind Unix sockets of their VMM ("hybrid vsock").
//!
//! The VMMs are scripted, from their documentation and sources; the one of `foreign` is vhost-device-vsock.

mod foreign;
mod from_guest;
mod hostile;
mod life;
#[path = "../links/mod.rs"]
mod links;
mod to_guest;
mod vm;
