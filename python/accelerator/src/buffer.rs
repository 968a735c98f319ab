//! The memory of Python objects as slices: the only module with `unsafe` code.
#![allow(unsafe_code)]

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

/// The bytes of an object that are read.
pub(crate) struct Readable(PyBuffer<u8>);

/// The bytes of an object that are written.
pub(crate) struct Writable(PyBuffer<u8>);

fn check(buffer: PyBuffer<u8>) -> PyResult<PyBuffer<u8>> {
    match buffer.is_c_contiguous() {
        true => Ok(buffer),
        false => Err(PyBufferError::new_err("the buffer is not contiguous")),
    }
}

impl Readable {
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        PyBuffer::get(object).and_then(check).map(Self)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let (pointer, len) = (self.0.buf_ptr(), self.0.len_bytes());
        if len == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps `len` contiguous bytes at `pointer` until the buffer is released, by the
        // buffer protocol. Other threads of Python may write to them meanwhile, as with `socket.send`: the bytes that
        // are copied are then any of both, and nothing but a copy is made from them.
        unsafe { std::slice::from_raw_parts(pointer.cast(), len) }
    }
}

impl Writable {
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::get(object).and_then(check)?;
        match buffer.readonly() {
            false => Ok(Self(buffer)),
            true => Err(PyBufferError::new_err("the buffer is read-only")),
        }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let (pointer, len) = (self.0.buf_ptr(), self.0.len_bytes());
        if len == 0 {
            return &mut [];
        }
        // SAFETY: as in `Readable::bytes`; the buffer is writable. Nothing is read from the slice.
        unsafe { std::slice::from_raw_parts_mut(pointer.cast(), len) }
    }
}
