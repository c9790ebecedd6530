//! What to ask a node of Redis next: to set a stream aside, where streams end, or to append a page of each partition that is
//! behind.

use std::time::Instant;

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;
use futures_util::future::try_join_all;
use stream::end::StreamEnd;
use stream::resp::Commands;

use crate::appender::Appender;
use crate::fault::Fault;
use crate::foreign::set_aside;
use crate::nodes::{Asked, Flight, Question};
use crate::publish::encode;

/// Records of a page. Enough to make round trips cheap, and a few hundred kilobytes at most.
const PAGE_LEN_MAX: usize = 1000;

/// Records of a pipeline: pages are shorter if many partitions are behind.
const PIPELINE_LEN_MAX: usize = 4000;

/// The next question to a node, about those of its partitions that are due. `fault` is injected into one page.
///
/// # Errors
/// Postgres is away, or the records cannot be read.
pub(crate) async fn next_question(
    client: &Client,
    mut due: Vec<&mut Appender>,
    fault: Fault,
) -> Result<Option<Question>> {
    if let Some((appender, end)) = due.iter().find_map(|appender| Some((appender, appender.foreign_end()?))) {
        let asked = Asked::SetAside(appender.partition);
        return Ok(Some(Question { commands: set_aside(&appender.key, end), asked }));
    }
    let mut ends = (Commands::default(), Vec::new());
    for appender in due.iter().filter(|appender| appender.needs_end_check()) {
        StreamEnd::ask(&mut ends.0, &appender.key);
        ends.1.push(appender.partition);
    }
    if !ends.1.is_empty() {
        return Ok(Some(Question { commands: ends.0, asked: Asked::Ends(ends.1) }));
    }
    due.retain(|appender| appender.is_behind_head());
    pages(client, due, fault).await
}

/// The question to append a page of each of these partitions; one page if it carries a fault.
async fn pages(client: &Client, mut behind: Vec<&mut Appender>, fault: Fault) -> Result<Option<Question>> {
    let fault = if fault.is_of_a_page() { fault } else { Fault::None };
    if fault != Fault::None {
        behind.truncate(1);
    }
    let page_len = page_len(behind.len());
    let reading = behind.into_iter().map(async |appender: &mut Appender| {
        let page = appender.next_page(client, page_len).await?;
        anyhow::Ok(page.map(|page| (appender.partition, appender.key.clone(), page)))
    });
    let (mut commands, mut flights) = (Commands::default(), Vec::new());
    for (partition, key, page) in try_join_all(reading).await?.into_iter().flatten() {
        let (started_at, count) = (Instant::now(), commands.count());
        match fault {
            Fault::DieMidPipeline => encode(&mut commands, &key, page.records().take(page.len() / 2), 1),
            Fault::SendTwice => encode(&mut commands, &key, page.records(), 2),
            _ => encode(&mut commands, &key, page.records(), 1),
        }
        flights.push(Flight { partition, page, command_count: commands.count() - count, fault, started_at });
    }
    Ok((!flights.is_empty()).then_some(Question { commands, asked: Asked::Pages(flights) }))
}

/// The records of a page while so many partitions are behind.
pub(crate) fn page_len(behind_count: usize) -> i64 {
    (PIPELINE_LEN_MAX / behind_count.max(1)).min(PAGE_LEN_MAX) as i64
}
