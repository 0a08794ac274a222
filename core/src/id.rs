//! Names: digests, places, SPIFFE identities, studies and rounds. Parsed once, then trusted.

use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// Why a name was refused. The message names the rule that it broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A digest is 64 lower-case hexadecimal digits.
    #[error("`{0}` is not a SHA-256 digest: expected 64 lower-case hexadecimal digits")]
    Digest(String),
    /// A place is `jurisdiction/region`.
    #[error("`{0}` is not a place: expected `<jurisdiction>/<region>`, for example `ae-on/ae-az`")]
    Place(String),
    /// A SPIFFE ID of Falaj has exactly four path segments.
    #[error(
        "`{id}` is not a Falaj identity ({why}): expected `spiffe://<trust domain>/<jurisdiction>/<region>/<role>/<name>`"
    )]
    Spiffe {
        /// What was offered.
        id: String,
        /// The rule it broke.
        why: &'static str,
    },
    /// Study names are short slugs.
    #[error(
        "`{0}` is not a study name: expected 1 to 64 of a-z, 0-9 and `-`, starting with a letter"
    )]
    Study(String),
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The SHA-256 digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The raw 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        hex_lower(s).map(Self).ok_or_else(|| IdError::Digest(clip(s)))
    }
}

/// What each byte is worth as a lower-case hexadecimal digit; 16 if it is none.
const DIGITS: [u8; 256] = {
    let (mut worth, mut n) = ([16; 256], 0);
    while n < 16 {
        worth[b"0123456789abcdef"[n as usize] as usize] = n;
        n += 1;
    }
    worth
};

/// Reads exactly `N` bytes in lower-case hexadecimal digits. A log is full of them, and no guess of a processor foresees the
/// next digit, so this looks them up instead of comparing, and at the end whether all were digits.
pub(crate) fn hex_lower<const N: usize>(s: &str) -> Option<[u8; N]> {
    let (pairs, rest) = s.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let (mut out, mut seen) = ([0; N], 0);
    for (byte, pair) in out.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| DIGITS[usize::from(digit)]);
        seen |= high | low;
        *byte = high << 4 | low;
    }
    (seen < 16).then_some(out)
}

/// At most 80 characters of foreign text, so that an error message stays an error message.
fn clip(s: &str) -> String {
    s.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn is_label(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 63
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !s.starts_with('-')
        && !s.ends_with('-')
}

/// Where a party is, as the law sees it: a legal jurisdiction and a region within it.
///
/// The jurisdiction is a legal label, not a country code (`ae-on` onshore, `ae-difc`, `ae-adgm`,
/// `ae-dhcc`, `gb`); the region is ISO 3166-2 in lower case (`ae-az`, `ae-du`, `gb-lnd`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    jurisdiction: String,
    region: String,
}

impl Place {
    /// The legal jurisdiction, for example `ae-on`.
    #[must_use]
    pub fn jurisdiction(&self) -> &str {
        &self.jurisdiction
    }

    /// The ISO 3166-2 region in lower case, for example `ae-az`.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Whether `pattern` covers this place: an exact place, or `jurisdiction/*`.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        match pattern.split_once('/') {
            Some((j, "*")) => j == self.jurisdiction,
            Some((j, r)) => j == self.jurisdiction && r == self.region,
            None => false,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.jurisdiction, self.region)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

impl FromStr for Place {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        match s.split_once('/') {
            Some((j, r)) if is_label(j) && is_label(r) => {
                Ok(Self { jurisdiction: j.into(), region: r.into() })
            }
            _ => Err(IdError::Place(clip(s))),
        }
    }
}

/// What a certificate's holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A coordinator of rounds.
    Coordinator,
    /// A data site's agent.
    Site,
    /// A person or pipeline that operates studies over REST.
    Operator,
    /// Cosigns checkpoints and does nothing else.
    Witness,
}

impl Role {
    /// The path segment that names this role.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Site => "site",
            Self::Operator => "operator",
            Self::Witness => "witness",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An identity: `spiffe://<trust domain>/<jurisdiction>/<region>/<role>/<name>`.
///
/// Parsing is strict (lower case, no percent-encoding, no empty segment, no query), so that one
/// identity has one spelling. Source: SPIFFE-ID specification, section 2.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: String,
    place: Place,
    role: Role,
    name: String,
}

impl SpiffeId {
    /// Puts an identity together.
    ///
    /// # Errors
    /// [`IdError::Spiffe`] when the trust domain or the name breaks the rules.
    pub fn new(trust_domain: &str, place: &Place, role: Role, name: &str) -> Result<Self, IdError> {
        format!("spiffe://{trust_domain}/{place}/{role}/{name}").parse()
    }

    /// The trust domain, for example `falaj.demo`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Where the holder is, as its issuer vouches.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// What the holder is.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The last segment, for example `hospital-1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}/{}", self.trust_domain, self.place, self.role, self.name)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({self})")
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let bad = |why| IdError::Spiffe { id: clip(s), why };
        if s.len() > 2048 {
            return Err(bad("longer than 2,048 bytes"));
        }
        let rest =
            s.strip_prefix("spiffe://").ok_or_else(|| bad("the scheme is not `spiffe://`"))?;
        let mut parts = rest.split('/');
        let [Some(domain), Some(jurisdiction), Some(region), Some(role), Some(name), None] =
            std::array::from_fn(|_| parts.next())
        else {
            return Err(bad("not exactly four path segments"));
        };
        if domain.is_empty() || domain.len() > 255 || !domain.split('.').all(is_label) {
            return Err(bad("the trust domain is not lower-case labels joined by dots"));
        }
        if !is_label(jurisdiction) || !is_label(region) {
            return Err(bad("jurisdiction and region are lower-case labels"));
        }
        let role = match role {
            "coordinator" => Role::Coordinator,
            "site" => Role::Site,
            "operator" => Role::Operator,
            "witness" => Role::Witness,
            _ => return Err(bad("the role is none of coordinator, site, operator, witness")),
        };
        if !is_label(name) {
            return Err(bad("the name is not a lower-case label"));
        }
        let place = Place { jurisdiction: jurisdiction.into(), region: region.into() };
        Ok(Self { trust_domain: domain.into(), place, role, name: name.into() })
    }
}

