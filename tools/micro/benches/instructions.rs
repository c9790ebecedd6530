//! The instructions of codec and fold for a thousand records, which do not depend on the load of the machine.
//! `bin/bench instructions` runs it under valgrind.
#![allow(missing_docs)]

use std::hint::black_box;

use consumer::{DistanceFold, StateFold};
use gungraun::{library_benchmark, library_benchmark_group, main};
use pglog::Record;
use stream::codec::decode_xread;

/// The records point into payloads that are kept until the process ends.
fn records() -> Vec<Record<'static>> {
    micro::records(Box::leak(Box::new(micro::payloads())))
}

fn reply() -> Vec<u8> {
    micro::reply(&records())
}

#[library_benchmark]
#[bench::thousand(setup = records)]
fn encode(records: Vec<Record<'static>>) -> usize {
    micro::encode(black_box(&records)).bytes().len()
}

#[library_benchmark]
#[bench::thousand(setup = reply)]
fn decode(reply: Vec<u8>) -> usize {
    decode_xread(black_box(&reply)).expect("it is a page").len()
}

#[library_benchmark]
#[bench::thousand(setup = records)]
fn fold(records: Vec<Record<'static>>) -> DistanceFold {
    let mut fold = DistanceFold::default();
    for record in black_box(&records) {
        fold.apply(record).expect("every record is a ride");
    }
    fold
}

library_benchmark_group!(name = records; benchmarks = encode, decode, fold);
main!(library_benchmark_groups = records);
