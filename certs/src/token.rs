//! Keys that lie in a token: their names (RFC 7512 URIs), and what goes wrong with them.
//!
//! How they are used is in `token/pkcs11.rs`, behind the feature `pkcs11`.

#[cfg(feature = "pkcs11")]
pub mod pkcs11;

use crate::keys::SecretError;
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A URI is at most this long.
const URI_BYTES_MAX: usize = 4 << 10;

/// Which key of which token, by which module: what a `pkcs11:` URI says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKey {
    pub(crate) token: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) manufacturer: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) object: Option<String>,
    pub(crate) id: Option<Vec<u8>>,
    module: PathBuf,
    pin: PathBuf,
    /// Whether a PIN stands in the URI: that is refused when the key is opened, and not when the URI is read, because whoever
    /// reads a configuration or a command line shows what cannot be read.
    bare_pin: bool,
}

/// Why a key in a token cannot be used. Says where it lies, and never the PIN.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    /// The URI is wrong.
    #[error(
        "the key's URI {0}; write pkcs11:token=NAME;object=NAME?module-path=/FILE.so&pin-source=/FILE"
    )]
    Uri(String),
    /// This build does not speak with tokens.
    #[error("{0}: this build has no PKCS#11; use one with the feature `pkcs11`, or a key file")]
    NotBuilt(TokenKey),
    /// The PIN cannot be read.
    #[error("{0}: its PIN: {1}")]
    Pin(TokenKey, String),
    /// The token takes no PIN, or not this one.
    #[error("{0}: {1}")]
    Login(TokenKey, String),
    /// The module or the token fails.
    #[error("{0}: {1}")]
    Module(TokenKey, String),
    /// The token holds no such key.
    #[error("{0}: {1}")]
    Key(TokenKey, String),
}

impl TokenError {
    /// A file with the PIN that is not right.
    pub(crate) fn pin(at: &TokenKey, e: &SecretError) -> Self {
        let why = std::error::Error::source(e).map(|e| format!(": {e}")).unwrap_or_default();
        Self::Pin(at.clone(), format!("{e}{why}"))
    }
}

impl TokenKey {
    /// What its URI begins with.
    pub const SCHEME: &str = "pkcs11:";

    /// The module: a library that is loaded into this process.
    #[must_use]
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// Of a URI with a PIN in it nothing is kept.
    fn refused() -> Self {
        Self {
            token: None,
            serial: None,
            manufacturer: None,
            model: None,
            object: None,
            id: None,
            module: PathBuf::new(),
            pin: PathBuf::new(),
            bare_pin: true,
        }
    }

    /// Refuses a URI with a PIN in it.
    pub(crate) fn check_pin(&self) -> Result<(), TokenError> {
        if self.bare_pin {
            let what = "holds a PIN: change it, put it into a file with mode 0600, and say pin-source=/FILE";
            return Err(TokenError::Uri(what.into()));
        }
        Ok(())
    }

    /// The file that holds the PIN, with mode 0600.
    #[must_use]
    pub fn pin_file(&self) -> &Path {
        &self.pin
    }
}

impl FromStr for TokenKey {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let wrong = |what: &str| TokenError::Uri(what.to_owned());
        // Before anything else that could be wrong with it.
        if holds_pin(text) {
            return Ok(Self::refused());
        }
        if text.len() > URI_BYTES_MAX {
            return Err(wrong("is too long"));
        }
        let rest = text.strip_prefix(Self::SCHEME).ok_or_else(|| wrong("is none"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut found = Found::default();
        let parts = path.split(';').chain(query.split('&')).filter(|part| !part.is_empty());
        for part in parts {
            let (name, value) =
                part.split_once('=').ok_or_else(|| wrong("has a part without a `=`"))?;
            found.put(name, value)?;
        }
        found.whole()
    }
}

/// The attributes of a URI as they are read.
#[derive(Default)]
struct Found {
    texts: std::collections::BTreeMap<&'static str, String>,
    id: Option<Vec<u8>>,
}

impl Found {
    const TEXTS: [&str; 8] =
        ["token", "serial", "manufacturer", "model", "object", "type", "module-path", "pin-source"];

