//! Computes the offset of this machine's clock from an exchange with the host.

/// One exchange: sent and received by this machine's clock, received and sent by the host's. In
/// nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) sent: i64,
    pub(super) received_by_host: i64,
    pub(super) sent_by_host: i64,
    pub(super) received: i64,
}

/// How far this machine's clock is ahead of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    pub(super) ns: i64,
    /// The bound of the error, in nanoseconds.
    pub(super) error_ns: u64,
}

impl Sample {
    /// The offset; `None` if the times are inconsistent: time went backwards on one side.
    fn offset(self) -> Option<Offset> {
        let whole = self.received.checked_sub(self.sent)?;
        let there = self.sent_by_host.checked_sub(self.received_by_host)?;
        let on_the_way = whole.checked_sub(there)?;
        if there < 0 || on_the_way < 0 {
            return None;
        }
        let first = i128::from(self.sent) - i128::from(self.received_by_host);
        let second = i128::from(self.received) - i128::from(self.sent_by_host);
        Some(Offset {
            ns: i64::try_from((first + second) / 2).ok()?,
            // Rounded up, because the offset was rounded.
            error_ns: on_the_way.unsigned_abs() / 2 + 1,
        })
    }
}

/// The best of several samples: the one with the shortest round trip has the smallest error.
pub(super) fn best(samples: &[Sample]) -> Option<Offset> {
    let offsets = samples.iter().filter_map(|sample| sample.offset());
    offsets.min_by_key(|offset| offset.error_ns)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_true_offset_is_within_the_error(
            truth in -4_000_000_000_000i64..4_000_000_000_000,
            ways in proptest::collection::vec((0..50_000_000i64, 0..50_000_000i64, 0..1000i64), 1..10),
        ) {
            let mut here = 1_800_000_000_000_000_000i64;
            let samples: Vec<Sample> = ways.iter().map(|(there, back, stay)| {
                let sent = here;
                let received = sent + there + stay + back;
                here = received;
                Sample {
                    sent,
                    received_by_host: sent + there - truth,
                    sent_by_host: sent + there + stay - truth,
                    received,
                }
            }).collect();
            let found = best(&samples).unwrap();
            prop_assert!((found.ns - truth).unsigned_abs() <= found.error_ns);
            let least = ways.iter().map(|(there, back, _)| there + back).min().unwrap();
            prop_assert!(found.error_ns <= least.unsigned_abs() / 2 + 1);
        }

        #[test]
        fn any_sample_is_handled(
            sent in any::<i64>(), received in any::<i64>(),
            received_by_host in any::<i64>(), sent_by_host in any::<i64>(),
        ) {
            best(&[Sample { sent, received_by_host, sent_by_host, received }]);
        }
    }

    #[test]
    fn a_sample_with_time_going_backwards_is_ignored() {
        let sample = |sent, received_by_host, sent_by_host, received| Sample {
            sent,
            received_by_host,
            sent_by_host,
            received,
        };
        assert_eq!(best(&[sample(10, 100, 90, 30)]), None);
        assert_eq!(best(&[sample(30, 100, 100, 10)]), None);
        assert_eq!(best(&[]), None);
    }
}
