-- The table of lengths.py. Its owner makes it, because consumers create nothing; they only write to it.
CREATE TABLE IF NOT EXISTS ride_lengths (
    name       TEXT   NOT NULL,
    partition  INT    NOT NULL DEFAULT 0,
    -- The length, rounded down to 100 m.
    metres     BIGINT NOT NULL,
    ride_count BIGINT NOT NULL,

    PRIMARY KEY (name, partition, metres),
    -- `lengths.py NAME --unregister` deletes the registration, and Postgres the counts with it.
    FOREIGN KEY (name, partition) REFERENCES checkpoints ON DELETE CASCADE
);
-- The operator replays dead letters.
GRANT SELECT, INSERT, UPDATE ON ride_lengths TO rocket_consumer, rocket_operator;
