//! Containers of runtimes, bound to partitions as hooks do it. Covers their ends, pauses by their cgroup's
//! freezer, and what a second one gets.

use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use hvsock::{HvStream, Refusal, VmId};
use hvsock_broker::ControlError;
use hvsock_broker::model::{NewBinding, NewContainer, PartitionState};
use hvsock_sys::pidfd::Process;
use hvsock_testkit::require;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{World, partition_ref, refusal, refused};

const PORT: u32 = 810;

/// A process in the place of a container's first one. Dropping it ends it.
struct Init(Child);

impl Init {
    fn start() -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().expect("cat runs"))
    }

    fn process(&self) -> Process {
        Process::open(self.0.id()).expect("it runs")
    }

    fn kill(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("waited for");
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn binding(id: &str) -> NewBinding {
    NewBinding {
        oci_id: id.to_owned(),
        pid: None,
        optional: false,
    }
}

fn bind(world: &World, id: &str, init: &Init) -> Result<(), ControlError> {
    let process = Some(init.process());
    let bound = world
        .handle()
        .bind_container(&partition_ref("web"), binding(id), process);
    bound.map(drop)
}

fn release(world: &World, id: &str) {
    let released = world.handle().release_container(&partition_ref("web"), id);
    released.expect("released");
}

fn reset_reason(stream: &mut HvStream) -> Refusal {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    refusal(&error)
}

#[test]
fn what_a_container_has_open_ends_with_its_first_process_and_the_reason_says_so() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    world.is("web", PartitionState::Unknown);
    let mut init = Init::start();
    bind(&world, "a1", &init).unwrap();
    world.is("web", PartitionState::Running);
    let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
    let (mut inside, mut outside) = web.pair(VmId::PARENT, PORT, &listener);
    let inner = web.listen(VmId::PARENT, PORT).unwrap();
    init.kill();
    world.is("web", PartitionState::Exited);
    assert_eq!(reset_reason(&mut inside), Refusal::PartitionExited);
    assert_eq!(reset_reason(&mut outside), Refusal::PartitionExited);
    let error = inner.accept().unwrap_err();
    assert_eq!(refusal(&error), Refusal::PartitionExited);
    // A process that is left in it reaches nobody, and nobody reaches it.
    let id = VmId::of_container("web");
    assert_eq!(
        refused(web.connect(VmId::PARENT, PORT)),
        Refusal::PartitionExited
    );
    assert_eq!(
        refused(web.listen(VmId::PARENT, PORT)),
        Refusal::PartitionExited
    );
    assert_eq!(refused(host.connect(id, PORT)), Refusal::PartitionExited);
    // The next one of the runtime.
    release(&world, "a1");
    world.is("web", PartitionState::Defined);
    let next = Init::start();
    bind(&world, "a1", &next).unwrap();
    world.is("web", PartitionState::Running);
    web.pair(VmId::PARENT, PORT, &listener);
}

#[test]
fn a_second_container_is_refused_until_the_first_one_has_ended_however_soon_it_comes() {
    let world = World::new();
    world.container("web", None);
    let (mut first, second) = (Init::start(), Init::start());
    bind(&world, "a1", &first).unwrap();
    bind(&world, "a1", &first).expect("its own hook again");
    let error = bind(&world, "b2", &second).unwrap_err();
    assert!(matches!(error, ControlError::ContainerTaken(_)));
    let text = error.to_string();
    assert!(text.contains("a1") && text.contains("b2"), "{text}");
    release(&world, "b2");
    world.is("web", PartitionState::Running);
    // The broker may not have noticed the end yet.
    first.kill();
    bind(&world, "b2", &second).unwrap();
    let container = world.partition("web").container.unwrap();
    assert_eq!(container.oci_id.as_deref(), Some("b2"));
    assert_eq!(container.pid, Some(second.0.id()));
    assert!(bind(&world, "a1", &Init::start()).is_err());
}

#[test]
fn an_ephemeral_container_is_removed_with_its_first_process_or_by_its_runtime() {
    let world = World::new();
    let add = || {
        let new = NewContainer {
            ephemeral: true,
            ..NewContainer::new("web".parse().unwrap())
        };
        world.handle().add_container(new).unwrap();
    };
    let is_there = || world.handle().partition(&partition_ref("web")).is_ok();
    add();
    let mut init = Init::start();
    bind(&world, "a1", &init).unwrap();
    init.kill();
    eventually("it is removed", || !is_there());
    add();
    let init = Init::start();
    bind(&world, "a1", &init).unwrap();
    release(&world, "other");
    assert!(is_there());
    release(&world, "a1");
    assert!(!is_there());
}

