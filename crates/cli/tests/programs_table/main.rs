//! The table of docs/programs.md as tests: each program, in each way, as a client and as a server, on the host, in a
//! container and with a real guest.
//!
//! Each line of the table is a test of this target, and each test a line.

#![cfg_attr(not(target_os = "linux"), allow(unused))]

#[cfg(target_os = "linux")]
mod cell;
#[cfg(target_os = "linux")]
mod guest;
#[cfg(target_os = "linux")]
mod page;
#[cfg(target_os = "linux")]
mod stage;
#[cfg(target_os = "linux")]
#[path = "../cli/util.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the command's own suite uses all of it"
)]
mod util;
#[cfg(target_os = "linux")]
mod way;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::{Arguments, Trial};

    let mut names = Vec::new();
    let mut trials = Vec::new();
    for way in way::ALL {
        for program in hvsock_testkit::programs::NAMES {
            let name = format!("{}::{program}", way.name());
            names.push(name.clone());
            trials.push(Trial::test(name, move || {
                cell::works(*way, program);
                Ok(())
            }));
        }
        let name = format!("{}::with_a_guest", way.name());
        names.push(name.clone());
        trials.push(Trial::test(name, move || {
            guest::works(*way);
            Ok(())
        }));
    }
    trials.push(Trial::test(
        "every_line_of_the_page_names_a_test",
        move || {
            page::lists(&names);
            Ok(())
        },
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
