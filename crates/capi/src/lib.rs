//! Hyper-V sockets for C and C++: the crate [`hvsock`] as a C library.
//!
//! `winsock` has the calls of Windows Sockets for descriptors of the program: `include/winsock2.h` makes the compiler
//! call them under their usual names. The functions of `hvsock.h` are those of `abi` without `winsock`; cbindgen
//! makes the header from them.
//!
//! `abi` is the boundary: it alone has `unsafe` code, it checks every pointer that can be checked, and it turns a panic
//! into an error. What a failed call of this thread returned is in `last_error`.

#![cfg(target_os = "linux")]

pub mod abi;
mod last_error;
mod numbers;
mod winsock;
