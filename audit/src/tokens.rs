//! Tokens by which sites enrol: each for one site, for one key, and for a while.

use falaj_core::{audit::Entry, id::SiteId, time::Timestamp};
use std::collections::BTreeMap;

/// A certificate has its entry so long after a token's time is over, at most, in milliseconds: whoever came in time with a
/// request that the log did not take may come again.
const LATE_MS: u64 = 600_000;

/// The tokens that the log tells of.
#[derive(Default)]
pub(crate) struct Tokens(BTreeMap<String, Token>);

struct Token {
    site: SiteId,
    /// Unknown of one that was made in an earlier shard.
    until: Option<Timestamp>,
    withdrawn: bool,
    /// The public key that was certified for it.
    key: Option<[u8; 32]>,
}

impl Token {
    const fn new(site: SiteId, until: Option<Timestamp>) -> Self {
        Self { site, until, withdrawn: false, key: None }
    }
}

impl Tokens {
    /// A token is made.
    pub(crate) fn offered(&mut self, entry: &Entry) -> Result<(), String> {
        let (name, site) = named(entry)?;
        let until = entry.body().text("until").map_err(|e| e.to_string())?;
        let until = Timestamp::parse(until).ok_or_else(|| format!("`{until}` is no time"))?;
        match self.0.insert(name, Token::new(site, Some(until))) {
            Some(_) => Err("a token of this number was made before".into()),
            None => Ok(()),
        }
    }

    /// A token is taken back.
    pub(crate) fn withdrawn(&mut self, entry: &Entry) -> Result<(), String> {
        let (name, site) = named(entry)?;
        self.0.entry(name).or_insert_with(|| Token::new(site, None)).withdrawn = true;
        Ok(())
    }

    /// A site is given a certificate about this key for a token, which the log may tell of in an earlier shard if it goes on.
    pub(crate) fn enrolled(
        &mut self,
        entry: &Entry,
        key: [u8; 32],
        goes_on: bool,
    ) -> Result<(), String> {
        let (name, site) = named(entry)?;
        let token = match self.0.get_mut(&name) {
            Some(token) => token,
            None if goes_on => self.0.entry(name).or_insert_with(|| Token::new(site.clone(), None)),
            None => return Err(format!("no entry before it makes the token of {site}")),
        };
        if token.withdrawn || token.site != site {
            let what = if token.withdrawn { "had been taken back" } else { "is another site's" };
            return Err(format!("{site} was enrolled by a token that {what}"));
        }
        match token.key {
            // Again, because an answer was lost: whenever that is.
            Some(before) if before == key => return Ok(()),
            Some(_) => {
                return Err(format!("{site} was enrolled about another key by the same token"));
            }
            None => token.key = Some(key),
        }
        let late = |until: Timestamp| {
            Timestamp::parse(&entry.ts).is_none_or(|at| at > until.plus_ms(LATE_MS))
        };
        match token.until.filter(|until| late(*until)) {
            Some(until) => {
                Err(format!("{site} was enrolled by a token that could be used until {until}"))
            }
            None => Ok(()),
        }
    }
}

/// The number of a token, and whose it is.
fn named(entry: &Entry) -> Result<(String, SiteId), String> {
    let body = entry.body();
    let name = body.text("token").map_err(|e| e.to_string())?;
    Ok((name.to_owned(), body.parsed("identity").map_err(|e| e.to_string())?))
}
