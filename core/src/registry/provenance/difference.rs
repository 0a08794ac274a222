//! The first field in which two statements are not the same.

use crate::canon::Canon;
use std::fmt;

/// The first field in which a statement is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where: `predicate.runDetails.builder.id`.
    pub field: String,
    /// What stands there; none where nothing does.
    pub said: Option<String>,
    /// What should stand there; none where nothing should.
    pub follows: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, said, follows } = self;
        match (said, follows) {
            (Some(said), Some(follows)) => {
                write!(f, "`{field}` is {said}, and what follows is {follows}")
            }
            (Some(said), None) => write!(f, "`{field}` is {said}, and should not be there"),
            (None, Some(follows)) => write!(f, "`{field}` is missing, and should be {follows}"),
            (None, None) => write!(f, "`{field}` is wrong"),
        }
    }
}

/// The first field in which what a statement says is not what follows.
#[must_use]
pub fn differs(said: &Canon, follows: &Canon) -> Option<Difference> {
    first(said, follows, String::new())
}

fn first(said: &Canon, follows: &Canon, field: String) -> Option<Difference> {
    let member =
        |key: &str| if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") };
    let one = |field, said: Option<&Canon>, follows: Option<&Canon>| {
        let shown = |value: &Canon| shorten(&String::from_utf8_lossy(&value.to_bytes()));
        Some(Difference { field, said: said.map(shown), follows: follows.map(shown) })
    };
    match (said, follows) {
        (Canon::Map(said), Canon::Map(follows)) => {
            let missing = follows.iter().find(|(key, _)| !said.contains_key(*key));
            if let Some((key, value)) = missing {
                return one(member(key), None, Some(value));
            }
            said.iter().find_map(|(key, value)| match follows.get(key) {
                Some(other) => first(value, other, member(key)),
                None => one(member(key), Some(value), None),
            })
        }
        (Canon::List(said), Canon::List(follows)) => {
            let both = said.iter().zip(follows).enumerate();
            let mut found = both.filter_map(|(n, (a, b))| first(a, b, format!("{field}[{n}]")));
            found.next().or_else(|| {
                let n = said.len().min(follows.len());
                let (a, b) = (said.get(n), follows.get(n));
                if a.is_none() && b.is_none() { None } else { one(format!("{field}[{n}]"), a, b) }
            })
        }
        (said, follows) if said == follows => None,
        (said, follows) => one(field, Some(said), Some(follows)),
    }
}

/// What stands in a message of a value.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 120;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}
