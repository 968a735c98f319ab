//! `AF_HYPERV` between two ends on this machine, or what stands in for it.

use std::process::ExitCode;

use hvsock::{Endpoint, HvListener, Refusal, ServiceId, Transport as Carrier, VmId, refusal_of};
use hvsock_testkit::conformance::{self, Role};
use hvsock_testkit::require;

use crate::by_system::System;

const HYPERV: System = System {
    endpoint: Endpoint::from_env,
    carrier: Carrier::HyperV,
    blocking: "hyperv",
    asynchronous: "asynchronous_hyperv",
    // With Wine 8 what it takes to watch sockets grows with the square of their number: 500 of plain
    // TCP take tokio a minute there.
    many_tasks: 100,
    // As TCP does on Windows, which is served alike; assumed, as docs/platforms.md says.
    tells_death: true,
    has_small_buffers: false,
};

pub fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        return HYPERV.play(role);
    }
    let trials = HYPERV.trials().into_iter();
    let offered = is_offered();
    if !offered {
        assert!(
            std::env::var_os(require::STAND_IN).is_none(),
            "the stand-in has no AF_HYPERV"
        );
        require::found(Err::<(), _>(
            "every case needs AF_HYPERV, which this Windows does not have",
        ));
    }
    conformance::main(
        trials
            .map(|trial| match offered {
                true => trial,
                false => trial.with_ignored_flag(true),
            })
            .collect(),
    )
}

/// Whether there are such sockets here.
fn is_offered() -> bool {
    let address = (VmId::LOOPBACK, ServiceId::random());
    match HvListener::bind(address) {
        Ok(_) => true,
        Err(error) => refusal_of(&error) != Some(&Refusal::NotSupported),
    }
}
