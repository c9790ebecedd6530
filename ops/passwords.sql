-- Gives every role of roles.sql the password in the environment's ROLE_PASSWORD. For psql 15 or newer. compose.yaml uses
-- it; where each role has a password of its own, see docs/SECURITY.md.
\set ON_ERROR_STOP on
\getenv password ROLE_PASSWORD
SELECT format('ALTER ROLE %I PASSWORD %L', rolname, :'password') FROM pg_roles
WHERE rolname LIKE 'rocket\_%'
\gexec
