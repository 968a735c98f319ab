//! The plugin against a scripted runtime, which speaks as containerd does (see `hvsock_testkit::nri`).

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hvsock_nri::{Ended, Endpoint, Endpoints, Hook, Identity, Plugin, Wanted, serve};
use hvsock_testkit::nri::{self, Proto};
use proptest::prelude::*;

/// What was asked of the endpoints.
type Asked = Arc<Mutex<Vec<String>>>;

/// Endpoints without a broker.
#[derive(Default)]
struct Scripted {
    asked: Asked,
}

impl Scripted {
    fn ask(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

impl Endpoints for Scripted {
    fn prepare(&mut self, wanted: &Wanted, limit: Duration) -> Result<Option<Endpoint>, String> {
        let (name, id) = (&wanted.name, &wanted.container_id);
        self.ask(format!(
            "prepare {name} for {id} in {} of {:?}",
            limit.as_millis(),
            wanted.namespace
        ));
        match name.as_str() {
            "down" => Err("no broker runs".to_owned()),
            "optional" => Ok(None),
            name => Ok(Some(Endpoint {
                folder: format!("/run/hvsock/containers/{name}"),
                create_runtime: vec![Hook {
                    path: "/usr/bin/hvsock".to_owned(),
                    args: ["hvsock", "hook", name].map(str::to_owned).into(),
                }],
                poststop: vec![Hook {
                    path: "/bin/true".to_owned(),
                    args: vec!["true".to_owned()],
                }],
            })),
        }
    }

    fn found(&mut self, wanted: Vec<Wanted>) {
        let names: Vec<_> = wanted.iter().map(|one| one.name.as_str()).collect();
        self.ask(format!("found {}", names.join(" ")));
    }

    fn removed(&mut self, wanted: &Wanted, _: Duration) {
        self.ask(format!(
            "removed {} of {}",
            wanted.name, wanted.container_id
        ));
    }
}

fn identity() -> Identity {
    Identity {
        name: "hvsock".to_owned(),
        index: 7,
    }
}

/// A plugin that serves one end of a socket pair, and the runtime at the other.
struct Pair {
    runtime: nri::Plugin,
    plugin: JoinHandle<(Ended, Vec<String>)>,
    asked: Asked,
}

impl Pair {
    fn new() -> Self {
        let (runtime, socket) = UnixStream::pair().unwrap();
        let mut scripted = Scripted::default();
        let asked = Arc::clone(&scripted.asked);
        let plugin = std::thread::spawn(move || {
            let mut runtimes = Vec::new();
            let configured = |runtime: &str| runtimes.push(runtime.to_owned());
            let ended = serve(&socket, &identity(), &mut scripted, configured);
            (ended, runtimes)
        });
        let runtime = nri::Plugin::at(runtime);
        Self {
            runtime,
            plugin,
            asked,
        }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Closes the connection. Returns why the plugin ended, and the runtimes that configured it.
    fn end(self) -> (Ended, Vec<String>) {
        drop(self.runtime);
        self.plugin.join().unwrap()
    }
}

fn configure() -> Proto {
    let named = Proto::new().text(2, "containerd").text(3, "v2.1.0");
    named.varint(4, 5000).varint(5, 1000).text(6, "v0.9.0")
}

/// A Pod with fields that the plugin does not use.
fn pod(annotations: &[(&str, &str)]) -> Proto {
    let resources = Proto::new().with(1, &Proto::new().with(1, &Proto::new().varint(1, 1 << 30)));
    let pod = Proto::new()
        .text(1, "sandbox")
        .text(2, "shop")
        .text(3, "uid-1")
        .text(4, "prod");
    let pod = pod
        .entry(5, "app", "shop")
        .with(8, &resources)
        .varint(9, 4711);
    annotations
        .iter()
        .fold(pod, |pod, (key, value)| pod.entry(6, key, value))
}

fn container(id: &str, annotations: &[(&str, &str)]) -> Proto {
    let mount = Proto::new()
        .text(1, "/proc")
        .text(2, "proc")
        .text(3, "proc")
        .text(4, "nosuid");
    let container = Proto::new()
        .text(1, id)
        .text(2, "sandbox")
        .text(3, "web")
        .varint(4, 1);
    let container = container
        .text(7, "sleep")
        .text(8, "PATH=/")
        .with(9, &mount)
        .varint(12, 1);
    annotations
        .iter()
        .fold(container, |container, (key, value)| {
            container.entry(6, key, value)
        })
}

fn request(pod: &Proto, container: &Proto) -> Proto {
    Proto::new().with(1, pod).with(2, container)
}

#[test]
fn a_container_with_the_annotation_gets_the_mount_and_the_hooks() {
    let mut pair = Pair::new();
    pair.runtime.registered();
    assert_eq!(
        pair.runtime.identity,
        ("hvsock".to_owned(), "07".to_owned())
    );
    let configured = pair.runtime.call("Configure", &configure()).unwrap();
    // CREATE_CONTAINER, STOP_CONTAINER, REMOVE_CONTAINER.
    assert_eq!(configured.number(2), 1 << 3 | 1 << 9 | 1 << 10);
    let named = container("c1", &[("hvsock.dev/name", "web")]);
    let created = pair
        .runtime
        .call("CreateContainer", &request(&pod(&[]), &named))
        .unwrap();
    // The time limit that was configured, less what the answer needs.
    assert_eq!(pair.asked(), ["prepare web for c1 in 750 of \"prod\""]);
    let adjust = created.message(1);
    let [mount] = adjust.messages(3).try_into().unwrap();
    assert_eq!(mount.string(1), "/run/hvsock");
    assert_eq!(
        (mount.string(2), mount.string(3)),
        ("bind".into(), "/run/hvsock/containers/web".into())
    );
    assert_eq!(
        mount.strings(4),
        ["bind", "ro", "nosuid", "nodev", "noexec"]
    );
    let [create_runtime, poststop] = [2, 6].map(|field| adjust.message(5).messages(field));
    assert_eq!(create_runtime[0].string(1), "/usr/bin/hvsock");
    assert_eq!(create_runtime[0].strings(2), ["hvsock", "hook", "web"]);
    assert_eq!((create_runtime.len(), poststop.len()), (1, 1));
    // A container without it is left as it is, and nobody is asked.
    let plain = request(&pod(&[]), &container("c2", &[]));
    assert_eq!(
        pair.runtime.call("CreateContainer", &plain).unwrap(),
        Proto::new()
    );
    let optional = request(
        &pod(&[("hvsock.dev/container.web", "optional")]),
        &container("c2", &[]),
    );
    assert_eq!(
        pair.runtime.call("CreateContainer", &optional).unwrap(),
        Proto::new()
    );
    assert_eq!(pair.asked().len(), 1);
    for method in [
        "StopContainer",
        "RemoveContainer",
        "RunPodSandbox",
        "PostStartContainer",
    ] {
        pair.runtime
            .call(method, &request(&pod(&[]), &named))
            .unwrap();
    }
    assert_eq!(pair.asked(), ["removed web of c1"]);
    // Runtimes up to NRI 0.9 report the removal as an event.
    let removal = Proto::new()
        .varint(1, 11)
        .with(2, &pod(&[]))
        .with(3, &named);
    pair.runtime.call("StateChange", &removal).unwrap();
    let started = Proto::new().varint(1, 7).with(2, &pod(&[])).with(3, &named);
    pair.runtime.call("StateChange", &started).unwrap();
    assert_eq!(pair.asked(), ["removed web of c1"]);
    let (ended, runtimes) = pair.end();
    assert!(matches!(ended, Ended::Closed), "{ended}");
    assert_eq!(runtimes, ["containerd v2.1.0"]);
}

#[test]
fn a_container_that_cannot_have_what_it_asks_for_is_refused_with_the_reason() {
    let mut pair = Pair::new();
    pair.runtime.registered();
    let other = Proto::new()
        .text(1, "/run/hvsock")
        .text(2, "bind")
        .text(3, "/srv\x1b[2J");
    let same = Proto::new()
        .text(1, "/run/hvsock")
        .text(3, "/run/hvsock/containers/web");
    for (annotation, mount, want) in [
        ("down", None, "hvsock: no broker runs"),
        (
            "a/b",
            None,
            "hvsock: hvsock.dev/name: a/b cannot be the name of a partition: a container in a VM",
        ),
        (
            "web",
            Some(&other),
            r"hvsock: /srv\u{1b}[2J is mounted at /run/hvsock, where web is to be",
        ),
    ] {
        let mut named = container("c1", &[("hvsock.dev/name", annotation)]);
        if let Some(mount) = mount {
            named = named.with(9, mount);
        }
        let create = request(&pod(&[]), &named);
        let (code, text) = pair.runtime.call("CreateContainer", &create).unwrap_err();
        assert!(code == 9 && text.starts_with(want), "{code} {text}");
    }
    // The container's CDI device has mounted it: only the hooks are added.
    let named = container("c1", &[("hvsock.dev/name", "web")]).with(9, &same);
    let created = pair
        .runtime
        .call("CreateContainer", &request(&pod(&[]), &named))
        .unwrap();
    assert_eq!(created.message(1).messages(3), []);
    assert_eq!(created.message(1).message(5).messages(2).len(), 1);
    let nothing = pair
        .runtime
        .call("CreateContainer", &Proto::new())
        .unwrap_err();
    assert_eq!(nothing, (3, "the request has no container".to_owned()));
    let unknown = pair.runtime.call("Dance", &Proto::new()).unwrap_err();
    assert_eq!(unknown, (12, "no such method".to_owned()));
}

#[test]
fn the_containers_that_were_there_before_are_told_once_all_of_them_are_known() {
    let mut pair = Pair::new();
    pair.runtime.registered();
    let pods = pod(&[("hvsock.dev/container.web", "of-pod")]);
    let first = Proto::new()
        .with(1, &pods)
        .with(2, &container("c1", &[("hvsock.dev/name", "own")]));
    let answer = pair
        .runtime
        .call("Synchronize", &first.varint(3, 1))
        .unwrap();
    assert_eq!(answer.number(2), 1, "more are taken");
    assert!(pair.asked().is_empty());
    // Longer than a piece, and than what is read at once.
    let mut second = Proto::new();
    for number in 0..2000 {
        second = second.with(
            2,
            &container(&format!("plain-{number}"), &[]).text(2, "unknown"),
        );
    }
    let second = second
        .with(2, &container("c2", &[]))
        .with(2, &container("c3", &[("hvsock.dev/name", "")]));
    let answer = pair.runtime.call("Synchronize", &second).unwrap();
    assert_eq!(answer.number(2), 0);
    assert_eq!(pair.asked(), ["found own of-pod of-pod"]);
}

#[test]
fn a_runtime_that_breaks_the_protocol_or_refuses_the_plugin_loses_the_connection() {
    let too_long = |bytes: &'static [u8]| {
        let mut pair = Pair::new();
        pair.runtime.registered();
        pair.runtime.send_raw(bytes).unwrap();
        pair.runtime.closed();
        pair.end().0.to_string()
    };
    let piece = too_long(b"\0\0\0\x01\xff\xff\xff\xff");
    assert_eq!(
        piece,
        "a piece of 4294967295 bytes is longer than any message"
    );
    let message = too_long(b"\0\0\0\x01\0\0\0\x0a\x10\0\0\0\0\0\0\x01\x01\0");
    assert_eq!(message, "a message of 268435456 bytes is longer than 4 MiB");
    let refusal = too_long(
        b"\0\0\0\x02\0\0\0\x18\0\0\0\x0e\0\0\0\x01\x02\0\x0a\x0c\x08\x03\x12\x08no\x1b[2Jxx",
    );
    assert_eq!(
        refusal,
        r"the runtime does not register the plugin: no\u{1b}[2Jxx"
    );
}

#[test]
fn calls_that_are_none_are_answered_and_do_not_end_the_connection() {
    let mut plugin = Plugin::default();
    let mut scripted = Scripted::default();
    let mut answer = |bytes: &[u8]| {
        let mut piece = [0, 0, 0, 1].to_vec();
        piece.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        piece.extend(bytes);
        let answer = plugin.receive(&piece, &mut scripted).unwrap();
        let status = Proto::parse(answer.get(18..).unwrap_or_default()).message(1);
        (status.number(1), status.string(2))
    };
    let stream = "the number of a stream is odd, and higher than those before";
    assert_eq!(answer(b"\0\0\0\0\0\0\0\x02\x01\0"), (3, stream.into()));
    assert_eq!(
        answer(b"\0\0\0\x01\0\0\0\x05\x01\0\xff"),
        (3, "the request cannot be decoded".into())
    );
    assert_eq!(answer(b"\0\0\0\0\0\0\0\x05\x01\0"), (3, stream.into()));
    let service = "only calls of the plugin's service with one request are known";
    assert_eq!(answer(b"\0\0\0\0\0\0\0\x07\x01\0"), (12, service.into()));
    assert_eq!(answer(b"\0\0\0\0\0\0\0\x09\x01\x02"), (12, service.into()));
    // Data of a stream, and a type of a later version.
    assert_eq!(answer(b"\0\0\0\0\0\0\0\x09\x03\x05"), (0, String::new()));
    assert_eq!(answer(b"\0\0\0\x01\0\0\0\x09\x77\0x"), (0, String::new()));
}

#[test]
fn a_list_of_empty_elements_costs_little_memory() {
    // Two bytes on the wire for each.
    let empty = [[0x0a, 0], [0x12, 0]].concat().repeat(1 << 19);
    let call = Proto::new()
        .text(1, "nri.pkg.api.v1alpha1.Plugin")
        .text(2, "Synchronize")
        .bytes(3, &empty);
    let mut message = u32::try_from(call.as_bytes().len())
        .unwrap()
        .to_be_bytes()
        .to_vec();
    message.extend(b"\0\0\0\x01\x01\0");
    message.extend(call.as_bytes());
    let mut piece = [0, 0, 0, 1].to_vec();
    piece.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    piece.extend(message);
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak();
    let answer = Plugin::default()
        .receive(&piece, &mut Scripted::default())
        .unwrap();
    assert!(!answer.is_empty());
    let kib = peak() - before;
    assert!(kib < 200 << 10, "{kib} KiB");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(256)))]

    #[test]
    fn no_bytes_of_a_runtime_make_the_plugin_fail_or_answer_at_length(
        pieces in prop::collection::vec(
            (0_u32..4, prop::collection::vec(any::<u8>(), 0..200), any::<bool>()), 0..20),
        raw in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut plugin = Plugin::default();
        let mut scripted = Scripted::default();
        let (mut sent, mut received) = (0, 0);
        let mut stream = 1_u32;
        for (connection, data, is_message) in pieces {
            let mut bytes = Vec::new();
            if is_message {
                bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
                bytes.extend(stream.to_be_bytes());
                bytes.extend([1, 0]);
                stream += 2;
            }
            bytes.extend(&data);
            let mut piece = connection.to_be_bytes().to_vec();
            piece.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
            piece.extend(bytes);
            sent += piece.len();
            match plugin.receive(&piece, &mut scripted) {
                Ok(answer) => received += answer.len(),
                Err(_) => break,
            }
        }
        let _ = plugin.receive(&raw, &mut scripted);
        // An error of at most a hundred bytes for each header of ten.
        prop_assert!(received <= sent * 12 + 200);
    }
}

#[test]
fn a_socket_that_fails_ends_the_plugin() {
    let (mut runtime, socket) = UnixStream::pair().unwrap();
    runtime.write_all(b"\0\0\0\x09\0\0\0\0").unwrap();
    runtime.shutdown(std::net::Shutdown::Both).unwrap();
    let ended = serve(&socket, &identity(), &mut Scripted::default(), |_| ());
    assert!(matches!(ended, Ended::Io(_)), "{ended}");
}
