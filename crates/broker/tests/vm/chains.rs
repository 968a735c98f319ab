//! All valid layouts of packets in the queues. Covers descriptor chains, indirect tables, queue and
//! buffer sizes, event indices and memory regions.

use hvsock_testkit::guest::{Layout, Options, Regions};
use hvsock_virtio::features;

use crate::traffic::exchange;
use hvsock_testkit::world::{WEB, World};

/// Exchanges data both ways with a guest with these options.
fn works(options: Options) {
    let shown = format!("{options:?}");
    // At most 400 packets, to bound the time with small buffers.
    let bytes = (2 << 20).min(400 * (options.rx_buffer as u64 - 44));
    let world = World::with_web(|_| ());
    let listener = world.listen();
    let guest = world.guest_of("web", options);
    let (inside, outside) = world.pair(&guest, &listener);
    exchange(&inside, &outside, bytes, 65_537);
    let (inside, outside) = world.pair(&guest, &listener);
    exchange(&inside, &outside, bytes.min(50_000), 77);
    assert_eq!(guest.protocol_violations(), [""; 0], "{shown}");
}

fn usual() -> Options {
    Options::new(WEB)
}

#[test]
fn header_and_data_may_be_in_one_or_in_any_number_of_descriptors() {
    for layout in [
        Layout::Together,
        Layout::Apart,
        Layout::Paged(4096),
        Layout::Paged(32 << 10),
        Layout::Split(vec![1, 2, 3, 4, 5, 6, 7, 8]),
        Layout::Split(vec![43, 2, 1]),
        Layout::Split(vec![45, 4000, 1, 1, 4096]),
    ] {
        works(Options {
            layout: layout.clone(),
            ..usual()
        });
        works(Options {
            layout,
            ..usual().without(features::INDIRECT_DESC)
        });
    }
}

#[test]
fn queues_may_be_small_or_large_with_or_without_event_indices() {
    for size in [4, 16, 128, 256, 1024] {
        let options = Options {
            queue_size: size,
            tx_slots: size,
            ..usual()
        };
        works(options.clone().without(features::EVENT_IDX));
        works(options);
    }
}

#[test]
fn receive_buffers_may_be_small_or_large_and_begin_with_a_descriptor_for_the_header() {
    for rx_buffer in [44 + 1, 44 + 20, 100, 3776, 44 + 4096, 44 + (64 << 10)] {
        for rx_header_apart in [false, true] {
            works(Options {
                rx_buffer,
                rx_header_apart,
                ..usual()
            });
        }
    }
}

#[test]
fn memory_may_have_several_regions_and_buffers_may_span_them() {
    for regions in [Regions::TwoApart, Regions::TwoAdjacent] {
        works(Options { regions, ..usual() });
    }
}
