//! At which servers the streams of a log are, for work that is done server by server. Users: reaper, operator.

use anyhow::Error;
use futures_util::future::join_all;
use pglog::Partition;
use redis::Client;

use crate::codec::Stream;
use crate::servers::Servers;

/// The servers of some streams.
#[derive(Default)]
pub struct Placement {
    /// Each server once, with the partitions whose streams it has.
    pub nodes: Vec<(Client, Vec<Partition>)>,
    /// The partitions whose server cannot be found now.
    pub lost: Vec<(Partition, Error)>,
}

impl Placement {
    /// Finds the servers of these partitions' streams. All are looked for at once, so one that does not answer holds up no other.
    pub async fn find(servers: &Servers, stream: &Stream, partitions: &[Partition]) -> Self {
        let searches = partitions.iter().map(async |partition| servers.node_of(&stream.key(*partition)).await);
        let mut placement = Self::default();
        for (partition, found) in partitions.iter().zip(join_all(searches).await) {
            match found {
                Ok(node) => placement.add(node, *partition),
                Err(error) => placement.lost.push((*partition, error)),
            }
        }
        placement
    }

    fn add(&mut self, node: Client, partition: Partition) {
        let address = |node: &Client| node.get_connection_info().addr().to_string();
        match self.nodes.iter_mut().find(|(known, _)| address(known) == address(&node)) {
            Some((_, partitions)) => partitions.push(partition),
            None => self.nodes.push((node, vec![partition])),
        }
    }
}
