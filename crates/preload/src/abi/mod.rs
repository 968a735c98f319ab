//! The C functions that programs call, and all that is unsafe about them.
//!
//! Each function asks whether the descriptor is that of an emulated socket. If not, it calls the function that
//! the program would have called, with the same arguments and the same `errno`. No panic leaves it.
//!
//! `open`, `ioctl` and `syscall` are variadic in C. Here they have as many arguments as any call may use: on the
//! processors that this library is for, both are passed in the same registers, and those that a call
//! does not have are passed on as they are.

#![allow(unsafe_code)]

pub mod descriptor;
mod entry;
mod errno;
mod functions;
pub mod memory;
mod real;
