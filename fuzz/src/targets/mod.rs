//! A module per target.

mod address;
mod agent;
mod arena;
mod capi;
mod control;
mod copy;
mod discover;
mod endpoint;
mod fabric;
mod forward;
mod hybrid;
mod interpose;
mod nri;
mod oci;
mod reg;
mod ring;
mod snapshot;
mod text;
mod toml;
mod uplink;
mod vectors;
mod virtqueue;
mod vmm;

use crate::mutate::Mutator;
use crate::target::{Seed, Target};

/// Makes a target of a module.
macro_rules! target {
    ($module:ident, $max_len:expr, $timeout:expr, $about:expr) => {
        Target {
            name: stringify!($module),
            about: $about,
            max_len: $max_len,
            timeout: $timeout,
            run: $module::run,
            seeds: $module::seeds,
        }
    };
}

/// All targets, by name.
pub(crate) const ALL: &[Target] = &[
    target!(
        address,
        600,
        10,
        "text and bytes of addresses: GUIDs, names, URLs, socket addresses"
    ),
    target!(
        agent,
        6000,
        10,
        "messages of the agent's services, and the files that it reads"
    ),
    target!(
        arena,
        1000,
        60,
        "a process that overwrites the memory that a pair shares, while both ends and the broker use it"
    ),
    target!(
        capi,
        600,
        10,
        "texts that a C program passes to the library"
    ),
    target!(
        control,
        3000,
        30,
        "requests for the control API, of an operator and of another user"
    ),
    target!(copy, 4000, 30, "a hostile sender of files"),
    target!(
        discover,
        4000,
        10,
        "answers of libvirt, machined and Incus, and arguments of VMMs"
    ),
    target!(
        endpoint,
        4200,
        10,
        "messages of the endpoint protocol, in both directions"
    ),
    target!(
        fabric,
        400,
        30,
        "sequences of operations, against the reference implementation"
    ),
    target!(
        forward,
        4000,
        10,
        "records of a forwarded connection, and the messages before them"
    ),
    target!(
        hybrid,
        600,
        10,
        "lines of hybrid vsock: requests and replies"
    ),
    target!(
        interpose,
        600,
        10,
        "calls of a program on AF_VSOCK and AF_HYPERV: addresses, options, any order"
    ),
    target!(
        nri,
        4000,
        10,
        "frames of a container runtime for the NRI plugin"
    ),
    target!(
        oci,
        4000,
        30,
        "a hook's input, messages of seccomp listeners, seccomp profiles"
    ),
    target!(reg, 4000, 10, "files of the registry editor"),
    target!(
        ring,
        1000,
        30,
        "a peer that overwrites the shared memory while the other end is used"
    ),
    target!(
        snapshot,
        4000,
        30,
        "damaged snapshots of the fabric, a muxer, a virtqueue and a monitor"
    ),
    target!(
        text,
        4200,
        10,
        "lines of the text protocol: requests and replies"
    ),
    target!(
        toml,
        4000,
        10,
        "TOML files: registrations with their rules, defaults, partitions"
    ),
    target!(
        uplink,
        4400,
        10,
        "frames of the uplink in both directions, and the state machines of both sides"
    ),
    target!(
        virtqueue,
        2000,
        60,
        "a guest that puts anything into its queues, beside another guest's connection"
    ),
    target!(vmm, 4400, 10, "memory tables of a VMM"),
];

/// Seeds with the names of their literals.
fn named<const N: usize>(seeds: [(&str, Vec<u8>); N]) -> Vec<Seed> {
    let seeds = seeds.into_iter();
    seeds
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}

/// Scripts of random operations, of several lengths, and always the same ones.
fn random_scripts() -> Vec<Seed> {
    let mut random = Mutator::new(1);
    [16, 64, 200, 400]
        .into_iter()
        .map(|length| {
            let bytes = (0..length).map(|_| random.below(256) as u8).collect();
            (format!("random-{length}"), bytes)
        })
        .collect()
}
