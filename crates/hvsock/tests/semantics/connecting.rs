//! Successful and failed connects.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hvsock::{
    Check, Endpoint, Fix, HvStream, Lease, NoBroker, PartitionName, Refusal, ServiceId, SockAddrHv,
    Transport, VmId, explanation_of, refusal_of,
};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, ConnectNamed, Describe, Flags, IdOrName, LookupKind,
    NamedAddress, Refused, SocketOption,
};
use hvsock_sys::{doorbell, shared_memory};

use crate::fake::{ADDRESS, Broker, Client, LONG, SERVICE, SHORT, disabled, listening};

#[test]
fn a_connection_returns_its_addresses() {
    let (stream, _side) = Broker::new().connected();
    assert_eq!(stream.peer_addr().unwrap(), ADDRESS);
    assert_eq!(stream.local_addr().unwrap().vm, VmId::LOOPBACK);
    assert_eq!(stream.connection_id(), 7);
    assert_eq!(stream.peer(), None);
}

#[test]
fn options_are_sent_before_the_request() {
    let broker = Broker::new();
    let mut address = ADDRESS;
    address.flags = hvsock::HVSOCKET_ADDRESS_FLAG_PASSTHRU;
    let timeout = Duration::from_micros(1_200_300);
    let options = broker
        .connect_options()
        .connected_suspend(true)
        .high_vtl(true)
        .timeout(timeout);
    let (stream, _side) = broker.with_client(
        || options.connect(address),
        |broker| {
            let client = broker.client();
            let options = [
                SocketOption::ContainerPassthru,
                SocketOption::ConnectedSuspend,
                SocketOption::HighVtl,
            ];
            for option in options {
                assert_eq!(client.recv(), ClientMessage::SetOption { option, value: 1 });
            }
            let ClientMessage::Connect(connect) = client.recv() else {
                panic!()
            };
            assert_eq!(connect.timeout_ms, 1201);
            assert_eq!(connect.address, ADDRESS);
            assert!(!connect.flags.raw_fd && !connect.flags.dry_run);
            client.connect()
        },
    );
    stream.unwrap();
}

/// The message of a connect with both names.
fn connect_named(client: &Client) -> ConnectNamed {
    let ClientMessage::ConnectNamed(connect) = client.recv() else {
        panic!("no CONNECT_NAMED")
    };
    let address = NamedAddress {
        partition: IdOrName::Name("web".into()),
        service: IdOrName::Name("HV Socket Demo".into()),
    };
    assert_eq!(connect.address, address);
    connect
}

#[test]
fn a_connect_by_name_is_one_message_and_its_reply() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let (stream, side) = broker.with_client(
        || options.connect(("web", "HV Socket Demo")),
        |broker| {
            let client = broker.client();
            let connect = connect_named(&client);
            assert_eq!(
                (connect.timeout_ms, connect.flags),
                (2000, Flags::default())
            );
            client.connect()
        },
    );
    assert_eq!(stream.unwrap().peer_addr().unwrap(), ADDRESS);
    assert!(!broker.has_client(), "another endpoint connection");
    // The only other message is about the end.
    assert_eq!(side.control.recv(), ClientMessage::Shutdown);
}

#[test]
fn an_address_of_a_guid_and_a_name_is_one_message() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let (stream, _side) = broker.with_client(
        || options.connect(("parent", "HV Socket Demo")),
        |broker| {
            let client = broker.client();
            let ClientMessage::ConnectNamed(connect) = client.recv() else {
                panic!("no CONNECT_NAMED")
            };
            assert_eq!(connect.address.partition, IdOrName::Id(VmId::PARENT));
            client.connect()
        },
    );
    stream.unwrap();
}

/// What a broker answers that knows no names in requests.
fn refuse_as_violation(client: &Client) {
    client.send(&BrokerMessage::Refused(Refused {
        code: 17,
        errno: 104,
        detail: "the process violated the endpoint protocol: there is no message of kind 0x08 in \
                 this direction"
            .into(),
    }));
}

