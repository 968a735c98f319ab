//! The event stream.

use std::ops::ControlFlow;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use crate::api::body;
use crate::api::error::ApiError;
use crate::api::extract::{Peer, QueryParams};
use crate::api::gate::Busy as Client;
use crate::api::json::to_json;
use crate::api::responses::{Busy, Invalid};
use crate::api::state::{Api, response};
use crate::model::Event;
use crate::{EventStream, RecordScope};

/// How often a follower's thread checks whether its client has disconnected.
const CLOSED_POLL: Duration = Duration::from_millis(250);
/// Lines in flight to one follower. Further events wait in the broker's queue for it, which drops
/// and counts events when it is full.
const IN_FLIGHT: usize = 64;

/// Which events to stream.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventParams {
    /// Also streams records of the audit: all to root and the broker's user, to any other user those
    /// about itself.
    #[serde(default)]
    audit: bool,
    /// Continues a stream that ended with `handed_over`, without a gap.
    #[serde(default)]
    resume: Option<String>,
}

/// Streams events from now on, one JSON object per line, until the client disconnects.
#[utoipa::path(get, operation_id = "follow_events", path = "/v1/events", tag = "broker",
    params(EventParams),
    responses(
        (status = 200, description = "a stream with one JSON object per line and event", body = Event, content_type = "application/x-ndjson"),
        Invalid, Busy,
    ))]
pub(super) async fn events(
    State(api): State<Api>,
    peer: Peer,
    client: Option<Extension<Client>>,
    QueryParams(params): QueryParams<EventParams>,
) -> Result<Response, ApiError> {
    let records = match params.audit {
        true => peer.records(),
        false => RecordScope::None,
    };
    let permit = api.followers.try_acquire(&peer)?;
    // The answer has no end, so nothing waits for it.
    if let Some(Extension(client)) = client {
        client.release();
    }
    let events = api
        .call(move |handle| match params.resume {
            Some(resume) => handle.events_resumed(records, resume),
            None => handle.events_with_records(records),
        })
        .await?;
    let (lines, body) = mpsc::channel(IN_FLIGHT);
    tokio::task::spawn_blocking(move || while forward(&events, &lines).is_continue() {});
    Ok(response("application/x-ndjson", body::lines(body, permit)))
}

fn forward(events: &EventStream, lines: &mpsc::Sender<Bytes>) -> ControlFlow<()> {
    if lines.is_closed() {
        return ControlFlow::Break(());
    }
    let Some(event) = events.recv_timeout(CLOSED_POLL) else {
        return match events.is_over() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
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
