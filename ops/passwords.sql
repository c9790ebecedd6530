-- Gives every role of roles.sql the same password: that of the environment variable ROLE_PASSWORD. It needs psql 15 or
-- newer. compose.yaml uses it. docs/SECURITY.md says how to give each role a password of its own.
\set ON_ERROR_STOP on
\getenv password ROLE_PASSWORD
SELECT format('ALTER ROLE %I PASSWORD %L', rolname, :'password') FROM pg_roles
WHERE rolname LIKE 'rocket\_%'
\gexec
