//! The vhost-user device, end to end, with guests of the test kit at native speed. Covers streams
//! and messages, all queue layouts, fairness, pauses, restarts and killed machines, and hostile
//! guests and VMMs.

mod arenas;
mod chains;
mod churn;
mod credit;
mod hostile;
mod hybrid;
mod lookups;
mod lost_memory;
mod machines;
mod messages;
mod pauses;
mod random_guest;
mod sharing;
mod siblings;
mod states;
mod streams;
mod traffic;
mod transport_reset;
mod uml;