    fn put(&mut self, name: &str, value: &str) -> Result<(), TokenError> {
        let wrong = |what: String| TokenError::Uri(what);
        let bytes = unescaped(value)
            .ok_or_else(|| wrong(format!("has a `{name}` with a broken %-escape")))?;
        let twice = || wrong(format!("says `{name}` twice"));
        if name == "id" {
            return if self.id.replace(bytes).is_none() { Ok(()) } else { Err(twice()) };
        }
        let known = Self::TEXTS.iter().find(|known| **known == name);
        let known = known.ok_or_else(|| wrong(format!("has `{name}`, which is not known here")))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| wrong(format!("has a `{name}` that is not UTF-8")))?;
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(wrong(format!("has a `{name}` that is empty or holds control characters")));
        }
        if self.texts.insert(known, text).is_none() { Ok(()) } else { Err(twice()) }
    }

    fn whole(mut self) -> Result<TokenKey, TokenError> {
        let wrong = |what: &str| TokenError::Uri(what.to_owned());
        if self.texts.remove("type").is_some_and(|kind| kind != "private") {
            return Err(wrong("is not about a private key"));
        }
        let mut file = |name: &str| {
            let text = self.texts.remove(name);
            let text = text.ok_or_else(|| wrong(&format!("has no `{name}`")))?;
            let path = PathBuf::from(text.strip_prefix("file:").unwrap_or(&text));
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(wrong(&format!("has a `{name}` that does not begin with `/`")))
            }
        };
        let module = file("module-path")?;
        let pin = file("pin-source")?;
        let [token, serial, manufacturer, model, object] =
            ["token", "serial", "manufacturer", "model", "object"]
                .map(|name| self.texts.remove(name));
        if token.is_none() && serial.is_none() {
            return Err(wrong("names no token"));
        }
        if object.is_none() && self.id.is_none() {
            return Err(wrong("names no object"));
        }
        let Self { id, .. } = self;
        let bare_pin = false;
        Ok(TokenKey { token, serial, manufacturer, model, object, id, module, pin, bare_pin })
    }
}

/// Whether something in a URI gives a PIN itself, `pin-value` or what may have been meant to be that.
fn holds_pin(uri: &str) -> bool {
    uri.split([';', '?', '&', ':']).any(|part| {
        let name = part.split('=').next().unwrap_or(part).trim();
        let name = unescaped(name).unwrap_or_else(|| name.into()).to_ascii_lowercase();
        name.starts_with(b"pin") && name != b"pin-source"
    })
}

/// Bytes of a text with `%41` in it.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.split_at_checked(2)?;
        let pair = std::str::from_utf8(digits.0).ok().filter(|p| !p.starts_with('+'))?;
        bytes.push(u8::from_str_radix(pair, 16).ok()?);
        rest = digits.1;
    }
    Some(bytes)
}

