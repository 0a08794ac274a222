//! An update's life in types: raw, sealed, signed, and the check of its bytes on arrival.
//!
//! [`RawUpdate`] has no bytes. Only a mechanism (`crate::dp`) turns it into a [`SealedUpdate`], only a sealed
//! update can be signed, and only a [`SignedUpdate`] can be sent. After a crash a signed update is
//! restored from the journal, and restoring demands the site's own signature over it: what was not sealed
//! and signed before cannot come out of it.

use crate::{
    canon::{self, Canon, CanonError},
    dp::Rotation,
    id::{Digest, RoundId, SiteId},
    note,
    sign::{SignError, SignKey},
};
use ed25519_dalek::VerifyingKey;
use sha2::{Digest as _, Sha256};
use std::fmt;
use zeroize::Zeroizing;

/// The context under which sites sign headers.
pub const CONTEXT: &str = "falaj/update/v1";

/// What training gave: one number per parameter. It cannot be encoded, signed or sent.
pub struct RawUpdate(pub(crate) Vec<f32>);

impl RawUpdate {
    /// Wraps a trainer's result, new parameters minus base parameters, in manifest order.
    #[must_use]
    pub const fn new(values: Vec<f32>) -> Self {
        Self(values)
    }

    /// The update in other coordinates, where no single one is heavy: for sealing on a coarse grid.
    #[must_use]
    pub fn rotated(mut self, rotation: &Rotation) -> Self {
        rotation.apply(&mut self.0);
        self
    }

    /// Moves parameters at the site by this update: what training alone does with it.
    pub fn apply_locally(self, params: &mut [f32]) {
        params.iter_mut().zip(self.0).for_each(|(p, u)| *p += u);
    }

    /// Number of parameters.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no parameters.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for RawUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawUpdate({} params, redacted)", self.0.len())
    }
}

/// The grid on which values travel: whole numbers of `bits` bits times `step`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoding {
    bits: u8,
    step: f64,
}

/// Why a grid is none.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{bits} bits with a step of {step} is no grid: 8 to 32 bits and a positive step are")]
pub struct EncodingError {
    bits: u8,
    step: f64,
}

impl Encoding {
    /// A grid.
    ///
    /// # Errors
    /// [`EncodingError`] outside 8 to 32 bits, or when the step is not a positive number.
    pub fn new(bits: u8, step: f64) -> Result<Self, EncodingError> {
        if (8..=32).contains(&bits) && step.is_finite() && step > 0.0 {
            Ok(Self { bits, step })
        } else {
            Err(EncodingError { bits, step })
        }
    }

    /// The grid of `bits` bits whose largest value is `range`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_range(bits: u8, range: f64) -> Result<Self, EncodingError> {
        let checked = Self::new(bits, 1.0)?;
        Self::new(bits, range / f64::from(checked.max()))
    }

    /// Bits of one value.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// Distance between neighbouring values.
    #[must_use]
    pub const fn step(&self) -> f64 {
        self.step
    }

    /// Bytes that one value takes: little-endian two's complement.
    #[must_use]
    pub const fn bytes_per_value(&self) -> usize {
        self.bits.div_ceil(8) as usize
    }

    /// The largest whole number; the smallest is its negative, so that the grid is symmetric.
    #[must_use]
    pub const fn max(&self) -> i32 {
        i32::MAX >> (32 - self.bits)
    }

    /// Appends `value`, which must be within the grid.
    pub(crate) fn put(&self, value: i32, out: &mut Vec<u8>) {
        debug_assert!(value.unsigned_abs() <= self.max().unsigned_abs());
        out.extend_from_slice(&value.to_le_bytes()[..self.bytes_per_value()]);
    }
}

/// An update with one site's share of the noise, which alone protects too little. It cannot be encoded, signed
/// or sent: only masking (`crate::secagg`) makes a [`SealedUpdate`] of it.
pub struct PartialUpdate {
    /// Modulo `2^bits`.
    pub(crate) values: Zeroizing<Vec<u32>>,
    pub(crate) encoding: Encoding,
    pub(crate) saturated: usize,
    pub(crate) reservation: u64,
}

