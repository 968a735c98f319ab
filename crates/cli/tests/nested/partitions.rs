//! The five partitions, as both brokers name them.

use std::collections::HashMap;

use hvsock_address::VmId;
use hvsock_testkit::nested::{ContainerInVm, ContainerOnHost, Probe};
use hvsock_testkit::wait;

use crate::reading::Place;
use crate::stage::{HOST, Stage, VM};

/// All partitions. Fields are dropped in this order.
pub struct Partitions {
    pub containers: [ContainerInVm; 2],
    pub edge: ContainerOnHost,
    pub stage: Stage,
    host_ids: HashMap<String, VmId>,
    guest_ids: HashMap<String, VmId>,
}

impl Partitions {
    /// Starts them all, and waits until the host knows the containers in the VM. Skips the test (`None`) if a
    /// program is missing.
    pub fn new() -> Option<Self> {
        let stage = Stage::new()?;
        let containers = ["box", "db"].map(|name| stage.container(name));
        let edge = stage.container_on_host("edge");
        let known = ["web/box", "web/db"];
        wait::eventually("the host knows the containers", || {
            let ids = ids(&stage.host);
            known.iter().all(|name| ids.contains_key(*name))
        });
        Some(Self {
            host_ids: ids(&stage.host),
            guest_ids: ids(&stage.vm),
            containers,
            edge,
            stage,
        })
    }

    pub fn probe(&self, place: Place) -> &Probe {
        match place {
            Place::Host => &self.stage.host,
            Place::Edge => self.edge.probe(),
            Place::Web => &self.stage.vm,
            Place::Box => self.containers[0].probe(),
            Place::Db => self.containers[1].probe(),
        }
    }

    /// What a partition is called at another one.
    pub fn name(&self, at: Place, of: Place) -> Option<&'static str> {
        let in_guest = matches!(at, Place::Web | Place::Box | Place::Db);
        Some(match (of, in_guest) {
            (Place::Host, _) => HOST,
            (Place::Edge, false) => "edge",
            (Place::Edge, true) => return None,
            (Place::Web, _) => VM,
            (Place::Box, false) => "web/box",
            (Place::Box, true) => "box",
            (Place::Db, false) => "web/db",
            (Place::Db, true) => "db",
        })
    }

    /// The id that a partition has at another one.
    pub fn id(&self, at: Place, of: Place) -> VmId {
        let in_guest = matches!(at, Place::Web | Place::Box | Place::Db);
        let ids = if in_guest {
            &self.guest_ids
        } else {
            &self.host_ids
        };
        // The VM's broker knows no container of the host, whose id is the same everywhere.
        let (ids, at) = match self.name(at, of) {
            Some(_) => (ids, at),
            None => (&self.host_ids, Place::Host),
        };
        let name = self.name(at, of).unwrap_or_default();
        let id = ids.get(name);
        *id.unwrap_or_else(|| panic!("no {name} in {ids:?}"))
    }
}

/// The ids of all partitions that a broker knows, by name.
fn ids(at: &Probe) -> HashMap<String, VmId> {
    let status = at.hvsock(&["status", "--json"]).ok();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let partitions = status["partitions"].as_array().expect("a list");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let pair = |one: &serde_json::Value| Some((text(&one["name"]), text(&one["id"]).parse().ok()?));
    partitions.iter().filter_map(pair).collect()
}
