//! What a coordinator has found out about a connection: the record over which policy decides, and which the log keeps.
//!
//! What each part of it proves and does not is in docs/RESIDENCY.md.

use crate::{
    canon::{Canon, Node},
    id::{Digest, Place},
    tpm::Tpm,
};
use std::{collections::BTreeMap, time::Duration};

/// What a site signs, with the nonce and its clock, when it is probed.
pub const CONTEXT: &str = "falaj/probe/v1";
/// A nonce is so long.
pub const NONCE_BYTES: usize = 32;
/// No figure in a record is larger: whole numbers stay exact in every JSON reader.
const FIGURE_MAX: u64 = (1 << 53) - 1;

/// What is known of a connection. What was not looked at is not known, and stands as it is by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Evidence {
    /// SHA-256 of the public key of the issuer that vouches for the certificate.
    pub issuer: Option<Digest>,
    /// Whether the coordinator knows which networks belong to which places.
    pub address_known: bool,
    /// Whether the source address lies in a network of the place that the certificate names.
    pub address_in_place: bool,
    /// Whether round trip and clock were asked for. What is missing then, the site has not given.
    pub probed: bool,
    /// The shortest round trip to whoever holds the site's key, in microseconds.
    pub rtt_us: Option<u64>,
    /// How far the site's clock is off.
    pub skew: Option<Skew>,
    /// Where the site says that its records are stored.
    pub storage: Option<Place>,
    /// Where the site says that it computes.
    pub compute: Option<Place>,
    /// The TPM that is declared for the site, and what came of it; none when none is declared.
    pub tpm: Option<Tpm>,
}

/// Where somebody says that they store and compute, if they say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Where they store.
    pub storage: Option<Place>,
    /// Where they compute.
    pub compute: Option<Place>,
}

/// How far one clock is from another, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Skew {
    /// As measured, in milliseconds.
    pub ms: u64,
    /// The truth is so near to it: half the round trip, and a millisecond for the reading.
    pub uncertainty_ms: u64,
}

/// One answer to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// From the nonce's departure to the arrival of its signature, by one monotonic clock.
    pub round_trip: Duration,
    /// The asker's wall clock when the nonce left, in milliseconds since the Unix epoch.
    pub sent_ms: i64,
    /// The site's clock when it signed.
    pub clock_ms: i64,
}

impl Sample {
    /// How far the site's clock is off. It was read some time between departure and arrival.
    fn skew(&self) -> Skew {
        let half = u64::try_from(self.round_trip.as_millis()).unwrap_or(FIGURE_MAX).div_ceil(2);
        let middle = self.sent_ms.saturating_add(i64::try_from(half).unwrap_or(i64::MAX));
        let ms = self.clock_ms.abs_diff(middle).min(FIGURE_MAX);
        Skew { ms, uncertainty_ms: half.saturating_add(1).min(FIGURE_MAX) }
    }
}

/// What a site signs when it is probed: the nonce, and its clock.
#[must_use]
pub fn probe_bytes(nonce: &[u8], clock_ms: i64) -> Vec<u8> {
    [nonce, &clock_ms.to_be_bytes()].concat()
}

impl Evidence {
    /// The same, after a site was probed: the quickest sample counts, for a round trip can only be made longer. Without a
    /// sample the site has not answered.
    #[must_use]
    pub fn probed(mut self, samples: &[Sample]) -> Self {
        let best = samples.iter().min_by_key(|sample| sample.round_trip);
        self.probed = true;
        self.rtt_us = best.map(|sample| {
            u64::try_from(sample.round_trip.as_micros()).unwrap_or(FIGURE_MAX).min(FIGURE_MAX)
        });
        self.skew = best.map(Sample::skew);
        self
    }