impl fmt::Debug for PartialUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartialUpdate({} params, redacted)", self.values.len())
    }
}

/// An update that a mechanism made fit to leave the site.
pub struct SealedUpdate {
    pub(crate) payload: Vec<u8>,
    pub(crate) encoding: Encoding,
    pub(crate) params: usize,
    pub(crate) saturated: usize,
    pub(crate) mechanism: &'static str,
    pub(crate) reservation: u64,
    /// The cohort whose masks are on it.
    pub(crate) cohort: Option<Digest>,
}

impl SealedUpdate {
    /// Number of parameters.
    #[must_use]
    pub const fn params(&self) -> usize {
        self.params
    }

    /// Bytes that will travel.
    #[must_use]
    pub const fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Values that were cut at the end of the grid; many of them ask for a larger `sealing.range`.
    #[must_use]
    pub const fn saturated(&self) -> usize {
        self.saturated
    }

    /// The ledger's reservation that paid for it.
    #[must_use]
    pub const fn reservation(&self) -> u64 {
        self.reservation
    }

    /// Describes and signs it, which makes it fit to be sent.
    ///
    /// # Errors
    /// [`Unsigned`] when the key cannot be used now: it gives the update back, to be signed later.
    pub fn sign(self, about: About, key: &dyn SignKey) -> Result<SignedUpdate, Unsigned> {
        let header = UpdateHeader {
            round: about.round,
            site: about.site,
            base: about.base,
            manifest: about.manifest,
            encoding: self.encoding,
            params: self.params as u64,
            payload_bytes: self.payload.len() as u64,
            payload: Digest::of(&self.payload),
            weight: about.weight,
            mechanism: self.mechanism.to_owned(),
            epsilon: about.epsilon,
            cohort: self.cohort,
            ledger: about.ledger,
        };
        let header = header.to_bytes();
        match note::sign_context(key, CONTEXT, &header) {
            Ok(signature) => Ok(SignedUpdate { header, signature, payload: self.payload }),
            Err(why) => Err(Unsigned { update: Box::new(self), why }),
        }
    }
}

/// An update that could not be signed: nothing of it is lost.
#[derive(Debug, thiserror::Error)]
#[error("the update is sealed and cannot be signed at present")]
pub struct Unsigned {
    /// As it was.
    pub update: Box<SealedUpdate>,
    /// What is wrong with the key.
    #[source]
    pub why: SignError,
}

impl fmt::Debug for SealedUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedUpdate({} params, {} bytes)", self.params, self.payload.len())
    }
}

/// What an update is about, beside what sealing knows.
#[derive(Clone, Debug)]
pub struct About {
    /// The round that asked for it.
    pub round: RoundId,
    /// The site that made it.
    pub site: SiteId,
    /// The model that training started from.
    pub base: Digest,
    /// The manifest's digest.
    pub manifest: Digest,
    /// Examples behind it, as the site discloses them.
    pub weight: u32,
    /// Epsilon that the site has spent on the study, rounded up, as a decimal.
    pub epsilon: String,
    /// The head of the site's ledger, which has paid for it.
    pub ledger: Digest,
}

/// What a site says and signs about an update.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateHeader {
    /// The round that asked for it.
    pub round: RoundId,
    /// The site that made it.
    pub site: SiteId,
    /// The model that training started from.
    pub base: Digest,
    /// The manifest's digest.
    pub manifest: Digest,
    /// The grid of its values.
    pub encoding: Encoding,
    /// Number of values.
    pub params: u64,
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// SHA-256 of the payload.
    pub payload: Digest,
    /// Examples behind it.
    pub weight: u32,
    /// The mechanism that sealed it.
    pub mechanism: String,
    /// Epsilon that the site has spent on the study, rounded up, as a decimal.
    pub epsilon: String,
    /// The cohort whose masks are on the values, when they are masked; they are whole numbers modulo
    /// `2^bits` then.
    pub cohort: Option<Digest>,
    /// The head of the site's ledger, which has paid for it: gives nothing away, and binds the site to what
    /// it had spent by then.
    pub ledger: Digest,
}

