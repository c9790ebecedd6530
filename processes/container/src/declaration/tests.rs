//! Tests: each fault of a declaration is refused with its line, and a sound one is read.

mod own;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

/// The declaration of the demo, from which most tests start.
const DEMO: &str = include_str!("../../../../ops/container.toml");

/// 32 bytes in base64.
const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// The variables of the tests.
fn env(name: &str) -> Option<String> {
    let value = match name {
        "CONTAINER_DATA" => "/srv/container",
        "REDIS_URL" => "redis://:hidden-password@localhost:6379/3",
        "NOTICES_PORT" => "5009",
        "NOTICES_SECRET" => SECRET,
        "SHORT_SECRET" => "whsec_c2hvcnQ=",
        "NO_BASE64" => "whsec_not base64 at all, but long enough",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<Declaration, Complaint> {
    Declaration::parse(Path::new("container.toml"), text, &[], &env)
}

/// The complaint about `text`, one fault per line.
fn complaint(text: &str) -> String {
    parse(text).expect_err(text).lines().join("\n")
}

/// The demo with `new` in place of `old`, which stands there once.
fn demo_with(old: &str, new: &str) -> String {
    assert_eq!(DEMO.matches(old).count(), 1, "{old}");
    DEMO.replace(old, new)
}

/// The number of the first line of `text` that has `part`.
fn line_of(text: &str, part: &str) -> usize {
    text.lines().position(|line| line.contains(part)).expect(part) + 1
}

/// The smallest sound declaration, with `more` lines in its destination.
fn small(more: &str) -> String {
    format!(
        "[[resource]]\nname = \"a\"\nsubject = \"id\"\ndocument = \"d\"\ndestinations = [\"x\"]\n[destination.x]\n{more}\n"
    )
}

/// The smallest sound declaration with a folder.
fn small_files(folder: &str) -> String {
    let attachment = "[[resource.attachment]]\nname = 'a'\ncontent_types = ['image/png']\n[destination.x]";
    small(&format!("kind = 'files'\nfolder = '{folder}'\ntakes = 'a'")).replace("[destination.x]", attachment)
}

#[test]
fn the_demo_is_read() {
    let declaration = parse(DEMO).unwrap();
    let expected = Resource {
        name: "manifests".to_owned(),
        subject: "ride_id".to_owned(),
        document: "manifest".to_owned(),
        reader: Some("rows".to_owned()),
        body_max: 10 * 1024 * 1024,
        destinations: ["rows", "photos", "board", "notices"].map(str::to_owned).to_vec(),
        attachments: vec![Attachment {
            name: "photo".to_owned(),
            content_types: vec!["image/jpeg".to_owned(), "image/png".to_owned()],
        }],
    };
    assert_eq!(declaration.resources, [expected]);
    let photos = &declaration.destinations["photos"];
    assert_eq!((photos.takes.as_deref(), photos.concurrency), (Some("photo"), 32));
    assert_eq!(photos.time_out, Duration::from_secs(5));
    assert!(matches!(&photos.kind, Kind::Files { folder } if folder == &PathBuf::from("/srv/container/photos")));
    assert!(matches!(&declaration.destinations["rows"].kind, Kind::Rows { table } if table == "manifests"));
    assert!(matches!(&declaration.destinations["board"].kind, Kind::Board { prefix, .. } if prefix == "container"));
    let notices = &declaration.destinations["notices"].kind;
    assert!(matches!(notices, Kind::Webhook { secret, allow_private: true, .. } if secret.expose() == SECRET));
}

#[test]
fn a_small_declaration_gets_the_defaults() {
    let declaration = parse(&small("kind = 'rows'\ntable = 't'")).unwrap();
    let (resource, x) = (&declaration.resources[0], &declaration.destinations["x"]);
    assert_eq!((resource.body_max, resource.reader.as_deref(), resource.attachments.len()), (10 << 20, None, 0));
    assert_eq!((x.takes.as_deref(), x.time_out.as_secs(), x.concurrency, x.retired), (None, 10, 16, false));
}

/// Each row: a text of the demo, its replacement, a text on the line of the complaint, and the complaint.
#[test]
fn a_fault_in_the_demo_is_refused_with_its_line() {
    let cases = [
        // The shape of the file.
        ("reader = \"rows\"", "raeder = \"rows\"", "raeder", "unknown field `raeder`, expected one of `name`"),
        ("takes = \"photo\"", "take = \"photo\"", "take =", "unknown field `take`, expected one of `kind`"),
        ("[destination.rows]", "[destinations.rows]", "[destinations", "unknown field `destinations`"),
        ("[[resource.attachment]]\nname =", "[[resource.attachment]]\nnom =", "nom =", "unknown field `nom`"),
        ("subject = \"ride_id\"", "", "[[resource]]", "missing field `subject`: add it"),
        ("kind = \"rows\"", "", "[destination.rows]", "missing field `kind`: add it"),
        ("[[resource]]", "[resource]", "[resource]", "this is a list: write its name in double brackets"),
        ("concurrency = 32\n\n# The pass", "concurrency = 'a'\n\n# The pass", "= 'a'", "invalid type: string \"a\""),
        ("allow_private = true", "allow_private = 1", "allow_private", "invalid type: integer `1`, expected a boolean"),
        ("table = \"manifests\"", "table = \"manifests", "table = ", "invalid basic string"),
        // Doubles.
        ("table = \"manifests\"", "table = \"a\"\ntable = \"b\"", "\"b\"", "duplicate key: take one of the two out"),
        ("\"notices\"]", "\"rows\"]", "\"rows\"]", "the destination \"rows\" is declared twice"),
        ("\"image/png\"]", "\"image/jpeg\"]", "content_types", "the content type \"image/jpeg\" is declared twice"),
        ("document = \"manifest\"", "document = \"photo\"", "name = \"photo\"", "the part \"photo\" is declared twice"),
        // Names.
        ("name = \"manifests\"", "name = \"Manifests\"", "\"Manifests\"", "resource \"Manifests\" is no name"),
        ("name = \"manifests\"", "name = \"a/b\"", "\"a/b\"", "resource \"a/b\" is no name"),
        ("name = \"manifests\"", "name = \"units\"", "\"units\"", "the container needs the path /units itself"),
        ("subject = \"ride_id\"", "subject = \"\"", "subject", "`subject` has 0 bytes: give 1 to 100"),
        ("document = \"manifest\"", "document = 'a\"b'", "document =", "`document` has 3 bytes"),
        ("[\"image/jpeg\", \"image/png\"]", "[]", "content_types", "`content_types` is empty"),
        ("\"image/png\"]", "\"image/*\"]", "content_types", "\"image/*\" is no content type"),
        ("\"image/png\"]", "\"png\"]", "content_types", "\"png\" is no content type"),
        ("\"image/png\"]", "\"image/png/\"]", "content_types", "\"image/png/\" is no content type"),
        // The destinations of a resource.
        ("\"notices\"]", "\"notes\", \"notices\"]", "\"notes\"", "the destination \"notes\" is not declared"),
        (", \"notices\"]", "]", "[destination.notices]", "no resource names the destination \"notices\""),
        ("reader = \"rows\"", "reader = \"photos\"", "reader =", "`reader` is no destination of the kind rows"),
        ("reader = \"rows\"", "reader = \"other\"", "reader =", "`reader` is no destination of the kind rows"),
        (
            "takes = \"photo\"",
            "takes = \"picture\"",
            "destinations =",
            "photos takes \"picture\", which is no attachment",
        ),
        ("[\"rows\", ", "[", "destinations =", "board is of the kind board, and is built again from a table"),
        // Sizes, times, numbers.
        ("\"10MiB\"", "\"10 stones\"", "body_max", "`body_max` is no size from 64.0 KiB to 1.0 GiB"),
        ("\"10MiB\"", "\"1KiB\"", "body_max", "`body_max` is no size from 64.0 KiB to 1.0 GiB"),
        ("\"10MiB\"", "\"2GiB\"", "body_max", "`body_max` is no size from 64.0 KiB to 1.0 GiB"),
        ("\"10MiB\"", "\"-1\"", "body_max", "`body_max` is no size"),
        (
            "time_out = \"2s\"",
            "time_out = \"2\"",
            "time_out = \"2\"",
            "`time_out` is no time up to 20s: give a time such as 5s",
        ),
        ("time_out = \"2s\"", "time_out = \"0s\"", "time_out = \"0s\"", "`time_out` is no time up to 20s"),
        ("time_out = \"2s\"", "time_out = \"21s\"", "time_out = \"21s\"", "`time_out` is no time up to 20s"),
    ];
    for (old, new, at, fault) in cases {
        let text = demo_with(old, new);
        let complaint = complaint(&text);
        let expected = format!("container.toml:{}: {fault}", line_of(&text, at));
        assert!(complaint.lines().any(|line| line.starts_with(&expected)), "{new}\n{complaint}\n{expected}");
    }
}

/// Each row: the lines of a destination, the line of the complaint, and the complaint. The destination begins on line 6.
fn assert_faults(cases: &[(&str, usize, &str)]) {
    for (lines, at, fault) in cases {
        let complaint = complaint(&small(lines));
        let expected = format!("container.toml:{at}: {fault}");
        assert!(complaint.lines().any(|line| line.starts_with(&expected)), "{lines}\n{complaint}\n{expected}");
    }
}

#[test]
fn a_fault_in_a_destination_is_refused_with_its_line() {
    let webhook = "kind = 'webhook'\nsecret = 'NOTICES_SECRET'";
    let board = "kind = 'board'\nprefix = 'p'";
    assert_faults(&[
        (
            "kind = 'row'",
            7,
            "the kind \"row\" is unknown to this program: give one of rows, files, board, webhook, or start",
        ),
        // A key that is missing, or that belongs to another kind.
        ("kind = 'rows'", 6, "the kind rows needs `table`: add it"),
        ("kind = 'files'", 6, "the kind files needs `folder`: add it"),
        ("kind = 'board'\nprefix = 'p'", 6, "the kind board needs `redis`: add it"),
        ("kind = 'board'\nredis = 'REDIS_URL'", 6, "the kind board needs `prefix`: add it"),
        ("kind = 'webhook'\nsecret = 'NOTICES_SECRET'", 6, "the kind webhook needs `url`: add it"),
        ("kind = 'webhook'\nurl = 'http://h/'", 6, "the kind webhook needs `secret`: add it"),
        ("kind = 'rows'\ntable = 't'\nfolder = '/f'", 9, "the kind rows has no `folder`: take it out"),
        ("kind = 'rows'\ntable = 't'\nallow_private = false", 9, "the kind rows has no `allow_private`: take it out"),
        ("kind = 'files'\nfolder = '/f'", 6, "the kind files needs `takes`: add it, with the name of an attachment"),
        ("kind = 'files'\nfolder = '/f'\ntable = 't'", 9, "the kind files has no `table`: take it out"),
        // Places.
        ("kind = 'rows'\ntable = 't; DROP TABLE units'", 8, "`table` is no name"),
        ("kind = 'rows'\ntable = '1t'", 8, "`table` is no name"),
        ("kind = 'files'\ntakes = 'a'\nfolder = ''", 9, "`folder` is no path"),
        (&format!("{board}\nredis = 'NOTICES_SECRET'"), 9, "NOTICES_SECRET is no URL of Redis: give a URL such as"),
        ("kind = 'board'\nredis = 'REDIS_URL'\nprefix = 'a b'", 9, "`prefix` has no key"),
        ("kind = 'board'\nredis = 'REDIS_URL'\nprefix = ''", 9, "`prefix` has no key"),
        (&format!("{webhook}\nurl = 'example.com'"), 9, "`url` is no address of a server"),
        (&format!("{webhook}\nurl = 'ftp://example.com/'"), 9, "`url` is no address of a server"),
        (&format!("{webhook}\nurl = 'http://u:p@example.com/'"), 9, "`url` is no address of a server"),
        (&format!("{webhook}\nurl = 'http://example.com/#a'"), 9, "`url` is no address of a server"),
        (
            &format!("{webhook}\nurl = 'http://127.0.0.1/'"),
            9,
            "`url` cannot be used: the address is private: give a public one",
        ),
        (
            &format!("{webhook}\nurl = 'https://[fd00::1]/'\nallow_private = false"),
            9,
            "`url` cannot be used: the address is pr",
        ),
    ]);
}

#[test]
fn a_fault_in_a_variable_or_a_setting_is_refused_with_its_line() {
    let board = "kind = 'board'\nprefix = 'p'";
    assert_faults(&[
        // Variables.
        ("kind = 'rows'\ntable = '${MISSING}'", 8, "the variable MISSING is not set: set it in the environment"),
        ("kind = 'rows'\ntable = '${EMPTY}'", 8, "the variable EMPTY is not set: set it in the environment"),
        ("kind = 'rows'\ntable = '${UNCLOSED'", 8, "${ is not followed by the name of a variable and }"),
        ("kind = 'rows'\ntable = '${}'", 8, "${ is not followed by the name of a variable and }"),
        ("kind = 'rows'\ntable = '${A:-b}'", 8, "${ is not followed by the name of a variable and }"),
        (&format!("{board}\nredis = 'MISSING'"), 9, "the variable MISSING is not set"),
        (&format!("{board}\nredis = 'redis://localhost'"), 9, "`redis` is the name of an environment variable"),
        ("kind = 'webhook'\nurl = 'http://h/'\nsecret = 'MISSING'", 9, "the variable MISSING is not set"),
        ("kind = 'webhook'\nurl = 'http://h/'\nsecret = '${NOTICES_SECRET}'", 9, "`secret` is the name of an env"),
        ("kind = 'webhook'\nurl = 'http://h/'\nsecret = 'SHORT_SECRET'", 9, "SHORT_SECRET is no secret of a webhook"),
        ("kind = 'webhook'\nurl = 'http://h/'\nsecret = 'NO_BASE64'", 9, "NO_BASE64 is no secret of a webhook"),
        // Common settings.
        ("kind = 'rows'\ntable = 't'\nconcurrency = 0", 9, "`concurrency` is 0: give a number from 1 to 1024"),
        ("kind = 'rows'\ntable = 't'\nconcurrency = -1", 9, "`concurrency` is -1: give a number from 1 to 1024"),
        ("kind = 'rows'\ntable = 't'\nconcurrency = 1025", 9, "`concurrency` is 1025: give a number from 1 to 1024"),
        ("kind = 'rows'\ntable = 't'\ntakes = ''", 9, "`takes` has 0 bytes"),
        ("kind = 'rows'\ntable = 't'\nretired = true", 5, "no destination would store a new unit"),
        (
            "kind = 'rows'\ntable = 't'\n[destination.Y]\nkind = 'files'\nfolder = '/f'\ntakes = 'a'",
            9,
            "destination \"Y\" is no name",
        ),
        ("kind = 'rows'\ntable = 't'\n[destination.x]\nkind = 'rows'", 9, "duplicate key"),
    ]);
}

#[test]
fn a_file_without_resources_is_refused_as_a_whole() {
    assert_eq!(complaint(""), "container.toml: it declares no resource: add one under [[resource]]");
    let none_named = small("kind = 'rows'\ntable = 't'").replace("[\"x\"]", "[]");
    assert!(complaint(&none_named).contains("container.toml:5: no destination would store a new unit"));
}

#[test]
fn a_resource_that_is_declared_twice_is_refused() {
    let text = small("kind = 'rows'\ntable = 't'");
    let twice = format!("{text}[[resource]]\nname = 'a'\nsubject = 's'\ndocument = 'd'\ndestinations = ['x']");
    assert_eq!(complaint(&twice), "container.toml:10: the resource \"a\" is declared twice: take one out");
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_file() {
    let text = DEMO.replace("10MiB", "ten").replace("\"5s\"", "\"never\"").replace("REDIS_URL", "MISSING");
    let complaint = complaint(&text);
    let expected = [("\"ten\"", "`body_max`"), ("\"never\"", "`time_out`"), ("redis =", "the variable MISSING")];
    let lines: Vec<&str> = complaint.lines().collect();
    for ((at, fault), line) in expected.iter().zip(&lines) {
        assert!(line.starts_with(&format!("container.toml:{}: {fault}", line_of(&text, at))), "{complaint}");
    }
    assert_eq!(lines.len(), 4, "{complaint}");
}

#[test]
fn the_line_is_found_behind_line_ends_of_windows_and_characters_of_several_bytes() {
    let text = format!("# Grüße aus Zürich\n{}", small("kind = 'rows'\ntable = '${MISSING}'")).replace('\n', "\r\n");
    assert_eq!(complaint(&text), "container.toml:9: the variable MISSING is not set: set it in the environment");
}

#[test]
fn two_tables_of_one_resource_are_refused_unless_one_is_retired() {
    let text = demo_with("\"notices\"]", "\"notices\", \"old\"]") + "[destination.old]\nkind = 'rows'\ntable = 'old'\n";
    let line = line_of(&text, "\"old\"]");
    let fault = "old and rows are both of the kind rows, and a resource has at most one: take one out";
    assert_eq!(complaint(&text), format!("container.toml:{line}: {fault}"));

    let retired = parse(&format!("{text}retired = true\n")).unwrap();
    assert_eq!(retired.resources[0].destinations, ["rows", "photos", "board", "notices"]);
    assert!(retired.destinations["old"].retired);
}

#[test]
fn a_retired_destination_needs_no_resource() {
    let text = format!("{DEMO}[destination.old]\nkind = 'files'\nfolder = '/old'\ntakes = 'a'\nretired = true\n");
    assert!(parse(&text).unwrap().destinations["old"].retired);
}

/// Its undo would remove units that the first has stored.
#[test]
fn two_destinations_at_the_same_place_are_refused() {
    let more = "[destination.second]\nkind = 'files'\nfolder = '/srv/container/./photos/'\ntakes = 'photo'\n";
    let text = demo_with("\"notices\"]", "\"notices\", \"second\"]") + more;
    let line = line_of(&text, "[destination.second]");
    let fault = "second stores at the same place as photos: give it a place of its own";
    assert_eq!(complaint(&text), format!("container.toml:{line}: {fault}"));
}

/// At its start the container compares it with a fingerprint that an earlier version of the program has stored.
#[test]
fn the_fingerprint_stays_as_it_is() {
    let declaration = parse(DEMO).unwrap();
    let hex = |name: &str| declaration.destinations[name].fingerprint().map(|byte| format!("{byte:02x}")).concat();
    let expected = [
        ("rows", "6cfbc07086120319d6dd50e79e11144d3f528076e0ac26af1f5866e8f55a5e70"),
        ("photos", "44330139864933abe8be2710091a7d4db21c9770d185607dd9ba6b53e4df1e30"),
        ("board", "1cc5ddde1622cd8418145e628351e534cdb038f85ec3c44874b06c89f362655d"),
        ("notices", "f61fb2429c123ff67da8b16f157e89dac6d6c62c9177790e5f14c1454b3ec571"),
    ];
    for (name, fingerprint) in expected {
        assert_eq!(hex(name), fingerprint, "{name}");
    }
}

#[test]
fn the_fingerprint_changes_with_the_place_and_with_nothing_else() {
    let of = |text: &str, name: &str| parse(text).unwrap().destinations[name].fingerprint();
    let moved = [
        ("rows", "table = \"manifests\"", "table = \"others\""),
        ("photos", "${CONTAINER_DATA}/photos", "${CONTAINER_DATA}/pictures"),
        ("board", "prefix = \"container\"", "prefix = \"other\""),
        ("notices", "/notices\"", "/others\""),
    ];
    for (name, old, new) in moved {
        assert_ne!(of(&demo_with(old, new), name), of(DEMO, name), "{name}");
    }
    let settings = [
        ("photos", "time_out = \"5s\"", "time_out = \"6s\""),
        ("photos", "concurrency = 32", "concurrency = 33"),
        ("photos", "${CONTAINER_DATA}/photos", "/srv/./container/photos/"),
        ("notices", "kind = \"webhook\"", "kind = \"webhook\"\nretired = true"),
    ];
    for (name, old, new) in settings {
        assert_eq!(of(&DEMO.replace(old, new), name), of(DEMO, name), "{name}: {new}");
    }
    let public = DEMO.replace("127.0.0.1", "example.com");
    let refusing = public.replace("allow_private = true", "allow_private = false");
    assert_eq!(of(&refusing, "notices"), of(&public, "notices"));
    let at = |redis: &'static str| {
        let env = move |name: &str| if name == "REDIS_URL" { Some(redis.to_owned()) } else { env(name) };
        Declaration::parse(Path::new("c"), DEMO, &[], &env).unwrap().destinations["board"].fingerprint()
    };
    assert_eq!(at("redis://:new-password@localhost:6379/3"), of(DEMO, "board"), "a password is no place");
    assert_ne!(at("redis://localhost:6379/4"), of(DEMO, "board"), "a database is a place");
    assert_ne!(at("redis://localhost:6380/3"), of(DEMO, "board"), "a port is a place");
}

#[test]
fn a_value_has_several_variables_and_a_dollar_sign_of_its_own() {
    let text = small_files("${CONTAINER_DATA}/$5/${A}${A}");
    let env = |name: &str| if name == "A" { Some("${B}".to_owned()) } else { env(name) };
    let declaration = Declaration::parse(Path::new("c"), &text, &[], &env).unwrap();
    // The value of a variable is not filled in again.
    let expected = Path::new("/srv/container/$5/${B}${B}");
    assert!(matches!(&declaration.destinations["x"].kind, Kind::Files { folder } if folder == expected));
}

#[test]
fn a_password_and_a_secret_are_not_printed() {
    let text = DEMO.replace("/notices\"", "/notices?token=hidden-token\"");
    let declaration = parse(&text).unwrap();
    let secret = Secret::new(SECRET).unwrap();
    let printed = format!("{declaration}\n{declaration:?}\n{declaration:#?}\n{secret:?}");
    assert!(printed.contains("localhost:6379"), "{printed}");
    for hidden in ["hidden", SECRET] {
        assert!(!printed.contains(hidden), "{printed}");
    }
    // A secret in the wrong place is not printed either.
    let pasted = complaint(&demo_with("\"NOTICES_SECRET\"", &format!("{SECRET:?}")));
    assert!(!pasted.contains(SECRET), "{pasted}");
}

#[test]
fn a_reader_that_another_resource_stores_in_is_refused() {
    let text = small("kind = 'rows'\ntable = 't'") + &DEMO.replace("reader = \"rows\"", "reader = \"x\"");
    let line = line_of(&text, "reader = \"x\"");
    let fault = "`reader` is no destination of the kind rows of this resource: name such a destination, or take it out";
    assert_eq!(complaint(&text), format!("container.toml:{line}: {fault}"));
}

/// A process that starts in another folder would store elsewhere.
#[test]
fn a_relative_folder_becomes_absolute() {
    let declaration = parse(&small_files("photos")).unwrap();
    let expected = std::env::current_dir().unwrap().join("photos");
    assert!(matches!(&declaration.destinations["x"].kind, Kind::Files { folder } if folder == &expected));
}
