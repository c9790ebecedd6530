-- Rocket Rides Log, chapter one: the tables, in the order in which data flows.
--
--     rides ─▶ staged_log_records ─▶ log_batches ─▶ checkpoints (consumer_states), dead_letters, history, receipts
--     users, charge_secret, tracked_operations ─▶ bookings, audit_records, completions, reaped_requests
--     wallet_locks ─▶ wallet_events (wallets, wallet_states)
--     spools ─▶ units, unit_parts, unit_reports (destinations) ─▶ manifests
--
-- The api writes a ride and its log record in one transaction. The streamer decides the order of the records, once, here
-- in Postgres. Each consumer stores the state that it derives from the log together with the offset that it has reached.
-- Redis holds a copy of the log that may be lost at any time; these tables are the truth.
--
-- This file is complete. Apply it as often as you like: `psql "$DATABASE_URL" -f schema.sql`. It creates missing tables,
-- then upgrades those of older versions. It loses no row. It needs PostgreSQL 14 or newer.
--
-- The lines from ">>> log.sql" to "<<< log.sql" define the log and do not mention rides. Joined, the same lines are
-- libs/pglog/log.sql, for a service that needs the log alone. Change both files together: a test in pglog compares them.

-- >>> log.sql
-- psql stops at the first error, and takes the number of partitions from its command line. Other clients leave these lines out.
-- >>> psql
\set ON_ERROR_STOP on
\if :{?partitions}
    SET rocket_rides.partitions = :'partitions';
\endif
-- <<< psql
BEGIN ISOLATION LEVEL READ COMMITTED;

-- Clients read and write UTF-8. Without an encoding (SQL_ASCII) Postgres stores any bytes, and one row that is no UTF-8 would
-- stop every reader. Another encoding refuses texts that the log must store, such as the reasons of dead letters.
DO $$ BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'the database has the encoding %, and the log needs UTF8', getdatabaseencoding()
        USING HINT = 'Use a database that was made by CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0. '
                     'If this one holds a log, move it: see "A database in another encoding" in docs/RESTORE.md.';
    END IF;
END $$;

-- Two sessions that apply the schema at once take turns: otherwise both might try to create the same table.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(7306930021); END $$;
SET LOCAL client_min_messages = warning;
-- If a lock cannot be had within this time, the file fails and changes nothing: apply it again.
SET LOCAL lock_timeout = '5s';
-- All tables are made in the first schema of the search_path, and every name below means this schema alone. Otherwise an index
-- or a view of another log, in a later schema of the path, would be taken for the one of this log.
DO $$ BEGIN PERFORM set_config('search_path', format('%I, pg_temp', current_schema()), true); END $$;

-- Tells the locks and hints of this log from those of a log in another schema of the same database. For the schema public it
-- is 0, as it was for every log before version 6: so processes of an older version meet those of this one at the same locks.
-- As all functions that use names, it keeps the search_path of this file: its caller may have another.
CREATE OR REPLACE FUNCTION log_key() RETURNS INT LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT CASE current_schema() WHEN 'public' THEN 0 ELSE hashtext(current_schema()::text) END
$$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The partitions. Each has its own offsets and its own stream. A key's records are all in one partition, in order (P1).
-- Their number is fixed when the log is made: `psql "$DATABASE_URL" -v partitions=8 -f …`. With another number keys would move to
-- other partitions, and then no order would be left between their old records and their new ones. 1 is the default, 64 the most.
-- ---------------------------------------------------------------------------------------------------------------------
-- The partition of a key: the first 32 bits of its MD5, modulo the number of partitions.
CREATE OR REPLACE FUNCTION partition_of(key TEXT, partition_count INT) RETURNS INT
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE partition_count WHEN 1 THEN 0
                ELSE (('x' || left(md5(key), 8))::bit(32)::bigint % partition_count)::int END
$$;

DO $$
DECLARE
    wanted  TEXT := NULLIF(current_setting('rocket_rides.partitions', true), '');
    -- The highest partition that has records or readers, in a log from before version 7.
    highest INT;
BEGIN
    IF wanted !~ '^[0-9]{1,2}$' OR wanted::int NOT BETWEEN 1 AND 64 THEN
        RAISE EXCEPTION 'the log cannot have % partitions', wanted USING HINT = 'Give a number from 1 to 64, such as 8.';
    END IF;
    IF to_regproc('log_partitions') IS NOT NULL THEN
        IF wanted::int <> log_partitions() THEN
            RAISE EXCEPTION 'the log has % partition(s), and % were asked for', log_partitions(), wanted
            USING HINT = 'The number is fixed when a log is made: with another one, keys would move to other partitions, and '
                         'their records would lose their order. Leave it out, or make a new log in another database.';
        END IF;
        RETURN;
    END IF;
    IF to_regclass('log_batches') IS NOT NULL THEN
        highest := (SELECT greatest((SELECT max(partition) FROM log_batches),
                                    (SELECT max(partition) FROM staged_log_records),
                                    (SELECT max(partition) FROM checkpoints)));
        IF highest >= COALESCE(wanted::int, 1) THEN
            RAISE EXCEPTION 'the log has records or consumers in partition %', highest
            USING HINT = format('Say how many partitions it has, at least %s: psql -v partitions=%1$s', highest + 1);
        END IF;
        IF highest = 0 AND wanted::int > 1 THEN
            RAISE EXCEPTION 'the log has records or consumers, in one partition, and % partitions were asked for', wanted
            USING HINT = 'The number is fixed when a log is made. Leave it out, or make a new log in another database.';
        END IF;
    END IF;
    -- Both are inlined into the statements that use them.
    EXECUTE format('CREATE FUNCTION log_partitions() RETURNS INT LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN %s',
                   COALESCE(wanted, '1'));
    EXECUTE format('CREATE FUNCTION partition_of(key TEXT) RETURNS INT LANGUAGE sql IMMUTABLE PARALLEL SAFE '
                   'RETURN partition_of(key, %s)', COALESCE(wanted, '1'));
END $$;
-- <<< log.sql

-- ---------------------------------------------------------------------------------------------------------------------
-- The rides.
-- Written by the api, and by the completer where the api did not finish. Read by both and by people. Never deleted.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS rides (
    id          BIGINT GENERATED BY DEFAULT AS IDENTITY,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- Whole millimetres, so that sums are exact in any order. The api accepts at most 10^9 m.
    distance_mm BIGINT      NOT NULL,

    CONSTRAINT rides_pkey PRIMARY KEY (id),
    CONSTRAINT rides_distance_mm_in_range CHECK (distance_mm BETWEEN 1 AND 1000000000000)
);

-- >>> log.sql
-- A W3C `traceparent` of version 00: lower-case hexadecimal digits, and neither id consists of zeros only.
-- It is a domain because Postgres parses the CHECKs of a table for every statement, and those of a domain once per
-- session. As CHECKs of the table, this condition and the lengths of the columns below took more than half of the time
-- that Postgres spends on staging a record. A single regular expression would be shorter, and ten times as slow.
DO $$ BEGIN
    IF to_regtype('w3c_traceparent') IS NULL THEN
        CREATE DOMAIN w3c_traceparent AS TEXT CONSTRAINT staged_log_records_traceparent_w3c CHECK (
            VALUE LIKE '00-________________________________-________________-__'
            AND VALUE !~ '[^0-9a-f-]' AND length(replace(VALUE, '-', '')) = 52
            AND VALUE NOT LIKE '00-00000000000000000000000000000000-%'
            AND VALUE NOT LIKE '00-________________________________-0000000000000000-__');
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- Records that are to be published, one per row. A row is written in the transaction that makes the record true (I1):
-- INSERT INTO staged_log_records (partition, object, action, data)
-- VALUES (partition_of('account-7'), 'account', 'credit', '{"id":7,"amount":5}').
-- Written by every process that changes something. Read by the streamer, and by consumers that heal a gap in the stream.
-- Deleted by the reaper, in whole batches. Never updated.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS staged_log_records (
    -- The transaction that wrote the row. It decides to which batch the row belongs: leave it to its default.
    transaction_id xid8        NOT NULL DEFAULT pg_current_xact_id(),
    -- partition_of() the key of the record. Without it, the first partition: the right one for records without a key.
    partition      INT         NOT NULL DEFAULT 0,
    -- Orders the records inside a batch. It is NOT the order of commits: id 6 may commit before id 5 (I3).
    id             BIGINT      GENERATED ALWAYS AS IDENTITY,
    -- When the record was staged, on the clock of Postgres. Consumers measure their lag from it.
    staged_at      TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- The kind of thing that the record is about ('account'), and what happened to it ('credit').
    object         VARCHAR(100) NOT NULL,
    action         VARCHAR(100) NOT NULL,
    -- The payload. It is json and not jsonb, so that the stream carries exactly the bytes that were staged.
    data           JSON        NOT NULL,
    -- The trace of the request that led to the record, for people who search for its effects. No program decides
    -- anything by it. NULL: the request had no trace.
    traceparent    w3c_traceparent,

    CONSTRAINT staged_log_records_pkey PRIMARY KEY (partition, id),
    CONSTRAINT staged_log_records_object_not_empty CHECK (object <> ''),
    CONSTRAINT staged_log_records_action_not_empty CHECK (action <> ''),
    -- 64 KiB. A record says what happened; documents and pictures live elsewhere. The limit bounds the memory that a
    -- page of records takes.
    CONSTRAINT staged_log_records_data_size CHECK (octet_length(data::text) <= 65536)
);

