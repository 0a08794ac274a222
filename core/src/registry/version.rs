//! How the versions of a study's model move: candidate, staging, production, archived; or out, rejected or revoked.
//!
//! [`step`] is total: every event gives a change or a refusal, and on a refusal nothing has changed. At most one version is in
//! production, and the champion is that one.

use crate::id::{Digest, StudyId};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Versions that a study can have.
pub const VERSIONS_MAX: usize = 1_000;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$word_doc:meta])* $variant:ident = $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$word_doc])* $variant,)* }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its word.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $word,)* } }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                let found = Self::ALL.iter().copied().find(|word| word.as_str() == text);
                found.ok_or_else(|| UnknownWord {
                    what: $what,
                    text: text.chars().take(40).collect(),
                    words: [$($word),*].join(", "),
                })
            }
        }
    };
}

/// A word that is none of those there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} `{text}`: it is one of {words}")]
pub struct UnknownWord {
    what: &'static str,
    text: String,
    words: String,
}

words! {
    /// Where a version stands.
    Stage, "stage" {
        /// It was made, and nobody has decided anything.
        Candidate = "candidate";
        /// It is being tried.
        Staging = "staging";
        /// It is the one that serves.
        Production = "production";
        /// It has served or been tried, and is kept.
        Archived = "archived";
        /// It was not good enough.
        Rejected = "rejected";
        /// It must not be used any more.
        Revoked = "revoked";
    }
}

words! {
    /// A name that one version of a study has at a time: an arm that serves.
    Alias, "alias" {
        /// The version in production.
        Champion = "champion";
        /// The version in staging that is tried against it.
        Challenger = "challenger";
    }
}

impl Stage {
    /// Whether a version may be promoted from here to there.
    #[must_use]
    pub const fn leads_to(self, to: Self) -> bool {
        matches!(
            (self, to),
            (Self::Candidate, Self::Staging)
                | (Self::Staging, Self::Production | Self::Archived)
                | (Self::Production, Self::Archived)
        )
    }

    /// Whether it can serve, now or later.
    #[must_use]
    pub const fn is_in(self) -> bool {
        !matches!(self, Self::Rejected | Self::Revoked)
    }

    /// Where it may be promoted to, in words.
    const fn next(self) -> &'static str {
        match self {
            Self::Candidate => "to `staging`",
            Self::Staging => "to `production` or `archived`",
            Self::Production => "to `archived`",
            Self::Archived | Self::Rejected | Self::Revoked => "nowhere",
        }
    }
}

/// One version of a study's model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its number, from 1.
    pub number: u32,
    /// The round whose model it is.
    pub round: u32,
    /// SHA-256 of its parameters.
    pub model: Digest,
    /// SHA-256 of the manifest of its tensors.
    pub manifest: Digest,
    /// SHA-256 of the file that it is downloaded as.
    pub file: Digest,
    /// Where it stands.
    pub stage: Stage,
    /// The how manieth in production it was, from 1; 0 if it never was, or was rolled back from.
    pub served: u32,
}

/// The versions of one study, and their aliases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// The study.
    pub study: StudyId,
    /// Its versions, by number.
    pub versions: BTreeMap<u32, Version>,
    /// Which version has which alias.
    pub aliases: BTreeMap<Alias, u32>,
}

/// What is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A round's model becomes a version.
    Make {
        /// The round.
        round: u32,
        /// SHA-256 of its parameters.
        model: Digest,
        /// SHA-256 of the manifest of its tensors.
        manifest: Digest,
        /// SHA-256 of the file that it is downloaded as.
        file: Digest,
    },
    /// A version goes on to a stage.
    Promote {
        /// Which.
        number: u32,
        /// Where to.
        to: Stage,
    },
    /// A version is not good enough.
    Reject(u32),
    /// A version must not be used any more.
    Revoke(u32),
    /// The version that was in production before serves again.
    RollBack,
    /// An alias is given to a version, or taken away.
    Alias {
        /// Which alias.
        alias: Alias,
        /// To whom; to nobody when absent.
        number: Option<u32>,
    },
}

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How the registry is now.
    pub next: Registry,
    /// The version that it is about; of an alias that nobody has any more, who had it.
    pub version: u32,
    /// The version that left production for it.
    pub replaced: Option<u32>,
}

