//! Links to guests that a program brings along: what the core makes of their capabilities.

#[path = "../links/mod.rs"]
mod links;

mod able;
mod attached;
mod bare;
mod careless;
mod handed_over;
mod lookups;
mod raw_fd;
mod services;
mod siblings;
