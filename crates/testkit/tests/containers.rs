//! Containers are isolated, reach their endpoint folder, and leave no process behind.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hvsock_testkit::TempFolder;
use hvsock_testkit::container::Bundle;
use hvsock_testkit::process::{CapturedOutput, output};
use hvsock_testkit::require;

/// Prints its surroundings, then echoes its stdin.
const PROGRAM: &str = r#"
use std::io::{Read, Write};
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    println!("pid {} arguments {arguments:?}", std::process::id());
    println!("{:?}", std::env::var("COLOUR"));
    let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap();
    println!("interfaces {}", interfaces.lines().count() - 2);
    let mut socket = std::os::unix::net::UnixStream::connect("/run/hvsock/endpoint").unwrap();
    socket.write_all(b"from inside").unwrap();
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).unwrap();
    print!("input {input}");
}
"#;

fn static_program(folder: &TempFolder) -> PathBuf {
    let (source, binary) = (folder.join("program.rs"), folder.join("program"));
    fs::write(&source, PROGRAM).expect("written");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .args(["--edition=2024", "-Ctarget-feature=+crt-static", "-o"])
        .arg(&binary)
        .arg(&source);
    let built = output(&mut rustc, b"", Duration::from_secs(60)).expect("rustc runs");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    binary
}

#[test]
fn a_static_program_runs_in_a_container_and_reaches_the_endpoint_folder() {
    let Some(runc) = require::runc() else { return };
    let folder = TempFolder::new();
    let mut bundle = Bundle::new(&runc, &static_program(&folder)).expect("a bundle");
    let endpoint = UnixListener::bind(folder.join("endpoint")).expect("bound");
    bundle
        .bind(folder.path(), "/run/hvsock")
        .env("COLOUR", "none");

    let output = bundle.run(&["a", "b c"], b"hi").expect("it ends");
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{errors}");
    assert_eq!(
        printed,
        "pid 1 arguments [\"a\", \"b c\"]\nOk(\"none\")\ninterfaces 1\ninput hi"
    );
    let (socket, _) = endpoint.accept().expect("it connected");
    assert_eq!(
        std::io::read_to_string(socket).expect("text"),
        "from inside"
    );

    // Dropping a running container deletes it.
    let mut container = bundle.start(&["again"]).expect("it starts");
    let id = container.running.id();
    let stdout = CapturedOutput::from(container.running.take_stdout().expect("piped"));
    stdout
        .wait_for("interfaces", Duration::from_secs(30))
        .expect("it runs");
    drop(container);
    assert!(!PathBuf::from(format!("/proc/{id}")).exists());
    let left = fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
        fs::read_to_string(entry.path().join("cmdline"))
            .is_ok_and(|line| line.contains("/program\0again"))
    });
    assert!(!left, "the program still runs");

    // A killed program is reported by its status.
    let mut container = bundle.start(&["killed"]).expect("it starts");
    let stdout = CapturedOutput::from(container.running.take_stdout().expect("piped"));
    stdout
        .wait_for("interfaces", Duration::from_secs(30))
        .expect("it runs");
    let mut stdin = container.running.take_stdin().expect("piped");
    stdin.write_all(b"unfinished").expect("it takes input");
    container.kill().expect("killed");
    let status = container.wait(Duration::from_secs(30)).expect("it ends");
    assert_eq!(status.code(), Some(137));
}
