//! Endpoints over real sockets.

use hvsock_sys::seqpacket;
use mio::Poll;

use super::*;

fn partition(number: u64) -> PartitionKey {
    PartitionKey::from_u64(number)
}

/// Endpoints, with what keeps them open.
struct World {
    endpoints: Endpoints,
    folder: tempfile::TempDir,
    _poll: Poll,
}

impl World {
    /// One endpoint for each of the first `count` partitions.
    fn new(count: u64) -> Self {
        let poll = Poll::new().unwrap();
        let registry = Arc::new(poll.registry().try_clone().unwrap());
        let mut world = Self {
            endpoints: Endpoints::new(registry),
            folder: tempfile::tempdir().unwrap(),
            _poll: poll,
        };
        for number in 0..count {
            let path = world.path(number);
            std::fs::create_dir(path.parent().unwrap()).unwrap();
            world
                .endpoints
                .open(EndpointKind::Endpoint, partition(number), path)
                .unwrap();
        }
        world
    }

    fn path(&self, number: u64) -> PathBuf {
        let folder = self.folder.path().join(number.to_string());
        folder.join("endpoint")
    }

    fn connect(&self, number: u64) -> OwnedFd {
        seqpacket::connect(&self.path(number), Duration::from_secs(5)).unwrap()
    }

    /// Runs one round. Returns the partition of each client.
    fn round(&mut self) -> Vec<PartitionKey> {
        let (busy, limit) = self.endpoints.start_round();
        let mut clients = Vec::new();
        for index in busy {
            let mut more = true;
            for _ in 0..limit {
                match self.endpoints.accept(index) {
                    Accepted::Client(_, _, partition) => clients.push(partition),
                    other => {
                        assert!(matches!(other, Accepted::Nothing), "{other:?}");
                        more = false;
                        break;
                    }
                }
            }
            self.endpoints.end_turn(index, more);
        }
        clients
    }
}

#[test]
fn a_client_belongs_to_the_partition_of_the_endpoint_that_it_came_through() {
    let mut world = World::new(2);
    let _clients = [world.connect(1), world.connect(0), world.connect(1)];
    assert!(!world.endpoints.has_busy());
    assert_eq!(world.round(), []);
    world.endpoints.mark(0);
    world.endpoints.mark(1);
    world.endpoints.mark(1);
    let [zero, one] = [partition(0), partition(1)];
    assert_eq!(world.round(), [zero, one, one]);
    assert!(!world.endpoints.has_busy());
}

#[test]
fn a_flood_of_clients_at_one_endpoint_leaves_turns_to_the_others() {
    let mut world = World::new(8);
    let flood: Vec<_> = (0..70).map(|_| world.connect(3)).collect();
    let _one = world.connect(5);
    for index in 0..8 {
        world.endpoints.mark(index);
    }
    // 256 clients a round, so 32 from each of eight endpoints.
    let first = world.round();
    let of = |clients: &[_], number| clients.iter().filter(|p| **p == partition(number)).count();
    assert_eq!((of(&first, 3), of(&first, 5), first.len()), (32, 1, 33));
    assert!(world.endpoints.has_busy());
    // Alone it gets more, but at most 64.
    assert_eq!(world.round().len(), flood.len() - 32);
    assert!(!world.endpoints.has_busy());
}

#[test]
fn a_closed_endpoint_leaves_no_socket_and_the_folder_that_a_container_may_have_mounted() {
    let mut world = World::new(2);
    let gone = world.path(1);
    assert_eq!(
        world
            .endpoints
            .path_of(EndpointKind::Endpoint, partition(1)),
        Some(&*gone)
    );
    world.endpoints.mark(1);
    world.endpoints.close_of(partition(1));
    assert_eq!(
        world
            .endpoints
            .path_of(EndpointKind::Endpoint, partition(1)),
        None
    );
    assert!(!gone.exists() && gone.parent().unwrap().exists());
    assert!(world.path(0).exists());
    assert_eq!(world.round(), []);
    world.endpoints.close_all();
    assert!(!world.path(0).exists());
}

#[test]
fn a_path_that_cannot_be_bound_is_an_error_and_leaves_no_endpoint() {
    let mut world = World::new(1);
    let path = world.folder.path().join("missing/endpoint");
    assert!(
        world
            .endpoints
            .open(EndpointKind::Endpoint, partition(1), path)
            .is_err()
    );
    assert_eq!(
        world
            .endpoints
            .path_of(EndpointKind::Endpoint, partition(1)),
        None
    );
}