-- Finds the rows of given transactions, which is how a batch finds its rows.
-- This file looks up an index before it creates it: CREATE INDEX IF NOT EXISTS would wait for open transactions even if
-- the index exists, and all new transactions would wait behind it. The same goes for triggers and for columns.
DO $$ BEGIN
    IF to_regclass('staged_log_records_transaction') IS NULL THEN
        CREATE INDEX staged_log_records_transaction ON staged_log_records (partition, transaction_id, id);
    END IF;
END $$;

-- The number of partitions stands here as a literal: Postgres parses this condition for every statement.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'staged_log_records'::regclass
                   AND conname = 'staged_log_records_partition_known') THEN
        ALTER TABLE staged_log_records DROP CONSTRAINT IF EXISTS staged_log_records_partition_not_negative;
        EXECUTE format('ALTER TABLE staged_log_records ADD CONSTRAINT staged_log_records_partition_known '
                       'CHECK (partition >= 0 AND partition < %s) NOT VALID', log_partitions());
    END IF;
END $$;

-- After a crash a batch is derived again from the same rows. That is only possible because rows never change.
CREATE OR REPLACE FUNCTION refuse_change_of_staged_log_records() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'staged_log_records are never updated: stage another record instead';
END $$;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'staged_log_records'::regclass
                   AND tgname = 'staged_log_records_never_change') THEN
        CREATE TRIGGER staged_log_records_never_change
            BEFORE UPDATE ON staged_log_records FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_staged_log_records();
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The order of the records. A batch is the set of rows that are visible in its snapshot and not in the snapshot of the
-- batch before, ordered by id. Its records have the offsets first_offset, first_offset + 1, … (I2). No offset is stored
-- per record: the same two snapshots always select the same rows.
-- Written by the leading streamer. Read by streamer, consumer and api. The reaper sets reaped_at, and later deletes.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS log_batches (
    partition      INT         NOT NULL,
    first_offset   BIGINT      NOT NULL,
    record_count   BIGINT      NOT NULL,
    snapshot       pg_snapshot NOT NULL,
    -- The range of ids of the rows whose transactions began after the snapshot of the batch before; NULL if there are
    -- no such rows. The batch's other rows are those of transactions that were open at that snapshot. They are few, and
    -- are looked up by transaction.
    fresh_first_id BIGINT,
    fresh_last_id  BIGINT,
    -- A random number that every stream entry of the batch carries. Readers ignore an entry without it: it was not
    -- written for this log.
    token          BIGINT      NOT NULL,
    created_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- When the reaper marked the batch. From then on its rows may be missing. NULL: all its records can still be read.
    reaped_at      TIMESTAMPTZ,
    -- The id of every 100,000th record, if the batch has so many. A reader that begins deep in a batch begins at such a
    -- record. NULL: the batch has fewer records, or is older than version 6.
    skip_ids       BIGINT[],
    -- The highest id of its rows. All rows that are staged later have higher ids, in whichever cluster. So adopt knows the
    -- rows of a batch that the reaper has only half deleted. NULL: the batch is older than version 6.
    last_id        BIGINT,

    -- The next batch begins where this one ends. If two streamers both believe that they lead, this key stops the second.
    CONSTRAINT log_batches_pkey PRIMARY KEY (partition, first_offset),
    CONSTRAINT log_batches_first_offset_positive CHECK (first_offset >= 1),
    CONSTRAINT log_batches_not_empty CHECK (record_count >= 1)
);

-- The log in plain SQL, for readers in other languages: at most count_max records that follow an offset, without a gap. It
-- returns no rows at the head of the log. It reads reaped records from the history, and fails if the history lacks them.
-- A page ends where its batch ends.
-- A reader that keeps no row in checkpoints may find the next record reaped. docs/EMBEDDING.md has all rules for readers.
CREATE OR REPLACE FUNCTION log_records_after(after_offset BIGINT, count_max BIGINT DEFAULT 1000, of_partition INT DEFAULT 0)
RETURNS TABLE (record_offset BIGINT, object TEXT, action TEXT, data JSON, staged_at TIMESTAMPTZ)
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    batch    log_batches;
    previous pg_snapshot;
    after_id BIGINT;  -- the id of a record of the batch, which is mostly the one before the page
    skipped  BIGINT;  -- the number of records between this one and the page
    wanted   BIGINT;
BEGIN
    IF of_partition NOT BETWEEN 0 AND log_partitions() - 1 THEN
        RAISE EXCEPTION 'the log has % partition(s), and partition % is not one of them', log_partitions(), of_partition;
    END IF;
    after_offset := greatest(after_offset, 0);
    SELECT * INTO batch FROM log_batches AS b
    WHERE b.partition = of_partition AND b.first_offset <= after_offset + 1 ORDER BY b.first_offset DESC LIMIT 1;
    IF batch.first_offset + batch.record_count <= after_offset + 1 THEN
        RETURN;
    END IF;
    SELECT b.snapshot INTO previous FROM log_batches AS b
    WHERE b.partition = of_partition AND b.first_offset < batch.first_offset ORDER BY b.first_offset DESC LIMIT 1;
    IF batch.reaped_at IS NOT NULL OR previous IS NULL AND batch.first_offset > 1
       OR batch.partition IS NULL AND EXISTS (SELECT FROM log_batches AS b WHERE b.partition = of_partition) THEN
        RETURN QUERY
            SELECT archived.record_offset, archived.object, archived.action, archived.data, archived.staged_at FROM (
                SELECT h.*, row_number() OVER (ORDER BY h.record_offset) AS place FROM history AS h
                WHERE h.partition = of_partition AND h.record_offset > after_offset
                  -- Records beyond the head belong to a past that this log does not have.
                  AND h.record_offset <= (SELECT b.first_offset + b.record_count - 1 FROM log_batches AS b
                                          WHERE b.partition = of_partition ORDER BY b.first_offset DESC LIMIT 1)
                ORDER BY h.record_offset LIMIT count_max
            ) AS archived
            WHERE archived.record_offset = after_offset + archived.place ORDER BY archived.record_offset;
        IF NOT FOUND AND count_max > 0 THEN
            RAISE EXCEPTION 'the record at offset % is reaped, and the history does not have it',
                concat(after_offset + 1, CASE WHEN log_partitions() > 1 THEN ' of partition ' || of_partition END);
        END IF;
        RETURN;
    END IF;
    previous := COALESCE(previous, '1:1:');
    skipped := after_offset + 1 - batch.first_offset;
    wanted := least(count_max, batch.record_count - skipped);
    after_id := batch.skip_ids[skipped / 100000];
    IF after_id IS NOT NULL THEN
        skipped := skipped % 100000;
    ELSIF batch.fresh_last_id - batch.fresh_first_id + 1 = batch.record_count AND previous::text LIKE '%:' THEN
        -- The ids of the batch follow each other without a gap.
        after_id := batch.fresh_first_id + skipped - 1;
        skipped := 0;
    END IF;
    after_id := COALESCE(after_id, -9223372036854775808);
    RETURN QUERY
        SELECT after_offset + row_number() OVER (ORDER BY page.id), page.object::text, page.action::text, page.data,
               page.staged_at
        FROM (
            (SELECT r.* FROM staged_log_records AS r
             WHERE r.partition = of_partition AND r.id > after_id
               AND r.id >= batch.fresh_first_id AND r.id <= batch.fresh_last_id
               AND NOT pg_visible_in_snapshot(r.transaction_id, previous)
               AND pg_visible_in_snapshot(r.transaction_id, batch.snapshot)
             ORDER BY r.partition, r.id LIMIT skipped + wanted)
            UNION ALL
            -- Rows of transactions that were open at the snapshot of the batch before.
            (SELECT late.* FROM pg_snapshot_xip(previous) AS in_flight, LATERAL (
                 SELECT r.* FROM staged_log_records AS r
                 WHERE r.partition = of_partition AND r.transaction_id = in_flight AND r.id > after_id
                   AND (r.id BETWEEN batch.fresh_first_id AND batch.fresh_last_id) IS NOT TRUE
                 ORDER BY r.partition, r.transaction_id, r.id LIMIT skipped + wanted) AS late
             WHERE pg_visible_in_snapshot(in_flight, batch.snapshot))
            ORDER BY id OFFSET skipped LIMIT wanted
        ) AS page
        ORDER BY 1;
