-- Rocket Rides Log, chapter two: the roles. Each process has one, with exactly the privileges that its SQL needs.
--
-- Apply it after schema.sql, as the tables' owner with CREATEROLE, and as often as you like:
--     psql "$DATABASE_URL" -f ops/roles.sql
-- The roles lose every privilege on these tables that is not granted here. Other tables and other roles stay as they are.
-- It needs PostgreSQL 14 or newer. The doctor asks Postgres for the privileges of the GRANT statements below: write them
-- in the forms that it reads (tools/operator/src/doctor/grants.rs).
--
-- The roles may log in but have no password, so a server that asks for one refuses them. Give each role its own password:
--     psql "$DATABASE_URL" -c '\password rocket_api'
-- Then start each process under its role: DATABASE_URL=postgres://rocket_api:…@host/rocket-rides-log.
--
-- No role may create, alter or drop anything: only the tables' owner may. An identity column needs no grant on its
-- sequence, and Postgres checks foreign keys with the privileges of the owner. LISTEN, NOTIFY and advisory locks are open
-- to every role; Postgres has no privilege for them.

BEGIN ISOLATION LEVEL READ COMMITTED;

-- The lock of schema.sql: sessions that apply either file to one database take turns.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(7306930021); END $$;

SET LOCAL client_min_messages = warning;
-- As in schema.sql: the tables are those of the first schema of the search_path.
DO $$ BEGIN PERFORM set_config('search_path', format('%I, pg_temp', current_schema()), true); END $$;

-- Roles belong to the cluster, but the lock above belongs to the database, so two databases may create a role at once.
-- A role that exists stays as it is, with its password and its limits.
DO $$
DECLARE
    role_name TEXT;
BEGIN
    FOREACH role_name IN ARRAY
        ARRAY['rocket_api', 'rocket_completer', 'rocket_streamer', 'rocket_consumer', 'rocket_receipts', 'rocket_reaper',
              'rocket_container', 'rocket_dashboard', 'rocket_operator']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I LOGIN', role_name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another database's session has created it
            END;
        END IF;
    END LOOP;
END $$;

DO $$ BEGIN
    -- Before PostgreSQL 15, PUBLIC may create tables and functions in the schema public.
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO rocket_api, rocket_completer, rocket_streamer, rocket_consumer,
                                                rocket_receipts, rocket_reaper, rocket_container, rocket_dashboard,
                                                rocket_operator',
                   current_schema());
END $$;
-- Only triggers call these functions, and a trigger needs no EXECUTE.
REVOKE EXECUTE ON FUNCTION refuse_change_of_staged_log_records(), remember_unregistered_consumers(),
    refuse_change_of_wallets(), refuse_delete_of_units(), record_dropped_units() FROM PUBLIC;
-- This function runs under the rights of the owner. A dump without privileges loses what schema.sql has revoked.
REVOKE EXECUTE ON FUNCTION make_history_parts FROM PUBLIC, rocket_api, rocket_completer, rocket_streamer,
    rocket_consumer, rocket_receipts, rocket_reaper, rocket_container, rocket_dashboard, rocket_operator;
REVOKE EXECUTE ON FUNCTION derive_charge_key, installation_id FROM PUBLIC, rocket_api, rocket_completer, rocket_streamer,
    rocket_consumer, rocket_receipts, rocket_reaper, rocket_container, rocket_dashboard, rocket_operator;

-- Begin with no privileges, so that a grant that was removed from this file is removed from the database.
REVOKE ALL ON log_identity, rides, staged_log_records, log_batches, checkpoints, unregistered_consumers, consumer_states,
    dead_letters, history, history_ranges, tracked_operations, users, charge_secret, bookings, audit_records, completions,
    reaped_requests, receipts, wallet_locks, wallet_events, wallets, wallet_states, spools, units, unit_parts,
    unit_reports, destinations, manifests
    FROM PUBLIC, rocket_api, rocket_completer, rocket_streamer, rocket_consumer, rocket_receipts, rocket_reaper,
    rocket_container, rocket_dashboard, rocket_operator;

