//! The instructions that codec and fold take for a thousand records: the same on a busy machine as on an idle one.
//! `bin/bench instructions` runs it, under valgrind.
#![allow(missing_docs)]

mod samples;

use std::hint::black_box;

use common::stream::{DecodeError, Entry, decode_xread};
use consumer::{DistanceFold, Fold};
use gungraun::{library_benchmark, library_benchmark_group, main};
use pglog::Record;
use redis::Value;

fn reply() -> Value {
    samples::reply(&samples::records())
}

#[library_benchmark]
#[bench::thousand(setup = samples::records)]
fn encode(records: Vec<Record>) -> usize {
    samples::encode(black_box(&records))
}

#[library_benchmark]
#[bench::thousand(setup = reply)]
fn decode(reply: Value) -> Result<Vec<Entry>, DecodeError> {
    decode_xread(black_box(reply))
}

#[library_benchmark]
#[bench::thousand(setup = samples::records)]
fn fold(records: Vec<Record>) -> DistanceFold {
    let mut fold = DistanceFold::default();
    for record in black_box(&records) {
        fold.apply(record).expect("every record is a ride");
    }
    fold
}

library_benchmark_group!(name = records; benchmarks = encode, decode, fold);
main!(library_benchmark_groups = records);