END $$;

-- A state that moves with its checkpoint. The limit keeps it inside its row: Postgres would store a longer value beside the
-- table, and each page of records would leave a dead copy there. It is a domain for the reason given above.
DO $$ BEGIN
    IF to_regtype('fold_state') IS NULL THEN
        CREATE DOMAIN fold_state AS JSON CONSTRAINT checkpoints_state_size CHECK (octet_length(VALUE::text) <= 1500);
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The progress of each consumer, and the state that it has derived. One UPDATE moves both (I5).
-- A row registers its consumer: the reaper deletes no record that the consumer has not passed (I8).
-- Written by each consumer under its name. Read by streamer, reaper and api. Deleted by `consumer NAME --unregister`.
-- One row per partition is the baseline. The reaper writes it: before the reaper deletes records, it folds them into the
-- baseline's state, and never reads beyond the slowest consumer. New consumers start with a copy of this state.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS checkpoints (
    name            VARCHAR(100) NOT NULL,
    partition       INT         NOT NULL DEFAULT 0,
    -- The state reflects the records 1 … last_offset, each of them once, and no others (I4). 0: no record yet.
    last_offset     BIGINT      NOT NULL DEFAULT 0,
    -- Counters for people. No program decides anything by them.
    duplicate_count BIGINT      NOT NULL DEFAULT 0,  -- entries that were skipped because their offset was already passed
    healed_count    BIGINT      NOT NULL DEFAULT 0,  -- records that were read from Postgres because the stream lacked them
    rejected_count  BIGINT      NOT NULL DEFAULT 0,  -- stream entries that were not written for this log
    crash_count     BIGINT      NOT NULL DEFAULT 0,  -- injected crashes that the consumer survived
    -- Whether this is the baseline. The baseline holds no record back, and is not counted as a consumer.
    is_baseline     BOOLEAN     NOT NULL DEFAULT false,
    -- A consumer that keeps its state in memory commits only if the row still has the generation that the consumer has
    -- loaded. It rises with each change of the state that does not move the checkpoint (a dead letter that was replayed).
    -- It begins with the time, so that a process cannot take a new registration of its name for its own.
    generation      BIGINT      NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    updated_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The fold that derives the state, and its version. A program with another fold refuses to go on with the row.
    -- NULL: the row was registered before version 5, or by a program that keeps its state in a table of its own.
    fold            VARCHAR(100),
    fold_version    INT,
    -- The state at last_offset, as the fold writes it. NULL: the fold writes rows into a table of its own.
    state           fold_state,
    -- The consumer keeps its checkpoint and its state in a database of its own. Then last_offset is a lower bound, and this is the
    -- token of its batch as the consumer has told it (0 at offset 0): adopt gives batches other tokens. NULL: the state is here.
    told_token      BIGINT,

    CONSTRAINT checkpoints_pkey PRIMARY KEY (name, partition),
    CONSTRAINT checkpoints_name_not_empty CHECK (name <> ''),
    CONSTRAINT checkpoints_last_offset_not_negative CHECK (last_offset >= 0)
) WITH (fillfactor = 50);  -- few rows, which are updated all day: leave room in each page for the new row versions

-- ---------------------------------------------------------------------------------------------------------------------
-- The names that were unregistered. Postgres refuses to register a consumer under such a name: otherwise a supervisor that
-- starts the consumer again would undo --unregister. `consumer NAME --register` and `--copy-from` delete the row first.
-- Written and read by a trigger of checkpoints. Deleted by each consumer.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS unregistered_consumers (
    name            VARCHAR(100) NOT NULL,
    partition       INT         NOT NULL,
    unregistered_at TIMESTAMPTZ NOT NULL DEFAULT now(),

    CONSTRAINT unregistered_consumers_pkey PRIMARY KEY (name, partition)
);

-- It runs under the rights of the tables' owner: a role that may delete a checkpoint may not choose to be forgotten.
CREATE OR REPLACE FUNCTION remember_unregistered_consumers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    since TIMESTAMPTZ;
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO unregistered_consumers (name, partition) SELECT OLD.name, OLD.partition WHERE NOT OLD.is_baseline
        ON CONFLICT ON CONSTRAINT unregistered_consumers_pkey DO UPDATE SET unregistered_at = now();
        RETURN NULL;
    END IF;
    -- This is after the INSERT, which has waited for a session that was deleting the old registration.
    SELECT u.unregistered_at INTO since FROM unregistered_consumers AS u
    WHERE u.name = NEW.name AND u.partition = NEW.partition;
    IF FOUND THEN
        RAISE EXCEPTION 'consumer % was unregistered at %', NEW.name, since USING ERRCODE = 'UNREG',
            HINT = 'To register it anew, delete its row in unregistered_consumers first.';
    END IF;
    RETURN NULL;
