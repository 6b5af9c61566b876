//! Prometheus metrics, in the OpenMetrics text format (<https://prometheus.io/docs/specs/om/open_metrics_spec/>): the same numbers as in JSON.

use std::fmt;

use dyad_cache::counters::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::counters::{self, Counter};
use super::snapshot::{PortNumbers, Snapshot};
use super::{Facts, view};

/// Everything, as text.
///
/// # Errors
/// Never: text is written to memory.
pub(super) fn text(facts: &Facts, snapshot: Snapshot, responding: bool) -> Result<String, fmt::Error> {
    let labels =
        [("array", facts.array.clone()), ("director", facts.director.to_string()), ("pair", facts.pair.to_string())];
    let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
    let mut registry = Registry::with_prefix_and_labels("dyad", labels);
    let reactor = facts.reactor.values();
    registry.register_collector(Box::new(Numbers {
        reactor: counters::reactor(&reactor),
        limit: facts.write_pending_limit,
        frames: facts.frames,
        snapshot,
        responding,
    }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Numbers {
    snapshot: Snapshot,
    reactor: Vec<Counter>,
    limit: u64,
    frames: u64,
    responding: bool,
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Self { snapshot, reactor, limit, frames, responding } = self;
        let encoder = &mut encoder;
        gauge(
            encoder,
            "responding",
            "1: the reactor answers; 0: the other figures are the last that it said",
            (*responding).into(),
        )?;
        gauge(encoder, "serves", "1: this director serves the pair's volumes", snapshot.serves.into())?;
        gauge(encoder, "epoch", "Number of the pair's current ownership", snapshot.epoch)?;
        gauge(encoder, "settled", "1: everything that was acknowledged is on media", snapshot.settled.into())?;
        gauge(encoder, "write_pending_blocks", "Blocks that media does not have yet", snapshot.write_pending as u64)?;
        gauge(encoder, "write_pending_limit_blocks", "Above this many, hosts wait for destage", *limit)?;
        gauge(encoder, "cached_blocks", "Blocks in the cache", snapshot.cached as u64)?;
        gauge(encoder, "frames", "Frames of the cache", *frames)?;
        gauge(encoder, "free_frames", "Frames that are free", snapshot.frames_free as u64)?;
        gauge(encoder, "mirrored_blocks", "Blocks held for the partner", snapshot.mirrored as u64)?;
        counter(encoder, "commands", "Commands of hosts answered", snapshot.commands)?;
        for (name, help, value) in counters::cache(&snapshot.cache) {
            counter(encoder, &format!("cache_{name}"), help, value)?;
        }
        for (name, help, value) in reactor {
            counter(encoder, &format!("reactor_{name}"), help, *value)?;
        }
        histogram(encoder, "destage_blocks", "Blocks of each destage", &snapshot.cache.destage_blocks, 1.0)?;
        let latency = &snapshot.cache.mirror_latency;
        histogram(encoder, "mirror_latency_seconds", "From the first byte to the partner's answer", latency, 1e-9)?;
        ports(
            encoder,
            "port_connections",
            "Connections of hosts that are open",
            snapshot,
            MetricType::Gauge,
            |port| port.connections as u64,
        )?;
        ports(encoder, "port_commands", "I/O commands answered", snapshot, MetricType::Counter, |port| port.commands)?;
        let help = "Connections turned away, or ended for what the host sent or did not take";
        ports(encoder, "port_ended", help, snapshot, MetricType::Counter, |port| port.ended)?;
        let Some(group) = &snapshot.group else { return Ok(()) };
        let info = [("level", view::level(group.level)), ("state", view::group_state(group.state))];
        let metric = encoder.encode_descriptor("group", "The pair's group, at its home", None, MetricType::Gauge)?;
        let mut metric = metric;
        ConstGauge::new(1_u64).encode(metric.encode_family(&info)?)?;
        gauge(encoder, "group_blocks", "Size of the group", group.blocks.0)?;
        for (name, help, value) in counters::group(&group.counters) {
            counter(encoder, &format!("group_{name}"), help, value)?;
        }
        let mut members = encoder.encode_descriptor("member", "Members of the group", None, MetricType::Gauge)?;
        for (device, state) in &group.members {
            let labels =
                [("device", super::events::hex(device)), ("state", super::events::member_state(*state).to_owned())];
            ConstGauge::new(1_u64).encode(members.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// One number of each port, as a gauge or a counter.
fn ports(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    snapshot: &Snapshot,
    kind: MetricType,
    number: impl Fn(&PortNumbers) -> u64,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for port in &snapshot.ports {
        let labels = [("kind", port.kind), ("address", &port.address)];
        let metric = metric.encode_family(&labels)?;
        match kind {
            MetricType::Counter => ConstCounter::new(number(port)).encode(metric)?,
            _ => ConstGauge::new(number(port)).encode(metric)?,
        }
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// Bucket n ends below 2^n units.
#[expect(clippy::cast_precision_loss, reason = "bounds are powers of two, and the sum is a float in the format")]
fn histogram(encoder: &mut DescriptorEncoder, name: &str, help: &str, histogram: &Histogram, unit: f64) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    let last = histogram.buckets().len() - 1;
    let bound = |n: usize| if n == last { f64::INFINITY } else { ((1_u64 << n) - 1) as f64 * unit };
    let buckets: Vec<_> = histogram.buckets().iter().enumerate().map(|(n, count)| (bound(n), *count)).collect();
    metric.encode_histogram::<NoLabelSet>(histogram.sum() as f64 * unit, histogram.count(), &buckets, None)
}
