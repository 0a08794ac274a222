//! Canonical JSON (RFC 8785) for what is hashed or signed: log entries, update headers, receipts.
//!
//! A subset on purpose: strings, integers, booleans, arrays and objects. There are no floating-point
//! numbers and no nulls, so two implementations cannot disagree about how a value is spelled. Real
//! quantities travel as decimal strings. Verifying never re-serialises: bytes are hashed as stored,
//! and [`parse`] refuses bytes that are not already canonical.
//!
//! A [`Canon`] is made to be written. A [`Document`] is what was read: the bytes and where in them each value lies, which
//! is quicker by far, for a log has many entries.

use std::{collections::BTreeMap, fmt, fmt::Write as _};

/// The deepest nesting that is read.
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
    let mut rest = s;
    loop {
        let (plain, special) = rest.split_at(plain(rest.as_bytes()).unwrap_or(rest.len()));
        out.push_str(plain);
        let mut special = special.chars();
        match special.next() {
            None => break,
            Some(c) => escape(c, out),
        }
        rest = special.as_str();
    }
    out.push('"');
}

/// A character that does not stand in text as it is.
fn escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\u{8}' => out.push_str("\\b"),
        '\t' => out.push_str("\\t"),
        '\n' => out.push_str("\\n"),
        '\u{c}' => out.push_str("\\f"),
        '\r' => out.push_str("\\r"),
        c => {
            let _ = write!(out, "\\u{:04x}", c as u32);
        }
    }
}

/// Reads bytes that must already be canonical.
///
/// # Errors
/// [`CanonError`], which says how the bytes differ from the one spelling they may have.
pub fn parse(bytes: &[u8]) -> Result<Canon, CanonError> {
    Ok(Document::parse(bytes)?.root().to_canon())
}

/// Canonical bytes that were read: the text, and where in it each value lies.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// The bytes, and behind them texts that had escapes, without these.
    text: String,
    /// Bytes that were read.
    length: usize,
    /// Values in the order in which they begin; of an object, each key and then its value.
    items: Vec<Item>,
}

/// One value, and where it lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    Bool(bool),
    Int(i64),
    /// From where to where in the text.
    Text(u32, u32),
    /// The number of the first item that is no longer inside.
    List(u32),
    Map(u32),
}

impl Document {
    /// Reads bytes that must already be canonical.
    ///
    /// # Errors
    /// [`CanonError`], which says how the bytes differ from the one spelling they may have.
    pub fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        Self::read(bytes).ok_or_else(|| why(bytes))
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        u32::try_from(bytes.len()).ok().filter(|n| *n < u32::MAX / 2)?;
        let text = str::from_utf8(bytes).ok()?;
        let mut reader =
            Reader { text, at: 0, unescaped: String::new(), items: Vec::with_capacity(ITEMS) };
        reader.value(0)?;
        if reader.at != bytes.len() {
            return None;
        }
        let Reader { unescaped, items, .. } = reader;
        let mut whole = String::with_capacity(text.len() + unescaped.len());
        whole.push_str(text);
        whole.push_str(&unescaped);
        Some(Self { text: whole, length: text.len(), items })
    }

    /// All of it.
    #[must_use]
    pub const fn root(&self) -> Node<'_> {
        Node { document: self, at: 0 }
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text[..self.length])
    }
}

/// A value of a [`Document`].
#[derive(Clone, Copy)]
pub struct Node<'a> {
    document: &'a Document,
    at: usize,
}

impl<'a> Node<'a> {
    fn item(self) -> Item {
        self.document.items[self.at]
    }

    const fn other(self, at: usize) -> Self {
        Self { document: self.document, at }
    }

