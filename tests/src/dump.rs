//! Logical restores: a world is dumped with `pg_dump`, and becomes another world in another cluster.

use std::path::PathBuf;

use launcher::find_postgres;
use tokio::process::Command;

use crate::template::with_database;
use crate::world::connect;
use crate::{PrivatePostgres, Process, World};

/// What `pg_dump` wrote. The file goes with it.
pub struct Dump(PathBuf);

impl Drop for Dump {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl World {
    /// This world as a dump, for [`restored`](Self::restored).
    pub async fn dump(&self) -> Dump {
        let dump = Dump(crate::scratch_folder());
        let mut command = Command::new(find_postgres().unwrap().folder.join("pg_dump"));
        // Roles belong to the cluster and are not in a dump; roles.sql grants what it must, there as here.
        command.arg("--no-privileges").arg("--dbname").arg(self.database_url());
        command.arg("--file").arg(dump.0.join("dump.sql"));
        Process::spawn("pg_dump", command).succeed().await;
        dump
    }

    /// The world that a dump of this one becomes in another cluster. It has the same stream.
    pub async fn restored(&self, dump: &Dump, cluster: &PrivatePostgres) -> Self {
        let database = format!("restored_{:016x}", rand::random::<u64>());
        let client = connect(&cluster.url().parse().unwrap()).await;
        client.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        let database_url = with_database(&cluster.url(), &database);
        let mut command = Command::new(find_postgres().unwrap().folder.join("psql"));
        command.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", &database_url, "--file"]);
        command.arg(dump.0.join("dump.sql"));
        Process::spawn("psql", command).succeed().await;
        launcher::apply_roles(&connect(&database_url.parse().unwrap()).await).await.unwrap();
        Self::at(&database_url, self.redis_url(), self.stream_name()).await
    }
}