    /// As a member of an entry.
    #[must_use]
    pub fn to_canon(&self) -> Canon {
        let mut members = BTreeMap::from([
            ("address_known".to_owned(), Canon::Bool(self.address_known)),
            ("address_in_place".to_owned(), Canon::Bool(self.address_in_place)),
            ("probed".to_owned(), Canon::Bool(self.probed)),
        ]);
        let int = |n: u64| Canon::Int(i64::try_from(n.min(FIGURE_MAX)).unwrap_or_default());
        let figures = [
            ("rtt_us", self.rtt_us),
            ("skew_ms", self.skew.map(|skew| skew.ms)),
            ("skew_uncertainty_ms", self.skew.map(|skew| skew.uncertainty_ms)),
        ];
        for (name, figure) in figures {
            members.extend(figure.map(|n| (name.to_owned(), int(n))));
        }
        let texts = [
            ("issuer_sha256", self.issuer.map(|issuer| issuer.to_string())),
            ("storage", self.storage.as_ref().map(ToString::to_string)),
            ("compute", self.compute.as_ref().map(ToString::to_string)),
        ];
        for (name, text) in texts {
            members.extend(text.map(|text| (name.to_owned(), text.into())));
        }
        members.extend(self.tpm.as_ref().map(|tpm| ("tpm".to_owned(), tpm.to_canon())));
        Canon::Map(members)
    }

    /// Reads what [`Self::to_canon`] wrote, and nothing else.
    #[must_use]
    pub fn read(said: Node<'_>) -> Option<Self> {
        let is = |name: &str| match said.member(name)?.to_canon() {
            Canon::Bool(is) => Some(is),
            _ => None,
        };
        let figure = |name: &str| said.member(name).and_then(Node::as_int::<u64>);
        let skew = figure("skew_ms").zip(figure("skew_uncertainty_ms"));
        let read = Self {
            issuer: said.find("issuer_sha256"),
            address_known: is("address_known")?,
            address_in_place: is("address_in_place")?,
            probed: is("probed")?,
            rtt_us: figure("rtt_us"),
            skew: skew.map(|(ms, uncertainty_ms)| Skew { ms, uncertainty_ms }),
            storage: said.find("storage"),
            compute: said.find("compute"),
            tpm: said.member("tpm").and_then(Tpm::read),
        };
        (read.to_canon() == said.to_canon()).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canon::Document;

    fn sample(round_trip_us: u64, clock_ms: i64) -> Sample {
        Sample { round_trip: Duration::from_micros(round_trip_us), sent_ms: 1_000_000, clock_ms }
    }

    /// Shows RES-02: what a site says of its clock moves the skew alone, never the round trip.
    #[test]
    fn the_quickest_answer_counts_and_a_site_cannot_make_it_quicker() {
        let hour = 3_600_000;
        let samples =
            [sample(90_000, 1_000_045), sample(8_000, 1_000_004 - hour), sample(80_001, 0)];
        let found = Evidence::default().probed(&samples);
        assert_eq!(found.rtt_us, Some(8_000));
        assert_eq!(found.skew, Some(Skew { ms: 3_600_000, uncertainty_ms: 5 }));
        let earliest = Evidence::default().probed(&[sample(80_000, i64::MIN)]);
        assert_eq!(earliest.rtt_us, Some(80_000));
        assert_eq!(earliest.skew.map(|skew| skew.ms), Some(FIGURE_MAX));
    }

    #[test]
    fn whoever_does_not_answer_was_probed_and_has_no_figures() {
        let silent = Evidence { rtt_us: Some(1), ..Evidence::default() }.probed(&[]);
        assert_eq!(silent, Evidence { probed: true, ..Evidence::default() });
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_nothing_else_is() {
        let whole = Evidence {
            issuer: Some(Digest::of(b"issuer")),
            address_known: true,
            address_in_place: true,
            storage: "ae-on/ae-az".parse().ok(),
            compute: "ae-on/ae-du".parse().ok(),
            ..Evidence::default()
        }
        .probed(&[sample(1_234, 7)]);
        for record in [whole.clone(), Evidence::default(), Evidence::default().probed(&[])] {
            let bytes = record.to_canon().to_bytes();
            let read = Document::parse(&bytes).expect("canonical");
            assert_eq!(Evidence::read(read.root()), Some(record));
        }
        let Canon::Map(members) = whole.to_canon() else { panic!("a map") };
        let with = |name: &str, value: Option<Canon>| {
            let mut members = members.clone();
            members.remove(name);
            members.extend(value.map(|value| (name.to_owned(), value)));
            let bytes = Canon::Map(members).to_bytes();
            Evidence::read(Document::parse(&bytes).expect("canonical").root())
        };
        assert_eq!(with("wish", Some(Canon::Int(1))), None);
        assert_eq!(with("probed", None), None);
        assert_eq!(with("skew_uncertainty_ms", None), None);
        assert_eq!(with("rtt_us", Some(Canon::Int(-1))), None);
        assert_eq!(with("storage", Some("nowhere".into())), None);
    }
}
