//! Results of requests.

use crate::Explanation;

/// The result of a request, with the back-end's types of a connection and a listener.
#[derive(Debug)]
pub(crate) enum OutcomeOf<S, L> {
    Connected(S),
    Listening(L),
    Explained(Explanation),
}