/// Both lookups and the connect of an older library.
fn look_up_and_connect(client: &Client, vm: VmId) {
    let (kind, name) = (LookupKind::Partition, "web".to_owned());
    assert_eq!(client.recv(), ClientMessage::Lookup { kind, name });
    client.send(&BrokerMessage::Found {
        guid: vm.to_guid_bytes(),
    });
    let (kind, name) = (LookupKind::Service, "HV Socket Demo".to_owned());
    assert_eq!(client.recv(), ClientMessage::Lookup { kind, name });
    client.send(&BrokerMessage::Found {
        guid: SERVICE.to_guid_bytes(),
    });
    let ClientMessage::Connect(connect) = client.recv() else {
        panic!()
    };
    assert_eq!(connect.address, SockAddrHv::new(vm, SERVICE));
    assert_eq!(connect.flags, Flags::default());
}

#[test]
fn an_older_broker_is_asked_for_each_name_and_remembered() {
    let broker = Broker::new();
    let options = broker.connect_options().connected_suspend(true);
    let vm = VmId::random();
    let suspend = ClientMessage::SetOption {
        option: SocketOption::ConnectedSuspend,
        value: 1,
    };
    let connect = || options.connect(("web", "HV Socket Demo"));
    let (stream, _side) = broker.with_client(connect, |broker| {
        let client = broker.client();
        assert_eq!(client.recv(), suspend);
        connect_named(&client);
        refuse_as_violation(&client);
        drop(client);
        let client = broker.client();
        assert_eq!(client.recv(), suspend);
        look_up_and_connect(&client, vm);
        client.connect()
    });
    stream.unwrap();
    let (stream, _side) = broker.with_client(connect, |broker| {
        let client = broker.client();
        assert_eq!(client.recv(), suspend);
        look_up_and_connect(&client, vm);
        client.connect()
    });
    stream.unwrap();
}

/// The description that `options` of the tests below send.
fn described(action: &str, detail: &str) -> ClientMessage {
    ClientMessage::Describe(Describe {
        action: action.into(),
        detail: detail.into(),
    })
}

#[test]
fn a_description_comes_before_the_request_and_an_older_broker_gets_none() {
    let broker = Broker::new();
    let options = broker.connect_options().describe("exec", "uname -r");
    let (stream, _side) = broker.with_client(
        || options.connect(ADDRESS),
        |broker| {
            let client = broker.client();
            assert_eq!(client.recv(), described("exec", "uname -r"));
            // As a broker that does not know the message.
            refuse_as_violation(&client);
            drop(client);
            let client = broker.client();
            let request = client.recv();
            assert!(matches!(request, ClientMessage::Connect(_)), "{request:?}");
            client.connect()
        },
    );
    stream.unwrap();
}

#[test]
fn a_long_description_is_truncated_at_a_character_and_says_so() {
    let broker = Broker::new();
    let detail = "\u{20ac}".repeat(1000);
    let options = broker.connect_options().describe("x".repeat(50), &detail);
    let (stream, _side) = broker.with_client(
        || options.connect(ADDRESS),
        |broker| {
            let client = broker.client();
            let ClientMessage::Describe(sent) = client.recv() else {
                panic!("no DESCRIBE")
            };
            assert_eq!(sent.action, "x".repeat(32));
            let kept = "\u{20ac}".repeat(326);
            assert_eq!(sent.detail, format!("{kept}... (2022 more bytes)"));
            client.recv();
            client.connect()
        },
    );
    stream.unwrap();
}

#[test]
fn a_connect_that_a_guest_resets_is_not_repeated() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let connect = || options.connect(("web", "HV Socket Demo"));
    for _ in 0..2 {
        let (result, ()) = broker.with_client(connect, |broker| {
            let client = broker.client();
            connect_named(&client);
            client.send(&BrokerMessage::Refused(Refused {
                code: 17,
                errno: 104,
                detail: "the connection was closed before it was established".into(),
            }));
        });
        let error = result.unwrap_err();
        assert!(matches!(refusal_of(&error), Some(Refusal::Reset { .. })));
        assert!(!broker.has_client(), "another endpoint connection");
    }
}

