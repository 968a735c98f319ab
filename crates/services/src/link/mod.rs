//! How the two halves of a service meet: one end offers, the other calls, and either speaks gRPC
//! or uses the stream as it is.

mod call;
mod carrier;
mod offer;
mod room;

pub use call::{CallError, Target};
pub(crate) use offer::Pause;
pub use offer::{Offer, Place, Standing};
