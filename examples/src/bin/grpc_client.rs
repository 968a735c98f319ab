//! Calls a gRPC service with tonic, without a network, and prints the answer.
//!
//! ```sh
//! grpc_client parent "Greeter Demo" you
//! ```

use std::error::Error;

use hvsock::tokio::HvConnector;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let partition = arguments.next().unwrap_or_else(|| "parent".to_owned());
    let service = arguments
        .next()
        .unwrap_or_else(|| "Greeter Demo".to_owned());
    let name = arguments.next().unwrap_or_else(|| "you".to_owned());

    // The connector decides where the channel leads. The name in the URI is not resolved.
    let connector = HvConnector::new((partition, service))?;
    let channel = Endpoint::from_static("http://hvsock")
        .connect_with_connector(connector)
        .await?;
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let method = PathAndQuery::from_static("/demo.Greeter/Greet");
    let codec = ProstCodec::<String, String>::default();
    let answer = client.unary(Request::new(name), method, codec).await?;
    println!("{}", answer.into_inner());
    Ok(())
}
