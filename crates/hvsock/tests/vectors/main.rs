//! Checks the test vectors of `docs/vectors` against the codecs, in both directions. Clients in other
//! languages run the same vectors, so a vector that is missing or wrong here would mislead all of them.

mod addresses;
mod explanations;
mod json;
mod messages;
mod refusals;
mod text;
