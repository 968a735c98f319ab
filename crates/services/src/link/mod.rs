//! How the two ends of a service connect: one end listens and the other connects. The connection
//! uses gRPC or is a raw stream.

pub(crate) mod backoff;
mod client;
mod grpc_stream;
mod limit;
mod server;

pub use client::{CallError, Target};
pub use server::{ServiceBinding, ServiceServer, ServiceStatus};
/// The gRPC status in [`CallError::Status`], with its code.
pub use tonic::{Code, Status};
