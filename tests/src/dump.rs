//! Logical restores: a world is dumped with `pg_dump`, and becomes another world in another cluster.

use std::path::{Path, PathBuf};

use launcher::find_postgres;
use tokio::process::Command;

use crate::template::with_database;
use crate::world::connect;
use crate::{PrivatePostgres, Process, World};

impl World {
    /// This world as a dump: a file for [`restored`](Self::restored).
    pub async fn dump(&self) -> PathBuf {
        let file = crate::scratch_folder().join("dump.sql");
        let mut command = Command::new(find_postgres().unwrap().folder.join("pg_dump"));
        command.arg("--dbname").arg(self.database_url()).arg("--file").arg(&file);
        Process::spawn("pg_dump", command).succeed().await;
        file
    }

    /// The world that a dump of this one becomes in another cluster. It has the same stream.
    pub async fn restored(&self, dump: &Path, cluster: &PrivatePostgres) -> Self {
        let database = format!("restored_{:016x}", rand::random::<u64>());
        let client = connect(&cluster.url().parse().unwrap()).await;
        client.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        let database_url = with_database(&cluster.url(), &database);
        let mut command = Command::new(find_postgres().unwrap().folder.join("psql"));
        command.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", &database_url, "--file"]);
        command.arg(dump);
        Process::spawn("psql", command).succeed().await;
        Self::at(&database_url, self.redis_url(), self.stream_name()).await
    }
}