impl fmt::Display for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = match (&self.object, &self.id) {
            (Some(object), _) => format!("`{object}`"),
            (None, Some(id)) => format!("with id {}", hex(id)),
            (None, None) => "without a name".into(),
        };
        let token = self.token.as_ref().or(self.serial.as_ref()).map_or("", String::as_str);
        write!(f, "key {object} in token `{token}` by {}", self.module.display())
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_token_object_module_and_the_file_of_the_pin() {
        let uri = "pkcs11:token=My%20token;manufacturer=SoftHSM%20project;object=site;id=%01%fE;type=private?module-path=/usr/lib/m.so&pin-source=file:/etc/pin";
        let key: TokenKey = uri.parse().expect("a URI");
        assert_eq!(key.token.as_deref(), Some("My token"));
        assert_eq!(key.manufacturer.as_deref(), Some("SoftHSM project"));
        assert_eq!(
            (key.object.as_deref(), key.id.as_deref()),
            (Some("site"), Some(&[1, 0xfe][..]))
        );
        assert_eq!(
            (key.module(), key.pin_file()),
            (Path::new("/usr/lib/m.so"), Path::new("/etc/pin"))
        );
        assert_eq!(key.to_string(), "key `site` in token `My token` by /usr/lib/m.so");
        let by_id: TokenKey =
            "pkcs11:serial=1a;id=%0a?module-path=/m&pin-source=/p".parse().expect("a URI");
        assert_eq!(by_id.to_string(), "key with id 0a in token `1a` by /m");
    }

    #[test]
    fn what_a_uri_must_say_is_asked_for() {
        let rest = "?module-path=/m.so&pin-source=/pin";
        for (uri, word) in [
            (format!("pkcs11:object=k{rest}"), "names no token"),
            (format!("pkcs11:token=t{rest}"), "names no object"),
            ("pkcs11:token=t;object=k?pin-source=/pin".into(), "no `module-path`"),
            ("pkcs11:token=t;object=k?module-path=/m.so".into(), "no `pin-source`"),
            ("pkcs11:token=t;object=k?module-path=m.so&pin-source=/pin".into(), "begin with `/`"),
            (format!("pkcs11:token=t;token=u;object=k{rest}"), "`token` twice"),
            (format!("pkcs11:token=t;id=%01;id=%01{rest}"), "`id` twice"),
            (format!("pkcs11:token=t;object=%zz{rest}"), "broken %-escape"),
            (format!("pkcs11:token=t;object=%+1{rest}"), "broken %-escape"),
            (format!("pkcs11:token=t;object=%4{rest}"), "broken %-escape"),
            (format!("pkcs11:token=t;object=%ff{rest}"), "not UTF-8"),
            (format!("pkcs11:token=t;object={rest}"), "empty"),
            (format!("pkcs11:token=t;object=%0a{rest}"), "control characters"),
            (format!("pkcs11:token=t;object=k;slot-id=1{rest}"), "`slot-id`, which is not known"),
            (format!("pkcs11:token=t;object=k;type=cert{rest}"), "not about a private key"),
            (format!("pkcs11:token{rest}"), "a part without a `=`"),
            (format!("pkcs11:token={};object=k{rest}", "t".repeat(5_000)), "too long"),
        ] {
            let e = uri.parse::<TokenKey>().expect_err(&uri).to_string();
            assert!(e.contains(word), "{uri}: {e}");
        }
    }

    #[test]
    fn a_pin_in_a_uri_is_refused_and_never_shown() {
        for uri in [
            "pkcs11:token=t;object=k?module-path=/m.so&pin-value=hush1234",
            "pkcs11:token=t;object=k?module-path=/m.so&pin-source=/pin&pin-value=hush1234",
            // Whatever else is wrong with it.
            "pkcs11:token=t;object=k?pin-value=hush1234",
            "pkcs11:token=t;object=k;pin-value=hush1234?pin-value=%zz&slot-id=1",
            "pkcs11:pin-value=hush1234",
            "pkcs11:token=t?PIN-Value=hush1234",
            "pkcs11:token=t?%70in-value=hush1234",
            "pkcs11:token=t?pin=hush1234",
            "pkcs11:token=t?pin-value:hush1234",
            &format!("pkcs11:token={}?pin-value=hush1234", "t".repeat(5_000)),
        ] {
            let key: TokenKey = uri.parse().expect("it can be read");
            let e = crate::keys::open_token(&key).err().expect("refused").to_string();
            assert!(e.contains("holds a PIN") && e.contains("pin-source"), "{uri}: {e}");
            assert!(!format!("{e} {key} {key:?}").contains("hush1234"), "{uri}");
        }
        let named = "pkcs11:token=pin-value;object=pin?module-path=/m.so&pin-source=/pin";
        let key: TokenKey = named.parse().expect("these are names");
        assert!(key.check_pin().is_ok());
    }
}
