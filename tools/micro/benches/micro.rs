//! The time of small parts: the codec of entries, the fold, the distance. `bin/bench micro` runs it.
#![allow(missing_docs)]

use std::hint::black_box;

use consumer::{DistanceFold, StateFold};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stream::codec::decode_xread;

fn codec(criterion: &mut Criterion) {
    let payloads = micro::payloads();
    let records = micro::records(&payloads);
    let reply = micro::reply(&records);
    let mut group = criterion.benchmark_group("entry");
    group.throughput(Throughput::Elements(micro::LEN as u64));
    group.bench_function("encode", |bencher| bencher.iter(|| micro::encode(black_box(&records))));
    group.bench_function("decode", |bencher| bencher.iter(|| decode_xread(black_box(&reply)).map(|list| list.len())));
    group.finish();
}

fn fold(criterion: &mut Criterion) {
    let payloads = micro::payloads();
    let records = micro::records(&payloads);
    let mut group = criterion.benchmark_group("fold");
    group.throughput(Throughput::Elements(micro::LEN as u64));
    group.bench_function("distance", |bencher| {
        bencher.iter(|| {
            let mut fold = DistanceFold::default();
            for record in black_box(&records) {
                fold.apply(record).expect("every record is a ride");
            }
            fold
        });
    });
    group.finish();
}

fn distance(criterion: &mut Criterion) {
    criterion.bench_function("parse_distance", |bencher| bencher.iter(|| api::parse_distance(black_box("512.345"))));
}

criterion_group!(benches, codec, fold, distance);
criterion_main!(benches);
