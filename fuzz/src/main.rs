//! Runs fuzz targets.
//!
//! Built with `--cfg fuzzing` it is LLVM's fuzzer, whose target the variable `HVSOCK_FUZZ_TARGET` names; `cargo
//! xtask fuzz` builds it so. Otherwise it runs a target over files, lists the targets, or writes their seeds.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(init: hvsock_fuzz::choose(), |bytes: &[u8]| {
    hvsock_fuzz::run_chosen(bytes);
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    use std::path::Path;
    use std::process::ExitCode;
    use std::time::Instant;

    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let failed = |error: &dyn std::fmt::Display| {
        eprintln!("hvsock-fuzz: {error}");
        ExitCode::FAILURE
    };
    match words.as_slice() {
        ["list"] => {
            for target in hvsock_fuzz::TARGETS {
                println!("{:10} {}", target.name, target.about);
            }
            ExitCode::SUCCESS
        }
        ["seed", folder] => match hvsock_fuzz::write_seeds(Path::new(folder)) {
            Ok(count) => {
                println!("{count} seeds");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&format!("cannot write seeds to {folder}: {error}")),
        },
        ["run", name, files @ ..] if !files.is_empty() => {
            let Some(target) = hvsock_fuzz::find(name) else {
                return failed(&format!("no target {name:?}\nhelp: hvsock-fuzz list"));
            };
            for file in files {
                let bytes = match std::fs::read(file) {
                    Ok(bytes) => bytes,
                    Err(error) => return failed(&format!("cannot read {file}: {error}")),
                };
                let start = Instant::now();
                (target.run)(&bytes);
                println!("{file}: {} bytes, {:?}", bytes.len(), start.elapsed());
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: hvsock-fuzz list | seed FOLDER | run TARGET FILE…");
            ExitCode::from(2)
        }
    }
}
