//! Connections that stand for many, and verdicts that last.

use hvsock_address::{ServiceId, VmId};
use hvsock_fabric::{Block, Changes, ConnectRequest, Destination, Limits, ListenRequest, Refusal};

use crate::{Host, SERVICE, root};

#[test]
fn a_connection_that_stands_for_many_counts_as_many_and_takes_one_slot_of_the_backlog() {
    let mut host = Host::with(Limits {
        connections: 10,
        connections_per_partition: 8,
        ..Limits::default()
    });
    let (web, top) = (host.container("web"), host.host);
    let listener = host.fabric.listen(&ListenRequest {
        from: top,
        principal: &root(),
        vm: VmId::CHILDREN,
        service: SERVICE,
        backlog: 2,
    });
    let who = root();
    let request = ConnectRequest {
        from: web,
        principal: &who,
        vm: VmId::PARENT,
        service: SERVICE,
    };
    let block = |weight| Block {
        weight,
        ids: 1 << 20,
    };
    let limit = |which: &str| {
        Err(Refusal::LimitReached {
            which: which.to_owned(),
        })
    };
    let first = host.fabric.connect_block(&request, block(6)).unwrap();
    assert_eq!(
        host.fabric.connect_block(&request, block(3)).map(drop),
        limit("connections_per_partition")
    );
    let second = host.fabric.connect_block(&request, block(2)).unwrap();
    let ids = second.connection.as_u64() - first.connection.as_u64();
    assert_eq!(ids, 1 << 20);
    let listener = listener.unwrap();
    assert_eq!(host.fabric.listener(listener).unwrap().waiting().len(), 2);
    // What is full matters to a new connection, and not to a verdict.
    assert_eq!(
        host.fabric.judge(&request),
        Ok(Destination::Listener(listener))
    );
    host.fabric.accepted(first.connection);
    let set = |host: &mut Host, weight| host.fabric.set_weight(first.connection, weight);
    assert_eq!(set(&mut host, 7), limit("connections_per_partition"));
    assert_eq!(set(&mut host, 1), Ok(()));
    assert_eq!(
        host.fabric.connection(first.connection).unwrap().weight(),
        1
    );
    assert!(host.fabric.connect_block(&request, block(5)).is_ok());
    host.fabric.close_connection(first.connection);
    assert_eq!(set(&mut host, 1), Err(Refusal::NoListener));
}

#[test]
fn a_change_says_which_verdicts_it_may_alter() {
    let mut host = Host::with(Limits::default());
    let (web, top) = (host.container("web"), host.host);
    let who = root();
    let request = ConnectRequest {
        from: web,
        principal: &who,
        vm: VmId::PARENT,
        service: SERVICE,
    };
    assert!(host.fabric.take_changes().concern(SERVICE));
    assert_eq!(host.fabric.judge(&request), Err(Refusal::NoListener));
    let before = host.fabric.generation();
    let listener = host.fabric.listen(&ListenRequest {
        from: top,
        principal: &who,
        vm: VmId::CHILDREN,
        service: SERVICE,
        backlog: 1,
    });
    assert!(host.fabric.generation() > before);
    let changes = host.fabric.take_changes();
    assert!(changes.concern(SERVICE) && !changes.concern(ServiceId::from_port(9)));
    let before = host.fabric.generation();
    host.fabric.connect(&request).unwrap();
    assert_eq!(host.fabric.take_changes(), Changes::None);
    assert_eq!(host.fabric.generation(), before);
    host.fabric.close_listener(listener.unwrap());
    assert!(host.fabric.take_changes().concern(SERVICE));
    host.fabric.set_groups(web, vec!["blue".into()]).unwrap();
    assert_eq!(host.fabric.take_changes(), Changes::All);
    // Of many services at once nobody keeps a list.
    for port in 1..200 {
        host.fabric.unregister(top, ServiceId::from_port(port));
    }
    assert_eq!(host.fabric.take_changes(), Changes::All);
}