    /// The number of the first item behind this one.
    fn end(self) -> usize {
        match self.item() {
            Item::List(end) | Item::Map(end) => end as usize,
            _ => self.at + 1,
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn as_text(self) -> Option<&'a str> {
        match self.item() {
            Item::Text(from, to) => self.document.text.get(from as usize..to as usize),
            _ => None,
        }
    }

    /// The members of an object, in order; nothing of any other value.
    pub fn members(self) -> impl Iterator<Item = (&'a str, Self)> {
        let (mut at, end) = match self.item() {
            Item::Map(end) => (self.at + 1, end as usize),
            _ => (0, 0),
        };
        std::iter::from_fn(move || {
            let key = self.other(at);
            let name = if at < end { key.as_text()? } else { return None };
            let value = self.other(at + 1);
            at = value.end();
            Some((name, value))
        })
    }

    /// The items of a list, in order; nothing of any other value.
    pub fn items(self) -> impl Iterator<Item = Self> {
        let (mut at, end) = match self.item() {
            Item::List(end) => (self.at + 1, end as usize),
            _ => (0, 0),
        };
        std::iter::from_fn(move || {
            let item = self.other(at);
            at = if at < end { item.end() } else { return None };
            Some(item)
        })
    }

    /// The member `key` of an object, if this is an object that has it.
    #[must_use]
    pub fn member(self, key: &str) -> Option<Self> {
        let Item::Map(end) = self.item() else { return None };
        let (text, mut at) = (self.document.text.as_bytes(), self.at + 1);
        while at < end as usize {
            let value = self.other(at + 1);
            // Most names differ in length, which is seen without a look at the text.
            if let Item::Text(from, to) = self.document.items[at]
                && (to - from) as usize == key.len()
                && text[from as usize..to as usize] == *key.as_bytes()
            {
                return Some(value);
            }
            at = value.end();
        }
        None
    }

    /// The text member `key`, if there is one.
    #[must_use]
    pub fn find_text(self, key: &str) -> Option<&'a str> {
        self.member(key)?.as_text()
    }

    /// The text member `key`, parsed, if there is one that can be.
    #[must_use]
    pub fn find<T: std::str::FromStr>(self, key: &str) -> Option<T> {
        self.find_text(key)?.parse().ok()
    }

    /// The whole number, if it is one within `T`.
    #[must_use]
    pub fn as_int<T: TryFrom<i64>>(self) -> Option<T> {
        match self.item() {
            Item::Int(n) => T::try_from(n).ok(),
            _ => None,
        }
    }

    /// The text member `key`.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing or not text.
    pub fn text(self, key: &str) -> Result<&'a str, CanonError> {
        self.find_text(key).ok_or_else(|| CanonError::Member(key.to_owned()))
    }

    /// The whole-number member `key`.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing, not a number, or outside `T`.
    pub fn int<T: TryFrom<i64>>(self, key: &str) -> Result<T, CanonError> {
        self.member(key).and_then(Self::as_int).ok_or_else(|| CanonError::Member(key.to_owned()))
    }

    /// The list member `key`.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing or not a list.
    pub fn list(self, key: &str) -> Result<Vec<Self>, CanonError> {
        match self.member(key) {
            Some(list) if matches!(list.item(), Item::List(_)) => Ok(list.items().collect()),
            _ => Err(CanonError::Member(key.to_owned())),
        }
    }

    /// The text member `key`, parsed.
    ///
    /// # Errors
    /// [`CanonError::Member`] when it is missing, not text, or does not parse.
    pub fn parsed<T: std::str::FromStr>(self, key: &str) -> Result<T, CanonError> {
        self.text(key)?.parse().map_err(|_| CanonError::Member(key.to_owned()))
    }

    /// The same value, to be changed or kept.
    #[must_use]
    pub fn to_canon(self) -> Canon {
        match self.item() {
            Item::Bool(b) => Canon::Bool(b),
            Item::Int(n) => Canon::Int(n),
            Item::Text(..) => Canon::Text(self.as_text().unwrap_or_default().to_owned()),
            Item::List(_) => Canon::List(self.items().map(Self::to_canon).collect()),
            Item::Map(_) => Canon::map(self.members().map(|(key, value)| (key, value.to_canon()))),
        }
    }

    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        if self.at == 0 {
            return self.document.text.as_bytes()[..self.document.length].to_vec();
        }
        self.to_canon().to_bytes()
    }
}

/// Items for which there is room from the start; most log entries have fewer.
const ITEMS: usize = 48;
/// Whole numbers are smaller than this, for every JSON reader keeps these exactly.
const INT_MAX: i64 = 1 << 53;

/// How many bytes stand before the first that is not text as it is: a quote, a backslash, a control character. Inside valid
/// UTF-8 no byte of a longer character is one of these. Whole chunks are looked at at once, for digests are long.
fn plain(bytes: &[u8]) -> Option<usize> {
    let is_plain = |b: &u8| *b >= 0x20 && *b != b'"' && *b != b'\\';
    let (chunks, _) = bytes.as_chunks::<16>();
    // Without a way out in the middle this becomes a few wide instructions.
    let whole = |chunk: &&[u8; 16]| chunk.iter().fold(true, |all, b| all & is_plain(b));
    let from = chunks.iter().take_while(whole).count() * 16;
    Some(from + bytes[from..].iter().position(|b| !is_plain(b))?)
}

