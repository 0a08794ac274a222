//! Sites that a study has to do without from now on. Whoever revokes writes them here at once, whatever the study's actor is
//! doing; the actor looks before anything else becomes of its round.

use falaj_core::id::SiteId;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The sites, and whether what is counted of each stays.
#[derive(Debug, Default)]
pub(super) struct Leaving(Mutex<BTreeMap<SiteId, bool>>);

impl Leaving {
    /// One more. Once it was said that nothing of a site stays, nothing does.
    pub(super) fn add(&self, site: &SiteId, keep: bool) {
        let mut sites = self.sites();
        let kept = sites.get(site).copied().unwrap_or(true);
        sites.insert(site.clone(), kept && keep);
    }

    /// One of them, which stays until [`Self::done`].
    pub(super) fn first(&self) -> Option<(SiteId, bool)> {
        self.sites().first_key_value().map(|(site, keep)| (site.clone(), *keep))
    }

    /// The round does without it, unless more was asked meanwhile.
    pub(super) fn done(&self, site: &SiteId, keep: bool) {
        let mut sites = self.sites();
        if sites.get(site) == Some(&keep) {
            sites.remove(site);
        }
    }

    fn sites(&self) -> MutexGuard<'_, BTreeMap<SiteId, bool>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_of_a_site_while_it_was_leaving_is_not_forgotten() {
        let site: SiteId = "spiffe://t/ae-on/ae-az/site/a".parse().expect("valid");
        let leaving = Leaving::default();
        leaving.add(&site, true);
        assert_eq!(leaving.first(), Some((site.clone(), true)));
        leaving.add(&site, false);
        leaving.done(&site, true);
        leaving.add(&site, true);
        assert_eq!(leaving.first(), Some((site.clone(), false)));
        leaving.done(&site, false);
        assert_eq!(leaving.first(), None);
    }
}
