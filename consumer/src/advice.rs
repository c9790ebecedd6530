//! Commands in the consumer's messages. They name the program that runs, because a fold of one's own has a program of its own.

use pglog::Partitions;

/// The consumer that a message is about: its name, and the partitions that the process was told to fold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    /// The consumer.
    pub name: String,
    /// All, unless a person chose some.
    pub partitions: Partitions,
}

impl Whose {
    /// The command that starts this program for this consumer, with further arguments.
    pub(crate) fn command(&self, args: &[&str]) -> String {
        let command = process::command(&[&[self.name.as_str()], args].concat());
        match &self.partitions {
            Partitions::All => format!("`{command}`"),
            Partitions::Only(some) if some.len() == 1 => format!("`{command} --partition {}`", some[0]),
            some @ Partitions::Only(_) => format!("`{command} --partitions {some}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_the_partitions_if_they_were_chosen() {
        let command = |partitions| {
            let whose = Whose { name: "a".to_owned(), partitions };
            whose.command(&["--unregister"])
        };
        assert!(command(Partitions::All).ends_with(" a --unregister`"));
        assert!(command("3".parse().unwrap()).ends_with(" a --unregister --partition 3`"));
        assert!(command("3,0".parse().unwrap()).ends_with(" a --unregister --partitions 0,3`"));
    }
}