#[test]
fn a_broker_that_stops_is_not_taken_for_an_older_one() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let connect = || options.connect(("web", "HV Socket Demo"));
    let (result, ()) = broker.with_client(connect, |broker| {
        for _ in 0..2 {
            let client = broker.client();
            client.recv();
            refuse_as_violation(&client);
        }
    });
    assert!(matches!(
        refusal_of(&result.unwrap_err()),
        Some(Refusal::Reset { .. })
    ));
    let (stream, _side) = broker.with_client(connect, |broker| {
        let client = broker.client();
        connect_named(&client);
        client.connect()
    });
    stream.unwrap();
}

/// The explanation of a service without a listener.
fn no_listener() -> BrokerMessage {
    BrokerMessage::Explained(Refused {
        code: 9,
        errno: 111,
        detail: "\npass\tIs it registered?\tyes\tcheck=registered\n\
                 fail\tDoes anyone listen?\tno\tcheck=listener\n"
            .into(),
    })
}

#[test]
fn a_refusal_brings_its_explanation_in_the_same_reply() {
    let broker = Broker::new();
    let options = broker.connect_options().explain_refusal(true);
    for by_name in [true, false] {
        let (result, ()) = broker.with_client(
            || match by_name {
                true => options.connect(("web", "HV Socket Demo")),
                false => options.connect(ADDRESS),
            },
            |broker| {
                let client = broker.client();
                let flags = match client.recv() {
                    ClientMessage::ConnectNamed(connect) if by_name => connect.flags,
                    ClientMessage::Connect(connect) if !by_name => connect.flags,
                    other => panic!("{other:?}"),
                };
                assert!(flags.explain && !flags.dry_run);
                client.send(&no_listener());
            },
        );
        assert!(!broker.has_client(), "another endpoint connection");
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(error.to_string(), Refusal::NoListener.to_string());
        assert_eq!(refusal_of(&error), Some(&Refusal::NoListener));
        let explanation = explanation_of(&error).expect("an explanation");
        assert_eq!(explanation.refusal(), Some(&Refusal::NoListener));
        assert_eq!(explanation.steps().len(), 2);
        assert_eq!(explanation.steps()[1].check, Check::Listener);
    }
}

#[test]
fn an_unknown_name_is_explained_without_another_request() {
    let broker = Broker::new();
    let options = broker.connect_options().explain_refusal(true);
    let (result, ()) = broker.with_client(
        || options.connect(("web", "HV Socket Demo")),
        |broker| {
            let client = broker.client();
            connect_named(&client);
            client.send(&BrokerMessage::Refused(Refused {
                code: 1,
                errno: 111,
                detail: String::new(),
            }));
        },
    );
    assert!(!broker.has_client(), "another endpoint connection");
    let error = result.unwrap_err();
    let explanation = explanation_of(&error).expect("an explanation");
    assert_eq!(explanation.refusal(), Some(&Refusal::Unregistered));
}

#[test]
fn an_older_broker_is_asked_for_the_explanation_after_the_refusal() {
    let broker = Broker::new();
    let options = broker.connect_options().explain_refusal(true);
    let (result, ()) = broker.with_client(
        || options.connect(ADDRESS),
        |broker| {
            let client = broker.client();
            client.recv();
            refuse_as_violation(&client);
            let client = broker.client();
            let ClientMessage::Connect(connect) = client.recv() else {
                panic!("no CONNECT")
            };
            assert_eq!(connect.flags, Flags::default());
            client.send(&BrokerMessage::Refused(Refused {
                code: 9,
                errno: 111,
                detail: String::new(),
            }));
            let client = broker.client();
            let ClientMessage::Connect(connect) = client.recv() else {
                panic!("no CONNECT")
            };
            assert!(connect.flags.dry_run && !connect.flags.explain);
            client.send(&no_listener());
        },
    );
    let error = result.unwrap_err();
    assert_eq!(refusal_of(&error), Some(&Refusal::NoListener));
    assert_eq!(explanation_of(&error).unwrap().steps().len(), 2);
}