/// Why an event is not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such version.
    #[error(
        "study `{study}` has no version {number}; `falaj model versions` shows those there are"
    )]
    Unknown {
        /// The study.
        study: StudyId,
        /// The number.
        number: u32,
    },
    /// No more versions.
    #[error("study `{0}` has {VERSIONS_MAX} versions, and can have no more")]
    Full(StudyId),
    /// The round's model is a version already.
    #[error("round {round} of study `{study}` is version {number} already")]
    Made {
        /// The study.
        study: StudyId,
        /// The round.
        round: u32,
        /// Its version.
        number: u32,
    },
    /// A step that there is not.
    #[error("version {number} is `{from}`, which leads {}, not to `{to}`", from.next())]
    Stage {
        /// Which version.
        number: u32,
        /// Where it stands.
        from: Stage,
        /// Where it was to go.
        to: Stage,
    },
    /// What is over.
    #[error("version {number} is `{stage}`: that cannot be {verb} any more")]
    Over {
        /// Which version.
        number: u32,
        /// Where it stands.
        stage: Stage,
        /// What was to be done with it.
        verb: &'static str,
    },
    /// Nothing to go back to.
    #[error("no version of study `{0}` was in production before and still may be: promote one")]
    NothingBefore(StudyId),
    /// The stage does not go with the alias.
    #[error("version {number} is `{stage}`, and `{alias}` is a version in `{wanted}`")]
    Alias {
        /// Which version.
        number: u32,
        /// Where it stands.
        stage: Stage,
        /// The alias.
        alias: Alias,
        /// Where it would have to stand.
        wanted: Stage,
    },
    /// It has the alias, or nobody has it.
    #[error("that is so already: `{0}` stays as it is")]
    Same(Alias),
}

impl Registry {
    /// A study without versions.
    #[must_use]
    pub const fn new(study: StudyId) -> Self {
        Self { study, versions: BTreeMap::new(), aliases: BTreeMap::new() }
    }

    /// One version.
    ///
    /// # Errors
    /// [`Refusal::Unknown`].
    pub fn version(&self, number: u32) -> Result<&Version, Refusal> {
        let unknown = || Refusal::Unknown { study: self.study.clone(), number };
        self.versions.get(&number).ok_or_else(unknown)
    }

    /// The version in production.
    #[must_use]
    pub fn serving(&self) -> Option<&Version> {
        self.versions.values().find(|version| version.stage == Stage::Production)
    }

    /// The version that a rollback would bring back: of those that served before, the last that still may.
    #[must_use]
    pub fn before(&self) -> Option<&Version> {
        let served = |v: &&Version| v.stage == Stage::Archived && v.served > 0;
        self.versions.values().filter(served).max_by_key(|version| version.served)
    }

    /// The aliases of a version.
    pub fn aliases_of(&self, number: u32) -> impl Iterator<Item = Alias> {
        let of = move |(alias, whose): (&Alias, &u32)| (*whose == number).then_some(*alias);
        self.aliases.iter().filter_map(of)
    }

    fn put(&mut self, number: u32, stage: Stage) {
        if let Some(version) = self.versions.get_mut(&number) {
            version.stage = stage;
        }
        self.aliases.retain(|_, whose| *whose != number);
    }

    /// Puts a version into production, and gives the one that was there.
    fn serve(&mut self, number: u32) -> Option<u32> {
        let replaced = self.serving().map(|version| version.number);
        if let Some(replaced) = replaced {
            self.put(replaced, Stage::Archived);
        }
        self.put(number, Stage::Production);
        self.aliases.insert(Alias::Champion, number);
        replaced
    }

    const fn wanted(alias: Alias) -> Stage {
        match alias {
            Alias::Champion => Stage::Production,
            Alias::Challenger => Stage::Staging,
        }
    }
}

