//! The C library as C and C++ programs use it: compiled by cc, run against a broker.

#![cfg(target_os = "linux")]

mod build;
mod conformance;
mod headers;
mod native;
mod programs;
mod vectors;
mod winsock;
