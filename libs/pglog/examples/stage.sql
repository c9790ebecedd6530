-- The table of the example stage. It stands for the tables of a service, beside the log's tables of log.sql.
CREATE TABLE IF NOT EXISTS accounts (
    id      BIGINT PRIMARY KEY,
    balance BIGINT NOT NULL CHECK (balance >= 0)
);
