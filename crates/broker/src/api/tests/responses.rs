//! The routes of the control API. Covers every status that a route returns, access control, import
//! and export, events and guests, and that responses match the OpenAPI document.

use std::io::{Read, Write};

use axum::http::Method;
use hvsock_address::{ServiceId, ServiceRef};
use hvsock_client::ClientError;
use hvsock_testkit::openapi::Document;
use serde_json::{Value, json};

use super::{OTHER_USER, World};
use crate::api::openapi;
use crate::model::{
    EventKind, GuestCommand, GuestReport, Health, NewContainer, NewService, PartitionState,
};

const BACKUP: &str = r#"{"name": "Backup", "id": "0b2f1f0e-0000-4000-8000-000000000001",
    "connect": {"users": ["1001"]}, "vm": {"web": {"enabled": false}}, "purpose": "nightly"}"#;

fn new_service(text: &str) -> NewService {
    serde_json::from_str(text).unwrap()
}

fn container(name: &str) -> NewContainer {
    serde_json::from_value(json!({ "name": name })).unwrap()
}

#[test]
fn every_response_matches_the_openapi_document() {
    let world = World::new();
    let document = Document::parse(&openapi());
    let asked = |method: &str, template: &str, path: &str, body: &str, want: u16| -> Value {
        let (status, value) = world.ask(method.parse::<Method>().unwrap(), path, body);
        assert_eq!(status, want, "{method} {path}: {value}");
        let operation = document.find(method, template).unwrap();
        operation.check_response(status, &value);
        value
    };
    let service = "/v1/services/{service}";
    let partition = "/v1/partitions/{partition}";

    let made = asked("POST", "/v1/services", "/v1/services", BACKUP, 201);
    assert_eq!(made["vm"]["web"]["enabled"], false);
    let clash = asked("POST", "/v1/services", "/v1/services", BACKUP, 409);
    assert!(
        clash["error"].as_str().unwrap().contains("Backup"),
        "{clash}"
    );
    asked("POST", "/v1/services", "/v1/services", "{}", 400);
    let list = asked("GET", "/v1/services", "/v1/services", "", 200);
    assert_eq!(list.as_array().unwrap().len(), 1);
    let all = asked("GET", "/v1/services", "/v1/services?all=true", "", 200);
    assert_eq!(all.as_array().unwrap().len(), 3);
    asked("GET", service, "/v1/services/backup", "", 200);
    asked(
        "GET",
        service,
        "/v1/services/0b2f1f0e-0000-4000-8000-000000000001",
        "",
        200,
    );
    asked("GET", service, "/v1/services/nobody", "", 404);
    asked("GET", service, "/v1/services/99999999999", "", 400);
    let off = asked(
        "PATCH",
        service,
        "/v1/services/Backup",
        r#"{"enabled": false}"#,
        200,
    );
    assert_eq!(off["enabled"], false);
    asked(
        "PATCH",
        service,
        "/v1/services/Backup",
        r#"{"enable": false}"#,
        400,
    );
    asked(
        "PATCH",
        service,
        "/v1/services/none",
        r#"{"enabled": false}"#,
        404,
    );

    let exported = asked("GET", "/v1/registry", "/v1/registry", "", 200);
    asked("DELETE", service, "/v1/services/Backup", "", 200);
    asked("DELETE", service, "/v1/services/Backup", "", 404);
    let text = exported.to_string();
    let imported = asked("POST", "/v1/registry", "/v1/registry", &text, 200);
    assert_eq!(imported["added"][0]["purpose"], "nightly");
    let again = asked("POST", "/v1/registry", "/v1/registry", &text, 200);
    assert_eq!(again["added"], json!([]));
    asked("POST", "/v1/registry", "/v1/registry", "[{}]", 400);
    asked("GET", "/v1/registry", "/v1/registry?format=reg", "", 200);
    asked(
        "POST",
        "/v1/registry",
        "/v1/registry?format=reg",
        "nonsense",
        400,
    );

    let web = r#"{"name": "web", "groups": ["front"]}"#;
    asked("POST", "/v1/partitions", "/v1/partitions", web, 201);
    asked("POST", "/v1/partitions", "/v1/partitions", web, 409);
    asked(
        "POST",
        "/v1/partitions",
        "/v1/partitions",
        r#"{"name": "../etc"}"#,
        400,
    );
    let partitions = asked("GET", "/v1/partitions", "/v1/partitions", "", 200);
    assert_eq!(partitions[0]["name"], "machine");
    assert_eq!(partitions[1]["parent"], "machine");
    asked("GET", partition, "/v1/partitions/web", "", 200);
    asked("GET", partition, "/v1/partitions/nobody", "", 404);
    let paused = asked(
        "PATCH",
        partition,
        "/v1/partitions/web",
        r#"{"state": "paused"}"#,
        200,
    );
    assert_eq!(paused["state"], "paused");
    let both = r#"{"state": "running", "groups": []}"#;
    let both = asked("PATCH", partition, "/v1/partitions/web", both, 200);
    assert_eq!(
        (&both["state"], &both["groups"]),
        (&json!("unknown"), &json!([]))
    );
    let container = "/v1/partitions/{partition}/container";
    let own = std::process::id();
    let first = format!(r#"{{"oci_id": "a1", "pid": {own}}}"#);
    let path = "/v1/partitions/web/container";
    let bound = asked("POST", container, path, &first, 200);
    assert_eq!(
        (&bound["state"], &bound["container"]["pid"]),
        (&json!("running"), &json!(own))
    );
    asked("POST", container, path, &first.replace("a1", "b2"), 409);
    asked("POST", container, path, r#"{"oci_id": "a1"}"#, 400);
    asked(
        "POST",
        container,
        "/v1/partitions/nobody/container",
        &first,
        404,
    );
    let other = format!("{path}?oci_id=b2");
    assert_eq!(
        asked("DELETE", container, &other, "", 200)["state"],
        "running"
    );
    let its = format!("{path}?oci_id=a1");
    assert_eq!(
        asked("DELETE", container, &its, "", 200)["state"],
        "defined"
    );
    asked("DELETE", container, path, "", 400);
    // What follows is about a container that runs.
    asked("POST", container, path, &first, 200);
    asked(
        "PATCH",
        partition,
        "/v1/partitions/machine",
        r#"{"state": "paused"}"#,
        400,
    );

    let explained = asked(
        "GET",
        "/v1/explain",
        "/v1/explain?to=web&service=Backup",
        "",
        200,
    );
    assert_eq!(explained["refusal"]["reason"], "disabled");
    let path = "/v1/explain?from=web&to=parent&service=2761&listen=true";
    let explained = asked("GET", "/v1/explain", path, "", 200);
    assert_eq!(explained["refusal"]["reason"], "unregistered");
    asked(
        "GET",
        "/v1/explain",
        "/v1/explain?to=nobody&service=Backup",
        "",
        404,
    );
    asked("GET", "/v1/explain", "/v1/explain?to=web", "", 400);
    asked(
        "GET",
        "/v1/explain",
        "/v1/explain?to=web&service=1&what=2",
        "",
        400,
    );

    asked("GET", "/v1/listeners", "/v1/listeners", "", 200);
    asked("GET", "/v1/connections", "/v1/connections", "", 200);
    asked("GET", "/v1/connections/{id}", "/v1/connections/7", "", 404);
    asked(
        "GET",
        "/v1/connections/{id}",
        "/v1/connections/seven",
        "",
        400,
    );
    asked(
        "DELETE",
        "/v1/connections/{id}",
        "/v1/connections/7",
        "",
        404,
    );
    let status = asked("GET", "/v1/status", "/v1/status", "", 200);
    assert_eq!(
        (&status["services"], &status["partitions"]),
        (&json!(1), &json!(2))
    );
    let threads = asked("GET", "/v1/threads", "/v1/threads", "", 200);
    assert_eq!(threads[0]["name"], json!("hvsock-control"));
    let metrics = asked("GET", "/metrics", "/metrics", "", 200);
    assert!(metrics.as_str().unwrap().ends_with("# EOF\n"));
    asked("DELETE", partition, "/v1/partitions/web", "", 200);
    asked("DELETE", partition, "/v1/partitions/web", "", 404);

    let (status, served) = world.ask(Method::GET, "/openapi.json", "");
    assert_eq!((status, &served), (200, document.value()));
    assert_eq!(world.ask(Method::GET, "/v2/status", "").0, 404);
    assert_eq!(world.ask(Method::PUT, "/v1/services", "").0, 405);
}

#[test]
fn an_unprivileged_user_can_read_everything_and_change_nothing() {
    let world = World::new();
    world.client().register(&new_service(BACKUP)).unwrap();
    world.client().add_container(&container("web")).unwrap();
    for path in [
        "/v1/status",
        "/v1/threads",
        "/v1/services",
        "/v1/services/Backup",
        "/v1/registry",
        "/v1/partitions",
        "/v1/partitions/web",
        "/v1/listeners",
        "/v1/connections",
        "/v1/explain?to=web&service=Backup",
        "/metrics",
        "/openapi.json",
    ] {
        assert_eq!(
            world.ask_as(OTHER_USER, Method::GET, path, "").0,
            200,
            "{path}"
        );
    }
    let services = world.client().services(false).unwrap();
    for (method, path, body) in [
        (Method::POST, "/v1/services", r#"{"name": "Mine"}"#),
        (
            Method::PATCH,
            "/v1/services/Backup",
            r#"{"enabled": false}"#,
        ),
        (Method::DELETE, "/v1/services/Backup", ""),
        (Method::POST, "/v1/registry", "[]"),
        (Method::POST, "/v1/partitions", r#"{"name": "mine"}"#),
        (
            Method::PATCH,
            "/v1/partitions/web",
            r#"{"state": "paused"}"#,
        ),
        (
            Method::POST,
            "/v1/partitions/web/commands",
            r#"{"command": "sync_clock"}"#,
        ),
        (Method::DELETE, "/v1/partitions/web", ""),
        (Method::DELETE, "/v1/connections/1", ""),
        // The body is not parsed before the check.
        (Method::POST, "/v1/services", "nonsense"),
    ] {
        let (status, response) = world.ask_as(OTHER_USER, method.clone(), path, body);
        assert_eq!(status, 403, "{method} {path}: {response}");
        let message = response["error"].as_str().unwrap();
        assert!(message.contains("you are uid 65534"), "{message}");
    }
    assert_eq!(world.client().services(false).unwrap(), services);
    assert_eq!(world.client().partitions().unwrap().len(), 2);
}

#[test]
fn the_client_returns_the_brokers_results_and_errors() {
    let world = World::new();
    let client = world.client();
    let made = client.register(&new_service(BACKUP)).unwrap();
    let by_id = ServiceRef::Id(made.id);
    assert_eq!(client.service(&by_id).unwrap(), made);
    let error = client.register(&new_service(BACKUP)).unwrap_err();
    assert!(
        matches!(error, ClientError::Refused { status: 409, .. }),
        "{error}"
    );
    let file = client.export_reg().unwrap();
    assert_eq!(&file[..2], [0xff, 0xfe], "UTF-16 with a byte order mark");
    client.unregister(&by_id).unwrap();
    let imported = client.import_reg(&file).unwrap();
    assert_eq!(imported.added[0].id, made.id);
    drop(world);
    let error = client.status().unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[test]
fn names_that_need_escaping_reach_their_service() {
    let world = World::new();
    let client = world.client();
    for name in [
        "a/b?c#d%20",
        "Sauvegarde à chaud",
        "export",
        "..",
        "x&all=true",
    ] {
        let made = client.register(&new_service(&json!({ "name": name }).to_string()));
        let service = ServiceRef::Name(made.unwrap().name);
        assert_eq!(client.service(&service).unwrap().name.as_str(), name);
        let loopback = "loopback".parse().unwrap();
        client.explain_connect(None, &loopback, &service).unwrap();
        client.unregister(&service).unwrap();
    }
}

#[test]
fn an_import_with_a_clash_changes_nothing() {
    let world = World::new();
    let client = world.client();
    client.register(&new_service(BACKUP)).unwrap();
    let fresh = |name: &str| new_service(&json!({ "name": name }).to_string());
    let taken = [fresh("one"), fresh("two"), fresh("backup")];
    let error = client.import_json(&taken).unwrap_err();
    assert!(
        matches!(error, ClientError::Refused { status: 409, .. }),
        "{error}"
    );
    let among_themselves = [fresh("one"), fresh("One")];
    let error = client.import_json(&among_themselves).unwrap_err();
    assert!(
        matches!(error, ClientError::Refused { status: 409, .. }),
        "{error}"
    );
    assert_eq!(client.services(false).unwrap().len(), 1);
}

#[test]
fn a_reg_file_can_also_remove_services() {
    let world = World::new();
    let client = world.client();
    let made = client.register(&new_service(BACKUP)).unwrap();
    let key = hvsock_registry::reg_file::KEY;
    let file = format!(
        "Windows Registry Editor Version 5.00\r\n\r\n[-{key}\\{}]\r\n",
        made.id
    );
    let imported = client.import_reg(file.as_bytes()).unwrap();
    assert_eq!(imported.removed[0].id, made.id);
    assert!(client.services(false).unwrap().is_empty());
}

#[test]
fn a_guests_report_is_shown_and_its_agent_receives_commands() {
    let world = World::new();
    let document = Document::parse(&openapi());
    world.client().add_container(&container("web")).unwrap();
    let path = "/v1/partitions/web/commands";
    let send = |body: &str| {
        let (status, value) = world.ask(Method::POST, path, body);
        let template = "/v1/partitions/{partition}/commands";
        let operation = document.find("POST", template).unwrap();
        operation.check_response(status, &value);
        (status, value)
    };
    let sync = r#"{"command": "sync_clock"}"#;
    let (status, response) = send(sync);
    assert_eq!(status, 400);
    assert!(response["error"].as_str().unwrap().contains("no agent"));
    let web = "web".parse().unwrap();
    let handle = world.broker.handle();
    let (sender, taken) = std::sync::mpsc::sync_channel(1);
    handle.on_guest_command(&web, move |command| sender.try_send(command).is_ok());
    let report = GuestReport {
        health: Health::Ok,
        ..Default::default()
    };
    handle.guest_heartbeat(&web, report.clone());
    // A heartbeat of an unknown partition is ignored.
    handle.guest_heartbeat(&"gone".parse().unwrap(), report.clone());
    let (status, shown) = send(sync);
    assert_eq!(status, 202, "{shown}");
    assert_eq!(shown["guest"]["agent"], "connected");
    assert_eq!(taken.try_recv(), Ok(GuestCommand::SyncClock));
    assert_eq!(send(r#"{"command": "dance"}"#).0, 400);
    let known = world.client().partition(&web).unwrap().guest.unwrap();
    assert!(known.ready);
    assert_eq!(known.report, Some(report));
    world.client().remove_partition(&web).unwrap();
    world.client().add_container(&container("web")).unwrap();
    assert_eq!(world.client().partition(&web).unwrap().guest, None);
}

#[test]
fn events_come_as_they_happen_until_the_broker_ends() {
    let world = World::new();
    let client = world.client();
    let follower = world.client();
    let mut events = follower.events().unwrap();
    let made = client.register(&new_service(BACKUP)).unwrap();
    client.add_container(&container("web")).unwrap();
    let web = "web".parse().unwrap();
    client.set_state(&web, PartitionState::Paused).unwrap();
    let mut next = || events.next().unwrap().unwrap().what;
    let service = made.name.to_string();
    assert_eq!(next(), EventKind::ServiceRegistered { service });
    let partition = "web".to_owned();
    assert_eq!(
        next(),
        EventKind::PartitionAdded {
            partition: partition.clone()
        }
    );
    let state = PartitionState::Paused;
    assert_eq!(next(), EventKind::PartitionState { partition, state });
    drop(world);
    assert!(events.next().is_none());
}

#[test]
fn events_are_whole_lines_of_json() {
    let world = World::new();
    let mut stream = world.connect();
    stream
        .write_all(b"GET /v1/events HTTP/1.0\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(
        head.contains("content-type: application/x-ndjson"),
        "{head}"
    );
    let id = ServiceId::from_port(2761);
    let new = json!({ "name": "Ports", "id": id }).to_string();
    world.client().register(&new_service(&new)).unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let event: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(event["event"], "service_registered");
}
