//! The session service with a hostile host or a hostile guest.

mod hostile_guest;
mod hostile_host;
mod world;
