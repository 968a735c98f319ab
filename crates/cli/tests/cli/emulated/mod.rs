//! `hvsock run` with programs that use `AF_VSOCK` and know nothing of hvsock, by seccomp and by the preloaded library.
//!
//! Most of what a program may do is a scenario of `sockets.py`, which checks it and prints `done`.

mod denied;
mod hostile;
mod programs;
mod restricted;
mod rights;
mod scenarios;
mod well_known;
mod world;