-- Each process that reads the log first checks that the log belongs to this cluster.
GRANT SELECT ON log_identity TO rocket_streamer, rocket_consumer, rocket_receipts, rocket_reaper, rocket_dashboard;

-- ---------------------------------------------------------------------------------------------------------------------
-- api: accepts rides, and shows them and the totals of the consumers.
-- ---------------------------------------------------------------------------------------------------------------------
-- A ride is written once. Postgres gives it its id and its time.
GRANT SELECT, INSERT (distance_mm) ON rides TO rocket_api;
-- It stages records and reads back only the id. It may not set transaction_id, which decides the batch of a record: only
-- the column's default is right.
GRANT INSERT (partition, object, action, data, traceparent), SELECT (id) ON staged_log_records TO rocket_api;
-- GET /history shows the history. GET /totals shows heads, checkpoints, states and the number of dead letters, but not
-- their contents.
GRANT SELECT (partition, first_offset, record_count) ON log_batches TO rocket_api;
GRANT SELECT ON checkpoints, consumer_states, history, history_ranges TO rocket_api;
GRANT SELECT (name, partition, dropped_at) ON dead_letters TO rocket_api;

-- ---------------------------------------------------------------------------------------------------------------------
-- api and completer: book rides, in phases.
-- ---------------------------------------------------------------------------------------------------------------------
-- The completer writes rides and records where the api did not finish. It reads the ride that the response shows.
GRANT SELECT, INSERT (distance_mm) ON rides TO rocket_completer;
GRANT INSERT (partition, object, action, data, traceparent), SELECT (id) ON staged_log_records TO rocket_completer;
GRANT SELECT ON users TO rocket_api, rocket_completer;
-- The request itself never changes, only its progress.
GRANT SELECT, INSERT (target, key, payload, reference_time, timeout_at, expires_at),
    UPDATE (status, recovery_point, token, error_count, error_message, result, started_at, timeout_at,
            expires_at, finished_at)
    ON tracked_operations TO rocket_api, rocket_completer;
GRANT SELECT, INSERT (ride_id, user_id, operation_id, origin_lat, origin_lon, target_lat, target_lon, amount_cents,
                      currency, stripe_customer_id, charge_key, charge_form),
    UPDATE (stripe_charge_id) ON bookings TO rocket_api, rocket_completer;
-- Both read the secret for their callers, who may not.
GRANT EXECUTE ON FUNCTION derive_charge_key TO rocket_api, rocket_completer;
GRANT EXECUTE ON FUNCTION installation_id TO rocket_api, rocket_completer;
GRANT INSERT (action, data, origin_ip, resource_id, resource_type, user_id)
    ON audit_records TO rocket_api, rocket_completer;
GRANT SELECT, INSERT, UPDATE ON completions TO rocket_completer;

-- ---------------------------------------------------------------------------------------------------------------------
-- Wallets: the api decides, the consumer with the fold `wallets` keeps the read model. Neither changes an event.
-- ---------------------------------------------------------------------------------------------------------------------
-- SELECT ... FOR UPDATE needs the right to update one column. A trigger refuses every UPDATE.
GRANT SELECT, INSERT, UPDATE (wallet_id) ON wallet_locks TO rocket_api;
-- Postgres gives an event its time.
GRANT SELECT, INSERT (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor, counterparty,
                      idempotency_key, origin_ip, traceparent)
    ON wallet_events TO rocket_api;
GRANT SELECT ON wallet_locks TO rocket_consumer, rocket_dashboard;
-- Without the address of the client, its key and its trace.
GRANT SELECT (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor, counterparty, created_at)
    ON wallet_events TO rocket_consumer, rocket_dashboard;
-- A view reads its tables with the rights of the owner.
GRANT SELECT ON wallets, wallet_states TO rocket_api, rocket_consumer, rocket_dashboard;

