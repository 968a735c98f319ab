//! Values of the broker's model, and what a refused call says.

use std::io;

use hvsock::{PartitionName, PartitionRef, Refusal, ServiceId, ServiceRef, refusal_of};
use hvsock_broker::model::{NewContainer, NewService, NewVm};
use serde_json::json;

/// A registration of a port's service, named `Service PORT`.
pub fn service(port: u32) -> NewService {
    let (name, id) = (format!("Service {port}"), ServiceId::from_port(port));
    let service = json!({"name": name, "id": id.to_string()});
    serde_json::from_value(service).expect("a service")
}

/// A reference to a port's service.
pub fn service_ref(port: u32) -> ServiceRef {
    ServiceRef::Id(ServiceId::from_port(port))
}

/// A container in these groups.
pub fn container(name: &str, groups: &[&str]) -> NewContainer {
    serde_json::from_value(json!({"name": name, "groups": groups})).expect("a container")
}

/// A VM in these groups.
pub fn vm(name: &str, cid: u64, groups: &[&str]) -> NewVm {
    serde_json::from_value(json!({"name": name, "cid": cid, "groups": groups})).expect("a VM")
}

/// A reference to a partition.
pub fn partition_ref(name: &str) -> PartitionRef {
    PartitionRef::Name(PartitionName::new(name).expect("a name"))
}

/// The refusal in an error.
#[track_caller]
pub fn refusal(error: &io::Error) -> Refusal {
    match refusal_of(error) {
        Some(refusal) => refusal.clone(),
        None => panic!("not a refusal: {error:?}"),
    }
}

/// The refusal of a call that must fail.
#[track_caller]
pub fn refused<T>(result: io::Result<T>) -> Refusal {
    match result {
        Ok(_) => panic!("the call was not refused"),
        Err(error) => refusal(&error),
    }
}

/// The limit that a refusal names.
#[track_caller]
pub fn limit<T>(result: io::Result<T>) -> String {
    match refused(result) {
        Refusal::LimitReached { which } => which,
        other => panic!("{other:?} instead of a limit"),
    }
}
