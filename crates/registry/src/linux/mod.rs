//! Storage on Linux: a directory of TOML files, and its building blocks.

pub mod atomic_file;
pub mod entry_folder;
pub mod folder;
pub(crate) mod folder_store;
pub mod lock;

pub mod toml_problem;
