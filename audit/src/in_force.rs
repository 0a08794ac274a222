//! Which policies were in force when, as the log goes on.

use crate::revoked::UNDER_WAY_MS;
use falaj_core::{
    audit::{Entry, Kind, policy_set},
    id::Digest,
    time::Timestamp,
};
use falaj_policies::rescue;
use std::collections::BTreeMap;

/// The glass is broken for at most this long, in milliseconds.
const GLASS_MS_MAX: u64 = 240 * 60_000;
/// The policies of before are asked again so long after its end, at most: they are looked for, read and logged first.
const MENDING_MS: u64 = 30_000;

/// The policy sets of this run of the coordinator.
pub(crate) struct InForce {
    now: Option<Digest>,
    sets: BTreeMap<Digest, Standing>,
    /// The set that is asked while the glass is broken, as this build knows it.
    rescue: Digest,
}

#[derive(Clone, Copy, Default)]
struct Standing {
    /// Until when entries may rest on it, since another one has taken its place.
    until: Option<Timestamp>,
    /// Until when the glass is broken, if that is why it is asked.
    glass: Option<Timestamp>,
}

impl Default for InForce {
    fn default() -> Self {
        Self { now: None, sets: BTreeMap::new(), rescue: policy_set(&rescue()) }
    }
}

impl InForce {
    /// The next entry of the log.
    pub(crate) fn take(&mut self, entry: &Entry) -> Result<(), String> {
        let body = entry.body();
        let set = || body.parsed::<Digest>("policy_set_sha256").map_err(|e| e.to_string());
        match entry.kind {
            Kind::CoordinatorStarted => {
                (self.now, self.sets) = (None, BTreeMap::new());
                self.put(set()?, entry)
            }
            Kind::PolicyLoaded => {
                let set = set()?;
                // The same files read again are as they were.
                if self.now != Some(set) {
                    self.sets.remove(&set);
                }
                self.put(set, entry)
            }
            Kind::PolicyRefused => {
                let set = set()?;
                if !self.sets.contains_key(&set) {
                    return Err(format!(
                        "its policies {set} cannot stay in force: they never were"
                    ));
                }
                self.put(set, entry)
            }
            Kind::GlassBroken => {
                let (at, until) = (time(&entry.ts)?, time(body.find_text("until").unwrap_or(""))?);
                if until > at.plus_ms(GLASS_MS_MAX + UNDER_WAY_MS) {
                    return Err("it breaks the glass for more than four hours".into());
                }
                let standing = self.standing_now();
                standing.ok_or("no policies were in force before it")?.glass = Some(until);
                Ok(())
            }
            Kind::GlassMended => {
                let at = time(&entry.ts)?;
                if let Some(until) =
                    self.standing_now().and_then(|standing| standing.glass.as_mut())
                {
                    *until = at.min(*until);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn standing_now(&mut self) -> Option<&mut Standing> {
        self.sets.get_mut(&self.now?)
    }

    /// Asks a set from this entry on.
    fn put(&mut self, set: Digest, entry: &Entry) -> Result<(), String> {
        let until = time(&entry.ts)?.plus_ms(UNDER_WAY_MS);
        if let Some(before) = self.standing_now() {
            before.until = Some(until);
        }
        self.now = Some(set);
        self.sets.entry(set).or_default().until = None;
        Ok(())
    }

    /// Whether an entry can rest on a set, which allowed what it tells of or did not; `asked` says when it was asked, where
    /// that was long before the entry.
    pub(crate) fn check(
        &self,
        set: &Digest,
        allowed: bool,
        entry: &Entry,
        asked: impl FnOnce() -> Option<Timestamp>,
    ) -> Result<(), String> {
        let Some(standing) = self.sets.get(set) else {
            return Err(format!("its policies {set} were not in force"));
        };
        let rescues = standing.glass.is_some() || *set == self.rescue;
        // What nobody was given is told in its turn, however long that takes.
        if !allowed || (standing.until.is_none() && !rescues) {
            return Ok(());
        }
        let at = time(&entry.ts)?;
        if let Some(until) = standing.until
            && asked().unwrap_or(at) > until
        {
            return Err(format!("its policies {set} were in force no longer"));
        }
        match standing.glass {
            None if rescues => Err(format!(
                "its policies {set} are those for a broken glass, and no entry says that it was broken"
            )),
            Some(until) if at > until.plus_ms(MENDING_MS) => {
                Err(format!("its policies {set} stood for a broken glass, until {until}"))
            }
            _ => Ok(()),
        }
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).ok_or_else(|| format!("`{text}` is no time"))
}