END $$;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'checkpoints'::regclass
                   AND tgname = 'checkpoints_stay_unregistered') THEN
        CREATE TRIGGER checkpoints_stay_unregistered
            AFTER INSERT OR DELETE ON checkpoints FOR EACH ROW EXECUTE FUNCTION remember_unregistered_consumers();
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- Records that a consumer could not apply and will never be able to (an amount below 0, for example), kept for a person.
-- The consumer's state reflects all records 1 … last_offset except these.
-- Written by the consumer, in the transaction that passes the record. Deleted by `dead-letters replay`, in the
-- transaction that applies the record after all.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS dead_letters (
    name          TEXT        NOT NULL,
    partition     INT         NOT NULL,
    record_offset BIGINT      NOT NULL,
    object        TEXT        NOT NULL,
    action        TEXT        NOT NULL,
    data          TEXT        NOT NULL,
    reason        TEXT        NOT NULL,
    created_at    TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- Set by `dead-letters drop`: a person has decided that the record is not to be applied. The row stays, because an
    -- audit must know what the state lacks. NULL: no person has decided yet.
    dropped_at    TIMESTAMPTZ,

    CONSTRAINT dead_letters_pkey PRIMARY KEY (name, partition, record_offset),
    CONSTRAINT dead_letters_checkpoint_fkey FOREIGN KEY (name, partition) REFERENCES checkpoints ON DELETE CASCADE
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The history: every record with its offset, kept after the reaper has deleted it from staged_log_records.
-- Written by a consumer with the fold `history`. Read by the api, and by consumers, audits and log_records_after where the
-- records are reaped. Never updated. People detach old parts: ALTER TABLE history DETACH PARTITION history_0 CONCURRENTLY.
-- The table has one part per history_part_len() offsets, named after its number: history_0, history_1, …
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS history (
    partition     INT         NOT NULL,
    record_offset BIGINT      NOT NULL,
    -- The columns of staged_log_records.
    object        TEXT        NOT NULL,
    action        TEXT        NOT NULL,
    data          JSON        NOT NULL,
    staged_at     TIMESTAMPTZ NOT NULL,
    traceparent   TEXT,
    -- Whether the history lacked the record before this one when this one was written.
    begins_range  BOOLEAN     NOT NULL DEFAULT false,

    CONSTRAINT history_pkey PRIMARY KEY (partition, record_offset)
) PARTITION BY RANGE (record_offset);

DO $$ BEGIN
    -- Finds where ranges begin. There are few.
    IF to_regclass('history_beginnings') IS NULL THEN
        CREATE INDEX history_beginnings ON history (partition, record_offset) WHERE begins_range;
    END IF;
END $$;

-- The number of offsets in one part of the history. Do not change it while the history has parts.
CREATE OR REPLACE FUNCTION history_part_len() RETURNS BIGINT LANGUAGE sql IMMUTABLE AS 'SELECT 10000000::bigint';

-- Makes the missing parts of the history that have the offsets first_offset … last_offset, and the part after them. A
-- consumer calls it before it writes these records, under the rights of the tables' owner: a consumer may create no table.
-- ATTACH lets the history be read and written meanwhile, which CREATE TABLE … PARTITION OF would not.
CREATE OR REPLACE FUNCTION make_history_parts(of_partition INT, first_offset BIGINT, last_offset BIGINT)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    name TEXT;
BEGIN
    -- No record has an offset below 1. A caller that could name lower ones could make tables without end.
    FOR part IN greatest(first_offset, 1) / history_part_len() .. last_offset / history_part_len() + 1 LOOP
        name := format('%I.%I', current_schema(), 'history_' || part);
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        IF last_offset > COALESCE((SELECT b.first_offset + b.record_count - 1 FROM log_batches AS b
                                   WHERE b.partition = of_partition ORDER BY b.first_offset DESC LIMIT 1), 0) THEN
            RAISE EXCEPTION 'offset % of partition % is beyond the head of the log', last_offset, of_partition;
        END IF;
        -- Two consumers take turns: the second finds the table of the first. It is the lock that ATTACH takes. An advisory
        -- lock would not do: after it a session may still not know of the table.
        LOCK TABLE history IN SHARE UPDATE EXCLUSIVE MODE;
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        EXECUTE format('CREATE TABLE %s (LIKE history INCLUDING ALL)', name);
        EXECUTE format('ALTER TABLE history ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)',
                       name, part * history_part_len(), (part + 1) * history_part_len());
    END LOOP;
END $$;

REVOKE EXECUTE ON FUNCTION make_history_parts FROM PUBLIC;

-- The ranges of offsets that the history has, each without a gap. It is empty, or one range, unless the history began late,
-- its consumer was unregistered for a while, or a part in the middle was detached.
DO $$ BEGIN
    IF to_regclass('history_ranges') IS NULL THEN
        CREATE VIEW history_ranges AS
        WITH RECURSIVE partitions (partition) AS (
            SELECT min(partition) FROM history
            UNION ALL
            SELECT (SELECT min(h.partition) FROM history AS h WHERE h.partition > p.partition)
            FROM partitions AS p WHERE p.partition IS NOT NULL
        ), parts AS (
            SELECT partition, generate_series(min / history_part_len(), max / history_part_len()) AS part
            FROM partitions AS p, LATERAL (SELECT min(record_offset), max(record_offset) FROM history AS h
                                           WHERE h.partition = p.partition) AS bounds
        ), beginnings AS (
            SELECT partition, record_offset AS first_offset FROM history WHERE begins_range
            UNION
            SELECT partition, (SELECT min(record_offset) FROM history AS h
                               WHERE h.partition = parts.partition AND h.record_offset >= part * history_part_len()
                                 AND h.record_offset < (part + 1) * history_part_len())
            FROM parts
        ), pieces AS (
            SELECT partition, first_offset,
                   (SELECT max(record_offset) FROM history AS h
                    WHERE h.partition = b.partition AND h.record_offset < COALESCE(b.next_offset, 9223372036854775807)) AS last_offset
            FROM (SELECT *, lead(first_offset) OVER (PARTITION BY partition ORDER BY first_offset) AS next_offset
                  FROM beginnings WHERE first_offset IS NOT NULL) AS b
        ), numbered AS (
            SELECT *, count(*) FILTER (WHERE is_first) OVER (PARTITION BY partition ORDER BY first_offset) AS range_number
            FROM (SELECT *, first_offset IS DISTINCT FROM
                            lag(last_offset) OVER (PARTITION BY partition ORDER BY first_offset) + 1 AS is_first
                  FROM pieces) AS p
        )
        SELECT partition, min(first_offset) AS first_offset, max(last_offset) AS last_offset
        FROM numbered GROUP BY partition, range_number;
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The cluster that the log belongs to. Batches refer to transaction ids, which have a meaning in one cluster only: after
-- pg_dump and restore, and after pg_upgrade, they start over. Streamer, consumer and reaper read this table when they
-- connect, and refuse to work on a log of another cluster.
-- Written by this file and by adopt. It has one row. A second row appears if a dump was restored into tables that
-- existed before; then the processes refuse too. Reading needs EXECUTE on pg_control_system(), which PUBLIC has by default.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS log_identity (
    -- system_identifier of the cluster that gave the transaction ids, from pg_control_system(). Only adopt changes it.
    system_identifier BIGINT NOT NULL,
    -- The version of the log's tables. Programs of another version refuse to work on them.
    schema_version    INT    NOT NULL,
    -- Random, in the names of the streams, so that the streams of two logs on one Redis Cluster have different names. NULL: the
    -- log was made without a number of partitions, and its stream has just the name that the processes are given.
    log_id            VARCHAR(12),

    CONSTRAINT log_identity_pkey PRIMARY KEY (system_identifier)
);
-- <<< log.sql

-- ---------------------------------------------------------------------------------------------------------------------
-- Requests that a client may send any number of times and that are executed once, each with its progress.
-- Written by api and completer. Deleted by the reaper.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS tracked_operations (
    id             BIGINT      GENERATED ALWAYS AS IDENTITY,
    -- The operation is identified by its target (the kind of request, and the user) and by the client's key.
    target         TEXT        NOT NULL,
    key            TEXT        NOT NULL,
    -- The first request. A request with the same key and another payload is refused.
    payload        BYTEA       NOT NULL,
    -- running: a process works on it, until timeout_at. failed: a process may claim it again. finished: every retry
    -- receives the result.
    status         TEXT        NOT NULL DEFAULT 'running',
    -- The phase that comes next. The transaction that does a phase's work also sets this.
    recovery_point TEXT        NOT NULL DEFAULT 'started',
    -- Incremented by each claim. Every phase checks it, so that a process whose claim was taken over can change nothing.
    token          BIGINT      NOT NULL DEFAULT 1,
    error_count    INT         NOT NULL DEFAULT 0,
    error_message  TEXT,
    result         BYTEA,
    -- The time from which the expiration is counted.
    reference_time TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The first claim, and the last.
    created_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    started_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- When the claim runs out, and when it is too late to execute the operation. NULL: never.
    timeout_at     TIMESTAMPTZ,
    expires_at     TIMESTAMPTZ,
    finished_at    TIMESTAMPTZ,

    CONSTRAINT tracked_operations_pkey PRIMARY KEY (id),
    CONSTRAINT tracked_operations_target_key UNIQUE (target, key),
    CONSTRAINT tracked_operations_target_length CHECK (length(target) BETWEEN 1 AND 500),
    CONSTRAINT tracked_operations_key_length CHECK (length(key) BETWEEN 1 AND 255),
    CONSTRAINT tracked_operations_status_known CHECK (status IN ('running', 'failed', 'finished')),
    CONSTRAINT tracked_operations_finished CHECK ((status = 'finished') = (recovery_point = 'finished'))
);

DO $$ BEGIN
    -- Finds the unfinished operations, for completer and sweepers. There are few.
    IF to_regclass('tracked_operations_unfinished') IS NULL THEN
        CREATE INDEX tracked_operations_unfinished ON tracked_operations (created_at) WHERE status <> 'finished';
    END IF;
    -- Finds the old operations, for the reaper.
    IF to_regclass('tracked_operations_created_at') IS NULL THEN
        CREATE INDEX tracked_operations_created_at ON tracked_operations (created_at);
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The users who book rides.
-- Written by people (seed.sql inserts two). Read by api and completer, and by receipts for the address.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS users (
    id                 BIGINT GENERATED BY DEFAULT AS IDENTITY,
    email              TEXT   NOT NULL,
    -- The customer that the payment processor charges.
    stripe_customer_id TEXT   NOT NULL,

    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_email_key UNIQUE (email),
    CONSTRAINT users_stripe_customer_id_key UNIQUE (stripe_customer_id),
    CONSTRAINT users_email_length CHECK (length(email) BETWEEN 1 AND 255),
    CONSTRAINT users_stripe_customer_id_length CHECK (length(stripe_customer_id) BETWEEN 1 AND 50)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The booked rides. Each has a row in rides too, and counts like any other ride.
-- Written by api and completer, read by them and by people. Never deleted.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS bookings (
    ride_id          BIGINT           NOT NULL,
    user_id          BIGINT           NOT NULL,
    -- The request that booked the ride. NULL: the reaper has deleted the request.
    operation_id     BIGINT,
    -- Degrees.
    origin_lat       DOUBLE PRECISION NOT NULL,
    origin_lon       DOUBLE PRECISION NOT NULL,
    target_lat       DOUBLE PRECISION NOT NULL,
    target_lon       DOUBLE PRECISION NOT NULL,
    -- The price and the customer, as they were when the ride was booked. Every attempt to charge asks for the same.
    amount_cents     BIGINT           NOT NULL,
    currency         TEXT             NOT NULL,
    stripe_customer_id TEXT           NOT NULL,
    -- The idempotency key that the payment processor receives: derive_charge_key(). The default is for programs from
    -- before version 6.
    charge_key       UUID             NOT NULL DEFAULT gen_random_uuid(),
    -- The fields of the request to the payment processor. Every attempt sends these, also after an upgrade to programs
    -- that word it differently: the processor refuses a key that comes again with other fields. NULL: booked before
    -- version 6.
    charge_form      JSON,
    -- NULL: the processor has not charged yet, or has declined.
    stripe_charge_id TEXT,

    CONSTRAINT bookings_pkey PRIMARY KEY (ride_id),
    CONSTRAINT bookings_ride_fkey FOREIGN KEY (ride_id) REFERENCES rides ON DELETE RESTRICT,
    CONSTRAINT bookings_user_fkey FOREIGN KEY (user_id) REFERENCES users ON DELETE RESTRICT,
    CONSTRAINT bookings_operation_fkey FOREIGN KEY (operation_id) REFERENCES tracked_operations ON DELETE SET NULL,
    CONSTRAINT bookings_operation_key UNIQUE (operation_id),
    CONSTRAINT bookings_charge_key_key UNIQUE (charge_key),
    CONSTRAINT bookings_stripe_charge_id_key UNIQUE (stripe_charge_id),
    CONSTRAINT bookings_stripe_charge_id_length CHECK (length(stripe_charge_id) BETWEEN 1 AND 255),
    CONSTRAINT bookings_latitudes CHECK (origin_lat BETWEEN -90 AND 90 AND target_lat BETWEEN -90 AND 90),
    CONSTRAINT bookings_longitudes CHECK (origin_lon BETWEEN -180 AND 180 AND target_lon BETWEEN -180 AND 180)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The secret of this installation. Keys for the payment processor are derived from it, so that they cannot be guessed, and
-- so that the same request has the same key after Postgres was put back to an older state: then the processor, which was
-- not put back, returns the charge that it has made.
-- Written once, by this file. Read by the two functions below, and by no role. A copy of the database that is to live beside
-- the original needs a secret of its own: UPDATE charge_secret SET secret = DEFAULT, system_identifier = DEFAULT.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS charge_secret (
    -- 244 random bits.
    secret            BYTEA  NOT NULL DEFAULT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()),
    -- The cluster in which the secret was made. Only people compare it: a restored database may be the original or a copy.
    system_identifier BIGINT NOT NULL DEFAULT (pg_control_system()).system_identifier,

    -- If a dump is restored into tables that existed before, there are two rows. Then no ride is booked until one is deleted.
    CONSTRAINT charge_secret_pkey PRIMARY KEY (secret)
);

INSERT INTO charge_secret SELECT WHERE NOT EXISTS (SELECT FROM charge_secret);

-- The key of a charge. The same user, client's key and journey have the same key, until a ride is booked with it: the client's
-- keys are forgotten after some days, and a client may then use one again for a new ride.
CREATE OR REPLACE FUNCTION derive_charge_key(of_user BIGINT, client_key TEXT, journey DOUBLE PRECISION[])
RETURNS UUID LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    request BYTEA := int8send(of_user) || array_send(journey) || convert_to(client_key, 'UTF8');
    derived UUID;
BEGIN
    FOR earlier_count IN 0 .. 1000000 LOOP
        derived := encode(substring(sha256((SELECT secret FROM charge_secret) || sha256(int8send(earlier_count) || request))
                                    FOR 16), 'hex')::uuid;
        EXIT WHEN NOT EXISTS (SELECT FROM bookings WHERE charge_key = derived);
    END LOOP;
    RETURN derived;
END $$;

-- A name of this installation, without a meaning. Charges carry it, so that an audit can tell them from others' charges.
CREATE OR REPLACE FUNCTION installation_id() RETURNS UUID LANGUAGE sql SECURITY DEFINER AS $$
    SELECT encode(substring(sha256((SELECT secret FROM charge_secret) || sha256('installation')) FOR 16), 'hex')::uuid
$$;

DO $$ BEGIN
    -- No caller may choose the tables that the functions find.
    EXECUTE format('ALTER FUNCTION derive_charge_key SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION installation_id SET search_path = %I, pg_temp', current_schema());
    REVOKE EXECUTE ON FUNCTION derive_charge_key, installation_id FROM PUBLIC;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The actions that were taken for users. Each row is written in the transaction that takes the action.
-- Written by api and completer. Read by people.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS audit_records (
    id            BIGINT      GENERATED ALWAYS AS IDENTITY,
    -- 'ride.created', 'charge.created', 'charge.declined', 'receipt.staged'
    action        TEXT        NOT NULL,
    created_at    TIMESTAMPTZ NOT NULL DEFAULT now(),
    data          JSONB       NOT NULL,
    -- The address of the client whose request led to the action. The completer writes 127.0.0.1.
    origin_ip     INET        NOT NULL,
    resource_id   BIGINT      NOT NULL,
    resource_type TEXT        NOT NULL,
    user_id       BIGINT      NOT NULL,

    CONSTRAINT audit_records_pkey PRIMARY KEY (id),
    CONSTRAINT audit_records_user_fkey FOREIGN KEY (user_id) REFERENCES users ON DELETE RESTRICT,
    CONSTRAINT audit_records_action_length CHECK (length(action) BETWEEN 1 AND 50),
    CONSTRAINT audit_records_resource_type_length CHECK (length(resource_type) BETWEEN 1 AND 50)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The completer's attempts to finish an operation: their number, and the time of the next.
-- Written and read by the completer. Deleted together with the operation.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS completions (
    operation_id    BIGINT      NOT NULL,
    attempt_count   INT         NOT NULL DEFAULT 1,
    next_attempt_at TIMESTAMPTZ NOT NULL,

    CONSTRAINT completions_pkey PRIMARY KEY (operation_id),
    CONSTRAINT completions_operation_fkey FOREIGN KEY (operation_id) REFERENCES tracked_operations ON DELETE CASCADE
);

-- ---------------------------------------------------------------------------------------------------------------------
-- Operations that the reaper deleted before they were finished. A person has to look at each.
-- Written by the reaper. Read and deleted by people.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS reaped_requests (
    operation_id   BIGINT      NOT NULL,
    target         TEXT        NOT NULL,
    key            TEXT        NOT NULL,
    payload        BYTEA       NOT NULL,
    -- The progress. At ride_created the processor may have charged; at charge_created it has charged.
    recovery_point TEXT        NOT NULL,
    error_count    INT         NOT NULL,
    error_message  TEXT,
    ride_id        BIGINT,
    created_at     TIMESTAMPTZ NOT NULL,
    reaped_at      TIMESTAMPTZ NOT NULL DEFAULT now(),

    CONSTRAINT reaped_requests_pkey PRIMARY KEY (operation_id)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- Receipts to be sent, one per booked ride, derived from the log.
-- Written by the process receipts, which also delivers them. An operator may make a refused receipt due again.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS receipts (
    ride_id         BIGINT      NOT NULL,
    -- The partition and the offset of the record that asks for the receipt.
    partition       INT         NOT NULL DEFAULT 0,
    record_offset   BIGINT      NOT NULL,
    data            JSON        NOT NULL,
    -- NULL: not delivered yet.
    delivered_at    TIMESTAMPTZ,
    -- Set to a later time before each attempt, so that no two processes deliver the same receipt at once.
    -- infinity: the receipt was refused for the last time and is put aside. `dead-letters resend` makes it due again.
    next_attempt_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- Attempts that have begun. The pause between two attempts grows with it.
    attempt_count   INT         NOT NULL DEFAULT 0,
    -- Random: a receipt of another installation, or of a ride of the same number after a restore, has another one. Each
    -- attempt sends the same. NULL: no attempt yet.
    message_id      UUID,
    -- Why the newest attempt failed. NULL: none has failed.
    last_error      TEXT,

    CONSTRAINT receipts_pkey PRIMARY KEY (ride_id)
);

DO $$ BEGIN
    IF to_regclass('receipts_undelivered') IS NULL THEN
        CREATE INDEX receipts_undelivered ON receipts (next_attempt_at) WHERE delivered_at IS NULL;
    END IF;
    -- From before version 6.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'receipts'::regclass AND attname = 'attempt_count') THEN
        ALTER TABLE receipts ADD COLUMN attempt_count INT NOT NULL DEFAULT 0, ADD COLUMN message_id UUID,
            ADD COLUMN last_error TEXT;
    END IF;
    -- From before version 7.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'receipts'::regclass AND attname = 'partition') THEN
        ALTER TABLE receipts ADD COLUMN partition INT NOT NULL DEFAULT 0;
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The wallets that were ever credited, debited or named in a transfer, one row each. A transaction that writes events of a
-- wallet locks its row first. The rows are never updated: beside an old transaction that is held open, a row that is updated
-- thousands of times a second gets slower with every update.
-- Written and locked by the api. Never updated or deleted: FOR UPDATE needs the right to update, and a trigger refuses the rest.
-- ---------------------------------------------------------------------------------------------------------------------
DO $$ BEGIN
    IF to_regtype('ksuid') IS NULL THEN
        -- 27 digits of base 62, in the order of ASCII, which is the order of the numbers.
        CREATE DOMAIN ksuid AS TEXT COLLATE "C" CONSTRAINT ksuid_is_base62 CHECK (
            length(VALUE) = 27 AND VALUE !~ '[^0-9A-Za-z]' AND VALUE <= 'aWgEPTl1tmebfsQzFP4bxwgy80V');
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS wallet_locks (
    wallet_id ksuid NOT NULL,

    CONSTRAINT wallet_locks_pkey PRIMARY KEY (wallet_id)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- Every attempt to change a wallet, accepted or rejected (W1). The newest accepted event of a wallet is its state.
-- Money is whole cents. A transfer is two events, one for each wallet; a rejected transfer is one, of the paying wallet.
-- Written by the api, in the transaction that decides and that stages the log records. Read by the api, by the consumer with
-- the fold `wallets`, and by people. Never updated or deleted.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS wallet_events (
    -- Drawn before the transaction, so that the api can look for it after an unknown COMMIT.
    event_id        ksuid       NOT NULL,
    wallet_id       ksuid       NOT NULL,
    -- The version of the wallet after the event, from 1 on. A rejected attempt leaves version and balance as they were.
    version         BIGINT      NOT NULL,
    balance_minor   BIGINT      NOT NULL,
    accepted        BOOLEAN     NOT NULL,
    -- Why the attempt was rejected. NULL: it was accepted.
    reason          VARCHAR(200),
    -- 'credit', 'debit' or 'transfer'.
    action          VARCHAR(10) NOT NULL,
    -- Negative if it takes money from the wallet.
    amount_minor    BIGINT      NOT NULL,
    -- The other wallet of a transfer. 'world' for a credit or a debit: it is no wallet, and stands for everything outside.
    counterparty    VARCHAR(27) COLLATE "C" NOT NULL DEFAULT 'world',
    created_at      TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    -- The client's Idempotency-Key. NULL: the client sent none. Of the two events of a transfer, that of the paying wallet
    -- has the key.
    idempotency_key VARCHAR(255),
    -- The address of the client.
    origin_ip       INET,
    -- The trace of the request. NULL: it had none.
    traceparent     w3c_traceparent,

    CONSTRAINT wallet_events_pkey PRIMARY KEY (event_id),
    CONSTRAINT wallet_events_version_not_negative CHECK (version >= 0),
    -- W3. At most 2^53 - 1, which every reader of JSON can hold.
    CONSTRAINT wallet_events_balance_in_range CHECK (balance_minor BETWEEN 0 AND 9007199254740991),
    CONSTRAINT wallet_events_rejected_has_reason CHECK (accepted = (reason IS NULL)),
    CONSTRAINT wallet_events_action_known CHECK (action IN ('credit', 'debit', 'transfer')),
    CONSTRAINT wallet_events_amount_not_zero CHECK (amount_minor <> 0)
);

DO $$ BEGIN
    -- Finds the state, and the newest events. If two transactions gave a wallet the same version, the second fails (W2).
    IF to_regclass('wallet_events_accepted') IS NULL THEN
        CREATE UNIQUE INDEX wallet_events_accepted ON wallet_events (wallet_id, version) WHERE accepted;
    END IF;
    IF to_regclass('wallet_events_key') IS NULL THEN
        CREATE UNIQUE INDEX wallet_events_key ON wallet_events (wallet_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
    END IF;
    -- Finds the newest rejected attempts at a wallet. Accepted ones, which are most, cost nothing here.
    IF to_regclass('wallet_events_rejected') IS NULL THEN
        CREATE INDEX wallet_events_rejected ON wallet_events (wallet_id, created_at) WHERE NOT accepted;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION refuse_change_of_wallets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% are never changed', TG_TABLE_NAME USING HINT = 'Credit or debit the wallet instead.';
END $$;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'wallet_events'::regclass AND tgname = 'wallet_events_never_change') THEN
        CREATE TRIGGER wallet_events_never_change BEFORE UPDATE OR DELETE OR TRUNCATE ON wallet_events
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_wallets();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'wallet_locks'::regclass AND tgname = 'wallet_locks_never_change') THEN
        CREATE TRIGGER wallet_locks_never_change BEFORE UPDATE OR DELETE OR TRUNCATE ON wallet_locks
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_wallets();
    END IF;
    -- Each wallet with its state. It cannot be written: a view of a join is not updatable.
    IF to_regclass('wallets') IS NULL THEN
        CREATE VIEW wallets AS
        SELECT l.wallet_id AS id, COALESCE(newest.version, 0) AS version, COALESCE(newest.balance_minor, 0) AS balance_minor
        FROM wallet_locks AS l LEFT JOIN LATERAL (
            SELECT e.version, e.balance_minor FROM wallet_events AS e
            WHERE e.wallet_id = l.wallet_id AND e.accepted ORDER BY e.version DESC LIMIT 1
        ) AS newest ON true;
    ELSIF NOT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('wallets') AND relkind = 'v') THEN
        -- An example made such a table before there were wallets.
        RAISE EXCEPTION 'the schema has a table wallets, and needs the name for a view'
        USING ERRCODE = 'duplicate_table', HINT = 'Rename it: ALTER TABLE wallets RENAME TO accounts';
    END IF;
    -- The state of each wallet after each accepted event. It cannot be written: a view with OFFSET is not updatable.
    IF to_regclass('wallet_states') IS NULL THEN
        CREATE VIEW wallet_states AS
        SELECT wallet_id, version, balance_minor, amount_minor, event_id, created_at FROM wallet_events WHERE accepted
        OFFSET 0;
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The spools that hold accepted bodies: a folder of one machine, or a bucket. A spool has its id inside, too. So a container that
-- finds an empty folder, because a disk is not mounted, sees that it is not this spool.
-- Written and read by the container.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS spools (
    spool_id   UUID        NOT NULL,
    -- Where it is, for people: a host and a folder, or a bucket.
    place      TEXT        NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The folders that destinations of the kind `files` use on the machine of the spool: the id of each, by its path. A folder with
    -- another id is not mounted.
    folders    JSONB       NOT NULL DEFAULT '{}',

    CONSTRAINT spools_pkey PRIMARY KEY (spool_id)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The units of work: each is one request, which all of its destinations store, or none.
--
--     queued -take-> fanned_out -all stored or declined--> committed
--                        | one failed
--                        v
--                   rolling_back -all undone-> rejected      the client's fault: final
--                                           -> fail_queued   ours: its next attempt is due later
--                                           -> dead          its last attempt failed: a person retries it or drops it
--
-- A unit is leased: `due_at` is the end of the lease, and `lease` changes with each take. Only its holder gives a verdict.
-- Written by the container, and by a person with `container units`. A unit stays as long as its file, and as its outcome may be
-- asked for (CONTAINER_KEEP_UNITS). A dead one stays until a person has decided. Deleted by the container.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS units (
    uow             BIGINT       GENERATED BY DEFAULT AS IDENTITY,
    -- The key under which destinations store. It is random: after Postgres was put back, a number comes again, and what a
    -- destination has kept of the earlier unit would pass for the new one.
    unit_key        UUID         NOT NULL,
    resource        VARCHAR(100) NOT NULL,
    -- The thing that the unit is about, such as the id of a ride. Units about one thing are stored beside each other.
    subject         VARCHAR(200) NOT NULL,
    state           VARCHAR(12)  NOT NULL DEFAULT 'queued',
    -- From 1 on. Destinations store under the key and the attempt.
    attempt         INT          NOT NULL DEFAULT 1,
    -- How often the attempt was taken up. It is given up if it has ended the process too often.
    take_count      INT          NOT NULL DEFAULT 0,
    due_at          TIMESTAMPTZ  NOT NULL DEFAULT now(),
    lease           BIGINT       NOT NULL DEFAULT 0,
    -- The status and the reason of the newest verdict. NULL: there was none.
    status          SMALLINT,
    error           VARCHAR(1000),
    spool_id        UUID         NOT NULL,
    -- The name of the file in the spool. Who inserts it first has the file.
    spool_name      VARCHAR(100) NOT NULL,
    idempotency_key VARCHAR(255),
    -- Of the decoded parts: the text between the parts of a body is random.
    content_hash    BYTEA        NOT NULL,
    traceparent     w3c_traceparent,
    created_at      TIMESTAMPTZ  NOT NULL DEFAULT now(),
    -- NULL: no final verdict yet.
    settled_at      TIMESTAMPTZ,
    -- When the file was seen to be gone. Only then may the row be deleted: else the file would be taken up as a new unit.
    file_gone_at    TIMESTAMPTZ,

    CONSTRAINT units_pkey PRIMARY KEY (uow),
    CONSTRAINT units_unit_key_key UNIQUE (unit_key),
    CONSTRAINT units_spool_name_key UNIQUE (spool_name),
    CONSTRAINT units_spool_fkey FOREIGN KEY (spool_id) REFERENCES spools ON DELETE RESTRICT,
    CONSTRAINT units_state_known CHECK (state IN (
        'queued', 'fanned_out', 'rolling_back', 'fail_queued', 'dead', 'committed', 'rejected', 'dropped')),
    -- C2: what is final has the time of its verdict.
    CONSTRAINT units_final_is_settled CHECK ((state IN ('committed', 'rejected', 'dropped')) = (settled_at IS NOT NULL)),
    CONSTRAINT units_attempt_positive CHECK (attempt > 0)
);

DO $$ BEGIN
    IF to_regclass('units_due') IS NULL THEN
        CREATE INDEX units_due ON units (due_at) WHERE state IN ('queued', 'fanned_out', 'rolling_back', 'fail_queued');
    END IF;
    IF to_regclass('units_idempotency_key') IS NULL THEN
        CREATE UNIQUE INDEX units_idempotency_key ON units (resource, idempotency_key) WHERE idempotency_key IS NOT NULL;
    END IF;
    -- The files that are still there, and those that a person has to look after.
    IF to_regclass('units_file') IS NULL THEN
        CREATE INDEX units_file ON units (spool_id, settled_at) WHERE file_gone_at IS NULL;
    END IF;
    IF to_regclass('units_dead') IS NULL THEN
        CREATE INDEX units_dead ON units (uow) WHERE state = 'dead';
    END IF;
    -- The rows that may go when they are old enough.
    IF to_regclass('units_old') IS NULL THEN
        CREATE INDEX units_old ON units (settled_at) WHERE file_gone_at IS NOT NULL;
    END IF;
END $$;

-- C1: a unit that is not settled would be forgotten, and a file without a row would be taken up as a new unit.
CREATE OR REPLACE FUNCTION refuse_delete_of_units() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'unit % stays until it is settled and its file is gone', OLD.uow;
END $$;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'units'::regclass AND tgname = 'units_stay') THEN
        CREATE TRIGGER units_stay BEFORE DELETE ON units FOR EACH ROW
            WHEN (OLD.settled_at IS NULL OR OLD.file_gone_at IS NULL) EXECUTE FUNCTION refuse_delete_of_units();
    END IF;
END $$;

-- A person who drops a unit gives a verdict, and may write no record. So this runs under the rights of the tables' owner.
CREATE OR REPLACE FUNCTION record_dropped_units() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO staged_log_records (partition, object, action, data, traceparent)
    VALUES (partition_of(NEW.resource || '/' || NEW.subject), 'unit', 'dropped', json_build_object('uow', NEW.uow, 'resource', NEW.resource, 'subject', NEW.subject,
                'attempt', NEW.attempt, 'status', NEW.status, 'error', NEW.error), NEW.traceparent);
    RETURN NULL;
END $$;

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'units'::regclass AND tgname = 'units_drops_recorded') THEN
        CREATE TRIGGER units_drops_recorded AFTER UPDATE OF state ON units FOR EACH ROW
            WHEN (NEW.state = 'dropped' AND OLD.state <> 'dropped') EXECUTE FUNCTION record_dropped_units();
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The destinations of each unit, as they were configured when the unit was accepted, and the outcome of the newest attempt.
-- Written and read by the container.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS unit_parts (
    uow         BIGINT       NOT NULL,
    destination VARCHAR(100) NOT NULL,
    state       VARCHAR(10)  NOT NULL DEFAULT 'pending',
    -- The attempts in which it may have been begun: each is undone unless the unit commits.
    attempts    INT          NOT NULL DEFAULT 0,
    status      SMALLINT,
    error       VARCHAR(1000),

    CONSTRAINT unit_parts_pkey PRIMARY KEY (uow, destination),
    CONSTRAINT unit_parts_unit_fkey FOREIGN KEY (uow) REFERENCES units ON DELETE CASCADE,
    CONSTRAINT unit_parts_state_known CHECK (state IN (
        'pending', 'declined', 'stored', 'failed_4xx', 'failed_5xx', 'timed_out', 'undone'))
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The report: the outcome of each part in each attempt that failed.
-- Written and read by the container.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS unit_reports (
    uow         BIGINT       NOT NULL,
    attempt     INT          NOT NULL,
    destination VARCHAR(100) NOT NULL,
    state       VARCHAR(10)  NOT NULL,
    status      SMALLINT,
    error       VARCHAR(1000),
    created_at  TIMESTAMPTZ  NOT NULL DEFAULT now(),

    CONSTRAINT unit_reports_pkey PRIMARY KEY (uow, attempt, destination),
    CONSTRAINT unit_reports_unit_fkey FOREIGN KEY (uow) REFERENCES units ON DELETE CASCADE
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The destinations that units were accepted for, each with its breaker, which all containers share.
-- Written and read by the container.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS destinations (
    name          VARCHAR(100) NOT NULL,
    -- Of where it is. If it changes while parts of units are open, their undo would go to another place.
    fingerprint   BYTEA        NOT NULL,
    -- Failures in a row.
    failure_count INT          NOT NULL DEFAULT 0,
    -- The breaker is open until then, and no unit that needs the destination is begun. NULL: it is closed.
    open_until    TIMESTAMPTZ,
    -- The unit that goes first after an outage.
    canary        BIGINT,

    CONSTRAINT destinations_pkey PRIMARY KEY (name)
);

-- ---------------------------------------------------------------------------------------------------------------------
-- The manifests of rides: the destination `rows` of the demo. A row is written by the transaction that gives the verdict, so
-- it needs no undo. The newest of a ride is the one that counts. It stays when the row of its unit goes.
-- Written by the container. Read by it and by people.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS manifests (
    uow     BIGINT       NOT NULL,
    subject VARCHAR(200) NOT NULL,
    data    JSONB        NOT NULL,

    CONSTRAINT manifests_pkey PRIMARY KEY (uow)
);

DO $$ BEGIN
    IF to_regclass('manifests_newest') IS NULL THEN
        CREATE INDEX manifests_newest ON manifests (subject, uow);
        BEGIN
            -- It takes half the time of pglz for documents of 10 kB.
            ALTER TABLE manifests ALTER COLUMN data SET COMPRESSION lz4;
        EXCEPTION WHEN feature_not_supported THEN
            NULL;  -- This build of Postgres lacks it.
        END;
    END IF;
END $$;

-- >>> log.sql
-- ---------------------------------------------------------------------------------------------------------------------
-- Upgrades of older databases. Each adds columns without reading the rows of a large table. If the columns exist, it takes
-- no lock.
-- ---------------------------------------------------------------------------------------------------------------------
DO $$ BEGIN
    -- From before version 0.1 had a baseline.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'checkpoints'::regclass AND attname = 'generation') THEN
        ALTER TABLE checkpoints ADD COLUMN is_baseline BOOLEAN NOT NULL DEFAULT false;
        ALTER TABLE checkpoints ADD COLUMN generation  BIGINT  NOT NULL DEFAULT 0;
    END IF;
    -- From before `dead-letters drop`.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'dead_letters'::regclass AND attname = 'dropped_at') THEN
        ALTER TABLE dead_letters ADD COLUMN dropped_at TIMESTAMPTZ;
    END IF;
    -- From before version 4. A column of the domain's type would make Postgres read all rows. So the column is TEXT, with
    -- the condition of the domain as a CHECK. NOT VALID: Postgres does not check the rows that exist, which have no trace.
    -- In such a table the VARCHAR columns are TEXT columns with CHECKs, and stay so.
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'staged_log_records'::regclass AND attname = 'traceparent') THEN
        ALTER TABLE staged_log_records ADD COLUMN traceparent TEXT;
        EXECUTE (SELECT format('ALTER TABLE staged_log_records ADD CONSTRAINT %I %s NOT VALID', conname,
                               regexp_replace(pg_get_constraintdef(oid), '\mVALUE\M', 'traceparent', 'g'))
                 FROM pg_constraint WHERE contypid = 'w3c_traceparent'::regtype);
    END IF;
    -- From before version 5. Consumers of older versions go on until their next connection, and leave these columns alone.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'checkpoints'::regclass AND attname = 'fold') THEN
        ALTER TABLE checkpoints ADD COLUMN fold VARCHAR(100), ADD COLUMN fold_version INT, ADD COLUMN state fold_state,
            ALTER COLUMN generation SET DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    END IF;
    -- From before version 6.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'log_batches'::regclass AND attname = 'skip_ids') THEN
        ALTER TABLE log_batches ADD COLUMN skip_ids BIGINT[], ADD COLUMN last_id BIGINT;
    END IF;
    -- From before version 7.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'log_identity'::regclass AND attname = 'log_id') THEN
        ALTER TABLE log_identity ADD COLUMN log_id VARCHAR(12);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'checkpoints'::regclass AND attname = 'told_token') THEN
        ALTER TABLE checkpoints ADD COLUMN told_token BIGINT;
    END IF;
