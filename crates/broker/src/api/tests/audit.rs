//! The records that requests of the control API leave in the audit.

use std::fs;

use hvsock_client::model::{AuditCategory, AuditFilter, AuditOutcome, AuditRecord};
use hvsock_testkit::wait;
use serde_json::Value;

use super::*;
use crate::api::asked::RESULT_PATH;

fn records(world: &World) -> Vec<AuditRecord> {
    world.client().audit(&AuditFilter::default()).unwrap()
}

fn last(world: &World) -> AuditRecord {
    records(world).pop().unwrap()
}

#[test]
fn every_operation_that_changes_something_is_recorded_also_when_it_is_refused() {
    let world = World::new();
    let document: Value = serde_json::from_str(&routes::openapi()).unwrap();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        // What a process says about its own connection is in that connection's record.
        if path == RESULT_PATH {
            continue;
        }
        for (method, operation) in item.as_object().unwrap() {
            if method == "get" || method == "parameters" {
                continue;
            }
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let path = path
                .replace("{service}", "Backup%0A")
                .replace("{partition}", "web%E2%80%AE")
                .replace("{id}", "7");
            let (status, _) = world.ask_as(OTHER_USER, method.clone(), &path, "{}");
            assert_eq!(status, 403, "{method} {path}");
            let record = last(&world);
            let actor = record.actor.clone().unwrap();
            operations += 1;
            assert_eq!(record.number, operations, "{method} {path}: {record:?}");
            assert_eq!(record.category, AuditCategory::Change, "{method} {path}");
            assert_eq!(record.outcome, AuditOutcome::Refused, "{method} {path}");
            assert_eq!(record.action, operation["operationId"].as_str().unwrap());
            assert_eq!(actor.uid, Some(OTHER_USER), "{method} {path}");
            assert_eq!(actor.partition, "machine");
            let reason = record.reason.unwrap();
            assert!(reason.contains("you are uid 65534"), "{reason}");
            // What the path names is shown with escapes, and nothing else is.
            if path.contains("Backup") {
                assert_eq!(record.service.as_deref(), Some("Backup\\n"));
            }
            if path.contains("/web") {
                assert_eq!(record.target.as_deref(), Some("web\\u{202e}"));
            }
            if path.contains("/7") {
                assert_eq!(record.connection, Some(7));
            }
        }
    }
    assert!(operations > 8, "{operations} operations");
}

#[test]
fn a_change_is_recorded_with_its_body_and_its_outcome() {
    let world = World::new();
    let ask = |method, path: &str, body: &str| world.ask(method, path, body).0;
    let new = "{\"name\":\"Backup\",\n \"purpose\": \"nightly\"}";
    assert_eq!(ask(Method::POST, "/v1/services", new), 201);
    let record = last(&world);
    assert_eq!(
        (record.action.as_str(), record.outcome),
        ("register_service", AuditOutcome::Allowed)
    );
    let detail = r#"{"name":"Backup","purpose":"nightly"}"#;
    assert_eq!(record.detail.as_deref(), Some(detail));
    assert_eq!(record.actor.unwrap().user.as_deref(), Some("root"));

    assert_eq!(ask(Method::POST, "/v1/services", new), 409);
    let record = last(&world);
    assert_eq!(record.outcome, AuditOutcome::Refused);
    assert!(record.reason.is_some());

    let off = r#"{"enabled":false}"#;
    assert_eq!(ask(Method::PATCH, "/v1/services/Backup", off), 200);
    let record = last(&world);
    assert_eq!(record.service.as_deref(), Some("Backup"));
    assert_eq!(record.detail.as_deref(), Some(off));

    assert_eq!(ask(Method::POST, "/v1/registry", "[ ]"), 200);
    assert_eq!(last(&world).detail.as_deref(), Some("(3 bytes)"));

    assert_eq!(ask(Method::DELETE, "/v1/connections/99", ""), 404);
    let record = last(&world);
    assert_eq!(
        (record.action.as_str(), record.connection),
        ("close_connection", Some(99))
    );

    // Reading leaves no record.
    let before = records(&world).len();
    assert_eq!(ask(Method::GET, "/v1/services", ""), 200);
    assert_eq!(records(&world).len(), before);
}

