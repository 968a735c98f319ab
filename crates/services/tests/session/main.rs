//! The session service between a host and a guest of which either may lie.

mod host;
mod liar;
mod world;
