//! On Windows the system itself is the broker.
