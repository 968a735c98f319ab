//! Who reaches whom over Hyper-V sockets.

#![forbid(unsafe_code)]

mod refusal;

pub use refusal::Refusal;
