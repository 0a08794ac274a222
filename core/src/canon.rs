//! Canonical JSON (RFC 8785) for what is hashed or signed: log entries, update headers, receipts.
//!
//! A subset on purpose: strings, integers, booleans, arrays and objects. There are no floating-point
//! numbers and no nulls, so two implementations cannot disagree about how a value is spelled. Real
//! quantities travel as decimal strings. Verifying never re-serialises: bytes are hashed as stored,
//! and [`parse`] refuses bytes that are not already canonical.

use std::{collections::BTreeMap, fmt::Write as _};

/// The deepest nesting [`parse`] accepts.
const DEPTH_MAX: usize = 16;

/// One canonical value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canon {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number that every JSON reader keeps exactly (|n| < 2^53).
    Int(i64),
    /// Text.
    Text(String),
    /// A list, in order.
    List(Vec<Self>),
    /// An object; keys are unique and written in UTF-16 order, which for ASCII keys is byte order.
    Map(BTreeMap<String, Self>),
}

/// Why bytes are not a canonical value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanonError {
    /// Not JSON at all.
    #[error("not JSON: {0}")]
    Json(String),
    /// A kind of value that is not used here.
    #[error(
        "`{0}` is not allowed: only strings, whole numbers below 2^53, booleans, arrays and objects"
    )]
    Kind(&'static str),
    /// JSON, but not in its one canonical spelling.
    #[error("JSON, but not in canonical form (RFC 8785)")]
    NotCanonical,
    /// Nested too deeply.
    #[error("nested deeper than {DEPTH_MAX} levels")]
    Depth,
    /// A member that should be there is missing or of another kind.
    #[error("member `{0}` is missing or of the wrong kind")]
    Member(String),
}

impl Canon {
    /// An object from its members.
    #[must_use]
    pub fn map<'a>(members: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self::Map(members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    }

    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = String::new();
        self.write(&mut out);
        out.into_bytes()
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Self::Int(n) => {
                let _ = write!(out, "{n}");
            }
            Self::Text(s) => write_text(s, out),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Map(members) => {
                out.push('{');
                for (i, (key, value)) in members.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_text(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    /// The member `key` of an object, if this is an object that has it.
    #[must_use]
    pub fn member(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(members) => members.get(key),
            _ => None,
        }
    }

    /// The text member `key`.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing or not text.
    pub fn text(&self, key: &str) -> Result<&str, CanonError> {
        match self.member(key) {
            Some(Self::Text(s)) => Ok(s),
            _ => Err(CanonError::Member(key.to_owned())),
        }
    }

    /// The whole-number member `key`.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing, not a number, or outside `T`.
    pub fn int<T: TryFrom<i64>>(&self, key: &str) -> Result<T, CanonError> {
        match self.member(key) {
            Some(Self::Int(n)) => T::try_from(*n).map_err(|_| CanonError::Member(key.to_owned())),
            _ => Err(CanonError::Member(key.to_owned())),
        }
    }

    /// The list member `key`.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing or not a list.
    pub fn list(&self, key: &str) -> Result<&[Self], CanonError> {
        match self.member(key) {
            Some(Self::List(items)) => Ok(items),
            _ => Err(CanonError::Member(key.to_owned())),
        }
    }

    /// The text member `key`, parsed.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing, not text, or does not parse.
    pub fn parsed<T: std::str::FromStr>(&self, key: &str) -> Result<T, CanonError> {
        self.text(key)?.parse().map_err(|_| CanonError::Member(key.to_owned()))
    }
}

impl From<&str> for Canon {
    fn from(s: &str) -> Self {
        Self::Text(s.to_owned())
    }
}

impl From<String> for Canon {
    fn from(s: String) -> Self {
        Self::Text(s)
    }
}

impl From<bool> for Canon {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl From<u32> for Canon {
    fn from(n: u32) -> Self {
        Self::Int(i64::from(n))
    }
}

/// Escapes as RFC 8785, section 3.2.2.2 (ECMAScript's `JSON.stringify`).
fn write_text(s: &str, out: &mut String) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Reads bytes that must already be canonical.
///
/// # Errors
/// [`CanonError`], which says how the bytes differ from the one spelling they may have.
pub fn parse(bytes: &[u8]) -> Result<Canon, CanonError> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|e| CanonError::Json(e.to_string()))?;
    let canon = convert(value, 0)?;
    if canon.to_bytes() == bytes { Ok(canon) } else { Err(CanonError::NotCanonical) }
}

fn convert(value: serde_json::Value, depth: usize) -> Result<Canon, CanonError> {
    use serde_json::Value;
    const INT_MAX: i64 = 1 << 53;
    if depth > DEPTH_MAX {
        return Err(CanonError::Depth);
    }
    Ok(match value {
        Value::Null => return Err(CanonError::Kind("null")),
        Value::Bool(b) => Canon::Bool(b),
        Value::Number(n) => match n.as_i64() {
            Some(n) if n.abs() < INT_MAX => Canon::Int(n),
            _ => return Err(CanonError::Kind("a fraction or a number of 2^53 or more")),
        },
        Value::String(s) => Canon::Text(s),
        Value::Array(items) => {
            Canon::List(items.into_iter().map(|v| convert(v, depth + 1)).collect::<Result<_, _>>()?)
        }
        Value::Object(members) => Canon::Map(
            members
                .into_iter()
                .map(|(k, v)| Ok((k, convert(v, depth + 1)?)))
                .collect::<Result<_, CanonError>>()?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_and_control_characters_escaped_as_rfc_8785_asks() {
        let v = Canon::map([
            ("b", Canon::Int(-1)),
            ("a", Canon::List(vec![true.into(), "€\n\u{1}\"\\".into()])),
        ]);
        let bytes = v.to_bytes();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            "{\"a\":[true,\"€\\n\\u0001\\\"\\\\\"],\"b\":-1}"
        );
        assert_eq!(parse(&bytes), Ok(v));
    }

    #[test]
    fn anything_but_the_one_spelling_is_refused() {
        for (bytes, want) in [
            (&b"{\"b\":1,\"a\":2}"[..], CanonError::NotCanonical),
            (b"{\"a\": 1}", CanonError::NotCanonical),
            (b"{\"a\":1,\"a\":1}", CanonError::NotCanonical),
            (b"{\"a\":\"\\u0041\"}", CanonError::NotCanonical),
            (b"{\"a\":null}", CanonError::Kind("null")),
            (b"1.5", CanonError::Kind("a fraction or a number of 2^53 or more")),
            (b"9007199254740992", CanonError::Kind("a fraction or a number of 2^53 or more")),
        ] {
            assert_eq!(parse(bytes), Err(want), "{}", String::from_utf8_lossy(bytes));
        }
        assert!(matches!(parse(b"{"), Err(CanonError::Json(_))));
        let deep = "[".repeat(40) + &"]".repeat(40);
        assert_eq!(parse(deep.as_bytes()), Err(CanonError::Depth));
    }
}
