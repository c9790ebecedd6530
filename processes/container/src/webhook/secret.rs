//! The secret of a webhook, which signs each request.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Fewer bytes can be guessed. Standard Webhooks asks for 24 to 64 bytes.
const LEN_MIN: usize = 24;

/// A secret, which is never shown.
#[derive(Clone)]
pub struct Secret(pub(crate) Arc<standardwebhooks::Webhook>);

impl Secret {
    /// Reads a secret: `whsec_` and the base64 of at least 24 random bytes.
    ///
    /// # Errors
    /// A sentence that says what to give instead. It does not contain the secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text)).unwrap_or_default();
        if bytes.len() < LEN_MIN {
            return Err(format!("give whsec_ and the base64 of at least {LEN_MIN} random bytes"));
        }
        let signer = standardwebhooks::Webhook::from_bytes(bytes).map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(signer)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn a_secret_is_long_and_is_not_shown() {
        let good = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        assert_eq!(format!("{:?}", Secret::parse(good).unwrap()), "a secret");
        assert!(Secret::parse(good.trim_start_matches("whsec_")).is_ok());
        for bad in ["", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64 at all, and long enough to be one"] {
            let error = Secret::parse(bad).unwrap_err();
            assert!(error.contains("24 random bytes") && !error.contains("not base64"), "{error}");
        }
    }
}