impl UpdateHeader {
    /// The canonical bytes, as signed. The step travels as the bits of its f64, so that it is exact.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let int = |n: u64| Canon::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let cohort = self.cohort.map(|c| ("cohort_sha256", c.to_string().into()));
        let members = [
            ("base_sha256", self.base.to_string().into()),
            ("bits", u32::from(self.encoding.bits).into()),
            ("epsilon", self.epsilon.as_str().into()),
            ("ledger_sha256", self.ledger.to_string().into()),
            ("manifest_sha256", self.manifest.to_string().into()),
            ("mechanism", self.mechanism.as_str().into()),
            ("params", int(self.params)),
            ("payload_bytes", int(self.payload_bytes)),
            ("payload_sha256", self.payload.to_string().into()),
            ("round", self.round.number.into()),
            ("site", self.site.to_string().into()),
            ("step_f64", format!("{:016x}", self.encoding.step.to_bits()).into()),
            ("study", self.round.study.to_string().into()),
            ("v", Canon::Int(1)),
            ("weight", self.weight.into()),
        ];
        Canon::map(members.into_iter().chain(cohort)).to_bytes()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// [`CanonError`] when the bytes are not canonical or a member is missing or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, CanonError> {
        let c = canon::parse(bytes)?;
        let bad = |what: &str| CanonError::Member(what.to_owned());
        if c.int::<u32>("v")? != 1 {
            return Err(bad("v"));
        }
        let step = c.text("step_f64")?;
        let bits = u64::from_str_radix(step, 16).map_err(|_| bad("step_f64"))?;
        if step != format!("{bits:016x}") {
            return Err(bad("step_f64"));
        }
        let epsilon = c.text("epsilon")?;
        if !is_decimal(epsilon) {
            return Err(bad("epsilon"));
        }
        let mechanism = c.text("mechanism")?;
        if mechanism.len() > 64 {
            return Err(bad("mechanism"));
        }
        Ok(Self {
            round: RoundId { study: c.parsed("study")?, number: c.int("round")? },
            site: c.parsed("site")?,
            base: c.parsed("base_sha256")?,
            manifest: c.parsed("manifest_sha256")?,
            encoding: Encoding::new(c.int("bits")?, f64::from_bits(bits))
                .map_err(|_| bad("step_f64"))?,
            params: c.int("params")?,
            payload_bytes: c.int("payload_bytes")?,
            payload: c.parsed("payload_sha256")?,
            weight: c.int("weight")?,
            mechanism: mechanism.to_owned(),
            epsilon: epsilon.to_owned(),
            ledger: c.parsed("ledger_sha256")?,
            cohort: c.member("cohort_sha256").map(|_| c.parsed("cohort_sha256")).transpose()?,
        })
    }
}

/// Whether `s` is digits with at most one point between them, or `inf`: one spelling, no signs, no exponents.
pub(crate) fn is_decimal(s: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = s.split_once('.').unwrap_or((s, "0"));
    s == "inf" || s.len() <= 32 && digits(whole) && digits(fraction)
}

/// A sealed update with its signed header: the only thing that the wire takes.
pub struct SignedUpdate {
    header: Vec<u8>,
    signature: [u8; 64],
    payload: Vec<u8>,
}

/// Why an update does not come out of the journal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The header is not one.
    #[error("the journalled header cannot be read")]
    Header(#[source] CanonError),
    /// The site never signed this header.
    #[error("the journalled header does not carry this site's signature")]
    Signature,
    /// The payload is not the one that was signed.
    #[error("the journalled payload is not the one that was signed")]
    Payload,
}

impl SignedUpdate {
    /// Takes an update back out of the journal: exactly what this site sealed and signed before.
    ///
    /// # Errors
    /// [`RestoreError`] when anything differs from what was signed.
    pub fn restore(
        header: Vec<u8>,
        signature: [u8; 64],
        payload: Vec<u8>,
        site: &VerifyingKey,
    ) -> Result<Self, RestoreError> {
        if !note::verify_context(site, CONTEXT, &header, &signature) {
            return Err(RestoreError::Signature);
        }
        let parsed = UpdateHeader::parse(&header).map_err(RestoreError::Header)?;
        if parsed.payload != Digest::of(&payload) || parsed.payload_bytes != payload.len() as u64 {
            return Err(RestoreError::Payload);
        }
        Ok(Self { header, signature, payload })
    }

