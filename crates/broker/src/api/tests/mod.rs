//! Tests of the control API with a real broker: responses (`responses`) and hostile clients (`abuse`).

mod abuse;
mod audit;
mod responses;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use hvsock_address::PartitionName;
use hvsock_client::Client;
use hvsock_endpoint::Dirs;
use hvsock_fabric::Operators;
use hvsock_registry::Principal;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tempfile::TempDir;

use super::extract::Peer;
use super::limits::Limits;
use super::routes;
use super::server::ControlServer;
use crate::callers::Caller;
use crate::{Broker, BrokerConfig};

/// The longest wait for anything that must happen.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The uid of a user who is neither root nor the broker's.
const OTHER_USER: u32 = 65_534;

/// A broker with a control server whose limits a test can choose.
struct World {
    server: ControlServer,
    broker: Broker,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let folder = tempfile::Builder::new().prefix("hvapi").tempdir().unwrap();
        let mut config = BrokerConfig::new(Dirs {
            run: folder.path().to_owned(),
            config: folder.path().to_owned(),
        });
        config.partition = PartitionName::new("machine").unwrap();
        config.control = false;
        let broker = Broker::start(config).unwrap();
        let socket = folder.path().join("control");
        let operators = Operators::of_broker(rustix::process::geteuid().as_raw());
        let handle = broker.handle();
        let server = ControlServer::with_limits(&socket, handle, operators, limits).unwrap();
        Self {
            server,
            broker,
            folder,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    fn client(&self) -> Client {
        Client::new(self.socket()).unwrap()
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Sends raw bytes and returns the whole response.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may close the connection before all is sent.
        let _ = stream.write_all(request);
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        String::from_utf8_lossy(&response).into_owned()
    }

    /// Makes one request as root. Returns the status and the body.
    fn ask(&self, method: Method, path: &str, body: &str) -> (u16, Value) {
        self.ask_as(0, method, path, body)
    }

    /// Makes one request as the user `uid`.
    fn ask_as(&self, uid: u32, method: Method, path: &str, body: &str) -> (u16, Value) {
        let principal = Principal {
            uid,
            ..Principal::default()
        };
        let uid = rustix::process::geteuid().as_raw().max(1);
        let caller = Caller {
            uid: principal.uid,
            ..Caller::UNKNOWN
        };
        let peer = Peer::new(principal, caller, Operators::of_broker(uid));
        let router = routes::router(self.broker.handle(), &Limits::default());
        let service = TowerToHyperService::new(router.layer(Extension(peer)));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::from(body.to_owned()))
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let response = service.call(request).await.unwrap();
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            let value = serde_json::from_slice(&bytes);
            let value = value.unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
            (status, value)
        })
    }
}
