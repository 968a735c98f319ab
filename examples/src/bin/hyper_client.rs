//! Sends an HTTP request to a service with hyper's client, without a network, and prints the body.
//!
//! ```sh
//! hyper_client parent "Web Demo"
//! ```

use std::error::Error;

use http_body_util::{BodyExt, Empty};
use hvsock::tokio::HvConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let partition = arguments.next().unwrap_or_else(|| "parent".to_owned());
    let service = arguments.next().unwrap_or_else(|| "Web Demo".to_owned());

    // The connector decides where requests go. The host of a URI is only a header.
    let connector = HvConnector::new((partition, service))?;
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let client: Client<_, Empty<&[u8]>> = client;
    let response = client.get("http://hvsock/".parse()?).await?;
    let body = response.into_body().collect().await?.to_bytes();
    println!("{}", String::from_utf8_lossy(&body));
    Ok(())
}
