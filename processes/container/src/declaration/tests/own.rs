//! Tests: kinds that a program adds.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{SECRET, complaint, env, small};
use crate::declaration::*;
use crate::destination::{Outcome, Refusal, Unit, UnitRef};

/// A kind of a program, with keys of its own.
const LEDGER: OwnKind = OwnKind {
    name: "ledger",
    make: |settings| {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keys {
            path: String,
            lines_max: u16,
            #[serde(default)]
            mode: Option<Mode>,
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Mode {
            Fast,
        }
        struct Nowhere;
        impl crate::destination::Destination for Nowhere {
            fn store<'a>(&'a self, _: &'a Unit) -> BoxFuture<'a, Outcome> {
                Box::pin(async { Outcome::Declined })
            }
            fn undo<'a>(&'a self, _: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
                Box::pin(async { Ok(()) })
            }
            fn forget<'a>(&'a self, _: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
                Box::pin(async { Ok(()) })
            }
        }
        let Keys { path, lines_max, mode } = settings.read()?;
        if lines_max == 0 {
            return Err(SettingsError::new("`lines_max` is 0: give a greater number"));
        }
        let mode = mode.map_or("", |Mode::Fast| ", fast");
        Ok(Own { place: format!("{path}{mode}"), destination: Arc::new(Nowhere) })
    },
};

fn parse_with_ledger(text: &str) -> Result<Declaration, Complaint> {
    Declaration::parse(Path::new("container.toml"), text, &[LEDGER], &env)
}

#[test]
fn a_kind_of_the_program_is_declared_as_the_others() {
    let text = small("kind = 'ledger'\npath = '${CONTAINER_DATA}/l'\nlines_max = 5\ntime_out = '2s'");
    let ledger = &parse_with_ledger(&text).unwrap().destinations["x"];
    assert_eq!(ledger.to_string(), "destination x: ledger at /srv/container/l, 16 at once, time-out 2s");
    let moved = parse_with_ledger(&text.replace("/l'", "/m'")).unwrap().destinations["x"].fingerprint();
    assert_ne!(ledger.fingerprint(), moved);
    let longer = parse_with_ledger(&text.replace("= 5", "= 6")).unwrap().destinations["x"].fingerprint();
    assert_eq!(ledger.fingerprint(), longer, "only the place is part of it");
    assert!(complaint(&text).contains("the kind \"ledger\" is unknown to this program"));
    // The kinds of the container keep their own checks.
    let rows = parse_with_ledger(&small("kind = 'rows'\ntable = 't'\npath = 'p'")).unwrap_err();
    assert!(rows.lines()[0].starts_with("container.toml:9: unknown field `path`"), "{rows}");
}

/// Each row: the lines of a destination, the line of the complaint, and the complaint. The destination begins on line 6.
#[test]
fn a_fault_in_a_kind_of_the_program_is_refused_with_its_line() {
    for (more, line, fault) in [
        (
            "path = 'p'\nlines_max = 5\ntable = 't'",
            10,
            "unknown field `table`, expected one of `path`, `lines_max`, `mode`",
        ),
        ("path = 'p'", 6, "missing field `lines_max`: add it"),
        ("path = 5\nlines_max = 5", 8, "invalid type: integer `5`, expected a string"),
        ("path = 'p'\nlines_max = 0", 6, "`lines_max` is 0: give a greater number"),
        ("path = '${MISSING}'\nlines_max = 0", 8, "the variable MISSING is not set: set it in the environment"),
        ("path = 'p'\nlines_max = 5\nconcurrency = 0", 10, "`concurrency` is 0"),
        ("path = 'p'\nlines_max = 5\nretired = true", 5, "no destination would store a new unit"),
        ("path = 'p'\nlines_max = '${NOTICES_SECRET}'", 9, "invalid type: string \"${NOTICES_SECRET}\""),
        ("path = 'p'\nlines_max = 5\nmode = '${NOTICES_SECRET}'", 10, "unknown variant `${NOTICES_SECRET}`"),
    ] {
        let complaint = parse_with_ledger(&small(&format!("kind = 'ledger'\n{more}"))).unwrap_err();
        let told = complaint.lines().join("\n");
        assert!(told.starts_with(&format!("container.toml:{line}: {fault}")), "{more}: {told}");
        assert!(!told.contains(SECRET), "{told}");
    }
}
