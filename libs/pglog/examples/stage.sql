-- The table of the example stage: somebody's own, beside those of schema.sql.
CREATE TABLE IF NOT EXISTS wallets (
    id      BIGINT PRIMARY KEY,
    balance BIGINT NOT NULL CHECK (balance >= 0)
);
