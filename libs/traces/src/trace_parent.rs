//! The trace that a request or a record belongs to, in the format of W3C's Trace Context. Users: api, booking, and spans in
//! this crate.
//!
//! ```text
//! traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//!              <version>-<trace id>-<span id of the caller>-<flags>
//! ```
//!
//! The same text is a header of a request, the column `traceparent` of a staged record, and a field of a stream entry.
//!
//! Source: <https://www.w3.org/TR/trace-context/>

/// The flag that says that the caller records this trace.
const SAMPLED: u8 = 1;

/// The positions of the three dashes.
const DASHES: [usize; 3] = [2, 35, 52];

/// The length of version 00.
const LEN: usize = 55;

/// A span of a trace, as the parent of further spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    pub(crate) flags: u8,
}

impl TraceParent {
    /// Reads the header. `None` if it is malformed: W3C asks to treat it as absent. A version later than 00 is read as far as
    /// version 00 goes.
    ///
    /// ```
    /// use traces::TraceParent;
    /// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    /// assert_eq!(TraceParent::parse(text).unwrap().to_string(), text);
    /// assert_eq!(TraceParent::parse("00-1-2-01"), None);
    /// ```
    pub fn parse(text: &str) -> Option<Self> {
        let (known, more) = text.as_bytes().split_at_checked(LEN)?;
        if DASHES.iter().any(|dash| known[*dash] != b'-') {
            return None;
        }
        let [version] = from_hex(&known[..2])?;
        let (trace_id, span_id, [flags]) =
            (from_hex(&known[3..35])?, from_hex(&known[36..52])?, from_hex(&known[53..])?);
        let flags = match (version, more) {
            (0, []) => flags,
            (1..=254, [] | [b'-', ..]) => flags & SAMPLED,
            _ => return None,
        };
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, flags })
    }

    /// Whether the caller records this trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// Writes version 00, whatever version was read.
impl std::fmt::Display for TraceParent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (trace_id, span_id) = (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.span_id));
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{:02x}", self.flags)
    }
}

/// Exactly `N` bytes in hexadecimal. Upper case is refused, as W3C asks.
fn from_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_well_formed_header_is_read_and_written_as_it_was() {
        for text in [TEXT, &TEXT.replace("-01", "-00"), &TEXT.replace("-01", "-ff")] {
            assert_eq!(TraceParent::parse(text).unwrap().to_string(), text);
        }
        assert!(TraceParent::parse(TEXT).unwrap().is_sampled());
        assert!(!TraceParent::parse(&TEXT.replace("-01", "-02")).unwrap().is_sampled());
    }

    #[test]
    fn a_later_version_is_read_as_far_as_version_00_goes() {
        for later in ["cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09", &TEXT.replacen("00", "01", 1)] {
            assert_eq!(TraceParent::parse(later).unwrap().to_string(), TEXT);
            assert_eq!(TraceParent::parse(&format!("{later}-what the future brings")).unwrap().to_string(), TEXT);
            assert_eq!(TraceParent::parse(&format!("{later}.")), None);
        }
    }

    #[test]
    fn a_malformed_header_is_treated_as_absent() {
        let zeros = [
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            &TEXT.replace("00f067aa0ba902b7", &"0".repeat(16)),
        ];
        let others = [
            "",
            "00",
            &TEXT[..54],
            &TEXT.to_uppercase(),
            &TEXT.replace('-', "_"),
            &TEXT.replace("4b", "4g"),
            &TEXT.replace("4b", "é"),
            &TEXT.replacen("00", "ff", 1),
            &format!("{TEXT}-"),
            &format!("{TEXT}0"),
            &format!(" {TEXT}"),
        ];
        for text in zeros.into_iter().chain(others) {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
    }
}
