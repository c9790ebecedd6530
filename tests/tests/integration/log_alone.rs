//! The log's own schema: it serves alone, it fits the schema of the whole pipeline, and both upgrade older tables.

use deadpool_postgres::ClientWrapper as Client;
use pglog::{NewRecord, Reader};
use tests::{PrivatePostgres, PrivateRedis, Process, World};

/// Everything that the schema defines, one line each.
pub async fn catalog(client: &Client) -> Vec<String> {
    const QUERY: &str = "
        SELECT concat_ws(' ', 'relation', relname, relkind, reloptions) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat_ws(' ', 'column', table_name, ordinal_position, column_name, domain_name, data_type,
                         character_maximum_length, is_nullable, column_default, identity_generation)
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL
        SELECT concat_ws(' ', 'constraint', conrelid::regclass, contypid::regtype, conname, pg_get_constraintdef(oid))
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', 'index', indexdef) FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL
        SELECT concat_ws(' ', 'function', pg_get_functiondef(oid)) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
        ORDER BY 1";
    client.query(QUERY, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// A new database in which these files were applied, one after the other.
async fn database_with(postgres: &PrivatePostgres, name: &str, files: &[&str]) -> Client {
    let owner = postgres.connect("postgres").await;
    owner.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let client = postgres.connect(name).await;
    for file in files {
        pglog::apply_schema(&client, file, None).await.unwrap();
    }
    client
}

#[tokio::test]
async fn the_log_alone_takes_a_record_and_returns_it() {
    let postgres = PrivatePostgres::start_with(&["fsync=off"]).await;
    let client = postgres.connect("postgres").await;
    for _ in 0..2 {
        pglog::apply_log_schema(&client, None).await.unwrap();
    }
    pglog::prepare_session(&client).await.unwrap();
    let tables = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
                  WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    let tables: String = client.query_one(tables, &[]).await.unwrap().get(0);
    assert_eq!(tables, "checkpoints dead_letters log_batches log_identity staged_log_records unregistered_consumers");
    let traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let record =
        NewRecord { key: "", object: "wallet", action: "credit", data: r#"{"id":7, "amount":5}"#, traceparent };
    pglog::stage(&client, record).await.unwrap();
    let batch = pglog::assign(&client, pglog::Partition::FIRST, 1).await.unwrap().expect("a record is staged");
    let page = Reader::at_start_of(batch).next_page(&client, 10).await.unwrap();
    let read: Vec<_> = page.records().map(|r| (r.offset, r.object, r.action, r.data, r.traceparent)).collect();
    assert_eq!(read, [(1, record.object, record.action, record.data, traceparent)]);
    let row = client.query_one("SELECT record_offset, data::text FROM log_records_after(0)", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (1_i64, record.data));
}

#[tokio::test]
async fn the_logs_schema_before_or_after_the_whole_schema_changes_nothing() {
    let postgres = PrivatePostgres::start_with(&["fsync=off"]).await;
    let wanted = catalog(&database_with(&postgres, "whole", &[launcher::SCHEMA]).await).await;
    assert!(wanted.len() > 200, "{wanted:?}");
    for (name, files) in
        [("before", [pglog::LOG_SCHEMA, launcher::SCHEMA]), ("after", [launcher::SCHEMA, pglog::LOG_SCHEMA])]
    {
        assert_eq!(catalog(&database_with(&postgres, name, &files).await).await, wanted, "{name}");
    }
}

#[tokio::test]
async fn both_files_upgrade_the_tables_of_the_first_version_and_write_the_condition_of_a_trace_once() {
    // As they were before there was a baseline, a cluster's identity, and a trace.
    const FIRST_VERSION: &str = "
        DROP VIEW IF EXISTS wallets, wallet_states;
        DROP TABLE IF EXISTS wallet_events, wallet_locks, unit_reports, unit_parts, units, spools;
        DROP TABLE log_identity;
        ALTER TABLE staged_log_records DROP COLUMN traceparent;
        DROP DOMAIN w3c_traceparent;
        ALTER TABLE checkpoints DROP COLUMN is_baseline, DROP COLUMN generation;
        ALTER TABLE dead_letters DROP COLUMN dropped_at;
        INSERT INTO staged_log_records (object, action, data) VALUES ('wallet', 'credit', '{}')";
    let postgres = PrivatePostgres::start_with(&["fsync=off"]).await;
    for (name, file) in [("log", pglog::LOG_SCHEMA), ("whole", launcher::SCHEMA)] {
        let client = database_with(&postgres, name, &[file, FIRST_VERSION]).await;
        let error = pglog::prepare_session(&client).await.unwrap_err();
        assert!(matches!(error, pglog::Error::SchemaVersion { found: 1, .. }), "{error}");
        let file_node = "SELECT pg_relation_filenode('staged_log_records')::bigint";
        let before: i64 = client.query_one(file_node, &[]).await.unwrap().get(0);
        pglog::apply_schema(&client, file, None).await.unwrap();
        let after: i64 = client.query_one(file_node, &[]).await.unwrap().get(0);
        assert_eq!(before, after, "{name}: the table was not rewritten");
        pglog::prepare_session(&client).await.unwrap();
        let columns = "SELECT string_agg(column_name, ' ' ORDER BY column_name) FROM information_schema.columns
                       WHERE table_name IN ('checkpoints', 'dead_letters', 'staged_log_records')
                         AND column_name IN ('is_baseline', 'generation', 'dropped_at', 'traceparent')";
        let columns: String = client.query_one(columns, &[]).await.unwrap().get(0);
        assert_eq!(columns, "dropped_at generation is_baseline traceparent", "{name}");
        let conditions = "SELECT replace(pg_get_constraintdef(d.oid), 'VALUE', 'traceparent') || ' NOT VALID',
                                 pg_get_constraintdef(t.oid)
                          FROM pg_constraint AS d JOIN pg_constraint AS t USING (conname)
                          WHERE d.contypid = 'w3c_traceparent'::regtype
                            AND t.conrelid = 'staged_log_records'::regclass";
        let row = client.query_one(conditions, &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), row.get::<_, &str>(1), "{name}");
    }
}

#[tokio::test]
async fn a_schema_that_lacks_nothing_waits_for_no_open_transaction() {
    let world = World::new().await;
    let mut client = world.connect().await;
    let tx = client.transaction().await.unwrap();
    let tables = "SELECT string_agg(relname, ', ') FROM pg_class
                  WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    let tables: String = tx.query_one(tables, &[]).await.unwrap().get(0);
    // The lock that INSERT, UPDATE and DELETE take.
    tx.batch_execute(&format!("LOCK TABLE {tables} IN ROW EXCLUSIVE MODE")).await.unwrap();
    for file in [launcher::SCHEMA, pglog::LOG_SCHEMA] {
        pglog::apply_schema(world.client(), file, None).await.expect("no lock is waited for");
    }
    tx.rollback().await.unwrap();
}

/// A database that stores any bytes would let one row stop every reader.
#[tokio::test]
async fn a_database_in_another_encoding_than_utf8_is_refused_by_name() {
    let postgres = PrivatePostgres::start_with(&["fsync=off"]).await;
    let redis = PrivateRedis::start(&[]).await;
    let owner = postgres.connect("postgres").await;
    owner.batch_execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0").await.unwrap();
    let client = postgres.connect("bytes").await;
    for file in [launcher::SCHEMA, pglog::LOG_SCHEMA] {
        let error = pglog::apply_schema(&client, file, None).await.unwrap_err().as_db_error().unwrap().clone();
        assert_eq!(error.message(), "the database has the encoding SQL_ASCII, and the log needs UTF8");
        assert!(error.hint().unwrap().contains("ENCODING 'UTF8' TEMPLATE template0"), "{error:?}");
        client.batch_execute("ROLLBACK").await.unwrap();
    }
    // A log that was restored into it.
    let restored = launcher::SCHEMA.replacen("getdatabaseencoding() <> 'UTF8'", "false", 1);
    let spoil =
        "INSERT INTO staged_log_records (object, action, data) VALUES (convert_from('\\xff', 'SQL_ASCII'), 'b', '{}')";
    pglog::apply_schema(&client, &format!("{restored}; {spoil}"), None).await.unwrap();
    let url = postgres.url().replacen("/postgres", "/bytes", 1);
    let world = World::at(&url, &redis.url(), "bytes").await;
    let flags = [&["--database-url", &url][..]].concat();
    for (name, args) in [("streamer", vec![]), ("consumer", vec!["c0"]), ("reaper", vec![]), ("doctor", vec![])] {
        let output = Process::start(&world, name, &[args, flags.clone()].concat()).fail(1).await;
        assert!(
            output.contains("has the encoding SQL_ASCII, and the log needs UTF8: move it into"),
            "{name}: {output}"
        );
    }
}
