//! `AF_HYPERV` between two ends on this machine, of Windows or of the shim.

use std::process::ExitCode;

use hvsock::{
    Endpoint, HvListener, Refusal, ServiceId, Transport as StreamTransport, VmId, refusal_of,
};
use hvsock_testkit::conformance::{self, Role};
use hvsock_testkit::require;

use crate::system_sockets::System;

const HYPERV: System = System {
    endpoint: Endpoint::from_env,
    transport: StreamTransport::HyperV,
    blocking: "hyperv",
    asynchronous: "asynchronous_hyperv",
    // With Wine 8 the cost of watching sockets grows with the square of their number: tokio needs a
    // minute for 500 plain TCP sockets there.
    many_tasks: 100,
    // As TCP on Windows, which has the same implementation; an assumption, as docs/platforms.md
    // states.
    reports_peer_death: true,
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
            std::env::var_os(require::SHIM).is_none(),
            "the shim has no AF_HYPERV"
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

/// Returns true if this system has such sockets.
fn is_offered() -> bool {
    let address = (VmId::LOOPBACK, ServiceId::random());
    match HvListener::bind(address) {
        Ok(_) => true,
        Err(error) => refusal_of(&error) != Some(&Refusal::NotSupported),
    }
}
