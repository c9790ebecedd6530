//! Users: monitor, dashboard, and `libs/process`, which turns it into the exit status.

/// The context of an error that only another setting can end, if it is found after the settings were parsed: for example two
/// settings that are sound each and not together. The process then exits with status 2, which supervisors do not retry.
#[derive(Debug, Clone, Copy)]
pub struct BadSetting;

impl std::fmt::Display for BadSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a setting cannot be used")
    }
}
