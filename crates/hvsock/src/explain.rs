//! Explains whether a connect or listen would succeed, without doing it.

use std::io;

use crate::{ConnectOptions, Explanation, ListenOptions, ToHvAddr};

/// Explains what [`HvStream::connect`](crate::HvStream::connect) would do with `address`, without
/// connecting.
///
/// Runs the checks of a connect and stops before the connection is made. Blocks up to 5 seconds for
/// the broker. To set options or the endpoint use [`ConnectOptions::explain`].
///
/// # Errors
///
/// As [`ConnectOptions::explain`]. A refusal is not an error here but the explanation's content.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let explanation = hvsock::explain_connect(("parent", "HV Socket Demo"))?;
/// println!("{explanation}");
/// # Ok(())
/// # }
/// ```
#[doc(alias = "dry run")]
pub fn explain_connect(address: impl ToHvAddr) -> io::Result<Explanation> {
    ConnectOptions::new().explain(address)
}

/// Explains what [`HvListener::bind`](crate::HvListener::bind) would do with `address`, without
/// listening.
///
/// Runs the checks of a bind and stops before the listener is made. Blocks up to 5 seconds for the
/// broker. To set options or the endpoint use [`ListenOptions::explain`].
///
/// # Errors
///
/// As [`ListenOptions::explain`]. A refusal is not an error here but the explanation's content.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let explanation = hvsock::explain_listen(("children", "HV Socket Demo"))?;
/// assert!(explanation.would_succeed(), "{explanation}");
/// # Ok(())
/// # }
/// ```
#[doc(alias = "dry run")]
pub fn explain_listen(address: impl ToHvAddr) -> io::Result<Explanation> {
    ListenOptions::new().explain(address)
}
