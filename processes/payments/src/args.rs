//! The flags of every process that charges: Stripe's address and the key.

use std::fmt;

use clap::Args;
use hyper::Uri;

/// Stripe's address and the key.
#[derive(Clone, Args)]
pub struct StripeArgs {
    /// The payment server: Stripe, or for development one like it, for example http://127.0.0.1:5006
    #[arg(long, env = "STRIPE_API_BASE", default_value = "https://api.stripe.com", value_parser = parse_base)]
    pub stripe_api_base: String,

    /// The secret key of the Stripe account: sk_test_ or sk_live_ and more. The payments server takes any sk_test_
    #[arg(long, env = "STRIPE_API_KEY", hide_env_values = true, value_parser = parse_key)]
    pub stripe_api_key: Option<String>,
}

impl StripeArgs {
    /// The key. An empty key is treated as absent.
    pub fn key(&self) -> Option<&str> {
        self.stripe_api_key.as_deref().filter(|key| !key.is_empty())
    }
}

impl fmt::Debug for StripeArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} a key", self.stripe_api_base, if self.key().is_some() { "with" } else { "without" })
    }
}

/// The URL without a slash at its end.
pub(crate) fn parse_base(text: &str) -> Result<String, String> {
    let base = text.trim_end_matches('/');
    let is_base = |uri: &Uri| {
        let encrypted_or_not = matches!(uri.scheme_str(), Some("http" | "https"));
        // A password would be logged, and Stripe's key is a setting of its own.
        encrypted_or_not && uri.host().is_some_and(|host| !host.is_empty()) && !base.contains(['@', '?', '#'])
    };
    match base.parse() {
        Ok(uri) if is_base(&uri) => Ok(base.to_owned()),
        _ => Err("give a URL such as https://api.stripe.com, without a password".to_owned()),
    }
}

fn parse_key(key: &str) -> Result<String, String> {
    if key.chars().all(|c| c.is_ascii_graphic()) {
        Ok(key.to_owned())
    } else {
        Err("give the key as the processor shows it, without blanks or line ends".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_url_of_a_server() {
        assert_eq!(parse_base("https://api.stripe.com/").unwrap(), "https://api.stripe.com");
        assert_eq!(parse_base("http://[::1]:5005").unwrap(), "http://[::1]:5005");
        for bad in ["", "api.stripe.com", "ftp://api.stripe.com", "https://", "https://u:secret@h", "https://h?x=1"] {
            assert!(parse_base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_not_logged() {
        let stripe_api_key = Some("sk_test_secret".to_owned());
        let args = StripeArgs { stripe_api_base: "https://api.stripe.com".to_owned(), stripe_api_key };
        assert_eq!(format!("{args:?}"), "https://api.stripe.com with a key");
    }
}
