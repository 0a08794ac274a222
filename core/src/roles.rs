//! Roles: what an operator is there for. A certificate names groups, a configuration says which roles these stand for,
//! and policies say what a role may do.

use crate::canon::{Canon, CanonError};
use std::{fmt, str::FromStr};

macro_rules! roles {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// One role.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum OperatorRole { $($(#[$doc])* $variant,)* }

        impl OperatorRole {
            /// Every role, in the order of the alphabet.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word that policies, configurations and the log use.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
        }
    };
}

roles! {
    /// Says yes or no to what somebody else wants to do.
    Approver = "approver";
    /// Reads and exports the log, and changes nothing.
    Auditor = "auditor";
    /// Submits studies, and has what they learn.
    DataScientist = "data-scientist";
    /// Keeps things running: starts and stops, and lets nobody in who does not belong.
    Operator = "operator";
    /// Speaks for a site and for the people in its records and in the log.
    SiteSteward = "site-steward";
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role: there are approver, auditor, data-scientist, operator and site-steward")]
pub struct UnknownRole(String);

impl FromStr for OperatorRole {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = Self::ALL.iter().copied().find(|role| role.as_str() == text);
        found.ok_or_else(|| UnknownRole(text.chars().take(64).collect()))
    }
}

/// The roles that somebody has.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Roles(u8);

impl Roles {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Every one.
    pub const ALL: Self = Self((1 << OperatorRole::ALL.len()) - 1);

    /// Those that are there, in the order of [`OperatorRole::ALL`].
    pub fn iter(self) -> impl Iterator<Item = OperatorRole> {
        OperatorRole::ALL.iter().copied().filter(move |role| self.has(*role))
    }

    /// Whether this one is there.
    #[must_use]
    pub const fn has(self, role: OperatorRole) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their words with spaces between them, as a group of a certificate has them.
    #[must_use]
    pub fn words(self) -> String {
        self.iter().map(OperatorRole::as_str).collect::<Vec<_>>().join(" ")
    }

    /// These and others.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

impl FromIterator<OperatorRole> for Roles {
    fn from_iter<I: IntoIterator<Item = OperatorRole>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |all, role| all | 1 << role as u8))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (i, role) in self.iter().enumerate() {
            write!(f, "{}{role}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

/// Roles as an entry has them.
pub(crate) fn list(roles: Roles) -> Canon {
    Canon::List(roles.iter().map(|role| role.as_str().into()).collect())
}

/// Reads [`list`].
pub(crate) fn read<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> Result<Roles, CanonError> {
    let bad = || CanonError::Member("roles".to_owned());
    texts.map(|text| text.ok_or_else(bad)?.parse::<OperatorRole>().map_err(|_| bad())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_a_set_that_is_told_in_one_order() {
        let roles: Roles =
            [OperatorRole::SiteSteward, OperatorRole::Auditor, OperatorRole::Auditor]
                .into_iter()
                .collect();
        assert_eq!(roles.to_string(), "auditor, site-steward");
        assert_eq!(roles.and(Roles::NONE), roles);
        assert_eq!(Roles::ALL.iter().count(), OperatorRole::ALL.len());
        assert_eq!(Roles::ALL.iter().collect::<Roles>(), Roles::ALL);
        assert_eq!(Roles::NONE.to_string(), "none");
        assert_eq!(
            (roles.words().as_str(), Roles::NONE.words().as_str()),
            ("auditor site-steward", "")
        );
        let mut words: Vec<&str> = OperatorRole::ALL.iter().map(|role| role.as_str()).collect();
        words.sort_unstable();
        assert!(OperatorRole::ALL.iter().map(|role| role.as_str()).eq(words));
    }

    #[test]
    fn a_word_that_is_no_role_is_named_with_those_that_are() {
        let said = "root".parse::<OperatorRole>().expect_err("none").to_string();
        for role in OperatorRole::ALL {
            assert!(said.contains(role.as_str()), "{said}");
        }
    }
}
