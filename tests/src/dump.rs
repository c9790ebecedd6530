//! Logical restores: `pg_dump` dumps a world, and `psql` restores it as another world in another cluster.

use std::path::PathBuf;

use launcher::find_postgres;
use tokio::process::Command;

use crate::connection::connect;
use crate::template::with_database;
use crate::{PrivatePostgres, Process, World};

/// The output of `pg_dump`. The file is removed when this is dropped.
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
        // Roles belong to the cluster and are not in a dump. The restored database gets its grants from roles.sql.
        command.arg("--no-privileges").arg("--dbname").arg(self.database_url());
        command.arg("--file").arg(dump.0.join("dump.sql"));
        Process::spawn("pg_dump", command).succeed().await;
        dump
    }

    /// Restores a dump of this world into another cluster. The new world has the same stream.
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
