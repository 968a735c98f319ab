//! The host side of hvsock, embeddable: it owns one partition's children.

#![forbid(unsafe_code)]

#[cfg_attr(
    not(test),
    allow(dead_code, reason = "the handle and the control API use it")
)]
mod convert;
pub mod model;
