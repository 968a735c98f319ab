//! Where agents run: as a plain process that has a container's endpoint, which costs next to
//! nothing; in a real container; in a real guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hvsock_qemu::{Config, File, Guest, Kit, Vsock};
use hvsock_testkit::container::{Bundle, Container};
use hvsock_testkit::require;

use crate::util::{Done, Running, World, eventually};

/// The name of the partition that has the agent.
pub const BOX: &str = "box";

/// A broker, and a container partition with an agent that is a plain process of this machine.
pub struct Scene {
    pub agent: Running,
    pub world: World,
    pub endpoint: PathBuf,
}

impl Scene {
    /// Starts both, and waits until the agent offers its services.
    pub fn new() -> Self {
        let world = World::new();
        let endpoint = world.container(BOX);
        let mut command = agent_at(&endpoint);
        let agent = Running::start(command.env("HOME", world.dir()));
        offered(&world, BOX);
        Self {
            agent,
            world,
            endpoint,
        }
    }

    /// `hvsock --dir … ARGUMENTS`.
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> Done {
        self.world.run(arguments)
    }
}

/// The agent, as a process in the container that has this endpoint.
pub fn agent_at(endpoint: &Path) -> Command {
    let mut command = Command::new(agent_program());
    command.env("HVSOCK_ENDPOINT", endpoint);
    // This machine's own pairs are none of a test's business.
    command.env("HVSOCK_KVP_DIR", kvp_dir(endpoint));
    for name in ["HVSOCK_DIR", "NOTIFY_SOCKET", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Where the agent with this endpoint has its key-value pairs.
pub fn kvp_dir(endpoint: &Path) -> PathBuf {
    endpoint.with_file_name("kvp")
}

/// The agent of this build, which cargo makes as an example of this package.
fn agent_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile.join("examples/hvsock-agent");
    assert!(
        program.is_file(),
        "{} is not built; `cargo test` builds it with all tests",
        program.display()
    );
    program
}

/// Waits until the services of a partition's agent are offered.
pub fn offered(world: &World, partition: &str) {
    eventually("the agent offers its services", || {
        let why = world.run(["why", partition, "hvsock shutdown"]);
        why.stdout.contains("would succeed")
    });
}

/// A real container with a static agent as its first process. It has busybox as `/bin/sh` and
/// under its commands' names.
pub fn container(world: &World, name: &str) -> Option<Container> {
    let bundle = bundle(world, name)?;
    let container = bundle.start(&[]).expect("started");
    offered(world, name);
    Some(container)
}

/// What [`container`] starts, for tests that want more in it.
pub fn bundle(world: &World, name: &str) -> Option<Bundle> {
    let (runc, agent) = (require::runc()?, require::static_agent()?);
    let busybox = require::program("busybox", &["true"])?;
    let printed = world.ok(["-q", "container", "add", name]);
    let mount = printed.lines().nth(1).expect("the OCI mounts entry");
    let mut bundle = Bundle::new(&runc, &agent).expect("a bundle");
    bundle.mount(serde_json::from_str(mount).expect("JSON"));
    bundle.copy_in(&busybox, "/bin/busybox").expect("copied");
    for applet in [
        "sh",
        "cat",
        "ls",
        "true",
        "sleep",
        "echo",
        "env",
        "id",
        "kill",
        "ps",
        "head",
        "dd",
        "stat",
        "sha256sum",
        "seq",
        "mkdir",
        "rm",
        "touch",
        "ln",
        "readlink",
        "find",
        "tty",
        "stty",
        "trap",
        "yes",
        "wc",
        "date",
        "nc",
        "setsid",
        "nohup",
        "pwd",
        "test",
        "chmod",
        "sync",
    ] {
        let place = format!("/bin/{applet}");
        bundle.link_in("busybox", &place).expect("linked");
    }
    bundle.env("PATH", "/bin:/");
    bundle.env("HOME", "/tmp");
    Some(bundle)
}

/// A real guest for a new VM of this name, in which the agent runs and offers its services.
pub fn guest(world: &World, name: &str) -> Option<Guest> {
    guest_with(world, name, |_| {})
}

/// Likewise, with more in its configuration.
pub fn guest_with(world: &World, name: &str, configure: impl FnOnce(&mut Config)) -> Option<Guest> {
    let kit = require::found(Kit::find())?;
    let agent = require::static_agent()?;
    world.ok(["-q", "vm", "add", name]);
    let mut config = Config::new(name);
    config.files = File::program(&agent, "/bin/hvsock-agent").unwrap();
    let socket = world.dir().join(format!("vm/{name}.sock"));
    config.vsock = Some(Vsock { socket });
    configure(&mut config);
    let guest = Guest::boot(&kit, &config).unwrap();
    guest.spawn("exec hvsock-agent").unwrap();
    eventually("the agent in the guest answers", || {
        let mut connect = world.command(["connect", name, "hvsock shutdown"]);
        Done::of(&mut connect).code == Some(0)
    });
    Some(guest)
}
