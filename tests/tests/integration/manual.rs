//! Man pages and completions: every binary has them, and man and bash accept them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::{binary, scratch_folder, workspace_binaries};

/// The output folder of the program `manual`, removed at the end of the test.
struct Share(PathBuf);

impl Share {
    fn write() -> Self {
        let folder = scratch_folder();
        let share = Self(folder.join("share"));
        let status = Command::new(binary("manual")).arg("--into").arg(&share.0).status().unwrap();
        assert!(status.success(), "{status}");
        share
    }

    fn files(&self, folder: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.0.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn page(&self, name: &str) -> PathBuf {
        self.0.join("man/man1").join(name)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

#[test]
fn every_binary_has_a_man_page_and_completions() {
    let share = Share::write();
    let names: BTreeSet<String> = workspace_binaries().into_keys().collect();
    let of = |file_name: fn(&str) -> String| names.iter().map(|name| file_name(name)).collect::<BTreeSet<_>>();
    assert_eq!(share.files("bash-completion/completions"), names);
    assert_eq!(share.files("zsh/site-functions"), of(|name| format!("_{name}")));
    assert_eq!(share.files("fish/vendor_completions.d"), of(|name| format!("{name}.fish")));
    let pages = share.files("man/man1");
    assert!(pages.is_superset(&of(|name| format!("{name}.1"))), "{pages:?}");
    // The remaining pages belong to subcommands.
    for page in &pages {
        let name = page.strip_suffix(".1").unwrap();
        let is_part = names.iter().any(|binary| name.starts_with(&format!("{binary}-")));
        assert!(names.contains(name) || is_part, "{page} is of no binary");
    }
    let of_container =
        ["container-notices.1", "container-units-list.1", "container-units-retry.1", "container-units-drop.1"];
    for page in ["launcher-with-servers.1", "dead-letters-replay.1"].into_iter().chain(of_container) {
        assert!(pages.contains(page), "{page} is missing: {pages:?}");
    }
}

/// Formats a page, without hyphens that are not in it.
fn groff(args: &[&str], page: &Path) -> (String, String) {
    let output = Command::new("groff").args(["-man", "-Tascii", "-rHY=0"]).args(args).arg(page).output();
    let output = output.expect("groff is here: run the tests with bin/test, which installs it");
    assert!(output.status.success(), "{}", page.display());
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[cfg(target_os = "linux")]
#[test]
fn man_pages_are_sound_and_tell_of_settings() {
    let share = Share::write();
    for page in share.files("man/man1") {
        let (_, warnings) = groff(&["-ww", "-z"], &share.page(&page));
        assert_eq!(warnings, "", "{page}");
    }
    let (text, _) = groff(&["-P-cbou"], &share.page("consumer.1"));
    for words in ["consumer", "--copy-from", "DATABASE_URL", "STREAM_NAME", "rocket-rides-log", "v0.2.0"] {
        assert!(text.contains(words), "consumer(1) does not tell of {words}:\n{text}");
    }
    let (container, _) = groff(&["-P-cbou"], &share.page("container.1"));
    for words in ["--config", "CONTAINER_PORT", "--reply-wait", "container-units(1)", "container-notices(1)"] {
        assert!(container.contains(words), "container(1) does not tell of {words}:\n{container}");
    }
    let (units, _) = groff(&["-P-cbou"], &share.page("container-units-retry.1"));
    assert!(units.contains("Make dead units due again") && units.contains("--all"), "{units}");
    // The man page hides the flags for chaos and tests.
    assert!(!text.contains("--inject"), "{text}");
}

/// The completions of bash for these words, of which the last is incomplete.
fn completed(share: &Share, words: &[&str]) -> String {
    let script = "set -u
        file=$1; shift
        bash -n \"$file\" && . \"$file\"
        function=$(complete -p \"$1\" | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
        COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMP_LINE=\"$*\"; COMP_POINT=${#COMP_LINE}
        \"$function\" \"$1\" \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
        echo \"${COMPREPLY[@]}\"";
    let file = share.0.join("bash-completion/completions").join(words[0]);
    let mut bash = Command::new("bash");
    bash.args(["--norc", "--noprofile", "-c", script, "bash"]).arg(file).args(words);
    let output = bash.output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn bash_completes_flags_values_and_subcommands() {
    let share = Share::write();
    for name in workspace_binaries().keys() {
        assert_eq!(completed(&share, &[name, "--hel"]), "--help");
    }
    for (words, offered) in [
        (&["consumer", "consumer9", "--copy"][..], "--copy-from"),
        (&["streamer", "--log-format", ""], "text json"),
        (&["launcher", "wi"], "with-servers"),
        (&["launcher", "up", "--summ"], "--summary-every"),
        (&["dead-letters", "rep"], "replay"),
        (&["manual", "--in"], "--into"),
        (&["container", "--container-sp"], "--container-spool"),
        (&["container", "units", "ret"], "retry"),
    ] {
        assert_eq!(completed(&share, words), offered, "{words:?}");
    }
}
