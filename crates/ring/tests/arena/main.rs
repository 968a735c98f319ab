//! Connections of a pair in an arena.

mod connections;
mod pair;
