//! The host side of hvsock, embeddable: it owns one partition's children.

#![forbid(unsafe_code)]

pub mod model;
