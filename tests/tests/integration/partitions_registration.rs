//! Registering in all partitions, or in none (I8).

use pglog::Partition;
use tests::{Process, World};

async fn registered(world: &World, name: &str) -> Vec<i32> {
    world.checkpoints(name).await.keys().map(|partition| partition.number()).collect()
}

async fn drain(world: &World, args: &[&str]) -> String {
    Process::start(world, "consumer", &[args, &["--drain"]].concat()).succeed().await
}

#[tokio::test]
async fn a_consumer_is_registered_in_all_partitions_or_in_none() {
    let world = World::cut(4).await;
    // Postgres refuses the name in one partition.
    let refuse = "INSERT INTO unregistered_consumers (name, partition) VALUES ('a', 2)";
    world.client().batch_execute(refuse).await.unwrap();
    let output = Process::start(&world, "consumer", &["a"]).fail(2).await;
    assert!(output.contains("was unregistered, and does not come back by itself"), "{output}");
    assert!(output.contains(" a --fold distance --register`"), "the command needs no partition: {output}");
    assert!(registered(&world, "a").await.is_empty());
    let output = Process::start(&world, "consumer", &["a", "--register"]).succeed().await;
    assert!(output.contains("consumer a is registered in partitions 0,1,2,3 at offsets 0,0,0,0"), "{output}");
    let output = Process::start(&world, "consumer", &["a", "--register"]).fail(1).await;
    assert!(output.contains("is registered already"), "{output}");
    drain(&world, &["a"]).await;
}

#[tokio::test]
async fn a_consumer_of_some_partitions_is_registered_in_the_others_when_it_is_started_for_all() {
    let world = World::cut(4).await;
    drain(&world, &["a", "--partitions", "3,1"]).await;
    assert_eq!(registered(&world, "a").await, [1, 3]);
    drain(&world, &["a"]).await;
    assert_eq!(registered(&world, "a").await, [0, 1, 2, 3]);
    // Where it was unregistered it does not come back by itself.
    let output = Process::start(&world, "consumer", &["a", "--unregister", "--partition", "1"]).succeed().await;
    assert!(output.contains("consumer a is unregistered in partition 1\n"), "{output}");
    let output = Process::start(&world, "consumer", &["a"]).fail(2).await;
    assert!(output.contains("was unregistered"), "{output}");
    drain(&world, &["a", "--partitions", "0,2,3"]).await;
    let output = Process::start(&world, "consumer", &["a", "--partitions", "0,1"]).fail(2).await;
    assert!(output.contains(" a --fold distance --register --partitions 0,1`"), "{output}");
    let output = Process::start(&world, "consumer", &["a", "--register"]).succeed().await;
    assert!(output.contains("consumer a is registered in partition 1 at offset 0"), "{output}");
    drain(&world, &["a"]).await;
    let output = Process::start(&world, "consumer", &["a", "--unregister"]).succeed().await;
    assert!(output.contains("consumer a is unregistered in partitions 0,1,2,3"), "{output}");
    let output = Process::start(&world, "consumer", &["a", "--unregister"]).fail(1).await;
    assert!(output.contains("no consumer \"a\" is registered in partitions 0,1,2,3"), "{output}");
    assert!(registered(&world, "a").await.is_empty());
}

#[tokio::test]
async fn a_consumer_is_copied_in_all_partitions_or_in_none() {
    let world = World::cut(4).await;
    world.write_rides(100).await;
    world.stage_data("{}").await;
    world.publish(&world.partitions().await).await;
    drain(&world, &["old"]).await;
    // The name is taken in one partition.
    drain(&world, &["new", "--partitions", "3"]).await;
    let output = Process::start(&world, "consumer", &["new", "--copy-from", "old"]).fail(1).await;
    assert!(output.contains("is registered already") && output.contains(" new --unregister`"), "{output}");
    assert_eq!(registered(&world, "new").await, [3]);
    Process::start(&world, "consumer", &["new", "--unregister", "--partitions", "3"]).succeed().await;
    let output = Process::start(&world, "consumer", &["new", "--copy-from", "old"]).succeed().await;
    assert!(output.contains("starts with the state of old in partitions 0,1,2,3 at offsets "), "{output}");
    world.converge(&["old", "new"]).await;
    assert_eq!(world.number("SELECT count(DISTINCT name) FROM dead_letters").await, 2, "the dead letter comes with it");
}

#[tokio::test]
async fn a_partition_that_the_log_lacks_is_refused() {
    for (world, words) in [
        (World::cut(4).await, "the log has 4 partition(s), and partition 4 is not one of them"),
        (World::new().await, "the log has 1 partition(s), and partition 4 is not one of them"),
    ] {
        for args in [&["a"][..], &["a", "--register"], &["a", "--unregister"]] {
            let output = Process::start(&world, "consumer", &[args, &["--partitions", "4,0"]].concat()).fail(2).await;
            assert!(output.contains(words), "{output}");
        }
        assert!(registered(&world, "a").await.is_empty());
    }
}

/// The record is in the partition 0 of four, and so is the dead letter.
#[tokio::test]
async fn a_dead_letter_is_replayed_in_its_partition() {
    let world = World::cut(4).await;
    let stage = "INSERT INTO staged_log_records (partition, object, action, data)
                 VALUES (3, 'ride', 'create', '{\"id\":7,\"distance_mm\":\"5\"}')";
    world.client().batch_execute(stage).await.unwrap();
    world.publish(&world.partitions().await).await;
    let output = drain(&world, &["a"]).await;
    assert!(output.contains("record put with the dead letters") && output.contains("partition=3"), "{output}");
    let mend = "UPDATE dead_letters SET data = '{\"id\":7,\"distance_mm\":5}'";
    world.client().batch_execute(mend).await.unwrap();
    let (mut client, mut fold) = (world.connect().await, consumer::FOLDS.first());
    let replayed = consumer::replay(&mut client, &mut fold, "a", Partition::new(3).unwrap(), 1).await.unwrap();
    assert_eq!(replayed, consumer::Replay::Applied);
    assert_eq!(world.total("a").await.total_distance_mm, 5);
    drain(&world, &["b"]).await;
}
