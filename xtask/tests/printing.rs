//! What a program prints passes through one module, which escapes untrusted text and writes a line at once.

use std::path::{Path, PathBuf};

/// What prints, apart from the modules that are for it.
const PRINTS: [&str; 9] = [
    "println!(",
    "eprintln!(",
    " print!(",
    " eprint!(",
    "stdout().lock()",
    "stderr().lock()",
    "stdout().write",
    "stderr().write",
    "!(stderr(),",
];

/// The modules that print, and why no other one can do it for them.
const MODULES: [&str; 4] = [
    // All that the command prints.
    "cli/src/output.rs",
    // Bytes of a connection.
    "cli/src/os/windows/stdio.rs",
    // The key-value pairs of the agent, which escapes them.
    "services/src/agent/pairs.rs",
    // Messages to the agent.
    "services/src/guest/freeze/freezer.rs",
];

/// Crates that no program of ours contains, or that only developers run.
const OTHER_CRATES: [&str; 2] = ["guests", "testkit"];

#[test]
fn programs_print_through_one_module() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("crates");
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&crates)
        .expect("the crates")
        .map(|entry| entry.expect("a crate").path())
        .filter(|path| !OTHER_CRATES.iter().any(|other| path.ends_with(other)))
        .map(|path| path.join("src"))
        .collect();
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let shown = path.strip_prefix(&crates).expect("a file below");
            if MODULES.iter().any(|module| shown == Path::new(module)) {
                continue;
            }
            read += 1;
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            let code = text.lines().enumerate().filter(|(_, line)| {
                let line = line.trim_start();
                !line.starts_with("//") && PRINTS.iter().any(|prints| line.contains(prints))
            });
            let lines = code.map(|(at, line)| {
                format!("crates/{}:{}: {}", shown.display(), at + 1, line.trim())
            });
            found.extend(lines);
        }
    }
    assert!(read > 300, "{read} files");
    assert!(
        found.is_empty(),
        "Print lines with the module `output` of the command, and log with `tracing`.\n{}",
        found.join("\n")
    );
}
