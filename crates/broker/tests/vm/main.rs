//! The vhost-user device, end to end, with guests of the test kit at native speed. Covers streams
//! and messages, all queue layouts, fairness, pauses, restarts and killed machines, and hostile
//! guests and VMMs.

mod chains;
mod churn;
mod hostile;
mod lawless;
mod machines;
mod messages;
mod pauses;
mod sharing;
mod siblings;
mod streams;
mod world;
