//! The ids of wallets and of events: KSUIDs, which are 20 bytes (the second of creation since 1400000000, then 16 random bytes)
//! as 27 digits of base 62.

use std::fmt;
use std::str::{FromStr, from_utf8};

use svix_ksuid::{Ksuid, KsuidLike};

/// The length of a KSUID, in characters.
pub const KSUID_LEN: usize = 27;

/// The largest KSUID: 20 bytes of ones. The order of texts is that of numbers.
const KSUID_MAX: &str = "aWgEPTl1tmebfsQzFP4bxwgy80V";

/// A text that is no KSUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a KSUID has 27 characters, each of 0-9, A-Z and a-z, and is at most {KSUID_MAX}: POST /wallets gives a new one"
)]
pub struct NotAKsuid;

/// Makes a newtype of a KSUID.
macro_rules! ksuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; KSUID_LEN]);

        impl $name {
            /// A new one, of this second.
            #[expect(clippy::new_without_default, reason = "each one is another")]
            pub fn new() -> Self {
                let text = Ksuid::new(None::<std::time::SystemTime>, None).to_string();
                text.parse().expect("the library writes KSUIDs")
            }

            /// Its 27 characters.
            pub fn as_str(&self) -> &str {
                from_utf8(&self.0).expect("base 62 is ASCII")
            }
        }

        impl FromStr for $name {
            type Err = NotAKsuid;

            fn from_str(text: &str) -> Result<Self, NotAKsuid> {
                let digits: [u8; KSUID_LEN] = text.as_bytes().try_into().map_err(|_| NotAKsuid)?;
                let is_ksuid = text <= KSUID_MAX && digits.iter().all(u8::is_ascii_alphanumeric);
                if is_ksuid { Ok(Self(digits)) } else { Err(NotAKsuid) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.as_str())
            }
        }
    };
}

ksuid! {
    /// The id of a wallet. Any KSUID is one: a wallet that was never used has balance 0 and version 0.
    WalletId
}

ksuid! {
    /// The id of an event. It is drawn before the event is written, so that the writer can look for it.
    EventId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ksuid_is_27_digits_of_base_62_and_20_bytes() {
        let id = "28skwt5B8zTrs6AqBWrSgCHLcRL";
        assert_eq!(id.parse::<WalletId>().unwrap().to_string(), id);
        for good in ["000000000000000000000000000", "aWgEPTl1tmebfsQzFP4bxwgy80V"] {
            assert_eq!(good.parse::<WalletId>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "28skwt5B8zTrs6AqBWrSgCHLcR",
            "28skwt5B8zTrs6AqBWrSgCHLcRLL",
            "28skwt5B8zTrs6AqBWrSgCHLcR-",
            "28skwt5B8zTrs6AqBWrSgCHLcR\0",
            "28skwt5B8zTrs6AqBWrSgCHLcé",
            "aWgEPTl1tmebfsQzFP4bxwgy80W",
            "zzzzzzzzzzzzzzzzzzzzzzzzzzz",
        ] {
            assert_eq!(bad.parse::<WalletId>(), Err(NotAKsuid), "{bad:?}");
        }
    }

    #[test]
    fn new_ids_are_ids_and_differ() {
        let (one, other) = (EventId::new(), EventId::new());
        assert_ne!(one, other);
        assert_eq!(one.as_str().parse(), Ok(one));
    }
}
