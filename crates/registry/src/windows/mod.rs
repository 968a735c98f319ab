//! Storage on Windows: the system registry.

pub mod key_store;
mod local_machine;
