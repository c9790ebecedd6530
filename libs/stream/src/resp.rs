//! The protocol of Redis (RESP2), as far as the log's hot path needs it. Users: the other files of this crate, streamer,
//! consumer, dashboard, operator.
//!
//! Commands are written straight into a buffer. Replies are decoded in place, without an allocation per string.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>

/// One element of a reply. The values of an array follow it as further elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element<'a> {
    /// `+OK`
    Simple(&'a [u8]),
    /// `-ERR …`, without the dash.
    Error(&'a [u8]),
    /// `:1000`
    Integer(i64),
    /// `$5 hello`, any bytes.
    Bulk(&'a [u8]),
    /// `$-1` or `*-1`: no value.
    Nil,
    /// `*3`: this many values follow.
    Array(usize),
}

/// The bytes are not of this protocol. The connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no server that speaks the Redis protocol")]
pub struct Malformed;

/// The first element of `input` and its length in bytes; `None` if the element is not complete yet.
fn first_element(input: &[u8]) -> Result<Option<(Element<'_>, usize)>, Malformed> {
    let Some(&kind) = input.first() else { return Ok(None) };
    let Some(end) = find_line_end(input) else { return Ok(None) };
    let (line, after_line) = (&input[1..end], end + 2);
    let element = match kind {
        b'$' => match usize::try_from(number(line)?) {
            Err(_) => Element::Nil,
            Ok(len) => {
                let whole_len = after_line.saturating_add(len).saturating_add(2);
                if input.len() < whole_len {
                    return Ok(None);
                }
                return Ok(Some((Element::Bulk(&input[after_line..after_line + len]), whole_len)));
            }
        },
        b'*' => usize::try_from(number(line)?).map_or(Element::Nil, Element::Array),
        b':' => Element::Integer(number(line)?),
        b'+' => Element::Simple(line),
        b'-' => Element::Error(line),
        _ => return Err(Malformed),
    };
    Ok(Some((element, after_line)))
}

/// Where the first line's `\r\n` begins.
fn find_line_end(input: &[u8]) -> Option<usize> {
    let end = input.iter().position(|byte| *byte == b'\r')?;
    (end + 1 < input.len()).then_some(end)
}

fn number(line: &[u8]) -> Result<i64, Malformed> {
    parse_number(line).ok_or(Malformed)
}

/// Parses a decimal number. Replies consist mostly of numbers, so this skips the check for UTF-8.
pub(crate) fn parse_number(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(parse_digits(digits)?),
        None => i64::try_from(parse_digits(text)?).ok(),
    }
}

/// Parses a decimal number without a sign.
pub(crate) fn parse_digits(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Finds the end of a number of whole replies, in input that arrives in parts. It looks at no element twice.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Bytes of the input that were looked at.
    len: usize,
    /// Values that are still to come.
    open_count: usize,
}

impl Scan {
    /// A scan for `reply_count` replies.
    pub fn of(reply_count: usize) -> Self {
        Self { len: 0, open_count: reply_count }
    }

    /// Looks at the bytes that arrived since the last call. Returns the length of all the replies once they are complete.
    pub fn advance(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        while self.open_count > 0 {
            let Some((element, len)) = first_element(&input[self.len..])? else { return Ok(None) };
            // The values of a nested array come between those of the outer one, so one count serves all arrays.
            self.open_count -= 1;
            if let Element::Array(value_count) = element {
                self.open_count = self.open_count.saturating_add(value_count);
            }
            self.len += len;
        }
        Ok(Some(self.len))
    }
}

/// Iterates over the elements of whole replies.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    /// The elements of `replies`.
    pub fn of(replies: &'a [u8]) -> Self {
        Self { rest: replies }
    }

    /// The bytes behind the elements that were returned.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Skips one value, including all values in it.
    pub fn skip_value(&mut self) {
        let mut open_count: usize = 1;
        while open_count > 0 {
            match self.next() {
                None => return,
                Some(Element::Array(value_count)) => open_count = open_count.saturating_add(value_count),
                Some(_) => {}
            }
            open_count -= 1;
        }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        let (element, len) = first_element(self.rest).ok()??;
        self.rest = &self.rest[len..];
        Some(element)
    }
}

/// Commands, ready to be sent.
#[derive(Debug, Default)]
pub struct Commands {
    bytes: Vec<u8>,
    count: usize,
}

impl Commands {
    /// No commands yet, with room for `len` bytes.
    pub fn with_capacity(len: usize) -> Self {
        Self { bytes: Vec::with_capacity(len), count: 0 }
    }