-- ---------------------------------------------------------------------------------------------------------------------
-- streamer: decides the order of the records, and reads them. It changes and deletes nothing.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON staged_log_records, log_batches TO rocket_streamer;
GRANT INSERT (partition, first_offset, record_count, snapshot, fresh_first_id, fresh_last_id, token, skip_ids, last_id)
    ON log_batches TO rocket_streamer;
-- Records that every consumer has passed need not be published again.
GRANT SELECT (partition, last_offset, is_baseline) ON checkpoints TO rocket_streamer;

-- ---------------------------------------------------------------------------------------------------------------------
-- consumer: reads the log, and writes its state together with its checkpoint. It may not read rides. All consumers share
-- the role, so each can write the rows of the others. A fold with a table of its own needs a grant on it: write that
-- grant where the table is defined.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON staged_log_records, log_batches, history, history_ranges TO rocket_consumer;
-- The fold `history` adds records, and never changes one. Only this function makes the tables for them.
GRANT INSERT ON history TO rocket_consumer;
GRANT EXECUTE ON FUNCTION make_history_parts TO rocket_consumer;
-- --unregister deletes the checkpoint with the state; the foreign keys then delete the dead letters. --register forgets that
-- a name was unregistered.
GRANT SELECT, INSERT, DELETE ON checkpoints TO rocket_consumer;
GRANT SELECT, DELETE ON unregistered_consumers TO rocket_consumer;
GRANT UPDATE (last_offset, told_token, duplicate_count, healed_count, rejected_count, crash_count, updated_at,
              fold, fold_version, state)
    ON checkpoints TO rocket_consumer;
-- A new consumer starts with a copy of the baseline's or another consumer's state, and of its dead letters: the copy
-- lacks the same records.
GRANT SELECT, INSERT ON dead_letters TO rocket_consumer;

-- ---------------------------------------------------------------------------------------------------------------------
-- receipts: a consumer that keeps its state in a table of its own, and delivers the receipts.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON staged_log_records, log_batches, history, history_ranges TO rocket_receipts;
GRANT SELECT, INSERT, DELETE ON checkpoints TO rocket_receipts;
GRANT SELECT, DELETE ON unregistered_consumers TO rocket_receipts;
GRANT UPDATE (last_offset, duplicate_count, healed_count, rejected_count, crash_count, updated_at,
              fold, fold_version, state)
    ON checkpoints TO rocket_receipts;
GRANT SELECT, INSERT ON dead_letters TO rocket_receipts;
GRANT SELECT, INSERT, UPDATE (delivered_at, next_attempt_at, attempt_count, message_id, last_error)
    ON receipts TO rocket_receipts;
-- The address of the receipt.
GRANT SELECT (id, email) ON users TO rocket_receipts;

-- ---------------------------------------------------------------------------------------------------------------------
-- reaper: marks batches, then deletes their records, and then the batches. Before that it folds the records into the
-- baseline's state, as a consumer does. It unregisters no consumer.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT, DELETE ON staged_log_records, log_batches TO rocket_reaper;
-- A new baseline folds the reaped records from the history.
GRANT SELECT ON history, history_ranges TO rocket_reaper;
-- The order of the records never changes: this is the only column of a batch that does.
GRANT UPDATE (reaped_at) ON log_batches TO rocket_reaper;
GRANT SELECT, INSERT ON checkpoints TO rocket_reaper;
GRANT UPDATE (last_offset, duplicate_count, healed_count, rejected_count, crash_count, updated_at,
              fold, fold_version, state)
    ON checkpoints TO rocket_reaper;
-- A log that was reaped by a version without a baseline gets one: a copy of a consumer's state and dead letters.
GRANT SELECT, INSERT ON dead_letters TO rocket_reaper;
-- It deletes old requests, and lists the unfinished ones among them.
GRANT SELECT, DELETE, UPDATE (status) ON tracked_operations TO rocket_reaper;
GRANT SELECT (ride_id, operation_id) ON bookings TO rocket_reaper;
GRANT SELECT, INSERT ON reaped_requests TO rocket_reaper;

