//! Metrics that count what happened, and health that follows the servers.

use std::path::{Path, PathBuf};

use tests::{Payments, PrivatePostgres, PrivateRedis, Process, Watched, World, wait_until};

use crate::container_watched::WatchedScene;

/// A client that posts to `/rides` of an api.
struct Rider {
    client: reqwest::Client,
    url: String,
}

impl Rider {
    fn form(&self) -> reqwest::RequestBuilder {
        self.client.post(&self.url).header("content-type", "application/x-www-form-urlencoded")
    }

    async fn ride(&self, distance: &str) {
        self.form().body(format!("distance={distance}")).send().await.unwrap();
    }

    async fn book(&self) -> u16 {
        let request = self.form().header("authorization", "user@example.com");
        let request = request.header("idempotency-key", "a-key-that-is-long-enough");
        let request = request.body("origin_lat=1&origin_lon=2&target_lat=3&target_lon=4");
        request.send().await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn metrics_say_what_happened() {
    let (world, payments) = (World::new().await, Payments::start().await);
    let port = tests::free_port().to_string();
    let api = Watched::start(&world, "api", &[&["--api-port", &port], &payments.flags()[..]].concat()).await;
    let streamer = Watched::start(&world, "streamer", &[]).await;
    let consumer = Watched::start(&world, "consumer", &["consumer0"]).await;
    let rider = Rider { client: reqwest::Client::new(), url: format!("http://127.0.0.1:{port}/rides") };
    for distance in ["12.5", "7", "nonsense"] {
        rider.ride(distance).await;
    }
    assert_eq!([rider.book().await, rider.book().await], [201, 201]);

    assert_api_has_counted(&api).await;
    // Two guests' rides, a booked ride, its charge and its receipt.
    let applied = r#"rocket_rides_records_applied_total{consumer="consumer0"}"#;
    wait_until("the rides are folded", async || consumer.metric(applied).await == 3.0).await;
    let passed = r#"rocket_rides_records_passed_total{consumer="consumer0"}"#;
    wait_until("charge and receipt are passed", async || consumer.metric(passed).await == 2.0).await;
    assert_eq!(streamer.metric("rocket_rides_records_published_total").await, 5.0);
    assert_eq!(streamer.metric("rocket_rides_leader").await, 1.0);
    let lag = r#"rocket_rides_lag_records{consumer="consumer0",partition="0"}"#;
    wait_until("the lag is measured", async || consumer.metrics().await.get(lag) == Some(&0.0)).await;
    for (watched, histogram) in [
        (&streamer, "rocket_rides_commit_to_append_seconds_count"),
        (&consumer, r#"rocket_rides_commit_to_fold_seconds_count{consumer="consumer0"}"#),
    ] {
        // The process measures one record per second, if the record is at most one second old.
        wait_until("the delay of a record is measured", async || {
            rider.ride("1").await;
            watched.metric(histogram).await > 0.0
        })
        .await;
    }
    for watched in [&api, &streamer, &consumer] {
        assert_eq!(watched.metric("rocket_rides_ready").await, 1.0);
        watched.assert_every_metric_has_help().await;
    }

    let folder = tests::scratch_folder();
    let others = [
        Watched::start(&world, "completer", &payments.flags()).await,
        Watched::start(&world, "reaper", &[]).await,
        Watched::start(&world, "consumer", &["wallets", "--fold", "wallets"]).await,
        Watched::start(&world, "receipts", &["receipts", "--folder", folder.to_str().unwrap()]).await,
    ];
    let container = WatchedScene::start(World::new().await, &[]).await;
    // Histograms show themselves with their first measurement.
    assert_eq!(container.post(7).await.0, 200);
    let mut known: Vec<String> = container.monitor.metrics().await.into_keys().collect();
    for watched in [&api, &streamer, &consumer].into_iter().chain(&others) {
        known.extend(watched.metrics().await.into_keys());
    }
    assert_queries_find_something(&known);
    for watched in [api, streamer, consumer].into_iter().chain(others) {
        watched.process.stop().await;
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The api has served two guests' rides, a refused ride, a booking and its retry.
async fn assert_api_has_counted(api: &Watched) {
    let created = r#"rocket_rides_http_requests_total{method="POST",route="/rides",status="201"}"#;
    let refused = r#"rocket_rides_http_requests_total{method="POST",route="/rides",status="422"}"#;
    assert_eq!((api.metric(created).await, api.metric(refused).await), (4.0, 1.0));
    assert_eq!(api.metric("rocket_rides_rides_written_total").await, 2.0);
    assert_eq!(api.metric("rocket_rides_idempotent_replays_total").await, 1.0);
    let count = r#"rocket_rides_http_request_duration_seconds_count{route="/rides"}"#;
    assert_eq!(api.metric(count).await, 5.0);
    assert!(api.metric("rocket_rides_pool_wait_seconds_count").await > 0.0);
}

/// Asserts that each query of the alert rules and of the dashboard selects samples that processes write.
fn assert_queries_find_something(known: &[String]) {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops");
    let alerts = std::fs::read_to_string(docs.join("alerts.yml")).unwrap();
    let mut queries: Vec<String> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ").map(str::to_owned)).collect();
    assert_eq!(queries.len(), alerts.matches("- alert: ").count(), "each rule has its expression on one line");
    let dashboard: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(docs.join("grafana.json")).unwrap()).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().unwrap();
        queries.extend(targets.iter().map(|target| target["expr"].as_str().unwrap().to_owned()));
    }
    let mut finder = Finder { known, found_count: 0 };
    for query in &queries {
        let expression = promql_parser::parser::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!(promql_parser::util::walk_expr(&mut finder, &expression), Ok(true), "{query}");
    }
    assert!(finder.found_count >= queries.len(), "{}", finder.found_count);
}

struct Finder<'a> {
    known: &'a [String],
    found_count: usize,
}

impl promql_parser::util::ExprVisitor for Finder<'_> {
    type Error = String;

    fn pre_visit(&mut self, expression: &promql_parser::parser::Expr) -> Result<bool, String> {
        use promql_parser::parser::Expr;
        let selector = match expression {
            Expr::VectorSelector(selector) => selector,
            Expr::MatrixSelector(selector) => &selector.vs,
            Expr::Aggregate(aggregate) => {
                let Some(promql_parser::parser::LabelModifier::Include(labels)) = &aggregate.modifier else {
                    return Ok(true);
                };
                let is_known = |label: &String| {
                    let written = format!("{label}=\"");
                    self.known.iter().any(|sample| sample.contains(&written))
                };
                return labels
                    .labels
                    .iter()
                    .find(|label| !is_known(label))
                    .map_or(Ok(true), |label| Err(format!("no {label}")));
            }
            _ => return Ok(true),
        };
        let name = selector.name.as_deref().unwrap_or_default();
        let series: Vec<&String> = self.known.iter().filter(|sample| sample.split('{').next() == Some(name)).collect();
        if series.is_empty() {
            return Err(format!("no process writes {name}"));
        }
        for matcher in &selector.matchers.matchers {
            let written = format!("{}=\"", matcher.name);
            if !series.iter().any(|sample| sample.contains(&written)) {
                return Err(format!("{name} has no label {}", matcher.name));
            }
        }
        self.found_count += 1;
        Ok(true)
    }
}

/// Names that begin like metrics and are none: an example in a comment, and the channel of notifications.
const NOT_METRICS: [&str; 2] = ["rounds_total", "log"];

/// The source files below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every metric that the code names is in docs/MONITORING.md.
#[test]
fn every_metric_is_documented() {
    let root = tests::root();
    let documented = std::fs::read_to_string(root.join("docs/MONITORING.md")).unwrap();
    let mut files = Vec::new();
    for folder in ["api", "streamer", "consumer", "simulator", "common", "libs", "processes"] {
        sources(&root.join(folder), &mut files);
    }
    let mut count = 0;
    for path in files.iter().filter(|path| path.components().any(|part| part.as_os_str() == "src")) {
        let source = std::fs::read_to_string(path).unwrap();
        for name in source.split("\"rocket_rides_").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            if !NOT_METRICS.contains(&name) && !name.is_empty() {
                count += 1;
                let is_there = documented.contains(&format!("`{name}`")) || documented.contains(&format!("`{name}{{"));
                assert!(is_there, "{name} of {} is not documented", path.display());
            }
        }
    }
    assert!(count > 60, "{count}");
}

