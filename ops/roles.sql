-- Rocket Rides Log, chapter two: who may do what. One role for each process, with exactly what its SQL needs.
--
-- Apply it after schema.sql, as the tables' owner with CREATEROLE, and as often as you like:
--     psql "$DATABASE_URL" -f ops/roles.sql
-- What is not granted here on these tables, these roles lose; other tables and other roles are left alone. PostgreSQL 14
-- or newer.
--
-- The roles may log in and have no password, so that a server which asks for one lets nobody in yet. Give each its own:
--     psql "$DATABASE_URL" -c '\password rocket_api'
-- Then start each process under its role: DATABASE_URL=postgres://rocket_api:…@host/rocket-rides-log.
--
-- Nobody here may create, alter or drop anything: the schema is its owner's. Keys of identity columns need no grant on
-- their sequences, and foreign keys are followed with the owner's rights. LISTEN, NOTIFY and advisory locks need no
-- grant in Postgres, and none can be asked for.

BEGIN;

-- As in schema.sql: two people who apply this to one database take turns.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(7306930021); END $$;

SET LOCAL client_min_messages = warning;

-- Roles belong to the cluster, and the lock above only to the database: in two databases at once both may try. A role
-- that is there is not touched: its password and its limits are its owner's affair.
DO $$
DECLARE
    role_name TEXT;
BEGIN
    FOREACH role_name IN ARRAY
        ARRAY['rocket_api', 'rocket_completer', 'rocket_streamer', 'rocket_consumer', 'rocket_receipts', 'rocket_reaper',
              'rocket_dashboard', 'rocket_operator']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I LOGIN', role_name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- somebody else was faster, and it is the same role
            END;
        END IF;
    END LOOP;
END $$;

-- Before PostgreSQL 15 everybody may create tables and functions here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- It serves the trigger, which needs no such right.
REVOKE EXECUTE ON FUNCTION refuse_change_of_staged_log_records() FROM PUBLIC;

-- Start from nothing, so that a grant which is no longer below is gone.
REVOKE ALL ON log_identity, rides, staged_log_records, log_batches, checkpoints, consumer_states, dead_letters,
    tracked_operations, users, bookings, audit_records, completions, reaped_requests, receipts
    FROM PUBLIC, rocket_api, rocket_completer, rocket_streamer, rocket_consumer, rocket_receipts, rocket_reaper,
    rocket_dashboard, rocket_operator;

GRANT USAGE ON SCHEMA public TO rocket_api, rocket_completer, rocket_streamer, rocket_consumer, rocket_receipts,
    rocket_reaper, rocket_dashboard, rocket_operator;
-- Whoever reads the order asks first whether it is this cluster's.
GRANT SELECT ON log_identity TO rocket_streamer, rocket_consumer, rocket_receipts, rocket_reaper, rocket_dashboard;

-- ---------------------------------------------------------------------------------------------------------------------
-- api: takes rides and shows them, and shows what consumers made of them.
-- ---------------------------------------------------------------------------------------------------------------------
-- A ride is written once. Its id and its time are Postgres's.
GRANT SELECT, INSERT (distance_mm) ON rides TO rocket_api;
-- It stages, and never reads what is staged, but for the id that it is told. transaction_id decides a record's batch: nobody but its default sets it.
GRANT INSERT (object, action, data, traceparent), SELECT (id) ON staged_log_records TO rocket_api;
-- GET /totals: heads, checkpoints, states, and how many dead letters there are, but not what is in them.
GRANT SELECT (partition, first_offset, record_count) ON log_batches TO rocket_api;
GRANT SELECT ON checkpoints, consumer_states TO rocket_api;
GRANT SELECT (name, partition, dropped_at) ON dead_letters TO rocket_api;

-- ---------------------------------------------------------------------------------------------------------------------
-- api and completer: book rides, phase by phase.
-- ---------------------------------------------------------------------------------------------------------------------
-- The completer makes rides and records where the api could not finish; of a ride it reads what the answer shows.
GRANT SELECT, INSERT (distance_mm) ON rides TO rocket_completer;
GRANT INSERT (object, action, data, traceparent), SELECT (id) ON staged_log_records TO rocket_completer;
GRANT SELECT ON users TO rocket_api, rocket_completer;
-- What was asked for never changes, only how far it has come.
GRANT SELECT, INSERT (target, key, payload, reference_time, timeout_at, expires_at),
    UPDATE (status, recovery_point, token, error_count, error_message, result, started_at, timeout_at,
            expires_at, finished_at)
    ON tracked_operations TO rocket_api, rocket_completer;
-- charge_key is Postgres's own random number.
GRANT SELECT, INSERT (ride_id, user_id, operation_id, origin_lat, origin_lon, target_lat, target_lon, amount_cents,
                      currency, stripe_customer_id),
    UPDATE (stripe_charge_id) ON bookings TO rocket_api, rocket_completer;
