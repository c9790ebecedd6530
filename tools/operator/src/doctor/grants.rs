//! The privileges that `roles.sql` grants, read from its text. So the doctor asks for exactly these, and no second list has
//! to be kept.

use anyhow::{Context, Result};

const ROLES: &str = include_str!("../../../../ops/roles.sql");

/// One privilege that a role is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    /// The role, for example `rocket_api`.
    pub role: String,
    /// `SELECT`, `INSERT`, `UPDATE`, `DELETE`, `EXECUTE` or `USAGE`.
    pub privilege: String,
    /// The object of the privilege.
    pub target: Target,
}

/// The object of a privilege.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A whole table.
    Table(String),
    /// A column of a table.
    Column {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// The schema of the tables.
    Schema,
    /// A function, whose name belongs to no other function.
    Function(String),
    /// Every table of that schema.
    AllTables,
}

/// Every privilege that `roles.sql` grants.
///
/// # Errors
/// A GRANT statement has a form that this parser does not know. A test reads the file, so this is found before a release.
pub(super) fn grants_of_roles() -> Result<Vec<Grant>> {
    let mut grants = Vec::new();
    for statement in grant_statements(ROLES) {
        grants.extend(parse_grant(&statement).with_context(|| format!("roles.sql: cannot read \"{statement}\""))?);
    }
    Ok(grants)
}

/// The statements that begin with GRANT, without comments and line breaks. If the schema is known at run time only, the
/// statement is a literal: `EXECUTE format('GRANT … ON SCHEMA %I TO …', current_schema())`.
fn grant_statements(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().filter_map(|line| line.split("--").next()).collect();
    lines
        .join(" ")
        .split(';')
        .map(|statement| statement.split_whitespace().collect::<Vec<_>>().join(" "))
        .map(|statement| match statement.split_once("EXECUTE format('") {
            Some((_, literal)) => literal.split('\'').next().unwrap_or_default().to_owned(),
            None => statement,
        })
        .filter(|statement| statement.starts_with("GRANT "))
        .collect()
}

/// `GRANT SELECT, INSERT (a, b) ON t, u TO r, s`: one [`Grant`] per privilege or column, object and role.
fn parse_grant(statement: &str) -> Option<Vec<Grant>> {
    let (privileges, rest) = statement.strip_prefix("GRANT ")?.split_once(" ON ")?;
    let (objects, roles) = rest.split_once(" TO ")?;
    let mut grants = Vec::new();
    for privilege in split_list(privileges) {
        let (privilege, columns) = split_columns(privilege)?;
        for object in split_list(objects) {
            for target in parse_targets(privilege, columns, object)? {
                for role in split_list(roles) {
                    let (privilege, target) = (privilege.to_owned(), target.clone());
                    grants.push(Grant { role: parse_name(role)?, privilege, target });
                }
            }
        }
    }
    Some(grants)
}

/// `SELECT (a, b)` is `SELECT` and `a, b`; `SELECT` has no columns.
fn split_columns(privilege: &str) -> Option<(&str, Option<&str>)> {
    match privilege.split_once(" (") {
        None => Some((privilege, None)),
        Some((privilege, columns)) => Some((privilege, Some(columns.strip_suffix(')')?))),
    }
}

/// The targets in `object` of a privilege with these columns. `None` if the parser does not know this combination.
fn parse_targets(privilege: &str, columns: Option<&str>, object: &str) -> Option<Vec<Target>> {
    match (privilege, columns) {
        ("USAGE", None) => (object == "SCHEMA %I").then(|| vec![Target::Schema]),
        ("EXECUTE", None) => Some(vec![Target::Function(parse_name(object.strip_prefix("FUNCTION ")?)?)]),
        ("SELECT" | "INSERT" | "UPDATE" | "DELETE", None) => Some(vec![match object {
            "ALL TABLES IN SCHEMA %I" => Target::AllTables,
            table => Target::Table(parse_name(table)?),
        }]),
        ("SELECT" | "INSERT" | "UPDATE", Some(columns)) => {
            let table = parse_name(object)?;
            split_list(columns)
                .into_iter()
                .map(|column| Some(Target::Column { table: table.clone(), column: parse_name(column)? }))
                .collect()
        }
        _ => None,
    }
}

/// Splits at the commas outside of parentheses.
fn split_list(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
    .map(str::trim)
    .collect()
}

/// A plain name: lower-case letters, digits and underscores.
fn parse_name(text: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (!text.is_empty() && text.chars().all(is_plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grant_of_roles_sql_is_read() {
        let code: String =
            ROLES.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
        // A membership is granted in a DO block, because it may be refused. It is no privilege that the doctor asks for.
        let code = code.replacen("GRANT pg_read_all_stats", "", 1);
        let word_count = code.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| *word == "GRANT").count();
        assert_eq!(grant_statements(ROLES).len(), word_count, "a GRANT stands inside another statement");
        assert!(word_count > 30, "{word_count}");
        grants_of_roles().unwrap();
    }

    #[test]
    fn columns_tables_and_roles_are_told_apart() {
        let [statement] =
            &grant_statements("GRANT SELECT, -- all\n  UPDATE (a, b) ON t TO r, s; REVOKE ALL ON t FROM r;")[..]
        else {
            panic!("one statement");
        };
        let read: Vec<String> = parse_grant(statement)
            .unwrap()
            .into_iter()
            .map(|Grant { role, privilege, target }| format!("{role} {privilege} {target:?}"))
            .collect();
        let column =
            |role: &str, column: &str| format!("{role} UPDATE Column {{ table: \"t\", column: \"{column}\" }}");
        let table = |role: &str| format!("{role} SELECT Table(\"t\")");
        let wanted = [table("r"), table("s"), column("r", "a"), column("s", "a"), column("r", "b"), column("s", "b")];
        assert_eq!(read, wanted);
    }

    #[test]
    fn a_grant_in_another_form_is_refused() {
        for statement in [
            "GRANT rocket_api TO rocket_operator",
            "GRANT SELECT ON t TO r WITH GRANT OPTION",
            "GRANT EXECUTE ON FUNCTION f() TO r",
            "GRANT DELETE (a) ON t TO r",
            "GRANT ALL ON t TO r",
            "GRANT SELECT ON TABLE t TO r",
            "GRANT SELECT ON t, TO r",
        ] {
            assert_eq!(parse_grant(statement), None, "{statement}");
        }
    }
}
