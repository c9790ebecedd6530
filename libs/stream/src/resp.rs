//! The protocol that Redis speaks (RESP2), as far as the log's hot path needs it: commands are written straight into a
//! buffer, and replies are taken apart where they lie, without building a value of every string. Users: wire, stream.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

/// The start of a reply, or of a part of it: what an array holds follows as further elements.
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
    /// `$-1` or `*-1`: nothing.
    Nil,
    /// `*3`: so many values follow.
    Array(usize),
}

/// What came is not of this protocol. The connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no server that speaks the Redis protocol")]
pub struct Malformed;

/// The first element of `input` and its length in bytes; `None` if it is not all there yet.
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

/// A decimal number. It is what most of a reply consists of, so no text is made of it first.
pub(crate) fn parse_number(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(parse_digits(digits)?),
        None => i64::try_from(parse_digits(text)?).ok(),
    }
}

/// A decimal number without a sign.
pub(crate) fn parse_digits(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Finds out where a number of whole replies end, in input that arrives bit by bit. Nothing is looked at twice.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// How far the input was looked at.
    len: usize,
    /// How many values are still to come.
    open_count: usize,
}

impl Scan {
    /// Begins to look for `reply_count` replies.
    pub fn of(reply_count: usize) -> Self {
        Self { len: 0, open_count: reply_count }
    }

    /// Looks at what has arrived since; the length of all the replies once they are whole.
    pub fn advance(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        while self.open_count > 0 {
            let Some((element, len)) = first_element(&input[self.len..])? else { return Ok(None) };
            // The values of an array come one after the other, those of nested ones in between: one count does for all.
            self.open_count -= 1;
            if let Element::Array(value_count) = element {
                self.open_count = self.open_count.saturating_add(value_count);
            }
            self.len += len;
        }
        Ok(Some(self.len))
    }
}

/// Goes through whole replies, element by element.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    /// The elements of `replies`.
    pub fn of(replies: &'a [u8]) -> Self {
        Self { rest: replies }
    }

    /// Goes past one value, with everything in it.
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
    /// None yet, with room for `len` bytes.
    pub fn with_capacity(len: usize) -> Self {
        Self { bytes: Vec::with_capacity(len), count: 0 }
    }

    /// How many there are, each of which will be answered.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What goes over the connection.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a command of as many arguments as [`arg`](Self::arg) is called next; its name is the first.
    pub fn begin(&mut self, arg_count: usize) -> &mut Self {
        self.count += 1;
        self.header(b'*', arg_count);
        self
    }

    /// Adds an argument of the command that was begun.
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
    fn replies_fall_into_pieces() {
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
            // What follows belongs to later replies.
            assert_eq!(scan.advance(&[REPLIES, b"+next\r\n"].concat()), Ok(Some(REPLIES.len())), "{cut} bytes first");
        }
    }

    #[test]
    fn a_value_is_skipped_with_all_that_is_in_it() {
        let mut elements = Elements::of(REPLIES);
        elements.skip_value();
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
        commands.add(&["PING"]);
        assert_eq!(commands.bytes(), b"*3\r\n$4\r\nXADD\r\n$3\r\n-42\r\n$3\r\n\xff\r\n\r\n*1\r\n$4\r\nPING\r\n");
        assert_eq!(commands.count(), 2);
    }
}
