//! Enrolment tokens: what an operator gives to a site so that it can get its first certificate.
//!
//! A token is one line of text. It says where to enrol, whom to expect there, by whose key that has to be vouched for, which
//! identity is granted, and it holds a secret that works once. Whoever has it until then can enrol in the site's stead.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use falaj_core::{
    id::{Digest, Role, SpiffeId},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How every token begins: the kind of text, and its version.
const PREFIX: &str = "falaj-enroll-1.";
/// The longest token.
pub const TOKEN_BYTES_MAX: usize = 2_048;
/// The longest address of a coordinator in it.
const ADDRESS_BYTES_MAX: usize = 255;

/// A secret of 32 bytes, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// From bytes that nobody else has.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From what came over the wire.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// What is kept of it: its SHA-256. It has 256 random bits, so that nobody finds it from that.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// For the wire.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Where to enrol: `host:port`.
    pub address: String,
    /// Who has to answer there.
    pub coordinator: SpiffeId,
    /// SHA-256 of the key of the issuer that has to vouch for whoever answers.
    pub issuer_sha256: Digest,
    /// Which identity is granted.
    pub site: SpiffeId,
    /// Its number, which is no secret.
    pub id: String,
    /// What works once.
    pub secret: Secret,
    /// Until when.
    pub until: Timestamp,
}

/// Why a text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no enrolment token ({0}): copy the whole line that `falaj site enroll-token` printed"
)]
pub struct TokenError(&'static str);

/// As it travels.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    address: String,
    coordinator: String,
    issuer_sha256: String,
    site: String,
    id: String,
    secret: String,
    until: String,
}

/// Whether a text is the number of a token: 32 hexadecimal digits.
#[must_use]
pub fn is_token_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for Token {
    /// The whole token, secret included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = Written {
            address: self.address.clone(),
            coordinator: self.coordinator.to_string(),
            issuer_sha256: self.issuer_sha256.to_string(),
            site: self.site.to_string(),
            id: self.id.clone(),
            secret: URL_SAFE_NO_PAD.encode(self.secret.0),
            until: self.until.to_string(),
        };
        let json = serde_json::to_vec(&written).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError("it is too long"));
        }
        let encoded = text
            .strip_prefix(PREFIX)
            .ok_or(TokenError("it does not begin with `falaj-enroll-1.`"))?;
        let json =
            URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError("it is cut or changed"))?;
        let written: Written =
            serde_json::from_slice(&json).map_err(|_| TokenError("it is cut or changed"))?;
        let (host, port) =
            written.address.rsplit_once(':').ok_or(TokenError("its address has no port"))?;
        let fits = !host.is_empty()
            && written.address.len() <= ADDRESS_BYTES_MAX
            && written.address.bytes().all(|b| b.is_ascii_graphic());
        if !fits || port.parse::<u16>().is_err() {
            return Err(TokenError("its address is none"));
        }
        let party = |text: &str, role, what| {
            let id: Option<SpiffeId> = text.parse().ok();
            id.filter(|id| id.role() == role).ok_or(TokenError(what))
        };
        let coordinator =
            party(&written.coordinator, Role::Coordinator, "it names no coordinator")?;
        let site = party(&written.site, Role::Site, "it names no site")?;
        if site.trust_domain() != coordinator.trust_domain() {
            return Err(TokenError("its site and its coordinator are of two federations"));
        }
        if !is_token_id(&written.id) {
            return Err(TokenError("its number is none"));
        }
        let secret = URL_SAFE_NO_PAD.decode(&written.secret).ok();
        let token = Self {
            issuer_sha256: written
                .issuer_sha256
                .parse()
                .map_err(|_| TokenError("its fingerprint is none"))?,
            secret: secret
                .as_deref()
                .and_then(Secret::of)
                .ok_or(TokenError("its secret is none"))?,
            until: Timestamp::parse(&written.until).ok_or(TokenError("its end is no time"))?,
            address: written.address,
            coordinator,
            site,
            id: written.id,
        };
        // A token has one spelling.
        if token.to_string() == text { Ok(token) } else { Err(TokenError("it is cut or changed")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            address: "coordinator.example:8447".into(),
            coordinator: "spiffe://falaj.test/ae-on/ae-az/coordinator/main".parse().expect("an id"),
            issuer_sha256: Digest([7; 32]),
            site: "spiffe://falaj.test/ae-on/ae-du/site/hospital-2".parse().expect("an id"),
            id: "00112233445566778899aabbccddeeff".into(),
            secret: Secret::new([9; 32]),
            until: Timestamp::from_millis(1_800_000_000_000),
        }
    }

    #[test]
    fn a_token_is_one_line_that_says_all_of_it_and_its_secret_is_not_printed_otherwise() {
        let text = token().to_string();
        assert!(!text.contains(char::is_whitespace) && text.len() < TOKEN_BYTES_MAX, "{text}");
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(format!("{:?}", token()).contains("[redacted]"));
    }

    #[test]
    fn what_is_no_token_says_why() {
        let whole = token().to_string();
        let changed = |change: &dyn Fn(&mut Token)| {
            let mut token = token();
            change(&mut token);
            token.to_string()
        };
        for (text, why) in [
            (whole[..whole.len() - 9].to_owned(), "cut or changed"),
            (whole.replace("falaj-enroll-1.", "falaj-enroll-2."), "does not begin"),
            ("x".repeat(TOKEN_BYTES_MAX + 1), "too long"),
            (changed(&|t| t.address = "coordinator.example".into()), "no port"),
            (changed(&|t| t.address = "a b:1".into()), "address is none"),
            (changed(&|t| t.address = "a:99999".into()), "address is none"),
            (changed(&|t| t.coordinator = t.site.clone()), "names no coordinator"),
            (changed(&|t| t.site = t.coordinator.clone()), "names no site"),
            (changed(&|t| t.id = "12".into()), "number is none"),
            (
                changed(&|t| {
                    t.site = "spiffe://other.test/ae-on/ae-du/site/x".parse().expect("an id");
                }),
                "two federations",
            ),
        ] {
            let error = text.parse::<Token>().expect_err(why);
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
