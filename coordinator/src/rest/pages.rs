//! Lists, a page at a time.
//!
//! Each thing in a list has a place in an order that does not change, and a page is what comes after a place. Whatever is there from
//! the first page to the last is on one of them exactly once, also while others come and go.

use super::versions::malformed;
use crate::{engine::unreadable, store::Store};
use falaj_core::{id::StudyId, round::AnyRound};
use falaj_proto::problem::Problem;
use serde::Deserialize;
use std::{fmt, str::FromStr, vec};
use utoipa::IntoParams;

/// On one page, at most.
pub(super) const PAGE_MAX: u32 = 200;
/// On one page unless asked otherwise.
const PAGE: u32 = 50;
/// Rounds that are read at once.
const ROUNDS: u32 = 50;

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// What comes after this; `next` of one page is the `cursor` of the one after it.
    pub(super) cursor: Option<String>,
    /// On the page, at most 200; 50 when absent.
    pub(super) limit: Option<u32>,
}

impl PageQuery {
    /// The page of these things, each of which has its own place, and where the next one starts.
    ///
    /// # Errors
    /// When it asks for no page.
    pub(super) fn of<T, P: Ord + FromStr + fmt::Display>(
        &self,
        all: impl IntoIterator<Item = T>,
        place: impl Fn(&T) -> P,
    ) -> Result<(Vec<T>, Option<String>), Problem> {
        let (after, limit) = (self.after::<P>()?, limited(self.limit)? as usize);
        let comes = |item: &T| after.as_ref().is_none_or(|after| place(item) > *after);
        let mut items: Vec<T> = all.into_iter().filter(comes).collect();
        items.sort_by_cached_key(&place);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|last| place(last).to_string());
        Ok((items, next))
    }

    /// The page of a study's rounds, tries included, of which no others are read.
    ///
    /// # Errors
    /// When it asks for no page, or they cannot be read.
    pub(super) async fn rounds(
        &self,
        store: &Store,
        study: &StudyId,
    ) -> Result<(Vec<AnyRound>, Option<String>), Problem> {
        let after = self.after::<Try>()?.map(Try::key);
        // One more says whether another page comes.
        let rounds = store.rounds_after(study, after, limited(self.limit)? + 1).await;
        self.of(rounds.map_err(unreadable)?, Try::of)
    }

    /// After which place the page begins, if not at the beginning.
    fn after<P: FromStr>(&self) -> Result<Option<P>, Problem> {
        let read = self.cursor.as_deref().map(|cursor| cursor.parse().map_err(|_| foreign()));
        read.transpose()
    }
}

/// What is said about a cursor that nobody was given.
pub(super) fn foreign() -> Problem {
    malformed("`cursor` is none that this interface gave")
}

/// How much is asked for at once.
pub(super) fn limited(limit: Option<u32>) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(PAGE);
    if (1..=PAGE_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(malformed(format!("`limit` is 1 to {PAGE_MAX}")))
    }
}

/// A try of a round, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Try {
    pub(super) number: u32,
    pub(super) attempt: u32,
}

impl Try {
    pub(super) fn of(round: &AnyRound) -> Self {
        Self { number: round.id().number, attempt: round.spec().attempt }
    }

    /// By which the store knows it.
    const fn key(self) -> (u32, u32) {
        (self.number, self.attempt)
    }
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, self.attempt)
    }
}

/// A text that names no try of a round.
#[derive(Debug)]
pub(super) struct NoTry;

impl FromStr for Try {
    type Err = NoTry;
    fn from_str(text: &str) -> Result<Self, NoTry> {
        let (number, attempt) = text.split_once('-').ok_or(NoTry)?;
        let number = number.parse().map_err(|_| NoTry)?;
        Ok(Self { number, attempt: attempt.parse().map_err(|_| NoTry)? })
    }
}

/// The rounds of a study, tries included, the newest first; they are read as they are asked for.
pub(super) struct Newest<'a> {
    store: &'a Store,
    study: &'a StudyId,
    before: Option<Try>,
    /// The tries of this round alone.
    round: Option<u32>,
    read: vec::IntoIter<AnyRound>,
}

impl<'a> Newest<'a> {
    /// Those before one, or all; those of one round, or of all.
    pub(super) fn of(
        (store, study): (&'a Store, &'a StudyId),
        before: Option<Try>,
        round: Option<u32>,
    ) -> Self {
        let end = round.map(|number| Try { number, attempt: u32::MAX });
        let before = [before, end].into_iter().flatten().min();
        Self { store, study, before, round, read: Vec::new().into_iter() }
    }

    /// The next one.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub(super) async fn next(&mut self) -> Result<Option<AnyRound>, Problem> {
        if self.read.as_slice().is_empty() {
            let before = self.before.map(Try::key);
            let read = self.store.rounds_before(self.study, before, ROUNDS).await;
            self.read = read.map_err(unreadable)?.into_iter();
        }
        let Some(next) = self.read.next() else { return Ok(None) };
        if self.round.is_some_and(|round| next.id().number != round) {
            return Ok(None);
        }
        self.before = Some(Try::of(&next));
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn asked(cursor: Option<String>, limit: Option<u32>) -> PageQuery {
        PageQuery { cursor, limit }
    }

    #[test]
    fn every_thing_is_on_one_page_while_others_come_and_go() {
        let mut there: BTreeSet<u32> = (0..100).map(|n| n * 2).collect();
        let stay: BTreeSet<u32> = there.iter().copied().filter(|n| n % 10 != 0).collect();
        let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0_u32);
        loop {
            // In no order: the page makes one.
            let all = there.iter().rev().copied();
            let page = asked(cursor, Some(7)).of(all, |n| *n);
            let (items, next) = page.expect("a page");
            assert!(items.len() <= 7, "{items:?}");
            seen.extend(items);
            // One comes before the page and one after it, and one that was there goes.
            there.extend([pages * 2 + 1, 199 - pages * 2]);
            there.remove(&(pages * 10));
            pages += 1;
            match next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert!(pages > 14, "{pages}");
        let once: BTreeSet<u32> = seen.iter().copied().collect();
        assert_eq!(once.len(), seen.len(), "twice: {seen:?}");
        assert!(once.is_superset(&stay), "{seen:?}");
        assert!(seen.is_sorted(), "{seen:?}");
    }

    #[test]
    fn a_page_that_ends_with_the_list_is_the_last() {
        for (limit, wanted) in [(3, None), (2, Some("1".to_owned())), (4, None)] {
            let (_, next) = asked(None, Some(limit)).of(0..3_u32, |n| *n).expect("a page");
            assert_eq!(next, wanted, "{limit}");
        }
    }

    #[test]
    fn no_page_has_no_room_or_too_much_or_begins_where_nothing_is() {
        for (cursor, limit) in [(None, Some(0)), (None, Some(201)), (Some("x".into()), None)] {
            assert!(asked(cursor, limit).of(0..3_u32, |n| *n).is_err(), "{limit:?}");
        }
    }

    #[test]
    fn tries_are_in_the_order_in_which_they_are_made() {
        let tries = ["1-0", "1-1", "1-10", "2-0", "10-0"].map(|text| {
            let read: Try = text.parse().expect("a try");
            assert_eq!(read.to_string(), text);
            read
        });
        assert!(tries.is_sorted());
        for text in ["", "1", "1-", "-1", "1-x"] {
            assert!(text.parse::<Try>().is_err(), "{text}");
        }
    }
}
