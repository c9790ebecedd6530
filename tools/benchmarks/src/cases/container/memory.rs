//! The memory of the container while many large units wait for a destination, and while they are delivered.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt};
use nix::sys::signal::Signal;

use super::CONNECTIONS;
use super::service::{self, Service};
use crate::bench::Bench;
use crate::report::{Row, Wanted};
use crate::sample::Samples;

/// The length of each photo, in bytes.
const PHOTO_LEN: usize = 1_000_000;

/// Measures the peaks.
///
/// # Errors
/// A process failed, or units were lost.
pub(super) async fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let count = bench.config.waiting_units;
    bench.progress.step(&format!("{count} units of 1 MB"));
    let mut service = Service::start(bench).await?;
    service.notices.signal(Signal::SIGSTOP)?;
    let client = reqwest::Client::new();
    let url = format!("http://127.0.0.1:{}/{}", service.port, service::TOLD);
    futures_util::stream::iter(0..count)
        .map(|ride_id| {
            let (boundary, body) = body(ride_id);
            let request = client.post(&url).header("content-type", format!("multipart/form-data; boundary={boundary}"));
            async move { request.body(body).send().await.context("posting a manifest") }
        })
        .buffer_unordered(CONNECTIONS as usize)
        .try_for_each(async |response| {
            let status = response.status();
            ensure!(status.is_server_error() || status == 202, "a unit was answered with {status}");
            Ok(())
        })
        .await?;
    let waiting = bench.number("SELECT count(*) FROM units WHERE settled_at IS NULL").await?;
    ensure!(waiting == i64::from(count), "{waiting} units wait, and {count} were posted");
    let waiting_mb = service.container.memory_peak_mb()?;
    service.notices.signal(Signal::SIGCONT)?;
    service.settle(bench).await?;
    let delivered_mb = service.container.memory_peak_mb()?;
    service.stop().await?;
    let row = |when: &str, megabytes| Row::new(&format!("peak memory, MB, {when}"), &Samples(vec![megabytes]));
    Ok(vec![
        row(&format!("{count} units of 1 MB wait"), waiting_mb).wanted(Wanted::AtMost(40.0)),
        row("they are delivered", delivered_mb).wanted(Wanted::AtMost(40.0)),
    ])
}

/// A boundary and a multipart body with it.
fn body(ride_id: u32) -> (&'static str, Vec<u8>) {
    let boundary = "one-boundary";
    let mut body = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"manifest\"\r\n\r\n{{\"ride_id\":{ride_id},\"passengers\":[]}}\r\n\
         --{boundary}\r\ncontent-disposition: form-data; name=\"photo\"; filename=\"p.png\"\r\ncontent-type: image/png\r\n\r\n"
    )
    .into_bytes();
    body.resize(body.len() + PHOTO_LEN, 7);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    (boundary, body)
}
