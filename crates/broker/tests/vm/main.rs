//! Virtual machines, end to end: guests at native speed on the broker's devices, lawful, hostile,
//! paused, restarted and killed.

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