/// Reads canonical JSON and nothing else, in one pass.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    unescaped: String,
    items: Vec<Item>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn takes(&mut self, word: &str) -> Option<()> {
        self.text.as_bytes()[self.at..].starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        match self.peek()? {
            b'"' => {
                let text = self.string()?;
                self.items.push(text);
            }
            b'{' => self.container(depth, b'}')?,
            b'[' => self.container(depth, b']')?,
            b't' => {
                self.takes("true")?;
                self.items.push(Item::Bool(true));
            }
            b'f' => {
                self.takes("false")?;
                self.items.push(Item::Bool(false));
            }
            _ => self.number()?,
        }
        Some(())
    }

    /// A list or an object, whose keys are in order and unique.
    fn container(&mut self, depth: usize, close: u8) -> Option<()> {
        let (first, is_map) = (self.items.len(), close == b'}');
        self.items.push(Item::List(0));
        self.at += 1;
        let mut before = None;
        while self.peek()? != close {
            if self.items.len() > first + 1 {
                self.take(b',')?;
            }
            if is_map {
                let key = self.string()?;
                if before.is_some_and(|before| self.span(before) >= self.span(key)) {
                    return None;
                }
                before = Some(key);
                self.items.push(key);
                self.take(b':')?;
            }
            self.value(depth + 1)?;
        }
        self.at += 1;
        let end = u32::try_from(self.items.len()).ok()?;
        self.items[first] = if is_map { Item::Map(end) } else { Item::List(end) };
        Some(())
    }

    /// The bytes of a text that was read.
    fn span(&self, text: Item) -> &[u8] {
        let Item::Text(from, to) = text else { return &[] };
        let (from, to, length) = (from as usize, to as usize, self.text.len());
        if from < length {
            &self.text.as_bytes()[from..to]
        } else {
            &self.unescaped.as_bytes()[from - length..to - length]
        }
    }

    fn string(&mut self) -> Option<Item> {
        self.take(b'"')?;
        let bytes = self.text.as_bytes();
        let from = self.at;
        self.at += plain(&bytes[from..])?;
        if bytes[self.at] == b'"' {
            self.at += 1;
            return Some(Item::Text(u32::try_from(from).ok()?, u32::try_from(self.at - 1).ok()?));
        }
        let begin = self.unescaped.len();
        self.unescaped.push_str(&self.text[from..self.at]);
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    let c = self.escape()?;
                    self.unescaped.push(c);
                }
                0..0x20 => return None,
                _ => {
                    let length = plain(&bytes[self.at..])?;
                    self.unescaped.push_str(&self.text[self.at..self.at + length]);
                    self.at += length;
                }
            }
        }
        self.at += 1;
        let place = |n: usize| u32::try_from(self.text.len() + n).ok();
        Some(Item::Text(place(begin)?, place(self.unescaped.len())?))
    }

    /// The one way in which RFC 8785 escapes a character.
    fn escape(&mut self) -> Option<char> {
        let rest = &self.text.as_bytes()[self.at + 1..];
        let (c, length) = match rest.first()? {
            b'"' => ('"', 1),
            b'\\' => ('\\', 1),
            b'b' => ('\u{8}', 1),
            b't' => ('\t', 1),
            b'n' => ('\n', 1),
            b'f' => ('\u{c}', 1),
            b'r' => ('\r', 1),
            b'u' => {
                let [b'0', b'0', high @ (b'0' | b'1'), low] = rest.get(1..5)? else { return None };
                let low = match low {
                    b'0'..=b'9' => low - b'0',
                    b'a'..=b'f' => low - b'a' + 10,
                    _ => return None,
                };
                let code = (high - b'0') * 16 + low;
                if matches!(code, 0x8 | 0x9 | 0xa | 0xc | 0xd) {
                    return None;
                }
                (char::from(code), 5)
            }
            _ => return None,
        };
        self.at += 1 + length;
        Some(c)
    }

    fn number(&mut self) -> Option<()> {
        let minus = self.peek()? == b'-';
        self.at += usize::from(minus);
        let first = self.at;
        let mut n = 0_i64;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            n = n * 10 + i64::from(digit - b'0');
            if n >= INT_MAX {
                return None;
            }
            self.at += 1;
        }
        let digits = &self.text.as_bytes()[first..self.at];
        match digits {
            [] => return None,
            [b'0', ..] if digits.len() > 1 || minus => return None,
            _ => {}
        }
        self.items.push(Item::Int(if minus { -n } else { n }));
        Some(())
    }
}

