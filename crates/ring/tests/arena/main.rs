//! Connections of a pair in an arena.

mod client_handover;
mod connections;
mod handover;
mod hostile;
mod model;
mod pair;
mod script;
mod slots;
mod waking;