-- ---------------------------------------------------------------------------------------------------------------------
-- container: accepts units and settles them. A request never changes, only its progress. It reads no record and no ride. A
-- destination `rows` with a table of your own needs SELECT and INSERT on that table, too.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT, INSERT (spool_id, place), UPDATE (place, folders) ON spools TO rocket_container;
-- It deletes units that were settled long ago; a trigger keeps all others. Their parts and reports go with them.
GRANT SELECT, DELETE,
    INSERT (unit_key, resource, subject, state, take_count, due_at, lease, spool_id, spool_name, idempotency_key,
            content_hash, traceparent),
    UPDATE (state, attempt, take_count, due_at, lease, status, error, settled_at, file_gone_at)
    ON units TO rocket_container;
GRANT SELECT, INSERT (uow, destination), UPDATE (state, attempts, status, error) ON unit_parts TO rocket_container;
GRANT SELECT, INSERT (uow, attempt, destination, state, status, error) ON unit_reports TO rocket_container;
GRANT SELECT, INSERT (name, fingerprint), UPDATE (fingerprint, failure_count, open_until, canary)
    ON destinations TO rocket_container;
GRANT SELECT, INSERT (uow, subject, data) ON manifests TO rocket_container;
GRANT INSERT (partition, object, action, data, traceparent), SELECT (id) ON staged_log_records TO rocket_container;

-- ---------------------------------------------------------------------------------------------------------------------
-- dashboard: only reads. It sees when records were staged, but not their contents.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON rides, log_batches, checkpoints, consumer_states TO rocket_dashboard;
GRANT SELECT (partition, id, transaction_id, staged_at) ON staged_log_records TO rocket_dashboard;
GRANT SELECT (name, partition, dropped_at) ON dead_letters TO rocket_dashboard;

-- ---------------------------------------------------------------------------------------------------------------------
-- operator: a person with audit, doctor and dead-letters. Reads everything, settles dead letters, and may repair the
-- checkpoint and the state of a consumer. Writes neither rides nor records nor batches: only the tables' owner may adopt.
-- ---------------------------------------------------------------------------------------------------------------------
DO $$ BEGIN
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO rocket_operator', current_schema());
END $$;
REVOKE SELECT ON charge_secret FROM rocket_operator;
GRANT SELECT (system_identifier) ON charge_secret TO rocket_operator;
-- An audit of payments reads which charges are this installation's.
GRANT EXECUTE ON FUNCTION installation_id TO rocket_operator;
GRANT INSERT, DELETE, UPDATE (reason, dropped_at) ON dead_letters TO rocket_operator;
GRANT UPDATE ON checkpoints TO rocket_operator;
-- A replayed dead letter of receipts becomes a receipt.
-- It makes a receipt due again that was put aside.
GRANT SELECT, INSERT, UPDATE (next_attempt_at, attempt_count) ON receipts TO rocket_operator;
-- `container units`: it retries or drops a unit whose last attempt has failed, and states which part is not undone.
GRANT UPDATE (state, attempt, take_count, due_at, lease, settled_at) ON units TO rocket_operator;
GRANT UPDATE (state, error) ON unit_parts TO rocket_operator;
-- The doctor looks for transactions that have been open for long. Only a superuser, or a role with ADMIN on this one, may
-- give this membership. Without it the doctor says that it cannot see.
DO $$ BEGIN
    IF NOT pg_has_role('rocket_operator', 'pg_read_all_stats', 'MEMBER') THEN
        GRANT pg_read_all_stats TO rocket_operator;
    END IF;
EXCEPTION WHEN insufficient_privilege OR unique_violation THEN
    NULL;
END $$;

COMMIT;
