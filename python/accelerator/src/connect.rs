//! Connecting.

use std::time::Duration;

use hvsock::{Endpoint, HvStream};
use pyo3::prelude::*;

use crate::failure;
use crate::stream::Stream;

/// The endpoint at a path, or if `None` the one of the environment.
pub(crate) fn endpoint(path: Option<&str>) -> Endpoint {
    match path {
        None => Endpoint::from_env(),
        Some("vsock") => Endpoint::of_vsock(),
        Some(path) => Endpoint::at(path),
    }
}

/// Connects to a service within `timeout` seconds.
#[pyfunction]
pub(crate) fn connect(
    py: Python<'_>,
    partition: &str,
    service: &str,
    timeout: Option<f64>,
    endpoint_path: Option<&str>,
    connected_suspend: bool,
    describe: Option<(String, String)>,
) -> PyResult<Stream> {
    let mut options = HvStream::options()
        .endpoint(endpoint(endpoint_path))
        .connected_suspend(connected_suspend)
        .explain_refusal(true);
    if let Some(timeout) = timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        options = options.timeout(timeout);
    }
    if let Some((action, detail)) = describe {
        options = options.describe(action, detail);
    }
    let address = (partition.to_owned(), service.to_owned());
    let stream = py
        .detach(|| options.connect(address))
        .map_err(failure::of)?;
    Stream::new(stream)
}
