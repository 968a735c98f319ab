//! Storage on Linux: a directory of TOML files, and its building blocks.

pub mod atomic_file;
pub mod entry_folder;
pub mod folder;
mod folder_error;
pub(crate) mod folder_store;
pub mod lock;
mod trusted_path;

pub mod toml_problem;
