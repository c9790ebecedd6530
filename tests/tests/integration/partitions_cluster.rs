//! A small Redis Cluster for the operators' tests: three masters without replicas, which only one test uses.

use tests::{PrivateRedis, free_port, wait_until};

/// The hash slots of a Redis Cluster.
const SLOT_COUNT: usize = 16_384;

/// Three masters.
pub struct TestCluster {
    nodes: Vec<(PrivateRedis, u16)>,
}

impl TestCluster {
    /// Starts the nodes, and waits until they serve all slots.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let (port, bus) = (free_port(), free_port());
            let (port_text, bus_text) = (port.to_string(), bus.to_string());
            let settings = [
                "--port",
                &port_text,
                "--cluster-port",
                &bus_text,
                "--bind",
                "127.0.0.1",
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "2000",
                "--cluster-require-full-coverage",
                "no",
            ];
            nodes.push((PrivateRedis::start(&settings).await, port, bus));
        }
        for (index, (node, ..)) in nodes.iter().enumerate() {
            let edge = |index: usize| index * SLOT_COUNT / 3;
            let last = (edge(index + 1) - 1).to_string();
            let _: () = ask(node, &["CLUSTER", "ADDSLOTSRANGE", &edge(index).to_string(), &last]).await;
            let _: () = ask(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]).await;
        }
        for (_, port, bus) in &nodes[1..] {
            let _: () = ask(&nodes[0].0, &["CLUSTER", "MEET", "127.0.0.1", &port.to_string(), &bus.to_string()]).await;
        }
        let cluster = Self { nodes: nodes.into_iter().map(|(node, port, _)| (node, port)).collect() };
        cluster.wait_until_whole().await;
        cluster
    }

    /// Waits until each node says that all slots are served.
    pub async fn wait_until_whole(&self) {
        for (node, _) in &self.nodes {
            wait_until("the cluster is whole", async || {
                let info: String = ask(node, &["CLUSTER", "INFO"]).await;
                info.contains("cluster_state:ok") && info.contains(&format!("cluster_slots_ok:{SLOT_COUNT}"))
            })
            .await;
        }
    }

    /// `REDIS_URL`, with all nodes.
    pub fn url(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(|(_, port)| format!("redis://127.0.0.1:{port}")).collect();
        urls.join(",")
    }

    /// Whether this is the address of the first node.
    pub fn is_first(&self, address: &str) -> bool {
        address.ends_with(&format!(":{}", self.nodes[0].1))
    }

    /// Sets a setting of every node.
    pub async fn configure(&self, setting: &str, value: &str) {
        for (node, _) in &self.nodes {
            let _: () = ask(node, &["CONFIG", "SET", setting, value]).await;
        }
    }

    /// SIGKILL of the first node.
    pub async fn kill_first(&mut self) {
        self.nodes[0].0.kill().await;
    }

    /// Starts it again, and waits until the cluster is whole.
    pub async fn start_first_again(&mut self) {
        self.nodes[0].0.start_again().await;
        self.wait_until_whole().await;
    }
}

async fn ask<T: redis::FromRedisValue>(node: &PrivateRedis, command: &[&str]) -> T {
    let mut redis = stream::redis::connect(&stream::redis::client(&node.url()).unwrap()).await.unwrap();
    redis::cmd(command[0]).arg(&command[1..]).query_async(&mut redis).await.unwrap()
}
