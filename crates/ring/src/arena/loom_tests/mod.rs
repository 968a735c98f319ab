//! Model-checks the arena's protocol with loom, as [`crate::loom_tests`] does that of one connection. The
//! models use the real functions on loom's atomics.

mod grants;
mod slots;
mod wakeups;
