//! Metrics with one sample for each set of labels.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// The value of a sample.
pub(super) enum Value {
    Counter(u64),
    Gauge(f64),
}

/// Writes one metric with all its samples, or nothing if there are none.
pub(super) fn family<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    samples: impl Iterator<Item = (L, Value)>,
) -> Result<(), fmt::Error> {
    let mut samples = samples.peekable();
    let kind = match samples.peek() {
        None => return Ok(()),
        Some((_, Value::Counter(_))) => MetricType::Counter,
        Some((_, Value::Gauge(_))) => MetricType::Gauge,
    };
    let mut metric = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, value) in samples {
        let sample = metric.encode_family(&labels)?;
        match value {
            Value::Counter(count) => ConstCounter::new(count).encode(sample)?,
            Value::Gauge(value) => ConstGauge::new(value).encode(sample)?,
        }
    }
    Ok(())
}
