-- The table of the example balances. Its owner makes it, because consumers create nothing; they only write to it.
CREATE TABLE IF NOT EXISTS wallet_balances (
    -- Two consumers of different names each keep the whole: without the name they would add up.
    consumer  TEXT NOT NULL,
    wallet_id BIGINT NOT NULL,
    -- Without bounds: a sum that did not fit would fail at every try, and hold the consumer up for ever.
    balance   NUMERIC NOT NULL,
    PRIMARY KEY (consumer, wallet_id)
);
GRANT SELECT, INSERT, UPDATE ON wallet_balances TO rocket_consumer;
