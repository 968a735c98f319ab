//! Partitions with an agent: a plain process that has a container's endpoint (fast), a real container, or
//! a real guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hvsock_guests::{Config, File, Guest, Kit, Vmm, Vsock};
use hvsock_testkit::container::{Bundle, Container};
use hvsock_testkit::require;

use crate::util::{Completed, Running, World, eventually};

/// The name of the fixture's container partition.
pub const BOX: &str = "box";

/// A broker, a container partition, and the partition's agent as a process of this machine.
pub struct Fixture {
    pub agent: Running,
    pub world: World,
    pub endpoint: PathBuf,
}

impl Fixture {
    /// Starts the broker and the agent, and waits until the agent offers its services. Skips the test
    /// (`None`) if the agent is not built.
    pub fn new() -> Option<Self> {
        require_agent()?;
        let world = World::new();
        let endpoint = world.container(BOX);
        let mut command = agent_command(&endpoint)?;
        let agent = Running::start(command.env("HOME", world.dir()));
        wait_until_offered(&world, BOX);
        Some(Self {
            agent,
            world,
            endpoint,
        })
    }

    /// Runs `hvsock --dir … ARGUMENTS`.
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> Completed {
        self.world.run(arguments)
    }

    /// The command line of another agent for the same partition.
    pub fn agent_command(&self) -> Command {
        agent_command(&self.endpoint).expect("the first agent was built")
    }

    /// Starts another agent in place of one that has ended.
    pub fn start_agent(&mut self) {
        self.agent = Running::start(&mut self.agent_command());
    }

    pub fn kill_agent(&mut self) {
        self.agent.kill();
    }
}

/// The agent's program of this build. Cargo builds it as an example of this package.
fn require_agent() -> Option<PathBuf> {
    require::example("hvsock-cli", "hvsock-agent")
}

/// The agent as a process with the endpoint of a container. Skips the test (`None`) if it is not built.
pub fn agent_command(endpoint: &Path) -> Option<Command> {
    let mut command = Command::new(require_agent()?);
    command.env("HVSOCK_ENDPOINT", endpoint);
    // A folder of its own, so that tests do not read or change the pairs of this machine.
    command.env("HVSOCK_KVP_DIR", kvp_dir(endpoint));
    for name in ["HVSOCK_DIR", "NOTIFY_SOCKET", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    Some(command)
}

/// The folder of key-value pairs of the agent with this endpoint.
pub fn kvp_dir(endpoint: &Path) -> PathBuf {
    endpoint.with_file_name("kvp")
}

/// Waits until the agent of a partition offers its services.
pub fn wait_until_offered(world: &World, partition: &str) {
    eventually("the agent offers its services", || {
        let why = world.run(["why", partition, "hvsock shutdown"]);
        why.stdout.contains("would succeed")
    });
}

/// Starts a real container with a static agent as its first process, and busybox under the names of
/// its commands in `/bin`. Skips the test (`None`) without runc, the agent or busybox.
pub fn container(world: &World, name: &str) -> Option<Container> {
    let bundle = bundle(world, name)?;
    let container = bundle.start(&[]).expect("started");
    wait_until_offered(world, name);
    Some(container)
}

/// The bundle that [`container`] starts, for tests that add to it.
pub fn bundle(world: &World, name: &str) -> Option<Bundle> {
    let (runc, agent) = (require::runc()?, require::static_agent()?);
    let busybox = require::program("busybox", &["true"])?;
    let mount = world.ok(["-q", "container", "add", name, "--format", "oci"]);
    let mut bundle = Bundle::new(&runc, &agent).expect("a bundle");
    bundle.mount(serde_json::from_str(&mount).expect("JSON"));
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
        let path = format!("/bin/{applet}");
        bundle.link_in("busybox", &path).expect("linked");
    }
    bundle.env("PATH", "/bin:/");
    bundle.env("HOME", "/tmp");
    Some(bundle)
}

/// Boots a real guest in User-mode Linux for a new VM of this name, and waits until its agent answers. Skips
/// the test (`None`) without User-mode Linux or the static agent.
pub fn guest(world: &World, name: &str) -> Option<Guest> {
    guest_in(world, name, Vmm::Uml, |_| {})
}

/// As [`guest`], under QEMU and with changes to the guest's configuration.
pub fn qemu_guest(world: &World, name: &str, configure: impl FnOnce(&mut Config)) -> Option<Guest> {
    guest_in(world, name, Vmm::Qemu, configure)
}

fn guest_in(
    world: &World,
    name: &str,
    vmm: Vmm,
    configure: impl FnOnce(&mut Config),
) -> Option<Guest> {
    let kit = require::found(Kit::find_for(vmm))?;
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
        Completed::of(&mut connect).code == Some(0)
    });
    Some(guest)
}
