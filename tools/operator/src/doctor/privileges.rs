//! Whether the role that connects has the privileges that a process needs: those that `roles.sql` grants.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Result, ensure};
use deadpool_postgres::ClientWrapper as Client;

use super::finding::Finding;
use super::grants::{Target, grants_of_roles};

/// A process that connects to Postgres, for example `reaper`. Its role in `roles.sql` is `rocket_` and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role(String);

impl Role {
    /// Every process that has a role in `roles.sql`. The role that may use all tables belongs to a person.
    fn all() -> Result<Vec<Self>> {
        let grants = grants_of_roles()?;
        let is_person = |role: &str| grants.iter().any(|grant| grant.role == role && grant.target == Target::AllTables);
        let roles: BTreeSet<&str> = grants.iter().map(|grant| grant.role.as_str()).collect();
        let processes =
            roles.into_iter().filter(|role| !is_person(role)).filter_map(|role| role.strip_prefix("rocket_"));
        Ok(processes.map(|name| Self(name.to_owned())).collect())
    }

    /// Its name in `roles.sql`, for example `rocket_api`.
    fn postgres_name(&self) -> String {
        format!("rocket_{}", self.0)
    }
}

impl FromStr for Role {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = Self::all()?;
        let names: Vec<&str> = all.iter().map(|role| role.0.as_str()).collect();
        ensure!(names.contains(&text), "give one of {}", names.join(", "));
        Ok(Self(text.to_owned()))
    }
}

/// The check of the privileges that a process needs; without `role`, those that all processes need.
pub(super) async fn check(client: &Client, role: Option<&Role>, findings: &mut Vec<Finding>) {
    const CHECK: &str = "postgres.privileges";
    findings.push(match missing(client, role).await {
        Err(error) => Finding::unseen(CHECK, &error),
        Ok((user, grants)) if grants.is_empty() => {
            Finding::ok(CHECK, format!("role {user} has every privilege it needs"))
        }
        Ok((user, grants)) => Finding::fail(
            CHECK,
            format!("role {user} lacks {} privileges", grants.len()),
            "the process fails as soon as it needs one of them",
            grants.join("; "),
        ),
    });
}

/// Privileges that a process needs, as columns of text for Postgres.
#[derive(Debug, Default)]
struct Needs {
    table_privileges: Vec<String>,
    tables: Vec<String>,
    column_privileges: Vec<String>,
    column_tables: Vec<String>,
    columns: Vec<String>,
    is_schema_used: bool,
    functions: Vec<String>,
}

impl Needs {
    /// Those of one process, or of all.
    fn of(role: Option<&Role>) -> Result<Self> {
        let roles = role.map_or_else(Role::all, |role| Ok(vec![role.clone()]))?;
        let names: Vec<String> = roles.iter().map(Role::postgres_name).collect();
        let mut needs = Self::default();
        for grant in grants_of_roles()?.into_iter().filter(|grant| names.contains(&grant.role)) {
            match grant.target {
                Target::Table(table) => {
                    needs.table_privileges.push(grant.privilege);
                    needs.tables.push(table);
                }
                Target::Column { table, column } => {
                    needs.column_privileges.push(grant.privilege);
                    needs.column_tables.push(table);
                    needs.columns.push(column);
                }
                Target::Schema => needs.is_schema_used = true,
                Target::Function(function) => needs.functions.push(function),
                Target::AllTables => anyhow::bail!("roles.sql: {} may use tables that are not named", grant.role),
            }
        }
        Ok(needs)
    }

    /// Whether the process reads the log's identity. It compares it with the result of a function, which roles.sql cannot
    /// grant: only a superuser could, and PUBLIC has the privilege by default.
    fn is_identity_read(&self) -> bool {
        self.tables.iter().any(|table| table == "log_identity")
    }
}

/// The role's name, and the GRANTs it lacks. If a table or a column does not exist, the check of the log says so.
async fn missing(client: &Client, role: Option<&Role>) -> Result<(String, Vec<String>)> {
    let needs = Needs::of(role)?;
    let rows = client
        .query(
            "-- operator::doctor::missing
             SELECT format('GRANT %s ON %s TO %I', privilege, name, current_user)
             FROM unnest($1::text[], $2::text[]) AS needed (privilege, name)
             WHERE NOT has_table_privilege(to_regclass(name), privilege)
             UNION
             -- Names the columns only if the role has the privilege on others: then these were added later.
             SELECT format(CASE WHEN has_any_column_privilege(attrelid, privilege) THEN 'GRANT %1$s (%2$s) ON %3$s TO %4$I'
                                ELSE 'GRANT %1$s ON %3$s TO %4$I' END,
                           privilege, string_agg(DISTINCT attname, ', '), name, current_user)
             FROM unnest($3::text[], $4::text[], $5::text[]) AS needed (privilege, name, column_name)
             JOIN pg_attribute ON attrelid = to_regclass(name) AND attname = column_name
             WHERE NOT has_column_privilege(attrelid, attnum, privilege)
             GROUP BY attrelid, name, privilege
             UNION
             -- current_schema() leaves out a schema that the role may not use, and the path itself names it.
             SELECT format('GRANT USAGE ON SCHEMA %I TO %I', nspname, current_user) FROM (
                 SELECT pg_namespace.oid, nspname
                 FROM string_to_table(current_setting('search_path'), ',') WITH ORDINALITY AS of_path (name, place)
                 JOIN pg_namespace ON nspname = trim(both E' \\x22' FROM of_path.name)
                 JOIN pg_class ON relnamespace = pg_namespace.oid AND relname = 'log_batches'
                 ORDER BY place LIMIT 1) AS home
             WHERE $6 AND NOT has_schema_privilege(oid, 'USAGE')
             UNION
             SELECT format('GRANT EXECUTE ON FUNCTION pg_control_system() TO %I', current_user)
             WHERE $7 AND NOT has_function_privilege('pg_control_system()', 'EXECUTE')
             UNION
             SELECT format('GRANT EXECUTE ON FUNCTION %I TO %I', name, current_user) FROM unnest($8::text[]) AS needed (name)
             WHERE NOT has_function_privilege(to_regproc(name), 'EXECUTE')
             ORDER BY 1",
            &[
                &needs.table_privileges,
                &needs.tables,
                &needs.column_privileges,
                &needs.column_tables,
                &needs.columns,
                &needs.is_schema_used,
                &needs.is_identity_read(),
                &needs.functions,
            ],
        )
        .await?;
    let user = client.query_one("SELECT current_user::text", &[]).await?.get(0);
    Ok((user, rows.iter().map(|row| row.get(0)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_sql_grants_something_to_every_process() {
        let all = Role::all().unwrap();
        assert!(all.len() > 6, "{all:?}");
        for role in &all {
            let needs = Needs::of(Some(role)).unwrap();
            assert!(!needs.tables.is_empty() && needs.is_schema_used, "{role:?}: {needs:?}");
        }
        assert!(Needs::of(None).unwrap().is_identity_read());
        assert!(!Needs::of(Some(&"api".parse().unwrap())).unwrap().is_identity_read());
    }

    #[test]
    fn an_unknown_process_is_told_which_there_are() {
        let error = "rider".parse::<Role>().unwrap_err().to_string();
        assert!(
            error.starts_with("give one of api, completer, consumer, container, dashboard, ")
                && !error.contains("operator"),
            "{error}"
        );
    }
}
