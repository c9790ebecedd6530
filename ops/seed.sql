-- Two users for development and tests. Apply it as often as you like: psql "$DATABASE_URL" -f ops/seed.sql
-- Their customers exist in the process payments; in production the payment processor creates customers.
INSERT INTO users (id, email, stripe_customer_id)
VALUES (1, 'user@example.com', 'cus_good'),
       -- Every charge of this customer is declined.
       (2, 'user-bad-source@example.com', 'cus_bad')
ON CONFLICT (id) DO UPDATE SET email = excluded.email, stripe_customer_id = excluded.stripe_customer_id;

SELECT setval(pg_get_serial_sequence('users', 'id'), max(id)) FROM users;
