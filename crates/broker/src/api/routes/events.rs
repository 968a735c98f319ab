//! The event stream.

use std::ops::ControlFlow;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::api::body;
use crate::api::error::ApiError;
use crate::api::extract::Peer;
use crate::api::json::to_json;
use crate::api::responses::Busy;
use crate::api::state::{Api, response};
use crate::model::Event;
use crate::{EventStream, Handle};

/// How often a follower's thread checks whether its client has disconnected.
const CLOSED_POLL: Duration = Duration::from_millis(250);
/// Lines in flight to one follower. Further events wait in the broker's queue for it, which drops
/// and counts events when it is full.
const IN_FLIGHT: usize = 64;

/// Streams events from now on, one JSON object per line, until the client disconnects.
#[utoipa::path(get, operation_id = "follow_events", path = "/v1/events", tag = "broker",
    responses(
        (status = 200, description = "a stream with one JSON object per line and event", body = Event, content_type = "application/x-ndjson"),
        Busy,
    ))]
pub(super) async fn events(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    let permit = api.followers.try_acquire(&peer)?;
    let events = api.call(Handle::events).await?;
    let (lines, body) = mpsc::channel(IN_FLIGHT);
    tokio::task::spawn_blocking(move || while forward(&events, &lines).is_continue() {});
    Ok(response("application/x-ndjson", body::lines(body, permit)))
}

fn forward(events: &EventStream, lines: &mpsc::Sender<Bytes>) -> ControlFlow<()> {
    if lines.is_closed() {
        return ControlFlow::Break(());
    }
    let Some(event) = events.recv_timeout(CLOSED_POLL) else {
        return ControlFlow::Continue(());
    };
    let Ok(mut line) = to_json(&event) else {
        return ControlFlow::Continue(());
    };
    line.push('\n');
    match lines.blocking_send(line.into()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}