#[test]
fn a_partition_named_by_its_id_is_recorded_by_its_name() {
    let world = World::new();
    let (status, made) = world.ask(Method::POST, "/v1/partitions", r#"{"name":"web"}"#);
    assert_eq!(status, 201);
    let path = format!("/v1/partitions/{}", made["id"].as_str().unwrap());
    let pause = r#"{"state":"paused"}"#;
    assert_eq!(world.ask(Method::PATCH, &path, pause).0, 200);
    assert_eq!(last(&world).target.as_deref(), Some("web"));
}

#[test]
fn a_user_reads_only_the_records_about_itself_and_an_operator_all() {
    let world = World::new();
    let change = |uid| {
        world
            .ask_as(uid, Method::DELETE, "/v1/services/Backup", "")
            .0
    };
    assert_eq!((change(1000), change(1001), change(0)), (403, 403, 404));
    let seen = |uid, query: &str| {
        let path = format!("/v1/audit{query}");
        let (status, list) = world.ask_as(uid, Method::GET, &path, "");
        assert_eq!(status, 200, "{list}");
        let uid = |record: &Value| record["actor"]["uid"].as_u64().unwrap();
        list.as_array().unwrap().iter().map(uid).collect::<Vec<_>>()
    };
    assert_eq!(seen(1000, ""), [1000]);
    assert_eq!(seen(1000, "?user=1001"), [0; 0]);
    assert_eq!(seen(1000, "?limit=1"), [1000]);
    assert_eq!(seen(0, ""), [1000, 1001, 0]);
    assert_eq!(seen(0, "?user=root"), [0]);
    assert_eq!(seen(0, "?failed=true&limit=2"), [1001, 0]);
    let (status, _) = world.ask(Method::GET, "/v1/audit?usr=root", "");
    assert_eq!(status, 400);
}

#[test]
fn a_flood_of_refused_changes_is_limited_and_counted_and_hides_no_change_of_an_operator() {
    let world = World::new();
    let handle = world.broker.handle();
    let (flood, other) = (
        2000,
        Caller {
            uid: OTHER_USER,
            ..Caller::UNKNOWN
        },
    );
    for _ in 0..flood {
        let record = AuditRecord {
            category: AuditCategory::Change,
            outcome: AuditOutcome::Refused,
            ..AuditRecord::default()
        };
        handle.record_change(other, false, record).unwrap();
    }
    let register = r#"{"name":"Backup"}"#;
    assert_eq!(world.ask(Method::POST, "/v1/services", register).0, 201);
    let metrics = handle.metrics().unwrap().audit;
    let kept = records(&world).len() as u64;
    assert!(kept < flood / 2, "{kept}");
    assert_eq!(kept + metrics.left_out, flood + 1);
    assert_eq!(last(&world).action, "register_service");
}

#[test]
fn an_edit_of_a_file_is_recorded_without_an_author() {
    let folder = tempfile::Builder::new().prefix("hvapi").tempdir().unwrap();
    let mut config = BrokerConfig::new(Dirs {
        run: folder.path().to_owned(),
        config: folder.path().to_owned(),
    });
    config.partition = PartitionName::new("machine").unwrap();
    let broker = Broker::start(config).unwrap();
    let client = Client::new(folder.path().join("control")).unwrap();
    let edits = || {
        let all = client.audit(&AuditFilter {
            action: Some("edit_file".into()),
            ..AuditFilter::default()
        });
        all.unwrap()
    };
    assert_eq!(edits(), []);
    let new = r#"{"name":"Backup"}"#;
    let made = client
        .register(&serde_json::from_str(new).unwrap())
        .unwrap();
    let services = folder.path().join("services");
    let file = services.join(format!("{}.toml", made.id));
    // By rename, because the watch may still read the file because of the registration, and would record
    // what is only written in part.
    let write = |text: &str| {
        let draft = folder.path().join("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(&draft, &file).unwrap();
    };
    // A change by the API is no edit. Its file is there, so the watch has seen what there was to see
    // when a later edit is reported.
    write("name = \"Backup\"\nenabled = false\n");
    wait::eventually("the edit is recorded", || !edits().is_empty());
    let edit = edits().remove(0);
    assert_eq!(edit.actor, None);
    assert_eq!(edit.service.as_deref(), Some("Backup"));
    let detail = edit.detail.unwrap();
    assert!(detail.contains(&made.id.to_string()), "{detail}");
    assert_eq!(edit.outcome, AuditOutcome::Allowed);
    write("name = ");
    wait::eventually("the broken file is recorded", || {
        edits()
            .iter()
            .any(|edit| edit.outcome == AuditOutcome::Failed)
    });
    drop(broker);
}
