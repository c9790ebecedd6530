//! Commands in the consumer's messages. They name the program that runs, because a fold of one's own has a program of its own.

use crate::fold::CheckpointKey;

/// The command that starts this program for this consumer, with further arguments. It acts on all partitions of the log.
pub(crate) fn command(CheckpointKey { name, .. }: &CheckpointKey, args: &[&str]) -> String {
    let args = [&[name.as_str()], args].concat();
    format!("`{}`", process::command(&args))
}
