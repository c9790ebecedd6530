//! The partitions of keys and the keys of streams, as `vectors.json` has them. Readers in other languages use the same file:
//! `examples/python/vectors.py`. The tests of the workspace hold SQL to it.

use pglog::{Partition, PartitionCount};
use serde_json::Value;
use stream::Stream;

fn vectors(name: &str) -> Vec<Value> {
    let vectors: Value = serde_json::from_str(include_str!("../vectors.json")).expect("the file is JSON");
    vectors[name].as_array().expect("it is a list").clone()
}

#[test]
fn a_key_is_in_the_partition_that_the_vectors_say() {
    let vectors = vectors("partitions");
    assert!(vectors.len() > 10);
    for vector in vectors {
        for (count, wanted) in vector["of"].as_object().unwrap() {
            let count = PartitionCount::new(count.parse().unwrap()).unwrap();
            let partition = count.partition_of(vector["key"].as_str().unwrap());
            assert_eq!(Some(i64::from(partition.number())), wanted.as_i64(), "{vector} of {count}");
        }
    }
}

#[test]
fn a_partitions_stream_has_the_key_that_the_vectors_say() {
    let vectors = vectors("stream_keys");
    assert!(vectors.len() > 10);
    for vector in vectors {
        let log_id = vector["log_id"].as_str().map(str::to_owned);
        let stream = Stream { name: vector["name"].as_str().unwrap().to_owned(), log_id };
        let partition = Partition::new(vector["partition"].as_i64().unwrap() as i32).unwrap();
        assert_eq!(Some(stream.key(partition).as_str()), vector["key"].as_str(), "{vector}");
    }
}
