//! What Windows keeps registrations in: its own registry.

mod hklm;
pub mod key_store;