#[test]
fn a_refusal_is_the_errors_source() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let (result, ()) = broker.with_client(
        || options.connect(ADDRESS),
        |broker| {
            let client = broker.client();
            client.recv();
            client.send(&BrokerMessage::Refused(disabled()));
        },
    );
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(
        refusal_of(&error),
        Some(&Refusal::Disabled {
            by: "enabled = false".into()
        })
    );
}

#[test]
fn a_rejected_client_gets_the_reason() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let (result, ()) = broker.with_client(
        || options.connect(("web", "Demo")),
        |broker| {
            let detail = "idle processes".to_owned();
            let refused = Refused {
                code: 16,
                errno: 105,
                detail,
            };
            broker.client().send(&BrokerMessage::Refused(refused));
        },
    );
    let error = result.unwrap_err();
    assert!(
        matches!(refusal_of(&error), Some(Refusal::LimitReached { .. })),
        "{error}"
    );
}

#[test]
fn a_broker_that_dies_instead_of_answering_is_a_reset() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let (result, ()) =
        broker.with_client(|| options.connect(ADDRESS), |broker| drop(broker.client()));
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(
        error.to_string().contains("the broker went away"),
        "{error}"
    );
}

#[test]
fn a_connect_to_a_silent_broker_times_out() {
    let broker = Broker::new();
    let options = broker.connect_options().timeout(SHORT);
    let start = Instant::now();
    let error = options.connect(ADDRESS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(start.elapsed() >= SHORT && start.elapsed() < LONG);
    // Nor if it does not accept clients and its queue is full.
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(
            options.connect(ADDRESS).unwrap_err().kind(),
            ErrorKind::TimedOut
        );
    }
    assert!(start.elapsed() < LONG);
}

#[test]
fn an_out_of_range_timeout_is_invalid_input() {
    let broker = Broker::new();
    for timeout in [
        Duration::ZERO,
        Duration::from_millis(300_001),
        Duration::MAX,
    ] {
        let error = broker
            .connect_options()
            .timeout(timeout)
            .connect(ADDRESS)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn no_broker_is_an_error_that_names_the_paths_and_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::in_dir(dir.path());
    let error = HvStream::options()
        .endpoint(&endpoint)
        .connect(ADDRESS)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<NoBroker>())
        .unwrap();
    assert_eq!(inner.tried(), endpoint.paths());
    assert!(
        error.to_string().contains(dir.path().to_str().unwrap()),
        "{error}"
    );
    assert!(error.to_string().contains("; start one, or set"), "{error}");
    assert_eq!(hvsock::fix_of(&error), Some(Fix::StartBroker));
    // A socket file without a broker is not a broker.
    drop(hvsock_sys::seqpacket::listen(&endpoint.paths()[0], 0o600, 1).unwrap());
    let error = HvStream::options()
        .endpoint(&endpoint)
        .connect(ADDRESS)
        .unwrap_err();
    assert!(error.get_ref().unwrap().is::<NoBroker>());
}

