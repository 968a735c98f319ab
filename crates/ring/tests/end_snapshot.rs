//! An end that another process goes on with: what it has in private memory comes again from its snapshot.

use hvsock_ring::{
    Doorbells, Parts, RING_END_SNAPSHOT_VERSION, RingEnd, RingEndSnapshot, RingError, RingSide,
    RingSize, SnapshotError,
};

use proptest::prelude::*;

const CAPACITY: usize = 4096;

/// A connection whose first end is replaced now and then by its copy.
struct World {
    memory: std::os::fd::OwnedFd,
    doorbells: Doorbells,
    end: Option<RingEnd>,
    other: RingEnd,
}

fn copy(doorbells: &Doorbells) -> Doorbells {
    Doorbells {
        own: doorbells.own.try_clone().unwrap(),
        peer: doorbells.peer.try_clone().unwrap(),
    }
}

impl World {
    fn new() -> Self {
        let size = RingSize::exactly(CAPACITY as u32).unwrap();
        let Parts {
            memory,
            first,
            second,
        } = Parts::new(size).unwrap();
        let doorbells = copy(&first);
        Self {
            end: Some(RingEnd::open(RingSide::First, &memory, first).unwrap()),
            other: RingEnd::open(RingSide::Second, &memory, second).unwrap(),
            memory,
            doorbells,
        }
    }

    fn end(&self) -> &RingEnd {
        self.end.as_ref().unwrap()
    }

    fn snapshot(&self) -> RingEndSnapshot {
        let text = serde_json::to_string(&self.end().snapshot()).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn copy(&self) -> RingEnd {
        RingEnd::restore(self.snapshot(), &self.memory, copy(&self.doorbells)).unwrap()
    }

    /// As the process of the first end leaves to another one.
    fn hand_over(&mut self) {
        let copy = self.copy();
        assert_eq!(copy.snapshot(), self.end().snapshot());
        std::mem::forget(self.end.replace(copy));
        self.end().wake();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Read(usize),
    OtherWrites(usize),
    OtherReads(usize),
    Window(u32),
    HandOver,
    Copy,
}

fn step() -> impl Strategy<Value = Step> {
    let count = 0..2 * CAPACITY;
    prop_oneof![
        count.clone().prop_map(Step::Write),
        count.clone().prop_map(Step::Read),
        count.clone().prop_map(Step::OtherWrites),
        count.prop_map(Step::OtherReads),
        (0_u32..5000).prop_map(Step::Window),
        Just(Step::HandOver),
        Just(Step::Copy),
    ]
}

/// One direction: what was written and what was read.
#[derive(Default)]
struct Stream {
    written: u64,
    read: u64,
}

impl Stream {
    fn write(&mut self, end: &RingEnd, count: usize) {
        let bytes: Vec<u8> = (self.written..).take(count).map(|at| at as u8).collect();
        match end.try_write(&bytes) {
            Ok(written) => self.written += written as u64,
            Err(error) => assert!(matches!(error, RingError::WouldBlock), "{error}"),
        }
    }

    fn read(&mut self, end: &RingEnd, count: usize) {
        let mut bytes = vec![0; count];
        match end.try_read(&mut bytes) {
            Ok(read) => {
                for byte in &bytes[..read] {
                    assert_eq!(*byte, self.read as u8);
                    self.read += 1;
                }
            }
            Err(error) => {
                assert!(matches!(error, RingError::WouldBlock), "{error}");
                assert_eq!(self.read, self.written);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(200)))]

    #[test]
    fn no_byte_is_lost_or_doubled_however_often_an_end_is_handed_over(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut world = World::new();
        let [mut out, mut back] = [Stream::default(), Stream::default()];
        for step in steps {
            match step {
                Step::Write(count) => out.write(world.end(), count),
                Step::Read(count) => back.read(world.end(), count),
                Step::OtherWrites(count) => back.write(&world.other, count),
                Step::OtherReads(count) => out.read(&world.other, count),
                Step::Window(bytes) => world.end().set_window(bytes),
                Step::HandOver => world.hand_over(),
                // The other process ends without having begun.
                Step::Copy => drop(world.copy()),
            }
        }
        world.hand_over();
        world.end().shutdown_write();
        if out.read < out.written {
            out.read(&world.other, 2 * CAPACITY);
        }
        assert_eq!(world.other.try_read(&mut [0]), Err(RingError::EndOfStream));
        world.end = None;
        assert!(world.other.try_write(b"x").is_err());
    }

    #[test]
    fn a_damaged_snapshot_is_an_error_or_an_end_that_touches_nothing_else(
        edits in prop::collection::vec((0_usize..2000, any::<u64>()), 1..4),
    ) {
        let world = World::new();
        world.other.try_write(&[7; 100]).unwrap();
        world.end().try_read(&mut [0; 30]).unwrap();
        let mut value = serde_json::to_value(world.snapshot()).unwrap();
        let sides = ["outgoing", "incoming"];
        let fields = ["window", "next_window", "head", "tail", "limit"];
        for (at, number) in edits {
            let field = &mut value[sides[at % 2]][fields[at / 2 % 5]];
            *field = serde_json::json!(if at % 3 == 0 { number } else { number % 9000 });
        }
        if let Ok(snapshot) = serde_json::from_value(value)
            && let Ok(end) = RingEnd::restore(snapshot, &world.memory, copy(&world.doorbells))
        {
            end.wake();
            let _ = end.try_write(&[1; 5000]);
            let _ = end.try_read(&mut [0; 5000]);
            end.shutdown_write();
        }
        let _ = world.other.try_read(&mut [0; 5000]);
        let _ = world.other.try_write(&[0; 5000]);
    }
}

#[test]
fn the_examples_of_all_versions_can_be_read() {
    let text = include_str!("snapshots/ring-end-1.json");
    let snapshot: RingEndSnapshot = serde_json::from_str(text).unwrap();
    let world = World::new();
    let end = RingEnd::restore(snapshot, &world.memory, copy(&world.doorbells)).unwrap();
    assert_eq!(end.snapshot(), snapshot);
}

#[test]
fn another_version_and_another_connections_memory_are_refused() {
    let world = World::new();
    let mut value = serde_json::to_value(world.snapshot()).unwrap();
    value["version"] = (RING_END_SNAPSHOT_VERSION + 1).into();
    let error = serde_json::from_value::<RingEndSnapshot>(value).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
    let larger = Parts::new(RingSize::exactly(2 * CAPACITY as u32).unwrap()).unwrap();
    let smaller = world.snapshot();
    let restored = RingEnd::restore(smaller, &larger.memory, copy(&world.doorbells));
    // A part of the ring is as good as all of it.
    drop(restored.unwrap());
    let size = RingSize::MIN;
    if size.bytes() < CAPACITY as u32 {
        let tiny = Parts::new(size).unwrap();
        let restored = RingEnd::restore(world.snapshot(), &tiny.memory, copy(&world.doorbells));
        assert!(matches!(restored, Err(SnapshotError::Memory(_))));
    }
}
