//! Two containers on one spool and one database, and a unit that ends its process each time.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tests::{wait_long_until, wait_until};
use tokio::task::JoinSet;

use crate::container_fixture::{PATIENCE, Scene, base_of, manifest};
use crate::container_load::{Answered, Request, refuse_some_rows};

const CLIENT_COUNT: u64 = 6;
const REQUEST_COUNT: usize = 25;

/// How often a container takes an attempt up.
const TAKE_COUNT_MAX: i64 = 5;

/// Sends each request to either container, and each repetition to any of them.
async fn run_client(number: u64, bases: [String; 2], mut rng: StdRng) -> Vec<Answered> {
    let client = reqwest::Client::new();
    let mut answered = Vec::new();
    for request in 0..REQUEST_COUNT {
        let request = Request::draw(format!("client-{number}-{request}"), &mut rng);
        let wait = std::time::Duration::from_secs(60);
        // The same request reaches both at the same time.
        let both = tokio::join!(request.send(&client, &bases[0], wait), request.send(&client, &bases[1], wait));
        let units: Vec<_> = [both.0, both.1].into_iter().flatten().map(|(_, uow)| uow).collect();
        assert!(units.windows(2).all(|pair| pair[0] == pair[1]), "{units:?}");
        let mut turn = rng.random_range(0..2);
        let base = || {
            turn = 1 - turn;
            bases[turn].clone()
        };
        answered.push(request.send_until_final(&client, base, &mut rng).await);
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_containers_on_one_spool_give_each_unit_one_verdict() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut scene = Scene::start().await;
    refuse_some_rows(&scene.world).await;
    let mut second = scene.spawn(&[]);
    let bases = [scene.base.clone(), base_of(&mut second).await];
    let mut clients: JoinSet<_> = (0..CLIENT_COUNT)
        .map(|client| run_client(client, bases.clone(), StdRng::seed_from_u64(rng.random())))
        .collect();
    let count = async || scene.world.number("SELECT count(*) FROM units").await;
    wait_long_until(PATIENCE, "some of it is done", async || count().await > 40).await;
    // The second container goes on with the units of the first.
    scene.kill_container().await;
    scene.end_leases().await;
    let mut answered = Vec::new();
    while let Some(client) = clients.join_next().await {
        answered.extend(client.unwrap());
    }
    scene.make_spool_old();
    scene.start_again(None).await;
    scene.settle().await;
    scene.assert_verdicts().await;
    for answered in &answered {
        answered.assert_kept(&scene.client, &bases[1]).await;
    }
    let expected = |status| answered.iter().filter(|answered| answered.request.status() == status).count() as i64;
    let number = async |query: &str| scene.world.number(query).await;
    assert_eq!(number("SELECT count(*) FROM units").await, expected(200) + expected(422));
    assert_eq!(number("SELECT count(*) FROM manifests").await, expected(200));
}

/// The attempt of one unit ends the process each time. It is given up, and the next attempt may succeed. Other units go on.
#[tokio::test]
async fn a_unit_that_ends_its_process_each_time_is_given_up_with_a_report() {
    let mut scene = Scene::start().await;
    scene.kill_container().await;
    let deadly = ["--die-at", "all-stored:13"];
    scene.start_again_with(&deadly).await;
    assert!(scene.post_with_photo(&manifest(13, &["Ada"]), &[7; 100]).send().await.is_err());
    scene.died().await;
    let uow = scene.world.number("SELECT uow FROM units").await;
    for life in 2..=TAKE_COUNT_MAX {
        scene.start_again_with(&deadly).await;
        let other = scene.post(&manifest(life, &["Bo"])).send().await.unwrap();
        assert_eq!(other.status(), 200, "other units go on");
        scene.end_leases().await;
        scene.died().await;
    }
    scene.start_again_with(&deadly).await;
    scene.end_leases().await;
    wait_until("the attempt is given up", async || scene.unit(uow).await["state"] == "fail_queued").await;
    let unit = scene.unit(uow).await;
    assert_eq!((unit["attempt"].as_i64(), unit["status"].as_i64()), (Some(2), Some(500)), "{unit}");
    assert!(unit["error"].as_str().unwrap().contains("taken up too often"), "{unit}");
    assert_eq!(unit["report"]["1"].as_array().unwrap().len(), 4, "every destination is in the report: {unit}");
    assert_eq!((scene.on_board(13).await, scene.photos()), (None, vec![0]), "nothing of it is left");
    assert_eq!(scene.told(uow).await, [(1, "undone".to_owned())]);
    scene.kill_container_if_it_runs().await;
    scene.end_leases().await;
    scene.start_again(None).await;
    scene.settle().await;
    assert_eq!(scene.unit(uow).await["state"], "committed");
    scene.assert_verdicts().await;
}