#[tokio::test]
async fn logs_are_json_objects_where_that_is_asked_for() {
    let world = World::new().await;
    world.write_rides(3).await;
    let output = Process::start(&world, "streamer", &["--drain", "--log-format", "json"]).succeed().await;
    let lines: Vec<serde_json::Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let published = lines.iter().find(|line| line["message"] == "batch published").unwrap();
    assert_eq!((&published["level"], &published["record_count"]), (&"INFO".into(), &3.into()), "{published}");
    assert!(published["timestamp"].is_string(), "{published}");
}

/// SIGKILL of each server: every process that needs the server reports it, and recovers by itself.
#[tokio::test]
async fn who_needs_a_server_is_not_ready_without_it() {
    let (mut postgres, mut redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let world = World::on(&postgres.url(), &redis.url()).await;
    let payments = Payments::start().await;
    let folder = tests::scratch_folder();
    let mut watched = Vec::new();
    for (name, args, needs_redis) in [
        ("api", vec!["--api-port", "0"], false),
        ("completer", payments.flags().to_vec(), false),
        ("reaper", vec![], false),
        ("streamer", vec![], true),
        ("consumer", vec!["consumer0"], true),
        ("receipts", vec!["receipts", "--folder", folder.to_str().unwrap()], true),
    ] {
        watched.push((Watched::start(&world, name, &args).await, name, needs_redis));
    }
    let all_ready = async |watched: &[(Watched, &str, bool)]| {
        for (process, name, _) in watched {
            wait_until(&format!("{name} is ready"), async || process.is_ready().await).await;
        }
    };
    all_ready(&watched).await;

    redis.kill().await;
    for (process, name, _) in watched.iter().filter(|(_, _, needs_redis)| *needs_redis) {
        wait_until(&format!("{name} misses Redis"), async || !process.is_ready().await).await;
        assert_eq!(process.get("/livez").await.0, 200, "{name}");
    }
    for (process, name, _) in watched.iter().filter(|(_, _, needs_redis)| !needs_redis) {
        assert!(process.is_ready().await, "{name} needs no Redis");
    }
    redis.start_again().await;
    all_ready(&watched).await;

    postgres.kill().await;
    for (process, name, _) in &watched {
        // Another pulse may have become late first, so the test looks for Postgres in the body.
        let says = r#"{"name":"postgres","ready":false"#;
        wait_until(&format!("{name} misses Postgres"), async || process.get("/readyz").await.1.contains(says)).await;
        assert_eq!((process.get("/readyz").await.0, process.get("/healthz").await.0), (503, 503), "{name}");
        assert_eq!(process.get("/livez").await.0, 200, "{name}");
    }
    postgres.start_again().await;
    all_ready(&watched).await;
    std::fs::remove_dir_all(&folder).unwrap();
}