/// A data site: a SPIFFE identity whose role is `site`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(SpiffeId);

impl SiteId {
    /// The identity behind it.
    #[must_use]
    pub const fn spiffe(&self) -> &SpiffeId {
        &self.0
    }
    /// The site's short name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// What these sites are called beside each other: by their short names, and in full where several have the same one.
    #[must_use]
    pub fn told_apart<'a>(sites: impl IntoIterator<Item = &'a Self>) -> BTreeMap<&'a Self, String> {
        let sites: BTreeSet<&Self> = sites.into_iter().collect();
        let (mut seen, mut several) = (BTreeSet::new(), BTreeSet::new());
        for site in &sites {
            if !seen.insert(site.name()) {
                several.insert(site.name());
            }
        }
        let called = |site: &'a Self| {
            let is_one = !several.contains(site.name());
            (site, if is_one { site.name().to_owned() } else { site.to_string() })
        };
        sites.into_iter().map(called).collect()
    }
}

impl TryFrom<SpiffeId> for SiteId {
    type Error = IdError;
    fn try_from(id: SpiffeId) -> Result<Self, IdError> {
        if id.role() == Role::Site {
            Ok(Self(id))
        } else {
            Err(IdError::Spiffe { id: id.to_string(), why: "the role is not `site`" })
        }
    }
}

impl FromStr for SiteId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        s.parse::<SpiffeId>()?.try_into()
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SiteId({})", self.0)
    }
}

/// The name of a study: a slug, unique at its coordinator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StudyId(String);

impl StudyId {
    /// The slug.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StudyId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        if is_label(s) && s.starts_with(|c: char| c.is_ascii_lowercase()) {
            Ok(Self(s.into()))
        } else {
            Err(IdError::Study(clip(s)))
        }
    }
}

impl fmt::Display for StudyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One pass of the protocol within a study; the first is 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoundId {
    /// The study.
    pub study: StudyId,
    /// The round's number, from 1.
    pub number: u32,
}

impl fmt::Display for RoundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.study, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_one_spelling() {
        let digest = Digest(std::array::from_fn(|i| u8::try_from(i * 8 + i % 7).expect("a byte")));
        let text = digest.to_string();
        assert_eq!(text.parse(), Ok(digest));
        let last = &text[..63];
        for digit in ["A", "F", "g", "/", ":", "`", "G", " ", "", "00", "é"] {
            assert!(format!("{last}{digit}").parse::<Digest>().is_err(), "{digit}");
        }
        assert!(text.to_uppercase().parse::<Digest>().is_err());
    }

    #[test]
    fn an_identity_round_trips_through_its_one_spelling() {
        let s = "spiffe://falaj.demo/ae-on/ae-az/site/hospital-1";
        let id: SpiffeId = s.parse().expect("valid");
        assert_eq!(id.to_string(), s);
        assert_eq!(id.place().to_string(), "ae-on/ae-az");
        assert_eq!((id.role(), id.name()), (Role::Site, "hospital-1"));
    }

    #[test]
    fn a_malformed_identity_is_refused_by_the_rule_it_breaks() {
        for (s, rule) in [
            ("https://falaj.demo/ae-on/ae-az/site/h", "scheme"),
            ("spiffe://falaj.demo/ae-on/ae-az/site", "four path segments"),
            ("spiffe://falaj.demo/ae-on/ae-az/site/h/x", "four path segments"),
            ("spiffe://Falaj.demo/ae-on/ae-az/site/h", "trust domain"),
            ("spiffe:///ae-on/ae-az/site/h", "trust domain"),
            ("spiffe://falaj.demo/AE-ON/ae-az/site/h", "jurisdiction"),
            ("spiffe://falaj.demo/ae-on//site/h", "jurisdiction"),
            ("spiffe://falaj.demo/ae-on/ae-az/king/h", "role"),
            ("spiffe://falaj.demo/ae-on/ae-az/site/h%31", "name"),
            ("spiffe://falaj.demo/ae-on/ae-az/site/h?x=1", "name"),
            ("spiffe://user@falaj.demo/ae-on/ae-az/site/h", "trust domain"),
            ("spiffe://falaj.demo:443/ae-on/ae-az/site/h", "trust domain"),
        ] {
            let err = s.parse::<SpiffeId>().expect_err(s).to_string();
            assert!(err.contains(rule), "{s}: {err}");
        }
    }

    #[test]
    fn a_place_pattern_covers_a_jurisdiction_or_one_region() {
        let p: Place = "ae-on/ae-az".parse().expect("valid");
        assert!(p.matches("ae-on/*") && p.matches("ae-on/ae-az"));
        assert!(!p.matches("ae-on/ae-du") && !p.matches("ae-difc/*") && !p.matches("*"));
    }

    #[test]
    fn only_a_site_certificate_names_a_site() {
        let err = "spiffe://falaj.demo/ae-on/ae-az/operator/x".parse::<SiteId>().expect_err("role");
        assert!(err.to_string().contains("not `site`"));
    }
}
