//! Listening.

use std::os::fd::AsRawFd as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hvsock::HvListener;
use pyo3::prelude::*;

use crate::connect::endpoint;
use crate::failure;
use crate::slices::{SLICE, Until, wait};
use crate::stream::{Stream, guids};

/// A listener of the Rust library; `None` after the close.
#[pyclass(frozen)]
pub(crate) struct Listener(RwLock<Option<Arc<HvListener>>>);

/// Listens at an address.
#[pyfunction]
pub(crate) fn listen(
    py: Python<'_>,
    partition: &str,
    service: &str,
    backlog: u32,
    endpoint_path: Option<&str>,
    connected_suspend: bool,
) -> PyResult<Listener> {
    let options = HvListener::options()
        .endpoint(endpoint(endpoint_path))
        .backlog(backlog)
        .connected_suspend(connected_suspend)
        .explain_refusal(true);
    let address = (partition.to_owned(), service.to_owned());
    let listener = py.detach(|| options.listen(address)).map_err(failure::of)?;
    Ok(Listener(RwLock::new(Some(Arc::new(listener)))))
}

impl Listener {
    fn open(&self) -> PyResult<Arc<HvListener>> {
        let open = self.0.read().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(failure::closed)
    }
}

#[pymethods]
impl Listener {
    /// Accepts a connection within `timeout` seconds.
    fn accept(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Stream> {
        let until = Until::after(timeout);
        let slice = match until {
            Until::Now => Duration::ZERO,
            Until::Deadline(_) | Until::Ever => {
                let timeout = timeout.and_then(|timeout| Duration::try_from_secs_f64(timeout).ok());
                timeout.map_or(SLICE, |timeout| timeout.min(SLICE))
            }
        };
        // Not held while waiting, so that a close of another thread ends the wait.
        let stream = wait(py, until, || {
            let listener = self.open();
            py.detach(|| match listener {
                Ok(listener) => listener.accept_timeout(slice),
                Err(_) => Err(std::io::Error::from_raw_os_error(9)),
            })
        })?;
        Stream::new(stream.0)
    }

    /// Ends the listener, at the latest when a thread that accepts has returned.
    fn close(&self, py: Python<'_>) {
        let mut open = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let listener = open.take();
        drop(open);
        py.detach(|| drop(listener));
    }

    /// The descriptor to watch; -1 after the close.
    fn fileno(&self) -> i32 {
        let descriptor = self.open().map(|listener| listener.as_raw_fd());
        descriptor.unwrap_or(-1)
    }

    fn local(&self) -> PyResult<(String, String)> {
        self.open()?.local_addr().map(guids).map_err(failure::of)
    }

    fn backlog(&self) -> PyResult<u32> {
        self.open().map(|listener| listener.backlog())
    }

    fn listener_id(&self) -> PyResult<u64> {
        self.open().map(|listener| listener.listener_id())
    }
}
