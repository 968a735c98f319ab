//! What a process needs to start a program with the preloaded library.
//!
//! [`find_libraries`] looks for the library, [`check`] says whether the program loads it, [`Preload`] adds it to a
//! command, and [`Registrar`] registers what the program listens for. The names here are also those that the library reads.

mod elf;
mod library;
mod program;
mod registrar;
mod start;

pub use elf::{Elf, Loader};
pub use library::{LIBRARY_NAMES, LIBRARY_VARIABLE, MUSL_LIBRARY_NAME, NoLibrary, find_libraries};
pub use program::{Unsuitable, check, check_width};
pub use registrar::{REGISTER_VARIABLE, Registrar, ask_to_register};
pub use start::{HELP_VARIABLE, Preload, TABLE_LEN, TABLE_VARIABLE};
