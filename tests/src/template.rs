//! The templates of the databases of all tests. Each has the tables, the roles and the two users of seed.sql, and no other rows.

use deadpool_postgres::ClientWrapper as Client;

use pglog::PartitionCount;

use crate::connection::connect;

/// Makes the template of logs with so many partitions, unless it exists. Other tests wait at an advisory lock meanwhile. Returns its
/// name.
pub(crate) async fn create_template(
    client: &Client,
    maintenance_url: &str,
    partitions: Option<PartitionCount>,
) -> String {
    let name = partitions.map_or_else(|| "rocket_rides_template".to_owned(), |n| format!("rocket_rides_template_{n}"));
    client.execute("SELECT pg_advisory_lock(7306930023)", &[]).await.unwrap();
    let query = "SELECT datistemplate FROM pg_database WHERE datname = $1";
    if client.query_opt(query, &[&name]).await.unwrap().is_none() {
        client.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let template = connect(&with_database(maintenance_url, &name).parse().unwrap()).await;
        launcher::apply_schema_with(&template, partitions).await.unwrap();
        launcher::apply_roles(&template).await.unwrap();
        template.batch_execute(launcher::SEED).await.unwrap();
        drop(template);
        // The server notices a moment later that the connection is closed. A template with a connection cannot be cloned.
        crate::wait_until("the template is left alone", async || {
            let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
            client.query_one(others, &[&name]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }
    client.execute("SELECT pg_advisory_unlock(7306930023)", &[]).await.unwrap();
    name
}

/// The URL of another database on the same server.
pub(crate) fn with_database(url: &str, database: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("a URL ends with /database");
    format!("{server}/{database}")
}
