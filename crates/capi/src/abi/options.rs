//! The options of a connect or listen.

use std::ffi::{c_char, c_int};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::time::Duration;

use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream, ListenOptions};

/// The connection survives while its partition is paused.
pub const HVSOCK_CONNECTED_SUSPEND: u32 = 0x01;
/// Connects through a container to its host.
pub const HVSOCK_CONTAINER_PASSTHRU: u32 = 0x02;
/// Connects to the VTL2 of the guest.
pub const HVSOCK_HIGH_VTL: u32 = 0x04;
/// The bytes go through a socket and not through shared memory.
pub const HVSOCK_NO_SHARED_MEMORY: u32 = 0x08;
/// The descriptor of hvsock_into_fd is the connection itself; no thread copies bytes.
pub const HVSOCK_RAW_FD: u32 = 0x10;
/// A refusal comes with its explanation and with what would help.
pub const HVSOCK_EXPLAIN: u32 = 0x20;

const KNOWN_FLAGS: u32 = 0x3f;

/// Options. Begin with HVSOCK_OPTIONS_INIT and set what is needed; 0 and NULL stand for the default.
#[allow(non_camel_case_types, reason = "the name in C")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hvsock_options {
    /// sizeof(hvsock_options), by which the library knows which fields the program has.
    pub size: usize,
    /// The path of the broker's endpoint socket, or "vsock". The default is that of the environment: HVSOCK_ENDPOINT,
    /// HVSOCK_DIR, the user's broker, the machine's.
    pub endpoint: *const c_char,
    /// How long a connect may take, in milliseconds, at most 300000. The default is 2000.
    pub timeout_ms: u32,
    /// The connections that may wait to be accepted. The default is 128.
    pub backlog: u32,
    /// The capacity of the ring in each direction, in bytes.
    pub ring_size: u32,
    /// HVSOCK_CONNECTED_SUSPEND, ...
    pub flags: u32,
    /// What the connection is for, in one word, for the broker's audit.
    pub action: *const c_char,
    /// The same in detail, such as a command line. Put no secret there.
    pub detail: *const c_char,
}

/// The options of the program, with valid texts.
#[derive(Debug, Default)]
pub(super) struct Options {
    endpoint: Option<Endpoint>,
    timeout_ms: u32,
    backlog: u32,
    ring_size: u32,
    flags: u32,
    description: Option<(String, String)>,
}

/// The endpoint of a text: a path, or the kernel's `AF_VSOCK`.
pub(super) fn endpoint(text: &str) -> Endpoint {
    match text {
        "vsock" => Endpoint::of_vsock(),
        path => Endpoint::at(path),
    }
}

impl Options {
    /// Reads the options of the program; NULL is the defaults.
    ///
    /// # Safety
    ///
    /// `options` is NULL or points to the `size` bytes of a `hvsock_options`, which is valid as its fields say.
    pub(super) unsafe fn read(options: *const hvsock_options) -> io::Result<Self> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
        if options.is_null() {
            return Ok(Self::default());
        }
        // SAFETY: as the caller promises; `size` is the first field.
        let size = unsafe { options.cast::<usize>().read_unaligned() };
        if size < size_of::<hvsock_options>() {
            return Err(invalid(
                "the options have no size: begin with HVSOCK_OPTIONS_INIT",
            ));
        }
        if size > 4096 {
            return Err(invalid(
                "the size of the options is not sizeof(hvsock_options)",
            ));
        }
        // SAFETY: as the caller promises. The bytes may be padding, so they may be uninitialised.
        let rest = unsafe {
            let start = options
                .cast::<MaybeUninit<u8>>()
                .add(size_of::<hvsock_options>());
            std::slice::from_raw_parts(start, size - size_of::<hvsock_options>())
        };
        if !rest.is_empty() {
            return Err(invalid("the options are those of a newer libhvsock"));
        }
        // SAFETY: as the caller promises.
        let read = unsafe { options.read_unaligned() };
        if read.flags & !KNOWN_FLAGS != 0 {
            return Err(invalid(
                "the options have a flag that this libhvsock does not know",
            ));
        }
        // SAFETY: as the caller promises, for each text.
        let (named, action, detail) = unsafe {
            (
                super::optional_text(read.endpoint, "the endpoint")?,
                super::optional_text(read.action, "the action")?,
                super::optional_text(read.detail, "the detail")?,
            )
        };
        let description = (action.is_some() || detail.is_some()).then(|| {
            [action, detail]
                .map(|text| text.unwrap_or_default().to_owned())
                .into()
        });
        Ok(Self {
            endpoint: named.map(endpoint),
            timeout_ms: read.timeout_ms,
            backlog: read.backlog,
            ring_size: read.ring_size,
            flags: read.flags,
            description,
        })
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn to_connect(&self) -> ConnectOptions {
        let mut options = HvStream::options()
            .connected_suspend(self.has(HVSOCK_CONNECTED_SUSPEND))
            .container_passthru(self.has(HVSOCK_CONTAINER_PASSTHRU))
            .high_vtl(self.has(HVSOCK_HIGH_VTL))
            .shared_memory(!self.has(HVSOCK_NO_SHARED_MEMORY))
            .raw_fd(self.has(HVSOCK_RAW_FD))
            .explain_refusal(self.has(HVSOCK_EXPLAIN))
            .ring_size(self.ring_size);
        if let Some(endpoint) = &self.endpoint {
            options = options.endpoint(endpoint);
        }
        if self.timeout_ms != 0 {
            options = options.timeout(Duration::from_millis(self.timeout_ms.into()));
        }
        if let Some((action, detail)) = &self.description {
            options = options.describe(action.as_str(), detail);
        }
        options
    }

    pub(super) fn to_listen(&self) -> ListenOptions {
        let mut options = HvListener::options()
            .connected_suspend(self.has(HVSOCK_CONNECTED_SUSPEND))
            .shared_memory(!self.has(HVSOCK_NO_SHARED_MEMORY))
            .raw_fd(self.has(HVSOCK_RAW_FD))
            .explain_refusal(self.has(HVSOCK_EXPLAIN))
            .ring_size(self.ring_size);
        if let Some(endpoint) = &self.endpoint {
            options = options.endpoint(endpoint);
        }
        if self.backlog != 0 {
            options = options.backlog(self.backlog);
        }
        options
    }
}

/// What the functions take that connect, listen or explain: a partition, a service and options.
///
/// # Safety
///
/// As for [`text`](super::text) and [`Options::read`].
pub(super) unsafe fn names_and_options<'a>(
    partition: *const c_char,
    service: *const c_char,
    options: *const hvsock_options,
) -> io::Result<((&'a str, &'a str), Options)> {
    // SAFETY: as the caller promises.
    unsafe {
        let partition = super::text(partition, "the partition")?;
        let service = super::text(service, "the service")?;
        Ok(((partition, service), Options::read(options)?))
    }
}

/// The duration of a timeout in milliseconds. Less than 0 is no limit.
pub(super) fn timeout(milliseconds: c_int) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}
