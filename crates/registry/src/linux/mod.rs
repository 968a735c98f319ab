//! What a broker on Linux keeps its registrations in, and its other files.

pub mod atomic_file;
pub mod folder;
pub mod lock;
pub mod store;
pub mod toml_problem;
