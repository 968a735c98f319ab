//! The clients in one way, to a real guest whose programs use its kernel's `AF_VSOCK`.

use std::fs;
use std::path::{Path, PathBuf};

use hvsock_guests::{Config, File, Guest, Kit, Vmm, Vsock};
use hvsock_testkit::programs::{self, Kind, Program};
use hvsock_testkit::require;

use crate::cell::{MUCH, Stage};
use crate::util::{Completed, World, eventually};
use crate::way::Way;

/// The guest's context id.
const CID: u32 = 4242;
/// The ports of the guest's echo and disk.
const ECHO: u32 = 7001;
const DISK: u32 = 7003;

/// Asserts that every program works with a guest.
pub fn works(way: Way) {
    let Some(()) = way.is_possible() else { return };
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let programs: Vec<_> = programs::NAMES
        .iter()
        .filter_map(|name| Program::find(name, "hvsock-cli"))
        .collect();
    let (Some(socat), Some(nbdkit)) = (
        require::program("socat", &["-V"]),
        require::program("nbdkit", &["--version"]),
    ) else {
        return;
    };
    let stage = Stage::new(way);
    let world = &stage.world;
    world.ok([
        "-q",
        "service",
        "register",
        "disk",
        "--port",
        &DISK.to_string(),
    ]);
    world.ok(["-q", "vm", "add", "web", "--cid", &CID.to_string()]);
    let mut files = File::program(&socat, "/bin/socat").unwrap();
    files.extend(File::program(&nbdkit, "/bin/nbdkit").unwrap());
    files.extend(plugin());
    files.push(File::bytes("/data", 0o644, stage.data.clone()));
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
    for program in &programs {
        let case = Case {
            stage: &stage,
            program,
        };
        println!("{}", program.name);
        match program.kind {
            Kind::Echo => case.echoes_to_the_guest(),
            Kind::Disk => case.copies_a_disk_of_the_guest(),
            // It has no client.
            Kind::Agent => {}
        }
    }
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

/// One program as a client of the guest.
struct Case<'a> {
    stage: &'a Stage,
    program: &'a Program,
}

impl Case<'_> {
    fn echoes_to_the_guest(&self) {
        let words = self.program.client(CID, ECHO, Path::new(""));
        let mut command = self.stage.command(None, &words);
        let got = Completed::bytes_with_input(&mut command, &self.stage.data);
        assert!(got == self.stage.data, "{} bytes of {MUCH}", got.len());
    }

    fn copies_a_disk_of_the_guest(&self) {
        let copy = self.stage.folder.join("of-the-guest");
        let words = self.program.client(CID, DISK, &copy);
        Completed::of(&mut self.stage.command(None, &words)).ok();
        assert!(fs::read(copy).unwrap() == self.stage.data);
    }
}
