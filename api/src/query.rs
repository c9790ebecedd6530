//! Parameters of a query string.

use crate::error::Error;

/// Reads a number from `least` to `most`. `None`: the client did not send the parameter.
///
/// # Errors
/// [`Error::Parameter`] tells the client that the parameter `name` must be `wanted`.
pub(crate) fn whole_number(
    name: &'static str,
    text: Option<&str>,
    least: i64,
    most: i64,
    wanted: &'static str,
) -> Result<Option<i64>, Error> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
        _ => Err(Error::Parameter { name, wanted }),
    }
}
