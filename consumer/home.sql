-- The tables of consumers that keep their state in a database of their own, and no others. Such a consumer is a part of another
-- service: it reads the log, and commits its checkpoint and what it derives in the service's own Postgres.
--
--     psql "$STATE_DATABASE_URL" -f consumer/home.sql
--     STATE_DATABASE_URL=… DATABASE_URL=… REDIS_URL=… consumer NAME
--
-- Apply this file as often as you like. It needs PostgreSQL 14 or newer. The log's own database has tables of the same names:
-- this file refuses it.

-- psql stops at the first error. Other clients leave this line out.
-- >>> psql
\set ON_ERROR_STOP on
-- <<< psql
BEGIN ISOLATION LEVEL READ COMMITTED;

DO $$ BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'the database has the encoding %, and consumers need UTF8', getdatabaseencoding()
        USING HINT = 'Use a database that was made by CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0.';
    END IF;
END $$;

-- Two sessions that apply the file at once take turns.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(7306930025); END $$;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '5s';
DO $$ BEGIN PERFORM set_config('search_path', format('%I, pg_temp', current_schema()), true); END $$;

DO $$ BEGIN
    IF to_regclass('log_batches') IS NOT NULL THEN
        RAISE EXCEPTION 'this schema has a log: its consumers keep their states in its own tables'
        USING HINT = 'Leave STATE_DATABASE_URL out, or use another database or schema.';
    END IF;
    IF to_regtype('fold_state') IS NULL THEN
        -- The limit keeps the state inside its row.
        CREATE DOMAIN fold_state AS JSON CONSTRAINT checkpoints_state_size CHECK (octet_length(VALUE::text) <= 1500);
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------------
-- The progress of each consumer in each partition of the log, and the state that it has derived. One UPDATE moves both (I5).
-- Written and deleted by each consumer under its name.
-- ---------------------------------------------------------------------------------------------------------------------
CREATE TABLE IF NOT EXISTS checkpoints (
    name            VARCHAR(100) NOT NULL,
    partition       INT         NOT NULL,
    -- The state reflects the records 1 … last_offset, each of them once, and no others (I4). 0: no record yet.
    last_offset     BIGINT      NOT NULL,
    -- The token of the batch with the record at last_offset: with another one there, the log was put back to an older state.
    -- 0: not known, because the record was read from the history, or there is none.
    token           BIGINT      NOT NULL,
    -- Counters for people. No program decides anything by them.
    duplicate_count BIGINT      NOT NULL DEFAULT 0,
    healed_count    BIGINT      NOT NULL DEFAULT 0,
    rejected_count  BIGINT      NOT NULL DEFAULT 0,
    crash_count     BIGINT      NOT NULL DEFAULT 0,
    -- Rises with each change of the state that does not move the checkpoint (a dead letter that was replayed). It begins with the
    -- time, so that a process cannot take a new registration of its name for its own.
    generation      BIGINT      NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    updated_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The fold that derives the state, and its version. A program with another fold refuses to go on with the row.
    fold            VARCHAR(100) NOT NULL,
    fold_version    INT         NOT NULL,
    -- The state at last_offset, as the fold writes it. NULL: the fold writes rows into a table of its own.
    state           fold_state,

    CONSTRAINT checkpoints_pkey PRIMARY KEY (name, partition),
    CONSTRAINT checkpoints_last_offset_not_negative CHECK (last_offset >= 0)
) WITH (fillfactor = 50);  -- few rows, which are updated all day: leave room in each page for the new row versions

-- ---------------------------------------------------------------------------------------------------------------------
-- Records that a consumer could not apply and will never be able to, kept for a person.
-- Written by the consumer, in the transaction that passes the record. Deleted when the record is replayed.
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
    -- A person has decided that the record is not to be applied. NULL: no person has decided yet.
    dropped_at    TIMESTAMPTZ,

    CONSTRAINT dead_letters_pkey PRIMARY KEY (name, partition, record_offset),
    CONSTRAINT dead_letters_checkpoint_fkey FOREIGN KEY (name, partition) REFERENCES checkpoints ON DELETE CASCADE
);

COMMIT;