END $$;
-- <<< log.sql

DO $$ BEGIN
    -- From before version 6. The index takes a second per million bookings, in which no ride is booked.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'bookings'::regclass AND attname = 'charge_form') THEN
        ALTER TABLE bookings ADD COLUMN charge_form JSON, ADD CONSTRAINT bookings_charge_key_key UNIQUE (charge_key);
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The total distance of all rides, as each consumer with the fold `distance` has derived it: its state in checkpoints, in
-- columns. Read by the api, the dashboard and people. It cannot be written: a view over two sources is not updatable.
-- ---------------------------------------------------------------------------------------------------------------------
-- The number in a text; NULL if the text is no whole number of 64 bits.
CREATE OR REPLACE FUNCTION bigint_or_null(number TEXT) RETURNS BIGINT LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN number ~ '^-?[0-9]{1,19}$' AND number::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
                THEN number::bigint END
$$;

DO $$
DECLARE
    grantee TEXT;
    readers TEXT[];
BEGIN
    -- Before version 5 this was a table. The lock waits for open transactions of consumers, and after it no consumer of an
    -- older version can commit: its statement fails, because a view cannot be updated. Start all consumers again.
    IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('consumer_states') AND relkind = 'r') THEN
        LOCK TABLE checkpoints, consumer_states IN ACCESS EXCLUSIVE MODE;
        UPDATE checkpoints AS c SET fold = 'distance', fold_version = 1, state = json_build_object(
            'total_distance_mm', s.total_distance_mm, 'ride_count', s.ride_count, 'digest', s.digest::text)
        FROM consumer_states AS s WHERE s.name = c.name AND s.partition = c.partition;
        readers := ARRAY(SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
                         FROM pg_class, aclexplode(relacl) AS acl
                         WHERE oid = 'consumer_states'::regclass AND acl.privilege_type = 'SELECT');
        DROP TABLE consumer_states;
    END IF;
    IF to_regclass('consumer_states') IS NULL THEN
        CREATE VIEW consumer_states AS
        SELECT c.name::text AS name, c.partition, s.total_distance_mm, s.ride_count, s.digest
        FROM checkpoints AS c, LATERAL (
            SELECT bigint_or_null(plain.state->>'total_distance_mm') AS total_distance_mm,
                   bigint_or_null(plain.state->>'ride_count') AS ride_count,
                   -- Shows whether two consumers at the same offset have applied the same rides (I9). It is the wrapping
                   -- sum, over these rides, of a 64-bit mix of (offset, ride id, distance_mm). A missing, doubled or
                   -- different ride changes it. Because it is a sum, a dead letter that is replayed later counts as if it
                   -- had been applied in its place. 0: no ride.
                   bigint_or_null(plain.state->>'digest') AS digest
            -- The fold writes no backslash. Postgres stores a JSON value with \u0000, but cannot read any key of it.
            FROM (SELECT CASE WHEN strpos(c.state::text, E'\\') = 0 THEN c.state END AS state) AS plain) AS s
        -- A state that another program has spoiled is left out, so that the others can be read.
        WHERE c.fold = 'distance' AND num_nulls(s.total_distance_mm, s.ride_count, s.digest) = 0;
    END IF;
    FOREACH grantee IN ARRAY COALESCE(readers, '{}') LOOP
        EXECUTE format('GRANT SELECT ON consumer_states TO %s', grantee);
    END LOOP;
