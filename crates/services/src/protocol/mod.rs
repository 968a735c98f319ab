//! Limits and rules of the interfaces that both halves keep. The messages themselves are in
//! [`wire`](crate::wire).

pub(crate) mod kvp;
pub(crate) mod session;
