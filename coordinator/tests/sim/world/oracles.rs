//! What must hold in the world, whatever happens in it.

use super::{MIN_SITES, World, evaluates, site};
use falaj_core::{
    id::{Digest, SiteId},
    round::{Phase, Record},
};
use std::collections::BTreeSet;

/// What the log says of the try that it tells of last, and of all before.
struct Told {
    /// The round and its try.
    number: u32,
    attempt: u32,
    seated: BTreeSet<SiteId>,
    /// Whose updates are in the candidate.
    counted: BTreeSet<SiteId>,
    is_closed: bool,
    /// Who has counted about the candidate.
    answered: BTreeSet<SiteId>,
    /// Payloads that were ever accepted, and counts that were ever taken.
    accepted: BTreeSet<Digest>,
    taken: BTreeSet<Digest>,
}

impl Told {
    const fn new() -> Self {
        Self {
            number: 1,
            attempt: 0,
            seated: BTreeSet::new(),
            counted: BTreeSet::new(),
            is_closed: false,
            answered: BTreeSet::new(),
            accepted: BTreeSet::new(),
            taken: BTreeSet::new(),
        }
    }

    fn opened(&mut self) {
        self.seated.clear();
        self.counted.clear();
        self.is_closed = false;
        self.answered.clear();
    }

    /// A candidate was judged: by what was counted about it, where it is evaluated.
    fn judged(&mut self, published: bool) -> Result<(), String> {
        let wanting = evaluates(self.number) && self.answered.is_empty();
        if published == wanting {
            let word = if published { "published" } else { "rejected" };
            let (number, sites) = (self.number, self.answered.len());
            return Err(format!("the candidate of round {number} was {word} by {sites} counts"));
        }
        (self.number, self.attempt) =
            if published { (self.number + 1, 0) } else { (self.number, self.attempt + 1) };
        Ok(())
    }
}

impl World {
    /// What must hold at every moment.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        if self.disk.log.len() < self.longest_log {
            return Err("the log became shorter".into());
        }
        self.longest_log = self.disk.log.len();
        // Each try of a round counts a site at most once, and only what is in the log.
        let mut told = Told::new();
        for record in &self.disk.log {
            self.record(&mut told, record)?;
        }
        for all in [&told.accepted, &told.taken] {
            if let Some(digest) = all.intersection(&self.refused).next() {
                return Err(format!("{digest} was refused and is in a sum"));
            }
        }
        // Every receipt speaks of an update that the log counts, and whoever was told that its counts were taken was told the truth.
        for (n, journal) in self.journals.iter().enumerate() {
            for task in &journal.receipts {
                if !told.accepted.contains(&journal.sealed[task].payload) {
                    return Err(format!("site {n} holds a receipt for what is not in the log"));
                }
            }
            for asked in &journal.taken {
                if !told.taken.contains(&journal.counts[asked]) {
                    return Err(format!("site {n} was told of counts that are not in the log"));
                }
            }
        }
        Ok(())
    }

    /// The next record.
    fn record(&self, told: &mut Told, record: &Record) -> Result<(), String> {
        match record {
            Record::Opened => told.opened(),
            Record::Joined(site) => {
                told.seated.insert(site.clone());
            }
            Record::Declined(site, _) => {
                told.seated.remove(site);
            }
            Record::Accepted(site, update) => {
                if !told.seated.contains(site) {
                    return Err(format!("{site} has no seat, or has declined, and is counted"));
                }
                if !told.counted.insert(site.clone()) {
                    return Err(format!("{site} is counted twice"));
                }
                told.accepted.insert(update.payload);
            }
            Record::Closed(updates) => {
                if updates.len() != told.counted.len()
                    || !updates.iter().all(|u| told.accepted.contains(u))
                {
                    return Err("a round closed over other updates than were accepted".into());
                }
                if updates.len() < MIN_SITES as usize {
                    return Err(format!("a round closed over {} updates", updates.len()));
                }
                told.is_closed = true;
            }
            Record::Answered(site, phase, counts) => self.answered(told, site, *phase, counts)?,
            Record::Published(_) => told.judged(true)?,
            Record::Rejected(..) => told.judged(false)?,
            Record::Held(..) | Record::Approved(_) | Record::Refused(_) => {
                return Err("people are asked, and no gate here asks them".into());
            }
            Record::Failed(_) => told.attempt += 1,
        }
        Ok(())
    }

    /// A site's counts about a candidate were taken.
    fn answered(
        &self,
        told: &mut Told,
        whose: &SiteId,
        phase: Phase,
        counts: &Digest,
    ) -> Result<(), String> {
        if phase != Phase::Evaluation || !evaluates(told.number) || !told.is_closed {
            return Err(format!("{whose} answers what nobody asked in round {}", told.number));
        }
        if !told.counted.contains(whose) {
            return Err(format!("{whose} has not trained the candidate, and counts about it"));
        }
        if !told.seated.contains(whose) {
            return Err(format!("{whose} has declined, and counts"));
        }
        if !told.answered.insert(whose.clone()) {
            return Err(format!("{whose} has counted twice about one candidate"));
        }
        match self.counted.get(counts) {
            Some((n, number, attempt))
                if site(*n) == *whose && (*number, *attempt) == (told.number, told.attempt) => {}
            made => {
                let (number, attempt) = (told.number, told.attempt);
                return Err(format!(
                    "in {number}.{attempt} {whose} counted what was made {made:?}"
                ));
            }
        }
        told.taken.insert(*counts);
        Ok(())
    }

    /// How often a site's counts were taken, and how many candidates were kept out.
    pub(crate) fn evaluated(&self) -> (usize, usize) {
        let of = |is: fn(&Record) -> bool| self.disk.log.iter().filter(|r| is(r)).count();
        let taken = of(|record| matches!(record, Record::Answered(..)));
        (taken, of(|record| matches!(record, Record::Rejected(..))))
    }

    /// What must hold when good weather has lasted.
    pub(crate) fn check_end(&self) -> Result<(), String> {
        let published = self.disk.log.iter().filter(|r| matches!(r, Record::Published(_))).count();
        if published != self.disk.models as usize {
            return Err(format!("{} models, {published} in the log", self.disk.models));
        }
        if self.disk.over {
            return Ok(());
        }
        Err(format!(
            "the study never ended: round {} try {} is {}",
            self.disk.round.id().number,
            self.disk.round.spec().attempt,
            self.disk.round.stage()
        ))
    }
}
