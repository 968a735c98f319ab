//! The host's side of uplinks, end to end: the broker in a guest is played by the test, in a guest of the test
//! kit at native speed.

mod connects_down;
mod connects_up;
mod containers;
mod explanations;
mod guest_broker;
mod hostile;
mod life;
#[path = "../links/mod.rs"]
mod links;
mod mirror;
mod nonsense;
mod other_links;
mod random_guest;
#[path = "../vm/traffic.rs"]
mod traffic;
