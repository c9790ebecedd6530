//! Describes a metric before it is first counted, so that it exists from the start, as 0.

use metrics::{Label, counter, describe_counter, describe_gauge, gauge};

/// Describes a counter, with the labels under which it will be counted.
pub fn declare_counter(name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) {
    describe_counter!(name, help);
    counter!(name, owned(labels)).increment(0);
}

/// Describes a gauge, with the labels under which it will be set.
pub fn declare_gauge(name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) {
    describe_gauge!(name, help);
    gauge!(name, owned(labels)).set(0.0);
}

fn owned(labels: &[(&'static str, &str)]) -> Vec<Label> {
    labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect()
}
