//! The clients in one way to a real guest, and its clients to the servers. The guest's programs use its kernel's
//! `AF_VSOCK`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hvsock_guests::{Config, File, Guest, Kit, Vmm, Vsock};
use hvsock_testkit::programs::{self, Kind, Peer, Program};
use hvsock_testkit::require;

use crate::stage::{BOX, ECHO, GROUP, LINE, SERVER, Stage};
use crate::util::{Completed, World, eventually};
use crate::way::{Place, Way};

/// The guest's context id.
const CID: u32 = 4242;
/// The port of the guest's disk.
const DISK: u32 = 7003;
/// The host, for the guest.
const HOST: u32 = 2;
/// The bound on a client in the guest.
const LIMIT: Duration = Duration::from_secs(60);

/// Asserts that every program works with a guest.
pub fn works(way: Way) {
    let Some(()) = way.is_possible() else { return };
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let programs: Vec<_> = programs::NAMES
        .iter()
        .filter_map(|name| Program::find(name, "hvsock-cli"))
        .filter(|program| way.takes_static() || !program.is_static())
        .collect();
    let (Some(socat), Some(nbdkit), Some(nbdcopy)) = (
        require::program("socat", &["-V"]),
        require::program("nbdkit", &["--version"]),
        require::program("nbdcopy", &["--version"]),
    ) else {
        return;
    };
    let stage = Stage::new(way, &programs.iter().collect::<Vec<_>>());
    let world = &stage.world;
    world.ok([
        "-q",
        "service",
        "register",
        "disk",
        "--port",
        &DISK.to_string(),
    ]);
    let cid = CID.to_string();
    world.ok(["-q", "vm", "add", "web", "--cid", &cid, "--group", GROUP]);
    let mut files = File::program(&socat, "/bin/socat").unwrap();
    files.extend(File::program(&nbdkit, "/bin/nbdkit").unwrap());
    files.extend(File::program(&nbdcopy, "/bin/nbdcopy").unwrap());
    files.extend(plugin());
    files.push(File::bytes("/data", 0o644, stage.data.clone()));
    files.push(File::bytes("/line", 0o644, line()));
    let guest = boot(&kit, world, files);
    let echo = format!("exec socat -t 60 VSOCK-LISTEN:{ECHO},fork EXEC:cat");
    let _echo = guest.spawn(&echo).unwrap();
    let disk = format!("exec nbdkit -f --vsock --port {DISK} file /data");
    let _disk = guest.spawn(&disk).unwrap();
    for port in [ECHO, DISK] {
        eventually("the guest listens", || {
            let connect = world.run(["connect", "web", &port.to_string()]);
            connect.code == Some(0)
        });
    }
    let place = way.places()[0];
    let own = match place {
        Place::Host => HOST,
        Place::Box => match stage.container_peer(BOX) {
            Peer::Other { cid, .. } => cid,
            peer => panic!("{peer:?} is no other partition"),
        },
    };
    for program in &programs {
        let case = Case {
            stage: &stage,
            program,
            guest: &guest,
            place,
            own,
        };
        println!("{}", program.name);
        match program.kind {
            Kind::Echo | Kind::Text => {
                case.echoes_to_the_guest();
                case.echoes_from_the_guest();
            }
            Kind::Disk => {
                case.copies_a_disk_of_the_guest();
                case.serves_a_disk_to_the_guest();
            }
            // It has no client.
            Kind::Agent => case.answers_the_guest(),
        }
    }
}

/// What a program gets that cannot read and write at once.
fn line() -> Vec<u8> {
    let mut line = vec![b'x'; LINE - 1];
    line.push(b'\n');
    line
}

/// nbdkit's plugin, with the libraries that it needs. It keeps its path.
fn plugin() -> Vec<File> {
    let output = std::process::Command::new("nbdkit")
        .arg("--dump-config")
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut folders = text
        .lines()
        .filter_map(|line| line.strip_prefix("plugindir="));
    let path = PathBuf::from(folders.next().unwrap()).join("nbdkit-file-plugin.so");
    let place = path.to_str().unwrap().to_owned();
    File::program(&path, place).unwrap()
}

fn boot(kit: &Kit, world: &World, files: Vec<File>) -> Guest {
    let mut config = Config::new("web");
    config.files = files;
    let socket = world.dir().join("vm/web.sock");
    config.vsock = Some(Vsock { socket });
    Guest::boot(kit, &config).unwrap()
}

/// One program as a client of the guest, and as a server for it.
struct Case<'a> {
    stage: &'a Stage,
    program: &'a Program,
    guest: &'a Guest,
    /// Where the program is, and the context id of that for the guest.
    place: Place,
    own: u32,
}

impl Case<'_> {
    fn echoes_to_the_guest(&self) {
        let peer = self.stage.machine_peer("web");
        self.stage.echo(self.program, self.place, &peer);
    }

    fn copies_a_disk_of_the_guest(&self) {
        let copy = self.stage.folder.join("of-the-guest");
        let peer = self.stage.machine_peer("web");
        let words = self.program.client(&peer, DISK, &copy);
        Completed::of(&mut self.stage.command(self.place, &words)).ok();
        assert!(fs::read(copy).unwrap() == self.stage.data);
    }

    /// Runs a shell command in the guest while the program serves. The command must succeed.
    fn serves(&self, file: &Path, command: &str) {
        let words = self.program.server(SERVER, file);
        let _server = self
            .stage
            .serve(&mut self.stage.command(self.place, &words));
        let done = self.guest.run(command, LIMIT).unwrap();
        assert_eq!(done.status, 0, "{}: {done:?}", self.program.name);
    }

    fn echoes_from_the_guest(&self) {
        let connect = format!("socat -t 60 - VSOCK-CONNECT:{}:{SERVER}", self.own);
        let command = match self.program.name {
            // Half-closes only when all has come back.
            "ncat" => format!(
                "rm -f /all; mkfifo /all; {{ cat /line; read -r end < /all; }} | {connect} | \
                 {{ head -c {LINE} > /got; echo end > /all; }}; cmp /got /line"
            ),
            _ => format!("{connect} < /data > /got && cmp /got /data"),
        };
        self.serves(Path::new(""), &command);
    }

    fn serves_a_disk_to_the_guest(&self) {
        let own = self.own;
        let command =
            format!("nbdcopy nbd+vsock://{own}:{SERVER}/ /copy > /dev/null && cmp /copy /data");
        self.serves(&self.stage.disk(), &command);
    }

    fn answers_the_guest(&self) {
        let request = "{\"execute\":\"guest-sync\",\"arguments\":{\"id\":7001}}";
        let command = format!(
            "rm -f /all; mkfifo /all; {{ echo '{request}'; read -r end < /all; }} | \
             socat -t 60 - VSOCK-CONNECT:{}:{SERVER} | {{ read -r answer; echo \"$answer\" > /got; echo end > /all; }}; \
             grep 7001 /got",
            self.own
        );
        self.serves(&self.stage.folder.join("state"), &command);
    }
}
