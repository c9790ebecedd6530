-- The table of the example `ledger`, in a database of its own: how many passengers each ride has.
--
--     psql "$LEDGER_DATABASE_URL" -f processes/container/examples/ledger/ledger.sql

-- One row per attempt of a unit. `is_undone` only ever becomes true: that is the register of the contract. A row that was undone
-- is a tombstone, without contents.
CREATE TABLE IF NOT EXISTS passenger_ledger (
    key uuid NOT NULL,
    attempt integer NOT NULL,
    uow bigint NOT NULL,
    ride text NOT NULL,
    passenger_count bigint,
    is_undone boolean NOT NULL DEFAULT false,
    CONSTRAINT passenger_ledger_pkey PRIMARY KEY (key, attempt),
    CONSTRAINT passenger_ledger_has_contents CHECK (is_undone = (passenger_count IS NULL))
);

-- The newest arrival counts, as everywhere in the container. A reader may see a part before its unit is committed.
CREATE OR REPLACE VIEW passengers AS
SELECT DISTINCT ON (ride) ride, uow, passenger_count FROM passenger_ledger WHERE NOT is_undone ORDER BY ride, uow DESC;