    /// The header, as signed.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The site's signature over the header.
    #[must_use]
    pub const fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// The payload, as it travels.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

impl fmt::Debug for SignedUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedUpdate({} bytes)", self.payload.len())
    }
}

/// Checks a payload as it streams in: size, digest, and that each value lies on the grid.
pub struct PayloadCheck {
    encoding: Encoding,
    masked: bool,
    expected_bytes: u64,
    seen_bytes: u64,
    hash: Sha256,
    /// The first bytes of a value whose rest is in the next chunk.
    partial: Vec<u8>,
}

/// What is wrong with a payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// More bytes than declared.
    #[error("the payload goes on after the declared {0} bytes")]
    TooLong(u64),
    /// Fewer bytes than declared.
    #[error("the payload ended after {seen} of {declared} bytes")]
    TooShort {
        /// Bytes that came.
        seen: u64,
        /// Bytes that the header declares.
        declared: u64,
    },
    /// A value outside the symmetric range of the agreed bits.
    #[error("value {index} is {value}, outside the {bits} agreed bits")]
    OutOfRange {
        /// Which value.
        index: u64,
        /// What it is.
        value: i64,
        /// The agreed bits.
        bits: u8,
    },
    /// The bytes are not those whose digest was signed.
    #[error("the payload's SHA-256 is {found}, the header says {declared}")]
    Digest {
        /// Of the bytes that came.
        found: Digest,
        /// In the header.
        declared: Digest,
    },
}

impl PayloadCheck {
    /// A check against a header.
    #[must_use]
    pub fn new(header: &UpdateHeader) -> Self {
        Self {
            encoding: header.encoding,
            masked: header.cohort.is_some(),
            expected_bytes: header.payload_bytes,
            seen_bytes: 0,
            hash: Sha256::new(),
            partial: Vec::with_capacity(4),
        }
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// [`PayloadError::TooLong`] or [`PayloadError::OutOfRange`].
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), PayloadError> {
        let width = self.encoding.bytes_per_value();
        let first = self.seen_bytes / width as u64;
        self.seen_bytes += chunk.len() as u64;
        if self.seen_bytes > self.expected_bytes {
            return Err(PayloadError::TooLong(self.expected_bytes));
        }
        self.hash.update(chunk);
        let mut rest = chunk;
        let mut index = first;
        if !self.partial.is_empty() {
            let need = (width - self.partial.len()).min(rest.len());
            self.partial.extend_from_slice(&rest[..need]);
            rest = &rest[need..];
            if self.partial.len() < width {
                return Ok(());
            }
            let whole = std::mem::take(&mut self.partial);
            self.check(&whole, index)?;
            index += 1;
        }
        let whole = rest.len() - rest.len() % width;
        self.check(&rest[..whole], index)?;
        self.partial.extend_from_slice(&rest[whole..]);
        Ok(())
    }

    fn check(&self, bytes: &[u8], first: u64) -> Result<(), PayloadError> {
        let max = self.encoding.max();
        if self.masked {
            return self.check_ring(bytes, first);
        }
        let bad = match self.encoding.bytes_per_value() {
            1 => outside(values::<1>(bytes), |[b]| i32::from(b.cast_signed()), max),
            2 => outside(values::<2>(bytes), |v| i32::from(i16::from_le_bytes(v)), max),
            3 => outside(values::<3>(bytes), from_24, max),
            _ => outside(values::<4>(bytes), i32::from_le_bytes, max),
        };
        let Some(at) = bad else { return Ok(()) };
        let width = self.encoding.bytes_per_value();
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(&bytes[at * width..(at + 1) * width]);
        let shift = 64 - 8 * width;
        Err(PayloadError::OutOfRange {
            index: first + at as u64,
            value: i64::from_le_bytes(wide) << shift >> shift,
            bits: self.encoding.bits,
        })
    }