/// How bytes that are not canonical differ from those that are.
fn why(bytes: &[u8]) -> CanonError {
    match serde_json::from_slice(bytes) {
        Ok(value) => unlike(&value, 0).unwrap_or(CanonError::NotCanonical),
        Err(e) => CanonError::Json(e.to_string()),
    }
}

/// The first value that is none of ours.
fn unlike(value: &serde_json::Value, depth: usize) -> Option<CanonError> {
    use serde_json::Value;
    if depth > DEPTH_MAX {
        return Some(CanonError::Depth);
    }
    match value {
        Value::Null => Some(CanonError::Kind("null")),
        Value::Number(n)
            if n.as_i64().is_none_or(|n| n.unsigned_abs() >= INT_MAX.unsigned_abs()) =>
        {
            Some(CanonError::Kind("a fraction or a number of 2^53 or more"))
        }
        Value::Array(items) => items.iter().find_map(|v| unlike(v, depth + 1)),
        Value::Object(members) => members.values().find_map(|v| unlike(v, depth + 1)),
        _ => None,
    }
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
            // The least number of 64 bits has no counterpart above zero.
            (b"-9223372036854775808", CanonError::Kind("a fraction or a number of 2^53 or more")),
            (b"-0", CanonError::Kind("a fraction or a number of 2^53 or more")),
            (b"{\"a\":\"\\u000a\"}", CanonError::NotCanonical),
            (b"{\"a\":\"\\u001F\"}", CanonError::NotCanonical),
            (b"{\"a\":\"\\/\"}", CanonError::NotCanonical),
            (b"[1] ", CanonError::NotCanonical),
        ] {
            assert_eq!(parse(bytes), Err(want), "{}", String::from_utf8_lossy(bytes));
        }
        assert!(matches!(parse(b"{"), Err(CanonError::Json(_))));
        for bytes in
            [&b"[1,]"[..], b"[,1]", b"{\"a\"}", b"01", b"-", b"[1}", b"\"\n\"", b"\"\xff\""]
        {
            assert!(matches!(parse(bytes), Err(CanonError::Json(_))), "{bytes:?}");
        }
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert_eq!(parse(deep(40).as_bytes()), Err(CanonError::Depth));
        assert_eq!(parse(deep(DEPTH_MAX + 2).as_bytes()), Err(CanonError::Depth));
        assert!(parse(deep(DEPTH_MAX + 1).as_bytes()).is_ok());
    }

    #[test]
    fn what_must_be_escaped_is_found_wherever_it_stands() {
        for (length, c) in (0..40).flat_map(|n| ['"', '\\', '\n', '\u{1}', 'é'].map(|c| (n, c))) {
            let text = Canon::Text(format!("{}{c}{}", "a".repeat(length), "b".repeat(20)));
            assert_eq!(parse(&text.to_bytes()), Ok(text));
            if c.is_ascii() && c != '\\' {
                let bare = format!("\"{}{c}{}\"", "a".repeat(length), "b".repeat(20));
                assert!(parse(bare.as_bytes()).is_err(), "{bare}");
            }
        }
    }

    #[test]
    fn a_document_gives_what_its_bytes_say() {
        let bytes =
            br#"{"a":["x\n",-3,true],"b\"":{"c":"plain","d":"\u0001"},"z":9007199254740991}"#;
        let document = Document::parse(bytes).expect("canonical");
        let root = document.root();
        assert_eq!(root.to_bytes(), bytes);
        assert_eq!(root.to_canon().to_bytes(), bytes);
        assert_eq!(root.int("z"), Ok((1_i64 << 53) - 1));
        assert_eq!(root.int::<u8>("z"), Err(CanonError::Member("z".into())));
        let inner = root.member("b\"").expect("it is there");
        assert_eq!((inner.text("c"), inner.text("d")), (Ok("plain"), Ok("\u{1}")));
        assert_eq!(inner.to_bytes(), br#"{"c":"plain","d":"\u0001"}"#);
        let list = root.list("a").expect("a list");
        assert_eq!(list.len(), 3);
        assert_eq!((list[0].as_text(), list[1].as_text()), (Some("x\n"), None));
        assert!(
            root.list("z").is_err() && root.member("c").is_none() && list[0].member("c").is_none()
        );
    }
}