/// What becomes of the versions by an event.
///
/// # Errors
/// [`Refusal`], which says what was wrong; the registry is as it was.
pub fn step(registry: &Registry, event: &Event) -> Result<Change, Refusal> {
    let mut next = registry.clone();
    let mut replaced = None;
    let version = match *event {
        Event::Make { round, model, manifest, file } => {
            make(&mut next, round, [model, manifest, file])?
        }
        Event::Promote { number, to } => {
            let from = registry.version(number)?.stage;
            if !from.leads_to(to) {
                return Err(Refusal::Stage { number, from, to });
            }
            if to == Stage::Production {
                let served = registry.versions.values().map(|v| v.served).max().unwrap_or(0);
                if let Some(version) = next.versions.get_mut(&number) {
                    version.served = served.saturating_add(1);
                }
                replaced = next.serve(number);
            } else {
                next.put(number, to);
            }
            number
        }
        Event::Reject(number) => {
            let stage = registry.version(number)?.stage;
            if !matches!(stage, Stage::Candidate | Stage::Staging) {
                return Err(Refusal::Over { number, stage, verb: "rejected" });
            }
            next.put(number, Stage::Rejected);
            number
        }
        Event::Revoke(number) => {
            let stage = registry.version(number)?.stage;
            if stage == Stage::Revoked {
                return Err(Refusal::Over { number, stage, verb: "revoked" });
            }
            next.put(number, Stage::Revoked);
            number
        }
        Event::RollBack => {
            let before = registry.before().map(|version| version.number);
            let number = before.ok_or_else(|| Refusal::NothingBefore(registry.study.clone()))?;
            replaced = next.serve(number);
            // What was rolled back from is not what a later rollback goes back to.
            if let Some(version) = replaced.and_then(|replaced| next.versions.get_mut(&replaced)) {
                version.served = 0;
            }
            number
        }
        Event::Alias { alias, number: Some(number) } => {
            let Version { stage, .. } = *registry.version(number)?;
            let wanted = Registry::wanted(alias);
            if stage != wanted {
                return Err(Refusal::Alias { number, stage, alias, wanted });
            }
            if next.aliases.insert(alias, number) == Some(number) {
                return Err(Refusal::Same(alias));
            }
            number
        }
        Event::Alias { alias, number: None } => {
            next.aliases.remove(&alias).ok_or(Refusal::Same(alias))?
        }
    };
    Ok(Change { next, version, replaced })
}