#[test]
fn an_unexpected_reply_is_an_error() {
    let found = BrokerMessage::Found { guid: [0; 16] };
    let explained = BrokerMessage::Explained(disabled());
    for answer in [crate::fake::connected(), listening(), found, explained] {
        let broker = Broker::new();
        let options = broker.connect_options();
        let (result, ()) = broker.with_client(
            || options.connect(ADDRESS),
            |broker| {
                let client = broker.client();
                client.recv();
                client.send(&answer);
            },
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{answer:?}: {error}");
    }
}

#[test]
fn malformed_messages_are_an_error() {
    for garbage in [
        &[][..],
        &[9],
        &[2, 0x82, 0, 0],
        &[1, 0x82, 0, 0],
        &[1; 5000],
    ] {
        let broker = Broker::new();
        let options = broker.connect_options();
        let (result, ()) = broker.with_client(
            || options.connect(ADDRESS),
            |broker| {
                let client = broker.client();
                client.recv();
                client.send_bytes(garbage, &[]).unwrap();
            },
        );
        let kind = result.unwrap_err().kind();
        assert!(
            matches!(kind, ErrorKind::InvalidData | ErrorKind::ConnectionReset),
            "{kind:?}"
        );
    }
}

#[test]
fn surplus_descriptors_in_a_reply_are_an_error() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let (result, ()) = broker.with_client(
        || options.connect(ADDRESS),
        |broker| {
            let client = broker.client();
            client.recv();
            let fd = client.socket.as_fd();
            client.send_with(&crate::fake::connected(), &[fd, fd]);
        },
    );
    assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn an_invalid_or_unrequested_ring_is_an_error() {
    let BrokerMessage::Connected(connected) = crate::fake::connected() else {
        panic!()
    };
    let ring = BrokerMessage::Connected(hvsock_endpoint::Connected {
        transport: hvsock_endpoint::Transport::Ring,
        ..connected
    });
    let answer = |shared, memory: &dyn AsFd, doorbells: usize| {
        let broker = Broker::new();
        let options = broker.connect_options().shared_memory(shared);
        let (waiter, _notifier) = doorbell::pair().unwrap();
        let (result, ()) = broker.with_client(
            || options.connect(ADDRESS),
            |broker| {
                let client = broker.client();
                client.recv();
                let mut fds = vec![memory.as_fd()];
                fds.extend(vec![waiter.as_fd(); doorbells]);
                client.send_with(&ring, &fds);
            },
        );
        result
            .map(|stream| stream.transport())
            .map_err(|error| error.kind())
    };
    const SIZE: u64 = 4096 + 2 * 65_536;
    let memory = shared_memory::create(SIZE).unwrap();
    assert_eq!(answer(true, &memory, 2), Ok(Transport::Ring));
    let invalid = Err(ErrorKind::InvalidData);
    assert_eq!(answer(false, &memory, 2), invalid);
    assert_eq!(answer(true, &memory, 1), invalid);
    assert_eq!(answer(true, &memory, 3), invalid);
    for size in [0, 100, 4096, SIZE - 1, SIZE + 4096, 4096 + 2 * 2048] {
        let memory = shared_memory::create(size).unwrap();
        assert_eq!(answer(true, &memory, 2), invalid, "{size}");
    }
    // This memory is not sealed, so the peer could shrink it while it is in use.
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    assert_eq!(answer(true, &file, 2), invalid);
}

#[test]
fn a_dry_run_explains_and_does_not_connect() {
    let broker = Broker::new();
    let options = broker.connect_options();
    let (explanation, ()) = broker.with_client(
        || options.explain(ADDRESS),
        |broker| {
            let client = broker.client();
            let ClientMessage::Connect(connect) = client.recv() else {
                panic!()
            };
            assert!(connect.flags.dry_run);
            let detail = "connect.users = []\n\
                          pass\tIs it registered?\tyes\n\
                          fail\tMay you connect?\tno: connect.users = []\t\
                          check=may_connect\trule=connect.users\tnewer=x\n\
                          fix\tenable_service\tenable it\tservice=2761\tpartition=web\n\
                          something newer\nfail\tcut of";
            let (code, errno, detail) = (3, 13, detail.to_owned());
            client.send(&BrokerMessage::Explained(Refused {
                code,
                errno,
                detail,
            }));
        },
    );
    let explanation = explanation.unwrap();
    let rule = "connect.users = []".to_owned();
    assert_eq!(explanation.refusal(), Some(&Refusal::Denied { rule }));
    let passes: Vec<_> = explanation
        .steps()
        .iter()
        .map(hvsock::ExplanationStep::pass)
        .collect();
    assert_eq!(passes, [true, false]);
    assert_eq!(explanation.steps()[1].question(), "May you connect?");
    assert_eq!(explanation.steps()[1].answer(), "no: connect.users = []");
    assert_eq!(explanation.steps()[1].check, Check::MayConnect);
    assert_eq!(
        explanation.steps()[1].rule.as_deref(),
        Some("connect.users")
    );
    let fix = Fix::EnableService {
        service: ServiceId::from_port(2761).into(),
        partition: Some(PartitionName::new("web").unwrap()),
    };
    assert_eq!(explanation.fix(), Some(&fix));
    let lines = "Is it registered? yes\nMay you connect? no: connect.users = []\n\
                 refused: access is denied by connect.users = []\n\
                 help: enable the service 2761 for web";
    assert_eq!(explanation.to_string(), lines);

    let options = broker.listen_options();
    let (explanation, ()) = broker.with_client(
        || options.explain(("any", "Demo")),
        |broker| {
            let client = broker.client();
            assert!(matches!(client.recv(), ClientMessage::ListenNamed(_)));
            let refused = Refused {
                code: 1,
                errno: 111,
                detail: String::new(),
            };
            client.send(&BrokerMessage::Refused(refused));
        },
    );
    let explanation = explanation.unwrap();
    assert!(!explanation.would_succeed());
    assert_eq!(explanation.refusal(), Some(&Refusal::Unregistered));
}

#[test]
fn a_lease_lives_as_long_as_its_value() {
    let broker = Broker::new();
    let endpoint = broker.endpoint();
    let (lease, client) = broker.with_client(
        || Lease::register_at(&endpoint, "Demo", SERVICE, "tests"),
        |broker| {
            let client = broker.client();
            let ClientMessage::Register(register) = client.recv() else {
                panic!()
            };
            assert_eq!(
                (register.service, register.name.as_str()),
                (SERVICE, "Demo")
            );
            assert_eq!(register.purpose, "tests");
            client.send(&BrokerMessage::Registered);
            client
        },
    );
    let lease = lease.unwrap();
    assert_eq!((lease.id(), lease.name().as_str()), (SERVICE, "Demo"));
    lease.check().unwrap();
    assert!(client.is_idle());
    drop(lease);
    assert!(client.is_closed());
}

#[test]
fn a_revoked_lease_reports_the_reason() {
    let broker = Broker::new();
    let endpoint = broker.endpoint();
    let register = || Lease::register_at(&endpoint, "Demo", SERVICE, "");
    let (lease, client) = broker.with_client(register, |broker| {
        let client = broker.client();
        client.recv();
        client.send(&BrokerMessage::Registered);
        client
    });
    client.send(&BrokerMessage::Reset(disabled()));
    let error = lease.unwrap().check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(
        refusal_of(&error),
        Some(&Refusal::Disabled {
            by: "enabled = false".into()
        })
    );
    let error = Lease::register_at(&endpoint, " ", ServiceId::ZERO, "").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn names_can_be_resolved_alone() {
    let broker = Broker::new();
    let endpoint = broker.endpoint();
    let name = "Demo".parse().unwrap();
    let (id, ()) = broker.with_client(
        || endpoint.service_id(&name),
        |broker| {
            let client = broker.client();
            client.recv();
            client.send(&BrokerMessage::Found {
                guid: SERVICE.to_guid_bytes(),
            });
        },
    );
    assert_eq!(id.unwrap(), SERVICE);
    let name = "web".parse().unwrap();
    let (id, ()) = broker.with_client(
        || endpoint.vm_id(&name),
        |broker| {
            let client = broker.client();
            client.recv();
            client.send(&BrokerMessage::Refused(Refused {
                code: 4,
                errno: 99,
                detail: String::new(),
            }));
        },
    );
    assert_eq!(
        refusal_of(&id.unwrap_err()),
        Some(&Refusal::PartitionUnknown)
    );
}
