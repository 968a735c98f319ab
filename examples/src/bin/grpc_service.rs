//! A gRPC service with tonic, without a network. It greets its caller by partition.
//!
//! A real service generates `Greeter` and the client's stub with `tonic-prost-build`. This one spells
//! them out, with well-known `StringValue` messages.
//!
//! ```sh
//! grpc_service "Greeter Demo"
//! grpc_client loopback "Greeter Demo" you
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use hvsock::Peer;
use hvsock::tokio::{HvConnectInfo, HvListener};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let service = std::env::args().nth(1);
    let listener = HvListener::bind(("any", service.as_deref().unwrap_or("Greeter Demo"))).await?;
    println!("listening at {}", listener.local_addr()?);
    let incoming = listener.into_incoming();
    Server::builder()
        .add_service(Greeter)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// The method `Greet`.
struct Greet;

impl UnaryService<String> for Greet {
    type Response = String;
    type Future = Ready<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        // The peer of the connection, as verified by the broker.
        let info = request.extensions().get::<HvConnectInfo>();
        let caller = info.and_then(HvConnectInfo::peer).map(Peer::partition);
        let caller = caller.unwrap_or("somewhere").to_owned();
        ready(Ok(Response::new(format!(
            "hello {} from {caller}",
            request.into_inner()
        ))))
    }
}

/// The service `demo.Greeter`.
#[derive(Clone)]
struct Greeter;

impl NamedService for Greeter {
    const NAME: &'static str = "demo.Greeter";
}

impl Service<http::Request<Body>> for Greeter {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/demo.Greeter/Greet" => {
                    let mut grpc = Grpc::new(ProstCodec::default());
                    grpc.unary(Greet, request).await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}