fn make(
    next: &mut Registry,
    round: u32,
    [model, manifest, file]: [Digest; 3],
) -> Result<u32, Refusal> {
    if let Some(made) = next.versions.values().find(|version| version.round == round) {
        let (study, number) = (next.study.clone(), made.number);
        return Err(Refusal::Made { study, round, number });
    }
    if next.versions.len() >= VERSIONS_MAX {
        return Err(Refusal::Full(next.study.clone()));
    }
    let number = next.versions.keys().max().map_or(1, |last| last + 1);
    let stage = Stage::Candidate;
    let version = Version { number, round, model, manifest, file, stage, served: 0 };
    next.versions.insert(number, version);
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn make_of(round: u32) -> Event {
        let digest = |what: &str| Digest::of(format!("{what} {round}").as_bytes());
        let (model, manifest, file) = (digest("model"), digest("manifest"), digest("file"));
        Event::Make { round, model, manifest, file }
    }

    fn promote(number: u32, to: Stage) -> Event {
        Event::Promote { number, to }
    }

    /// A registry after these events, all of which are taken.
    fn after(events: &[Event]) -> Registry {
        let empty = Registry::new("heart".parse().expect("a study"));
        events.iter().fold(empty, |registry, event| {
            step(&registry, event).unwrap_or_else(|e| panic!("{event:?}: {e}")).next
        })
    }

    fn served(number: u32) -> [Event; 3] {
        [make_of(number), promote(number, Stage::Staging), promote(number, Stage::Production)]
    }

    fn stages(registry: &Registry) -> Vec<Stage> {
        registry.versions.values().map(|version| version.stage).collect()
    }

    #[test]
    fn a_version_goes_one_step_at_a_time_and_takes_the_place_of_the_one_before() {
        let two = after(&[served(1), served(2)].concat());
        assert_eq!(stages(&two), [Stage::Archived, Stage::Production]);
        assert_eq!(two.aliases, BTreeMap::from([(Alias::Champion, 2)]));
        let first = after(&[make_of(1)]);
        let refused = step(&first, &promote(1, Stage::Production)).expect_err("too far");
        assert_eq!(
            refused.to_string(),
            "version 1 is `candidate`, which leads to `staging`, not to `production`"
        );
        let change = step(&after(&served(1)), &promote(2, Stage::Staging)).expect_err("unknown");
        assert!(change.to_string().starts_with("study `heart` has no version 2"), "{change}");
    }

    #[test]
    fn a_rollback_goes_back_once_for_each_and_never_to_what_was_revoked() {
        let three = after(&[served(1), served(2), served(3)].concat());
        let change = step(&three, &Event::RollBack).expect("back");
        assert_eq!((change.version, change.replaced), (2, Some(3)));
        let again = step(&change.next, &Event::RollBack).expect("back");
        assert_eq!((again.version, again.replaced), (1, Some(2)));
        assert_eq!(again.next.aliases, BTreeMap::from([(Alias::Champion, 1)]));
        let none = step(&again.next, &Event::RollBack).expect_err("nothing");
        assert!(matches!(none, Refusal::NothingBefore(_)));
        // The version in production is revoked, and so is the one before it.
        let revoked = after(
            &[
                &[served(1), served(2), served(3)].concat()[..],
                &[Event::Revoke(3), Event::Revoke(2)],
            ]
            .concat(),
        );
        assert_eq!(revoked.serving(), None);
        assert!(revoked.aliases.is_empty());
        let change = step(&revoked, &Event::RollBack).expect("back");
        assert_eq!((change.version, change.replaced), (1, None));
    }

    #[test]
    fn what_was_rejected_or_revoked_stays_so_and_a_round_is_one_version() {
        let registry = after(&[make_of(4), Event::Reject(1)]);
        assert!(step(&registry, &promote(1, Stage::Staging)).is_err());
        assert!(step(&registry, &Event::Reject(1)).is_err());
        let revoked = step(&registry, &Event::Revoke(1)).expect("even so").next;
        assert!(step(&revoked, &Event::Revoke(1)).is_err());
        let made = step(&revoked, &make_of(4)).expect_err("made");
        assert_eq!(made.to_string(), "round 4 of study `heart` is version 1 already");
        let serving = after(&served(1));
        let refused = step(&serving, &Event::Reject(1)).expect_err("it serves");
        assert_eq!(
            refused.to_string(),
            "version 1 is `production`: that cannot be rejected any more"
        );
    }

    #[test]
    fn aliases_are_of_versions_that_serve_or_are_tried() {
        let registry = after(
            &[&served(1)[..], &[make_of(2), promote(2, Stage::Staging), make_of(3)]].concat(),
        );
        let alias = |alias, number| Event::Alias { alias, number };
        let tried = step(&registry, &alias(Alias::Challenger, Some(2))).expect("it is tried").next;
        assert_eq!(tried.aliases_of(2).collect::<Vec<_>>(), [Alias::Challenger]);
        for (wrong, why) in [
            (alias(Alias::Challenger, Some(1)), "is a version in `staging`"),
            (alias(Alias::Champion, Some(2)), "is a version in `production`"),
            (alias(Alias::Challenger, Some(3)), "version 3 is `candidate`"),
            (alias(Alias::Challenger, Some(9)), "no version 9"),
            (alias(Alias::Challenger, Some(2)), "already"),
        ] {
            let refused = step(&tried, &wrong).expect_err(why).to_string();
            assert!(refused.contains(why), "{refused}");
        }
        // A challenger that is promoted is the champion, and no challenger.
        let won = step(&tried, &promote(2, Stage::Production)).expect("promoted").next;
        assert_eq!(won.aliases, BTreeMap::from([(Alias::Champion, 2)]));
        let none = step(&tried, &alias(Alias::Challenger, None)).expect("taken away");
        assert_eq!((none.version, none.next.aliases.len()), (2, 1));
        assert!(step(&none.next, &alias(Alias::Challenger, None)).is_err());
    }

    #[test]
    fn every_word_has_one_spelling() {
        for &stage in Stage::ALL {
            assert_eq!(stage.as_str().parse(), Ok(stage));
        }
        let none = "live".parse::<Alias>().expect_err("no word");
        assert_eq!(none.to_string(), "there is no alias `live`: it is one of champion, challenger");
    }

    fn events() -> impl Strategy<Value = Event> {
        let number = 0..6_u32;
        prop_oneof![
            (1..8_u32).prop_map(make_of),
            (number.clone(), 0..Stage::ALL.len())
                .prop_map(|(number, to)| promote(number, Stage::ALL[to])),
            number.clone().prop_map(Event::Reject),
            number.clone().prop_map(Event::Revoke),
            Just(Event::RollBack),
            (0..Alias::ALL.len(), proptest::option::of(number))
                .prop_map(|(alias, number)| Event::Alias { alias: Alias::ALL[alias], number }),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, one version serves at most, and aliases are of versions that stand where
        /// they should.
        #[test]
        fn at_most_one_version_serves(events in proptest::collection::vec(events(), 0..60)) {
            let mut registry = Registry::new("heart".parse().expect("a study"));
            for event in &events {
                let Ok(change) = step(&registry, event) else { continue };
                let mut moved = 0;
                for (number, version) in &change.next.versions {
                    let was = registry.versions.get(number).map(|v| v.stage);
                    moved += usize::from(was != Some(version.stage));
                    // Nobody comes back from where they are out.
                    prop_assert!(was.is_none_or(Stage::is_in) || !version.stage.is_in());
                }
                prop_assert!(moved <= 2);
                registry = change.next;
                let serving = registry.versions.values().filter(|v| v.stage == Stage::Production);
                prop_assert!(serving.count() <= 1);
                for (alias, number) in &registry.aliases {
                    prop_assert_eq!(registry.versions[number].stage, Registry::wanted(*alias));
                }
            }
        }
    }
}
