//! The accelerator of the Python package `hvsock`: the streams and listeners of the Rust library as Python objects.
//!
//! The package wraps them in sockets; nothing here is an API for programs. A call releases the GIL while it waits and
//! copies. It waits in slices, between which Python's signal handlers run, so Ctrl-C works. The package sets a
//! function that makes its exceptions, so that the methods that move bytes need no wrapper in Python.

mod buffer;
mod connect;
mod failure;
mod listener;
mod slices;
mod stream;

use pyo3::prelude::*;

#[pymodule]
fn hvsock_accelerator(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(failure::set_errors, module)?)?;
    module.add_class::<stream::Stream>()?;
    module.add_class::<listener::Listener>()?;
    module.add_function(wrap_pyfunction!(connect::connect, module)?)?;
    module.add_function(wrap_pyfunction!(listener::listen, module)?)?;
    Ok(())
}