    /// Makes room for `len` more bytes.
    pub fn reserve(&mut self, len: usize) {
        self.bytes.reserve(len);
    }

    /// The number of commands. Redis sends one reply for each.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The commands as they are sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends other commands.
    pub fn append(&mut self, others: &Self) {
        self.bytes.extend_from_slice(&others.bytes);
        self.count += others.count;
    }

    /// Begins a command of `arg_count` arguments, the first of which is its name. As many calls of [`arg`](Self::arg) or
    /// [`number`](Self::number) must follow.
    pub fn begin(&mut self, arg_count: usize) -> &mut Self {
        self.count += 1;
        self.header(b'*', arg_count);
        self
    }

    /// Adds an argument to the command that was begun.
    pub fn arg(&mut self, arg: impl AsRef<[u8]>) -> &mut Self {
        let arg = arg.as_ref();
        self.header(b'$', arg.len());
        self.bytes.extend_from_slice(arg);
        self.bytes.extend_from_slice(b"\r\n");
        self
    }

    /// Adds an argument that is a number.
    pub fn number(&mut self, number: i64) -> &mut Self {
        self.arg(itoa::Buffer::new().format(number))
    }

    /// Adds a whole command.
    pub fn add(&mut self, args: &[&str]) -> &mut Self {
        self.begin(args.len());
        args.iter().for_each(|arg| {
            self.arg(arg);
        });
        self
    }

    fn header(&mut self, kind: u8, number: usize) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLIES: &[u8] = b"*3\r\n$5\r\nhe\r\no\r\n*2\r\n:-7\r\n$-1\r\n*-1\r\n+OK\r\n-ERR no\r\n*0\r\n$0\r\n\r\n";

    #[test]
    fn replies_are_split_into_elements() {
        let elements: Vec<Element> = Elements::of(REPLIES).collect();
        let nested = [
            Element::Array(3),
            Element::Bulk(b"he\r\no"),
            Element::Array(2),
            Element::Integer(-7),
            Element::Nil,
            Element::Nil,
        ];
        let flat = [Element::Simple(b"OK"), Element::Error(b"ERR no"), Element::Array(0), Element::Bulk(b"")];
        assert_eq!(elements, [&nested[..], &flat[..]].concat());
    }

    #[test]
    fn the_end_is_found_wherever_the_input_is_cut() {
        for cut in 0..REPLIES.len() {
            let mut scan = Scan::of(5);
            assert_eq!(scan.advance(&REPLIES[..cut]), Ok(None), "{cut} bytes");
            // Further bytes belong to later replies.
            assert_eq!(scan.advance(&[REPLIES, b"+next\r\n"].concat()), Ok(Some(REPLIES.len())), "{cut} bytes first");
        }
    }

    #[test]
    fn a_value_is_skipped_with_all_values_in_it() {
        let mut elements = Elements::of(REPLIES);
        elements.skip_value();
        assert_eq!(elements.rest().first_chunk(), Some(b"+OK"));
        assert_eq!(elements.next(), Some(Element::Simple(b"OK")));
        elements.skip_value();
        elements.skip_value();
        elements.skip_value();
        elements.skip_value();
        assert_eq!(elements.next(), None);
    }

    #[test]
    fn numbers_are_read_to_their_bounds_and_no_further() {
        for number in [0, -1, 42, i64::MAX, i64::MIN] {
            assert_eq!(parse_number(number.to_string().as_bytes()), Some(number));
        }
        for bad in ["", "-", "+1", "1 ", "0x1", "9223372036854775808", "-9223372036854775809"] {
            assert_eq!(parse_number(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn another_protocol_is_noticed() {
        assert_eq!(Scan::of(1).advance(b"HTTP/1.1 400 Bad Request\r\n"), Err(Malformed));
        assert_eq!(Scan::of(1).advance(b"$x\r\n"), Err(Malformed));
        assert_eq!(Scan::of(1).advance(b"*99999999999999999999\r\n"), Err(Malformed));
    }

    #[test]
    fn commands_are_arrays_of_strings() {
        let mut commands = Commands::default();
        commands.begin(3).arg("XADD").number(-42).arg(b"\xff\r\n");
        let mut others = Commands::default();
        commands.append(others.add(&["PING"]));
        assert_eq!(commands.bytes(), b"*3\r\n$4\r\nXADD\r\n$3\r\n-42\r\n$3\r\n\xff\r\n\r\n*1\r\n$4\r\nPING\r\n");
        assert_eq!(commands.count(), 2);
    }
}
