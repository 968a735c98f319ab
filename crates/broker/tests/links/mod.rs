//! Links to guests that live in the test's own process, written against the public interface only.
//!
//! - [`hybrid_vmm`]: no link, but a VMM with hybrid sockets for the broker's own link;
//! - [`pipe_link`]: over in-memory pipes; it can do everything but SEQPACKET, unless a test takes a
//!   capability away;
//! - [`socket_link`]: hands out one Unix stream socket per connection, and can do nothing.

#![allow(dead_code)] // Each test target uses a part.

pub mod hybrid_vmm;
pub mod memory;
pub mod pipe_link;
pub mod socket_link;
pub mod world;
