//! A VM with such a link, and its folder.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use hvsock_broker::model::{NewVm, PartitionState, ProblemKind};
use hvsock_testkit::TempFolder;
use hvsock_testkit::wait::{eventually, until_ok};
use hvsock_testkit::world::World;

use crate::links::hybrid_vmm::{HybridVmm, Kind};

/// The port of the registered service.
pub const PORT: u32 = 5000;

/// A broker with the VM `web`, and the folder of its VMM.
pub struct Vm {
    pub world: World,
    pub folder: TempFolder,
}

impl Vm {
    /// A VM of this style, whose VMM does not run yet. The service of [`PORT`] is registered.
    pub fn new(style: &str) -> Self {
        let folder = TempFolder::new();
        let world = World::new();
        world.register(PORT);
        let vm = Self { world, folder };
        vm.add(style, None);
        vm
    }

    /// Adds the VM `web`, whose VMM runs as `user`.
    pub fn add(&self, style: &str, user: Option<&str>) {
        let vm = new_vm("web", style, &self.path(), user);
        self.world.handle().add_vm(vm).expect("added");
    }

    /// The path of the VMM's socket.
    pub fn path(&self) -> PathBuf {
        self.folder.join("v.sock")
    }

    /// The path of the host's socket for a service.
    pub fn socket(&self, service: impl Display + Copy) -> PathBuf {
        self.folder.join(format!("v.sock_{service}"))
    }

    /// Starts the VMM and waits until the broker has found it.
    #[track_caller]
    pub fn start(&self, kind: Kind) -> HybridVmm {
        let vmm = HybridVmm::start(&self.path(), kind);
        self.is_up();
        vmm
    }

    /// Waits until the broker has found the VMM.
    #[track_caller]
    pub fn is_up(&self) {
        eventually("the broker has found the VMM", || {
            let state = self.world.partition("web").state;
            [PartitionState::Unknown, PartitionState::Running].contains(&state)
        });
    }

    /// Waits until the host's socket for a service exists.
    #[track_caller]
    pub fn has_socket(&self, service: impl Display + Copy) {
        let path = self.socket(service);
        eventually(&format!("{} exists", path.display()), || path.exists());
    }

    /// Waits until the host's socket for a service does not exist.
    #[track_caller]
    pub fn has_no_socket(&self, service: impl Display + Copy) {
        let path = self.socket(service);
        eventually(&format!("{} is gone", path.display()), || {
            path.symlink_metadata().is_err()
        });
    }

    /// Waits for a problem with the VM whose text has these words.
    #[track_caller]
    pub fn has_problem(&self, words: &str) {
        until_ok(&format!("a problem with `{words}`"), || {
            let problems = self.problems();
            let found = problems.iter().any(|text| text.contains(words));
            found.then_some(()).ok_or(format!("{problems:?}"))
        });
    }

    /// Waits until there is no problem with the VM.
    #[track_caller]
    pub fn has_no_problem(&self) {
        until_ok("no problem", || match self.problems() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(format!("{problems:?}")),
        });
    }

    fn problems(&self) -> Vec<String> {
        let status = self.world.handle().status().expect("a status");
        let problems = status.problems.into_iter();
        problems
            .filter(|problem| problem.kind == ProblemKind::VmLink)
            .map(|problem| problem.text)
            .collect()
    }
}

/// A VM with such a link.
pub fn new_vm(name: &str, style: &str, path: &Path, user: Option<&str>) -> NewVm {
    let link = serde_json::json!({"kind": "hybrid", "path": path, "style": style});
    let vm = serde_json::json!({"name": name, "link": link, "user": user});
    serde_json::from_value(vm).expect("a VM")
}
