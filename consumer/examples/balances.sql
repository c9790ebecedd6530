-- The table of the example balances. Its owner makes it, because consumers create nothing; they only write to it.
CREATE TABLE IF NOT EXISTS account_balances (
    -- Each consumer has balances of its own. Without the name, two consumers would add each credit twice.
    name      TEXT   NOT NULL,
    partition INT    NOT NULL,
    account_id BIGINT NOT NULL,
    -- Without bounds: a sum that did not fit would fail at every try, and hold the consumer up for ever.
    balance   NUMERIC NOT NULL,

    PRIMARY KEY (name, partition, account_id),
    -- `balances NAME --unregister` deletes the registration, and Postgres the balances with it.
    FOREIGN KEY (name, partition) REFERENCES checkpoints ON DELETE CASCADE
);
-- In the log's own database. The operator replays dead letters. A database of your own has roles of its own.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'rocket_consumer') THEN
        GRANT SELECT, INSERT, UPDATE ON account_balances TO rocket_consumer, rocket_operator;
    END IF;
END $$;