    /// Masked values use every pattern of the agreed bits, and none beyond them.
    fn check_ring(&self, bytes: &[u8], first: u64) -> Result<(), PayloadError> {
        let width = self.encoding.bytes_per_value();
        let spare = 8 * width - usize::from(self.encoding.bits);
        let beyond = |value: &[u8]| value[width - 1] > u8::MAX >> spare;
        match bytes.chunks_exact(width).position(beyond) {
            None => Ok(()),
            Some(at) => {
                let mut wide = [0; 8];
                wide[..width].copy_from_slice(&bytes[at * width..(at + 1) * width]);
                Err(PayloadError::OutOfRange {
                    index: first + at as u64,
                    value: i64::from_le_bytes(wide),
                    bits: self.encoding.bits,
                })
            }
        }
    }

    /// Ends the check.
    ///
    /// # Errors
    /// [`PayloadError::TooShort`] or [`PayloadError::Digest`].
    pub fn finish(self, declared: Digest) -> Result<(), PayloadError> {
        if self.seen_bytes < self.expected_bytes {
            let declared = self.expected_bytes;
            return Err(PayloadError::TooShort { seen: self.seen_bytes, declared });
        }
        let found = Digest(self.hash.finalize().into());
        if found == declared { Ok(()) } else { Err(PayloadError::Digest { found, declared }) }
    }
}

/// The first value outside `-max..=max`. Whole blocks are looked at without a branch, which vectorises;
/// only a block with an offender is searched.
fn outside<const N: usize>(
    values: impl Iterator<Item = [u8; N]> + Clone,
    decode: impl Fn([u8; N]) -> i32,
    max: i32,
) -> Option<usize> {
    let beyond = |v: [u8; N]| decode(v).unsigned_abs() > max.unsigned_abs();
    let any = values.clone().fold(false, |any, v| any | beyond(v));
    if any { values.into_iter().position(beyond) } else { None }
}