END $$;

-- >>> log.sql

-- If the table has a row, the log came from a dump or was here before. A second row would hide where it came from.
INSERT INTO log_identity (system_identifier, schema_version, log_id)
SELECT system_identifier, 7, CASE WHEN current_setting('rocket_rides.partitions', true) <> ''
                                  THEN left(md5(gen_random_uuid()::text), 12) END
FROM pg_control_system() WHERE NOT EXISTS (SELECT FROM log_identity);

-- The key of a partition's stream in Redis, for readers in other languages. The processes compute the same. Logs without an id name
-- the first stream as they are told, and the others with their number. In the others the number between the braces decides on which
-- node of a Redis Cluster the stream is: however many of the nodes and of the first partitions there are, each node has about as
-- many. Partition p has the smallest number whose slot is in the middle quarter of the range b * 256 … b * 256 + 255, where b is p
-- with its six bits reversed.
CREATE OR REPLACE FUNCTION stream_key(of_partition INT DEFAULT 0, stream_name TEXT DEFAULT 'rocket-rides-log')
RETURNS TEXT LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT CASE WHEN log_id IS NOT NULL
                THEN format('%s:%s:{%s}', stream_name, log_id, (ARRAY[
                    14, 712, 109, 13, 175, 203, 68, 172, 29, 133, 134, 242, 148, 52, 55, 753,
                    117, 261, 266, 110, 76, 770, 777, 71, 736, 1, 6, 731, 227, 151, 156, 220,
                    270, 106, 101, 277, 761, 67, 60, 766, 21, 727, 720, 26, 140, 236, 231, 147,
                    703, 269, 343, 118, 212, 164, 163, 79, 122, 9, 253, 125, 43, 159, 742, 44
                ])[of_partition + 1])
                WHEN of_partition = 0 THEN stream_name
                ELSE format('%s:{%s}', stream_name, of_partition) END
    FROM log_identity
$$;

-- The version never goes down: an old copy of this file drops nothing that a newer one has made.
UPDATE log_identity SET schema_version = 7 WHERE schema_version < 7;

COMMIT;
-- <<< log.sql
