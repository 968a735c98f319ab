//! Storage on Linux: a directory of TOML files, and its building blocks.

pub mod atomic_file;
pub mod folder;
pub mod lock;
pub mod store;
pub mod toml_problem;