GRANT INSERT (action, data, origin_ip, resource_id, resource_type, user_id)
    ON audit_records TO rocket_api, rocket_completer;
GRANT SELECT, INSERT, UPDATE ON completions TO rocket_completer;

-- ---------------------------------------------------------------------------------------------------------------------
-- streamer: fixes the order, and reads it. It changes and deletes nothing.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON staged_log_records, log_batches TO rocket_streamer;
GRANT INSERT (partition, first_offset, record_count, snapshot, fresh_first_id, fresh_last_id, token)
    ON log_batches TO rocket_streamer;
-- What everybody has passed need not be published again.
GRANT SELECT (partition, last_offset, is_baseline) ON checkpoints TO rocket_streamer;

-- ---------------------------------------------------------------------------------------------------------------------
-- consumer: reads the log, writes its state with its checkpoint. It sees no ride. All consumers share the role, so one
-- can write another's rows. A fold with a table of its own needs a grant on it, beside that table's definition.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON staged_log_records, log_batches TO rocket_consumer;
-- DELETE is --unregister; state and dead letters go with the row.
GRANT SELECT, INSERT, DELETE ON checkpoints TO rocket_consumer;
GRANT UPDATE (last_offset, duplicate_count, healed_count, rejected_count, crash_count, updated_at)
    ON checkpoints TO rocket_consumer;
GRANT SELECT, INSERT, UPDATE ON consumer_states TO rocket_consumer;
-- A new consumer takes over the baseline's, or another's: its state lacks the same records.
GRANT SELECT, INSERT ON dead_letters TO rocket_consumer;

-- ---------------------------------------------------------------------------------------------------------------------
-- receipts: a consumer whose state is a table of its own.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON staged_log_records, log_batches TO rocket_receipts;
GRANT SELECT, INSERT, DELETE ON checkpoints TO rocket_receipts;
GRANT UPDATE (last_offset, duplicate_count, healed_count, rejected_count, crash_count, updated_at)
    ON checkpoints TO rocket_receipts;
GRANT SELECT, INSERT ON dead_letters TO rocket_receipts;
GRANT SELECT, INSERT, UPDATE (delivered_at, next_attempt_at) ON receipts TO rocket_receipts;
-- To whom it goes.
GRANT SELECT (id, email) ON users TO rocket_receipts;

-- ---------------------------------------------------------------------------------------------------------------------
-- reaper: marks batches as given up, then deletes them and their records. Before it deletes it folds them into a state
-- of its own, as a consumer does; it unregisters nobody.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT, DELETE ON staged_log_records, log_batches TO rocket_reaper;
-- An order once fixed stays fixed: of a batch nothing but this can change.
GRANT UPDATE (reaped_at) ON log_batches TO rocket_reaper;
GRANT SELECT, INSERT ON checkpoints TO rocket_reaper;
GRANT UPDATE (last_offset, duplicate_count, healed_count, rejected_count, crash_count, updated_at)
    ON checkpoints TO rocket_reaper;
GRANT SELECT, INSERT, UPDATE ON consumer_states TO rocket_reaper;
-- A log that was reaped before there were baselines gets one from a consumer, with what that one lacks.
GRANT SELECT, INSERT ON dead_letters TO rocket_reaper;
-- It forgets old requests, and lists those that were not finished.
GRANT SELECT, DELETE, UPDATE (status) ON tracked_operations TO rocket_reaper;
GRANT SELECT (ride_id, operation_id) ON bookings TO rocket_reaper;
GRANT SELECT, INSERT ON reaped_requests TO rocket_reaper;

-- ---------------------------------------------------------------------------------------------------------------------
-- dashboard: looks. It sees when records were staged, and not what is in them.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON rides, log_batches, checkpoints, consumer_states TO rocket_dashboard;
GRANT SELECT (partition, id, transaction_id, staged_at) ON staged_log_records TO rocket_dashboard;
GRANT SELECT (name, partition, dropped_at) ON dead_letters TO rocket_dashboard;

-- ---------------------------------------------------------------------------------------------------------------------
-- operator: a person, with audit, doctor and dead-letters. Reads everything, settles dead letters, mends a consumer's
-- position and state. Writes no ride and no record, and changes no order: adopt is for the tables' owner.
-- ---------------------------------------------------------------------------------------------------------------------
GRANT SELECT ON ALL TABLES IN SCHEMA public TO rocket_operator;
GRANT INSERT, DELETE, UPDATE (reason, dropped_at) ON dead_letters TO rocket_operator;
GRANT UPDATE ON checkpoints, consumer_states TO rocket_operator;

COMMIT;
