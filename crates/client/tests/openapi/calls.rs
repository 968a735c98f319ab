//! Every call of the client, by the name of its method.

use hvsock_address::{PartitionRef, ServiceRef};
use hvsock_client::model::{AuditCategory, AuditFilter, GuestCommand, PartitionState};
use hvsock_client::{Client, ClientError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A call and its result as JSON. `input` is a value of the operation's request, or null.
pub type Call = fn(&Client, &Value) -> Result<Value, ClientError>;

/// The name of a method, its operation, and its call.
pub const CALLS: &[(&str, &str, Call)] = &[
    ("status", "GET /v1/status", |client, _| {
        client.status().map(json)
    }),
    ("threads", "GET /v1/threads", |client, _| {
        client.threads().map(json)
    }),
    ("services", "GET /v1/services", |client, _| {
        client.services(true).map(json)
    }),
    ("service", "GET /v1/services/{service}", |client, _| {
        client.service(&service()).map(json)
    }),
    ("register", "POST /v1/services", |client, input| {
        client.register(&from(input)).map(json)
    }),
    (
        "set_enabled",
        "PATCH /v1/services/{service}",
        |client, input| {
            let enabled = input["enabled"] == true;
            let vm = Some(&input["vm"]).filter(|vm| vm.is_string()).map(from);
            client.set_enabled(&service(), enabled, vm).map(json)
        },
    ),
    (
        "change_service",
        "PATCH /v1/services/{service}",
        |client, input| client.change_service(&service(), &from(input)).map(json),
    ),
    (
        "set_transport",
        "PUT /v1/services/{service}/transport",
        |client, input| client.set_transport(&service(), &from(input)).map(json),
    ),
    (
        "change_access",
        "POST /v1/services/{service}/access",
        |client, input| client.change_access(&service(), &from(input)).map(json),
    ),
    (
        "reset_access",
        "DELETE /v1/services/{service}/access",
        |client, _| client.reset_access(&service(), Some(partition())).map(json),
    ),
    (
        "unregister",
        "DELETE /v1/services/{service}",
        |client, _| client.unregister(&service()).map(json),
    ),
    ("export_json", "GET /v1/registry", |client, _| {
        client.export_json().map(json)
    }),
    ("export_reg", "GET /v1/registry (reg)", |client, _| {
        client.export_reg().map(|file| text(&file))
    }),
    ("import_json", "POST /v1/registry", |client, input| {
        let services: Vec<_> = from(input);
        client.import_json(&services).map(json)
    }),
    ("import_reg", "POST /v1/registry (reg)", |client, input| {
        client
            .import_reg(input.as_str().unwrap().as_bytes())
            .map(json)
    }),
    ("partitions", "GET /v1/partitions", |client, _| {
        client.partitions().map(json)
    }),
    (
        "partition",
        "GET /v1/partitions/{partition}",
        |client, _| client.partition(&partition()).map(json),
    ),
    ("add_container", "POST /v1/partitions", |client, input| {
        client.add_container(&from(input)).map(json)
    }),
    ("add_vm", "POST /v1/vms", |client, input| {
        client.add_vm(&from(input)).map(json)
    }),
    (
        "set_state",
        "PATCH /v1/partitions/{partition}",
        |client, _| {
            client
                .set_state(&partition(), PartitionState::Paused)
                .map(json)
        },
    ),
    (
        "set_groups",
        "PATCH /v1/partitions/{partition}",
        |client, _| {
            client
                .set_groups(&partition(), vec!["front".into()])
                .map(json)
        },
    ),
    (
        "send_guest_command",
        "POST /v1/partitions/{partition}/commands",
        |client, _| {
            client
                .send_guest_command(&partition(), GuestCommand::SyncClock)
                .map(json)
        },
    ),
    (
        "remove_partition",
        "DELETE /v1/partitions/{partition}",
        |client, _| client.remove_partition(&partition()).map(json),
    ),
    (
        "bind_container",
        "POST /v1/partitions/{partition}/container",
        |client, body| {
            client
                .bind_container(&partition(), &from(body), None)
                .map(json)
        },
    ),
    (
        "release_container",
        "DELETE /v1/partitions/{partition}/container",
        |client, _| client.release_container(&partition(), "a/b?c").map(json),
    ),
    ("listeners", "GET /v1/listeners", |client, _| {
        client.listeners().map(json)
    }),
    ("connections", "GET /v1/connections", |client, _| {
        client.connections().map(json)
    }),
    ("connection", "GET /v1/connections/{id}", |client, _| {
        client.connection(7).map(json)
    }),
    (
        "close_connection",
        "DELETE /v1/connections/{id}",
        |client, _| client.close_connection(7).map(json),
    ),
    ("explain_connect", "GET /v1/explain", |client, _| {
        client
            .explain_connect(Some(&partition()), &partition(), &service())
            .map(json)
    }),
    ("explain_listen", "GET /v1/explain", |client, _| {
        client
            .explain_listen(None, &partition(), &service())
            .map(json)
    }),
    ("metrics", "GET /metrics", |client, _| {
        client.metrics().map(Value::String)
    }),
    ("audit", "GET /v1/audit", |client, _| {
        let filter = AuditFilter {
            since_ms: Some(1),
            after: Some(2),
            user: Some("al ice".into()),
            partition: Some("web".into()),
            category: Some(AuditCategory::Guest),
            service: Some("a/b?c".into()),
            action: Some("exec".into()),
            failed: true,
            limit: Some(3),
        };
        client.audit(&filter).map(json)
    }),
    (
        "state_result",
        "POST /v1/connections/{id}/result",
        |client, _| client.state_result(7, "exit status 1").map(json),
    ),
    ("events_with_audit", "GET /v1/events", |client, _| {
        let events: Result<Vec<_>, _> = client.events_with_audit()?.collect();
        events.map(json)
    }),
    ("events", "GET /v1/events", |client, _| {
        let events: Result<Vec<_>, _> = client.events()?.collect();
        events.map(json)
    }),
    ("upgrade", "POST /v1/upgrade", |client, input| {
        client.upgrade(&from(input)).map(json)
    }),
];

/// Methods of the client that send nothing.
pub const NO_CALLS: &[&str] = &["new", "path", "with_deadline"];

fn service() -> ServiceRef {
    "a/b?c#d%20 à".parse().unwrap()
}

fn partition() -> PartitionRef {
    "web".parse().unwrap()
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

fn from<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value:#}"))
}

fn text(bytes: &[u8]) -> Value {
    String::from_utf8(bytes.to_vec()).unwrap().into()
}