/// The bytes as fixed-size values; a remainder is left out.
pub(crate) fn values<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + Clone + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// A 24-bit value, sign-extended.
#[inline]
pub(crate) const fn from_24(v: [u8; 3]) -> i32 {
    i32::from_le_bytes([0, v[0], v[1], v[2]]) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    fn header(bits: u8, payload: &[u8]) -> UpdateHeader {
        UpdateHeader {
            round: RoundId { study: "s".parse().expect("valid"), number: 1 },
            site: "spiffe://t/ae-on/ae-az/site/h".parse().expect("valid"),
            base: Digest::of(b"base"),
            manifest: Digest::of(b"manifest"),
            encoding: Encoding::new(bits, 0.1).expect("valid"),
            params: 4,
            payload_bytes: payload.len() as u64,
            payload: Digest::of(payload),
            weight: 3,
            mechanism: "dp_sgd".into(),
            epsilon: "1.2500".into(),
            cohort: None,
            ledger: Digest::of(b"ledger"),
        }
    }

    #[test]
    fn a_header_round_trips_exactly_step_included() {
        let h = header(16, &[0; 8]);
        assert_eq!(UpdateHeader::parse(&h.to_bytes()), Ok(h));
        let masked = UpdateHeader { cohort: Some(Digest::of(b"c")), ..header(16, &[0; 8]) };
        assert_eq!(UpdateHeader::parse(&masked.to_bytes()), Ok(masked));
    }

    #[test]
    fn masked_values_use_all_the_agreed_bits_and_none_beyond() {
        for (bits, good, bad) in [
            (8_u8, vec![0xff], None),
            (12, vec![0xff, 0x0f], Some(vec![0, 0x10])),
            (16, vec![0xff, 0xff], None),
            (20, vec![0xff, 0xff, 0x0f], Some(vec![0, 0, 0x10])),
            (24, vec![0, 0, 0x80], None),
            (32, vec![0, 0, 0, 0x80], None),
        ] {
            let masked =
                |p: &[u8]| UpdateHeader { cohort: Some(Digest::of(b"c")), ..header(bits, p) };
            assert_eq!(PayloadCheck::new(&masked(&good)).feed(&good), Ok(()), "{bits}");
            if let Some(bad) = bad {
                let err = PayloadCheck::new(&masked(&bad)).feed(&bad).expect_err("beyond");
                assert!(matches!(err, PayloadError::OutOfRange { index: 0, .. }), "{bits}: {err}");
            }
        }
    }

    #[test]
    fn a_number_that_is_spelled_in_another_way_is_refused() {
        for epsilon in ["", "-1", "+1", "1e3", "NaN", "infinity", "1.", ".5", "1.2.3"] {
            let h = UpdateHeader { epsilon: epsilon.into(), ..header(16, &[0; 8]) };
            let refused = UpdateHeader::parse(&h.to_bytes());
            assert_eq!(refused, Err(CanonError::Member("epsilon".into())), "{epsilon}");
        }
        for epsilon in ["0", "12.5000", "inf"] {
            let h = UpdateHeader { epsilon: epsilon.into(), ..header(16, &[0; 8]) };
            assert_eq!(UpdateHeader::parse(&h.to_bytes()), Ok(h));
        }
        let text = String::from_utf8(header(16, &[0; 8]).to_bytes()).expect("ASCII");
        let step = format!("{:016x}", 0.1_f64.to_bits());
        for other in [step.to_uppercase(), format!("+{step}"), format!("0{step}")] {
            let refused = UpdateHeader::parse(text.replace(&step, &other).as_bytes());
            assert_eq!(refused, Err(CanonError::Member("step_f64".into())), "{other}");
        }
    }

    #[test]
    fn a_payload_is_checked_over_any_chunk_border() {
        for bits in [8_u8, 12, 16, 20, 24, 32] {
            let encoding = Encoding::new(bits, 1.0).expect("valid");
            let mut payload = Vec::new();
            for v in [0, encoding.max(), -encoding.max(), 1] {
                encoding.put(v, &mut payload);
            }
            for cut in 0..payload.len() {
                let h = header(bits, &payload);
                let mut check = PayloadCheck::new(&h);
                check.feed(&payload[..cut]).expect("in range");
                check.feed(&payload[cut..]).expect("in range");
                check.finish(h.payload).expect("complete");
            }
        }
    }

    #[test]
    fn the_lowest_pattern_of_the_container_is_out_of_range() {
        for (bits, pattern) in [
            (8_u8, vec![0x80]),
            (12, 2048_i16.to_le_bytes().to_vec()),
            (16, i16::MIN.to_le_bytes().to_vec()),
            (24, vec![0, 0, 0x80]),
            (32, i32::MIN.to_le_bytes().to_vec()),
        ] {
            let h = header(bits, &pattern);
            let mut check = PayloadCheck::new(&h);
            let err = check.feed(&pattern).expect_err("out of range");
            assert!(matches!(err, PayloadError::OutOfRange { index: 0, .. }), "{bits}: {err}");
        }
    }

    #[test]
    fn a_wrong_length_or_digest_is_named() {
        let h = header(16, &[1, 0, 2, 0]);
        let mut short = PayloadCheck::new(&h);
        short.feed(&[1, 0, 2]).expect("in range");
        let err = short.finish(h.payload).expect_err("short");
        assert_eq!(err, PayloadError::TooShort { seen: 3, declared: 4 });
        let mut long = PayloadCheck::new(&h);
        assert_eq!(long.feed(&[0; 6]), Err(PayloadError::TooLong(4)));
        let mut other = PayloadCheck::new(&h);
        other.feed(&[1, 0, 3, 0]).expect("in range");
        assert!(matches!(other.finish(h.payload), Err(PayloadError::Digest { .. })));
    }

    #[test]
    fn the_journal_gives_back_only_what_was_signed() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let payload = vec![1, 0, 2, 0];
        let h = header(16, &payload).to_bytes();
        let signature = note::sign_context(&key, CONTEXT, &h).expect("signs");
        let site = key.verifying_key();
        assert!(SignedUpdate::restore(h.clone(), signature, payload.clone(), &site).is_ok());
        let other = SignedUpdate::restore(h.clone(), signature, vec![1, 0, 3, 0], &site);
        assert_eq!(other.expect_err("changed"), RestoreError::Payload);
        let forged = SignedUpdate::restore(h, [0; 64], payload, &site);
        assert_eq!(forged.expect_err("unsigned"), RestoreError::Signature);
    }
}
