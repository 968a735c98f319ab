//! What would help after an error.

use std::error::Error;
use std::io;

use hvsock_fabric::Fix;

use crate::{error, os};

/// Returns what would help after an error, if that is known: start a broker, load a kernel module,
/// ask the host.
///
/// The message of the error says the same in plain English. A program that has commands of its own
/// shows the one for the [`Fix`]. Follows the chain of sources, as [`refusal_of`](crate::refusal_of) does.
///
/// ```no_run
/// use hvsock::{Fix, HvStream};
///
/// if let Err(error) = HvStream::connect(("parent", "HV Socket Demo"))
///     && let Some(Fix::StartBroker) = hvsock::fix_of(&error)
/// {
///     println!("run: systemctl start hvsock");
/// }
/// ```
pub fn fix_of(error: &io::Error) -> Option<Fix> {
    let mut inner: &(dyn Error + 'static) = error.get_ref()?;
    loop {
        if let Some(fix) = error::own_fix(inner).or_else(|| os::fix_of(inner)) {
            return Some(fix);
        }
        if let Some(nested) = inner.downcast_ref::<io::Error>() {
            return fix_of(nested);
        }
        inner = inner.source()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Refusal;

    #[test]
    fn a_fix_is_found_at_any_depth_and_is_in_the_message() {
        let fixed = error::refused_with_fix(Refusal::NoListener, "none", Fix::StartBroker);
        assert_eq!(fixed.to_string(), "none; start a broker");
        assert_eq!(fix_of(&fixed), Some(Fix::StartBroker));
        assert_eq!(fix_of(&io::Error::other(fixed)), Some(Fix::StartBroker));
        assert_eq!(fix_of(&io::Error::other("x")), None);
        assert_eq!(fix_of(&Refusal::NoListener.into()), None);
    }
}