#[test]
fn only_a_container_of_the_broker_is_bound_and_only_to_a_process_that_runs() {
    let world = World::new();
    world.container("web", None);
    let handle = world.handle();
    let mut init = Init::start();
    let process = init.process();
    let id = "x".repeat(1025);
    for odd in ["", "a\nb", "\u{202e}", &id] {
        let bound =
            handle.bind_container(&partition_ref("web"), binding(odd), Some(init.process()));
        assert!(matches!(bound, Err(ControlError::Invalid(_))), "{odd}");
    }
    let of_host = handle.bind_container(
        &partition_ref("testhost"),
        binding("a1"),
        Some(init.process()),
    );
    assert!(matches!(of_host, Err(ControlError::Invalid(_))));
    let nobody = handle.bind_container(&partition_ref("db"), binding("a1"), Some(init.process()));
    assert!(matches!(nobody, Err(ControlError::NotFound { .. })));
    init.kill();
    let ended = handle.bind_container(&partition_ref("web"), binding("a1"), Some(process));
    assert!(matches!(ended, Err(ControlError::Invalid(_))));
    for pid in [None, Some(0), Some(u32::MAX)] {
        let new = NewBinding {
            pid,
            ..binding("a1")
        };
        let bound = handle.bind_container(&partition_ref("web"), new, None);
        assert!(matches!(bound, Err(ControlError::Invalid(_))), "{pid:?}");
    }
    world.is("web", PartitionState::Unknown);
}

/// A cgroup with a freezer. Dropping it removes it, once its processes have ended.
struct Freezer {
    folder: PathBuf,
    file: &'static str,
    words: [&'static str; 2],
}

impl Freezer {
    /// The freezers that this machine has and this user may use.
    fn all() -> Vec<Self> {
        let own = format!("hvsock-test-{}", std::process::id());
        let kinds = [
            (
                "/sys/fs/cgroup/freezer",
                "freezer.state",
                ["FROZEN", "THAWED"],
            ),
            ("/sys/fs/cgroup/unified", "cgroup.freeze", ["1", "0"]),
            ("/sys/fs/cgroup", "cgroup.freeze", ["1", "0"]),
        ];
        let made = kinds.into_iter().filter_map(|(root, file, words)| {
            let folder = PathBuf::from(root).join(&own).join("inner");
            fs::create_dir_all(&folder).ok()?;
            let freezer = Self {
                folder,
                file,
                words,
            };
            freezer.folder.join(file).exists().then_some(freezer)
        });
        made.collect()
    }

    fn add(&self, init: &Init) {
        let text = init.0.id().to_string();
        fs::write(self.folder.join("cgroup.procs"), text).expect("moved");
    }

    fn freeze(&self, outer: bool, frozen: bool) {
        let folder = match outer {
            true => self.folder.parent().expect("it has one"),
            false => &self.folder,
        };
        let word = self.words[usize::from(!frozen)];
        fs::write(folder.join(self.file), word).expect("written");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        for folder in self.folder.ancestors().take(2) {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[test]
fn a_container_whose_cgroup_is_frozen_is_paused_until_nobody_pauses_it_any_more() {
    let freezers = Freezer::all();
    let found = match freezers.is_empty() {
        true => Err("this user may make no cgroup with a freezer"),
        false => Ok(()),
    };
    let Some(()) = require::of_this_machine(found) else {
        return;
    };
    for freezer in &freezers {
        let world = World::new();
        let (host, web) = (world.host(), world.container("web", None));
        world.register(PORT);
        let init = Init::start();
        freezer.add(&init);
        bind(&world, "a1", &init).unwrap();
        let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
        let (mut inside, _outside) = web.pair(VmId::PARENT, PORT, &listener);
        for outer in [false, true] {
            freezer.freeze(outer, true);
            world.is("web", PartitionState::Paused);
            assert_eq!(
                refused(web.connect(VmId::PARENT, PORT)),
                Refusal::PartitionPaused
            );
            assert!(!world.partition("web").paused_by_operator);
            freezer.freeze(outer, false);
            world.is("web", PartitionState::Running);
        }
        assert_eq!(reset_reason(&mut inside), Refusal::PartitionPaused);
        // An operator's pause is another cause.
        let set = |state| {
            world
                .handle()
                .set_state(&partition_ref("web"), state)
                .unwrap()
        };
        freezer.freeze(false, true);
        world.is("web", PartitionState::Paused);
        let both = set(PartitionState::Paused);
        assert!(both.paused_by_operator);
        freezer.freeze(false, false);
        assert_eq!(world.partition("web").state, PartitionState::Paused);
        freezer.freeze(false, true);
        assert!(!set(PartitionState::Running).paused_by_operator);
        world.is("web", PartitionState::Paused);
        freezer.freeze(false, false);
        world.is("web", PartitionState::Running);
        let (mut inside, mut outside) = web.pair(VmId::PARENT, PORT, &listener);
        inside.write_all(b"!").unwrap();
        outside.read_exact(&mut [0]).unwrap();
        // A container that is frozen and killed has exited.
        drop(init);
        world.is("web", PartitionState::Exited);
    }
}
