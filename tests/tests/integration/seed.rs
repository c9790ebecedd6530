//! The twelve tests of the original Ruby service, under their numbers, on this system.

use common::shutdown::CancellationToken;
use consumer::{Fault as ConsumerFault, Interruption};
use stream::codec::decode_xread;
use stream::resp::Commands;
use streamer::{Fault, Step};
use tests::World;

use crate::api::Api;

#[tokio::test]
async fn rl_t01_a_valid_distance_is_accepted_and_staged() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let (status, body) = api.post_form("distance=123.0").await;
    assert_eq!(status, 201);
    assert_eq!(body["message"], "Payment accepted. Your pilot is on their way! distance=123.0m");
    assert_eq!(world.number("SELECT count(*) FROM rides").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 1);
}

#[tokio::test]
async fn rl_t02_a_missing_distance_is_asked_for() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let (status, body) = api.post_form("").await;
    assert_eq!((status, &body["error"]), (422, &"Please specify parameter 'distance'.".into()));
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 0);
}

#[tokio::test]
async fn rl_t03_a_distance_that_is_no_number_is_refused() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let (status, body) = api.post_form("distance=foo").await;
    assert_eq!((status, &body["error"]), (422, &"Parameter 'distance' must be a floating-point number.".into()));
}

#[tokio::test]
async fn rl_t04_two_new_records_are_folded_and_the_checkpoint_moves() {
    let world = World::new().await;
    world.stage(123, 2_000).await;
    world.stage(124, 3_000).await;
    world.drain_streamer(&mut world.streamer()).await;
    let progress = world.consumer("consumer0").run_once(ConsumerFault::None, None).await.unwrap();
    assert_eq!(progress.applied_count, 2);
    let (last_offset, state) = world.committed("consumer0").await;
    assert_eq!((last_offset, state.total_distance_mm, state.ride_count), (2, 5_000, 2));
}

#[tokio::test]
async fn rl_t05_a_new_record_is_folded_onto_an_existing_checkpoint() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    world.stage(123, 2_000).await;
    world.drain_streamer(&mut streamer).await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.stage(124, 3_000).await;
    world.drain_streamer(&mut streamer).await;
    // A new process with the same name has only the committed state.
    let progress = world.consumer("consumer0").run_once(ConsumerFault::None, None).await.unwrap();
    assert_eq!(progress.applied_count, 1);
    let (last_offset, state) = world.committed("consumer0").await;
    assert_eq!((last_offset, state.total_distance_mm), (2, 5_000));
}

#[tokio::test]
async fn rl_t06_an_empty_stream_is_no_work() {
    let world = World::new().await;
    let progress = world.consumer("consumer0").run_once(ConsumerFault::None, None).await.unwrap();
    assert_eq!(progress, consumer::Progress::default());
}

#[tokio::test]
async fn rl_t07_a_record_that_comes_twice_is_folded_once() {
    let world = World::new().await;
    world.stage(123, 2_000).await;
    let mut streamer = world.streamer();
    assert!(matches!(streamer.run_once(Fault::SendTwice).await.unwrap(), Step::Published(_)));
    let progress = world.consumer("consumer0").run_once(ConsumerFault::None, None).await.unwrap();
    assert_eq!((progress.applied_count, progress.duplicate_count), (1, 1));
    assert_eq!(world.committed("consumer0").await.1.total_distance_mm, 2_000);
}

#[tokio::test]
async fn rl_t08_a_simulated_crash_rolls_back_state_and_checkpoint() {
    let world = World::new().await;
    world.stage(123, 2_000).await;
    world.drain_streamer(&mut world.streamer()).await;
    let mut consumer = world.consumer("consumer0");
    let error = consumer.run_once(ConsumerFault::CrashBeforeCommit, None).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Interruption::Crash)), "{error:#}");
    let (last_offset, state) = world.committed("consumer0").await;
    assert_eq!((last_offset, state.total_distance_mm, state.ride_count), (0, 0, 0));
    // The original's test stops here. Afterwards the record must be folded, and only once.
    world.drain_consumer(&mut consumer).await;
    let (last_offset, state) = world.committed("consumer0").await;
    assert_eq!((last_offset, state.total_distance_mm, state.ride_count), (1, 2_000, 1));
    assert_eq!(world.number("SELECT crash_count FROM checkpoints").await, 1);
}

#[tokio::test]
async fn rl_t09_a_staged_record_reaches_the_stream_as_it_was_staged() {
    let world = World::new().await;
    world.stage_data(r#"{"distance_mm":  2000, "id":123}"#).await;
    let (added_count, _) = world.drain_streamer(&mut world.streamer()).await;
    assert_eq!(added_count, 1);
    assert!(!pglog::is_anything_staged(world.client(), pglog::Partition::FIRST).await.unwrap());
    let (mut wire, mut read) = (world.wire().await, Commands::default());
    wire.send(read.add(&["XREAD", "STREAMS", world.stream_name(), "0"])).await.unwrap();
    let reply = wire.read(1).await.unwrap();
    let entries = decode_xread(&reply).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].id.to_string(), "1-0");
    let fields = entries[0].fields.as_ref().unwrap();
    assert_eq!((fields.object, fields.action), ("ride", "create"));
    assert_eq!(fields.data, r#"{"distance_mm":  2000, "id":123}"#, "byte for byte");
}

#[tokio::test]
async fn rl_t10_a_double_send_adds_every_record_twice() {
    let world = World::new().await;
    world.stage(123, 2_000).await;
    let Step::Published(published) = world.streamer().run_once(Fault::SendTwice).await.unwrap() else {
        panic!("nothing was published");
    };
    assert_eq!((published.record_count, published.added_count, published.refused_count), (1, 2, 0));
    assert_eq!(world.stream_len().await, 2, "both entries are in the stream");
}

#[tokio::test]
async fn rl_t11_nothing_staged_is_nothing_sent() {
    let world = World::new().await;
    assert!(matches!(world.streamer().run_once(Fault::None).await.unwrap(), Step::Idle));
}

#[tokio::test]
async fn rl_t12_the_simulator_posts_a_ride() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let client = reqwest::Client::new();
    let (status, _) = simulator::run_once(&client, &api.url("/rides"), 512.3456).await.unwrap();
    assert_eq!(status, 201);
    assert_eq!(world.sql_totals().await, (1, 512_346));
    // The whole simulator: it waits for the api, posts the rides and sums up.
    let config =
        clap::Parser::parse_from(["simulator", "--api-port", &api.port().to_string(), "--rate", "max", "--count", "7"]);
    let summary = simulator::run(config, CancellationToken::new()).await.unwrap().rides.unwrap();
    assert_eq!((summary.sent_count, summary.accepted_count, summary.refused_count), (7, 7, 0));
    assert_eq!(world.sql_totals().await.0, 8);
}
