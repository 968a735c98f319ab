//! What sockets do, whatever the broker does: each test is a sentence about one situation, with
//! a broker that plays it exactly.

mod connecting;
mod fake;
mod listening;
mod streams;
