//! The mark: one key in Redis that says of which build the documents are, and up to which offset of the log they are certain.

use std::fmt;
use std::str::FromStr;

/// One build of the read model: a random number, as 16 hexadecimal digits. Documents of another epoch are not there for
/// readers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

/// The text is not of this form: another program has written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign;

impl FromStr for Epoch {
    type Err = Foreign;

    fn from_str(text: &str) -> Result<Self, Foreign> {
        let epoch = u64::from_str_radix(text, 16).map(Self).map_err(|_| Foreign)?;
        // Leading zeros, capitals and signs: the script compares texts.
        if epoch.to_string() == text { Ok(epoch) } else { Err(Foreign) }
    }
}

/// The mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The build.
    pub epoch: Epoch,
    /// The documents reflect all records up to this offset.
    pub offset: i64,
    /// The token of the log's batch that has this offset.
    pub token: i64,
}

impl fmt::Display for Mark {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, offset, token } = self;
        write!(out, r#"{{"epoch":"{epoch}","offset":{offset},"token":{token}}}"#)
    }
}

impl FromStr for Mark {
    type Err = Foreign;

    fn from_str(text: &str) -> Result<Self, Foreign> {
        let read = || {
            let (epoch, rest) = text.strip_prefix(r#"{"epoch":""#)?.split_once(r#"","offset":"#)?;
            let (offset, token) = rest.strip_suffix('}')?.split_once(r#","token":"#)?;
            Some(Self { epoch: epoch.parse().ok()?, offset: offset.parse().ok()?, token: token.parse().ok()? })
        };
        read().ok_or(Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_no_other_text_is_one() {
        let mark = Mark { epoch: Epoch(0xab), offset: 7, token: -3 };
        let text = r#"{"epoch":"00000000000000ab","offset":7,"token":-3}"#;
        assert_eq!(mark.to_string(), text);
        assert_eq!(text.parse(), Ok(mark));
        for bad in ["", "{}", &text.replace('b', "B"), &text.replace("00ab", "ab"), &text.replace('7', ""), &text[1..]]
        {
            assert_eq!(bad.parse::<Mark>(), Err(Foreign), "{bad}");
        }
    }
}
