//! What a TPM 2.0 says of the machine that it sits in: the public part of its attestation key, and quotes by that key.
//!
//! Structures are those of the TPM 2.0 Library, Part 2, as far as a quote over SHA-256 registers needs them, and nothing else is
//! read. Signatures are checked in `falaj_certs::tpm`. What all of it proves is in docs/RESIDENCY.md.

use crate::{
    canon::{Canon, Node},
    id::{Digest, SpiffeId},
};
use std::{collections::BTreeMap, fmt};

/// What a quote is asked for, and what a site signs with it, begins with this.
pub const CONTEXT: &str = "falaj/quote/v1";
/// No public part, attestation or signature is longer.
pub const BYTES_MAX: usize = 1_024;
/// A TPM of a PC has so many registers.
pub const REGISTERS: u8 = 24;

const SHA256: u16 = 0x000b;
const RSASSA: u16 = 0x0014;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;
const RSA: u16 = 0x0001;
const ECC: u16 = 0x0023;
const P256: u16 = 0x0003;
const NONE: u16 = 0x0010;
/// What a TPM begins with whatever it says of itself, so that a restricted key signs nothing else that does.
const GENERATED: u32 = 0xff54_4347;
const QUOTE: u16 = 0x8018;
/// What an attestation key has to be: made in this TPM (`sensitivedataorigin`), never to leave it (`fixedtpm`, `fixedparent`),
/// signing (`sign`), and nothing but what the TPM itself says (`restricted`).
const ATTRIBUTES: [(u32, &str); 5] = [
    (1 << 1, "fixedtpm"),
    (1 << 4, "fixedparent"),
    (1 << 5, "sensitivedataorigin"),
    (1 << 16, "restricted"),
    (1 << 18, "sign"),
];

/// Bytes that are no such structure, or a key that does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// The bytes end early, go on, or hold something else.
    #[error("the bytes are no {0}")]
    Malformed(&'static str),
    /// The key is not made, kept and used as one that attests.
    #[error("the key is not `{0}`: make one with `tpm2_createak`")]
    Attributes(&'static str),
    /// The key is of another kind.
    #[error("the key is {0}: make one on P-256, or of RSA with 2048 bits or more, with SHA-256")]
    Weak(String),
}

/// Reads from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Bytes behind their length.
    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn is(&mut self, wanted: u16) -> Option<()> {
        (self.u16()? == wanted).then_some(())
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// The public part of an attestation key, in the TPM's own words (`TPMT_PUBLIC`): they say that it signs nothing but what the
/// TPM itself says, which a public key by itself does not.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AttestationKey {
    bytes: Vec<u8>,
    material: Material,
}

/// What signatures are checked with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Material {
    /// A point on P-256, uncompressed.
    P256([u8; 65]),
    /// RSA with the exponent 65537.
    Rsa {
        /// The modulus, big-endian.
        modulus: Vec<u8>,
        /// RSASSA-PSS; PKCS #1 v1.5 otherwise.
        pss: bool,
    },
}

impl fmt::Debug for AttestationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttestationKey({})", self.name_sha256())
    }
}

impl AttestationKey {
    /// Reads what `tpm2_readpublic -o` writes (`TPM2B_PUBLIC`).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn parse_sized(bytes: &[u8]) -> Result<Self, TpmError> {
        let mut reader = Reader(bytes);
        let inner = reader.sized().filter(|_| reader.end().is_some());
        Self::parse(inner.ok_or(TpmError::Malformed("public part of a key (TPM2B_PUBLIC)"))?)
    }

    /// Reads a public part (`TPMT_PUBLIC`).
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        const WHAT: TpmError = TpmError::Malformed("public part of a key (TPMT_PUBLIC)");
        if bytes.len() > BYTES_MAX {
            return Err(WHAT);
        }
        let mut reader = Reader(bytes);
        let head = (|| Some((reader.u16()?, reader.u16()?, reader.u32()?, reader.sized()?)))();
        let (kind, name_by, attributes, _policy) = head.ok_or(WHAT)?;
        if name_by != SHA256 {
            return Err(TpmError::Weak("named by another digest than SHA-256".into()));
        }
        for (bit, name) in ATTRIBUTES {
            if attributes & bit == 0 {
                return Err(TpmError::Attributes(name));
            }
        }
        let material = match kind {
            ECC => ecc(&mut reader, WHAT)?,
            RSA => rsa(&mut reader, WHAT)?,
            _ => return Err(TpmError::Weak("neither of an elliptic curve nor of RSA".into())),
        };
        reader.end().ok_or(WHAT)?;
        Ok(Self { bytes: bytes.to_vec(), material })
    }

    /// The bytes that were read.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What signatures are checked with.
    #[must_use]
    pub const fn material(&self) -> &Material {
        &self.material
    }

    /// SHA-256 of the public part: the key's name, as TPMs and `tpm2_makecredential` have it, without the `000b` before it.
    #[must_use]
    pub fn name_sha256(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The parts of a signature as [`Material`] wants them: both numbers of ECDSA, 32 bytes each, or RSA's one.
    ///
    /// # Errors
    /// [`TpmError::Malformed`], also for a signature by another scheme.
    pub fn signature(&self, bytes: &[u8]) -> Result<Vec<u8>, TpmError> {
        let scheme = match &self.material {
            Material::P256(_) => ECDSA,
            Material::Rsa { pss: true, .. } => RSAPSS,
            Material::Rsa { pss: false, .. } => RSASSA,
        };
        let mut reader = Reader(bytes);
        let parts = (|| {
            reader.is(scheme)?;
            reader.is(SHA256)?;
            let parts = match &self.material {
                Material::P256(_) => [padded(reader.sized()?)?, padded(reader.sized()?)?].concat(),
                Material::Rsa { modulus, .. } => {
                    reader.sized().filter(|signed| signed.len() == modulus.len())?.to_vec()
                }
            };
            reader.end()?;
            Some(parts)
        })();
        parts.ok_or(TpmError::Malformed("signature (TPMT_SIGNATURE) by this kind of key"))
    }
}

/// A number in 32 bytes; TPMs may leave zeros out.
fn padded(number: &[u8]) -> Option<[u8; 32]> {
    let mut whole = [0; 32];
    whole.get_mut(32_usize.checked_sub(number.len())?..)?.copy_from_slice(number);
    Some(whole)
}

fn ecc(reader: &mut Reader<'_>, malformed: TpmError) -> Result<Material, TpmError> {
    let head = (|| {
        reader.is(NONE)?;
        Some((reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?))
    })();
    let (scheme, digest, curve, derivation) = head.ok_or_else(|| malformed.clone())?;
    if (scheme, digest, curve, derivation) != (ECDSA, SHA256, P256, NONE) {
        let what = format!("on curve {curve:#06x}, for scheme {scheme:#06x} with {digest:#06x}");
        return Err(TpmError::Weak(what));
    }
    let point = (|| Some((padded(reader.sized()?)?, padded(reader.sized()?)?)))();
    let (x, y) = point.ok_or(malformed)?;
    let mut whole = [4; 65];
    whole[1..33].copy_from_slice(&x);
    whole[33..].copy_from_slice(&y);
    Ok(Material::P256(whole))
}

fn rsa(reader: &mut Reader<'_>, malformed: TpmError) -> Result<Material, TpmError> {
    let head = (|| {
        reader.is(NONE)?;
        Some((reader.u16()?, reader.u16()?, reader.u16()?, reader.u32()?))
    })();
    let (scheme, digest, bits, exponent) = head.ok_or_else(|| malformed.clone())?;
    // 0 stands for 65537.
    if ![RSASSA, RSAPSS].contains(&scheme)
        || digest != SHA256
        || ![2_048, 3_072, 4_096].contains(&bits)
        || ![0, 65_537].contains(&exponent)
    {
        let what = format!("of RSA with {bits} bits, for scheme {scheme:#06x} with {digest:#06x}");
        return Err(TpmError::Weak(what));
    }
    let modulus = reader.sized().filter(|m| m.len() == usize::from(bits / 8) && m[0] >= 0x80);
    let modulus = modulus.ok_or(malformed)?.to_vec();
    Ok(Material::Rsa { modulus, pss: scheme == RSAPSS })
}

/// What a TPM has signed of itself (`TPMS_ATTEST` of a quote).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest {
    /// What it was asked for.
    pub extra: Vec<u8>,
    /// Resets since the TPM was made or cleared: how often the machine has started anew.
    pub resets: u32,
    /// Restarts and resumptions since the last reset.
    pub restarts: u32,
    /// The registers that it speaks of.
    pub registers: Vec<u8>,
    /// SHA-256 of their values, one after the other.
    pub values: Digest,
}

impl Attest {
    /// Reads one, to its end.
    ///
    /// # Errors
    /// [`TpmError::Malformed`], also for what is no quote over SHA-256 registers.
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        let read = || {
            let mut reader = Reader(bytes);
            (reader.u32()? == GENERATED).then_some(())?;
            reader.is(QUOTE)?;
            let signer = reader.sized()?;
            (signer.len() == 34 && signer.starts_with(&SHA256.to_be_bytes())).then_some(())?;
            let extra = reader.sized().filter(|extra| extra.len() <= 64)?.to_vec();
            let _clock: [u8; 8] = reader.array()?;
            let (resets, restarts) = (reader.u32()?, reader.u32()?);
            let [is_safe] = reader.array()?;
            (is_safe <= 1).then_some(())?;
            let _firmware: [u8; 8] = reader.array()?;
            (reader.u32()? == 1).then_some(())?;
            reader.is(SHA256)?;
            let [3, a, b, c] = reader.array()? else { return None };
            let bits = u32::from_le_bytes([a, b, c, 0]);
            let registers = (0..REGISTERS).filter(|n| bits >> n & 1 == 1).collect();
            let values = Digest(reader.sized()?.try_into().ok()?);
            reader.end()?;
            Some(Self { extra, resets, restarts, registers, values })
        };
        read().ok_or(TpmError::Malformed("quote over SHA-256 registers (TPMS_ATTEST)"))
    }
}

/// What a TPM is asked to sign: the coordinator's nonce, for this key of a site and this coordinator and nobody else.
#[must_use]
pub fn qualifying(nonce: &[u8; 32], site_key: &[u8; 32], coordinator: &SpiffeId) -> Digest {
    let name = coordinator.to_string();
    Digest::of(&[CONTEXT.as_bytes(), &[0], nonce, site_key, name.as_bytes()].concat())
}

/// What a site signs with its certificate's key when it gives a quote, or says that it has none: the answer to a probe, and digests
/// of both parts of the quote.
#[must_use]
pub fn answer_bytes(probe: &[u8], attest: &[u8], signature: &[u8]) -> Vec<u8> {
    [probe, &Digest::of(attest).0, &Digest::of(signature).0].concat()
}

/// What the operator has declared of a site's TPM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Declared {
    /// The key by which it attests.
    pub key: AttestationKey,
    /// The registers of the SHA-256 bank that count, and what they should hold.
    pub pcrs: BTreeMap<u8, Digest>,
}

impl Declared {
    /// What the digest of the registers should be.
    #[must_use]
    pub fn values(&self) -> Digest {
        let values: Vec<u8> = self.pcrs.values().flat_map(|value| value.0).collect();
        Digest::of(&values)
    }
}

/// A quote as it came, and what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Quote {
    /// The coordinator's nonce.
    pub nonce: [u8; 32],
    /// What the TPM says (`TPMS_ATTEST`).
    pub attest: Vec<u8>,
    /// Its signature (`TPMT_SIGNATURE`).
    pub signature: Vec<u8>,
}

/// What a good quote says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quoted {
    /// Whether the registers hold what was declared.
    pub as_declared: bool,
    /// How often the machine has started anew.
    pub resets: u32,
    /// Restarts and resumptions since.
    pub restarts: u32,
}

macro_rules! faults {
    ($($(#[$meta:meta])* $fault:ident = $word:literal,)+) => {
        /// Why there is no good quote.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fault {
            $($(#[$meta])* $fault,)+
        }

        impl Fault {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$fault),+];

            /// Its word in the log.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$fault => $word,)+ }
            }
        }
    };
}

faults! {
    /// None came: the site was not asked yet, or gives none.
    Absent = "absent",
    /// The bytes are no quote over SHA-256 registers with a signature.
    Malformed = "malformed",
    /// The declared key did not sign it.
    OtherKey = "other_key",
    /// It was not made for this nonce, this site and this coordinator.
    OtherQuestion = "other_question",
    /// It is over other registers than those that were declared.
    OtherRegisters = "other_registers",
}

impl Declared {
    /// What a quote says that the declared key has signed, if it answers `asked`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read(&self, attest: &[u8], asked: &Digest) -> Result<Quoted, Fault> {
        let attest = Attest::parse(attest).map_err(|_| Fault::Malformed)?;
        if attest.extra != asked.0 {
            return Err(Fault::OtherQuestion);
        }
        if !attest.registers.iter().eq(self.pcrs.keys()) {
            return Err(Fault::OtherRegisters);
        }
        let Attest { resets, restarts, values, .. } = attest;
        Ok(Quoted { as_declared: values == self.values(), resets, restarts })
    }
}

/// A TPM that was declared for a site, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tpm {
    /// What was declared.
    pub declared: Declared,
    /// The newest quote, whatever it is worth.
    pub quote: Option<Quote>,
    /// What it says, or why it counts for nothing.
    pub found: Result<Quoted, Fault>,
}

impl Tpm {
    /// What came of it, in one word.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self.found {
            Ok(Quoted { as_declared: true, .. }) => "as_declared",
            Ok(_) => "other_start",
            Err(fault) => fault.as_str(),
        }
    }

    /// As a member of an entry.
    #[must_use]
    pub fn to_canon(&self) -> Canon {
        let pcrs = self.declared.pcrs.iter();
        let pcrs = pcrs.map(|(n, value)| (n.to_string(), value.to_string().into())).collect();
        let key = hex::encode(self.declared.key.as_bytes()).into();
        let mut members: Vec<(&str, Canon)> = vec![("key", key), ("pcrs", Canon::Map(pcrs))];
        if let Some(quote) = &self.quote {
            members.push(("nonce", hex::encode(quote.nonce).into()));
            members.push(("attest", hex::encode(&quote.attest).into()));
            members.push(("signature", hex::encode(&quote.signature).into()));
        }
        match self.found {
            Ok(quoted) => members.extend([
                ("as_declared", Canon::Bool(quoted.as_declared)),
                ("resets", Canon::Int(quoted.resets.into())),
                ("restarts", Canon::Int(quoted.restarts.into())),
            ]),
            Err(fault) => members.push(("fault", fault.as_str().into())),
        }
        Canon::map(members)
    }

    /// Reads what [`Self::to_canon`] wrote; what else there may be shows when it is written again.
    pub(crate) fn read(said: Node<'_>) -> Option<Self> {
        let bytes = |name: &str| {
            let text = said.find_text(name).filter(|text| text.len() <= 2 * BYTES_MAX)?;
            hex::decode(text).ok()
        };
        let register = |(n, value): (&str, Node<'_>)| {
            Some((n.parse().ok()?, value.as_text()?.parse::<Digest>().ok()?))
        };
        let pcrs = said.member("pcrs")?.members().map(register).collect::<Option<_>>()?;
        let declared = Declared { key: AttestationKey::parse(&bytes("key")?).ok()?, pcrs };
        let quote = match bytes("nonce") {
            Some(nonce) => Some(Quote {
                nonce: nonce.try_into().ok()?,
                attest: bytes("attest")?,
                signature: bytes("signature")?,
            }),
            None => None,
        };
        let found = match said.find_text("fault") {
            Some(word) => Err(Fault::ALL.iter().copied().find(|f| f.as_str() == word)?),
            None => Ok(Quoted {
                as_declared: said.member("as_declared")?.to_canon() == Canon::Bool(true),
                resets: said.member("resets")?.as_int()?,
                restarts: said.member("restarts")?.as_int()?,
            }),
        };
        Some(Self { declared, quote, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canon::Document;

    /// An attestation key, and a quote by it over registers 0 and 7, both zero, for 0xaabb, from `swtpm` 0.7.1.
    const KEY: &str = "00580023000b00050072000000100018000b000300100020\
        95341eb53c06008044bcfeb23c691ea500e1bba3a2b270992da585d338b15046\
        00206b549c2ce0075f07642fad219fd032672951f97e76d51bff5aacf2d3e1a43942";
    const ATTEST: &str = "ff54434780180022000b878bef99f4bfff4d43719f2a790cf0005e541f7b3d92cd8a6684e7620af068ac\
        0002aabb0000000000000425000000010000000001201910230016363600000001000b038100000020\
        f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b";

    fn key() -> AttestationKey {
        AttestationKey::parse_sized(&hex::decode(KEY).expect("hex")).expect("a key")
    }

    fn declared() -> Declared {
        Declared { key: key(), pcrs: BTreeMap::from([(0, Digest([0; 32])), (7, Digest([0; 32]))]) }
    }

    fn attest() -> Vec<u8> {
        hex::decode(ATTEST).expect("hex")
    }

    #[test]
    fn what_a_tpm_wrote_is_read() {
        let name = "6814dcf6c37c6712938e71c65701f1ee6b7c00e7866dd0fc912b388ae37684ed";
        assert_eq!(key().name_sha256().to_string(), name);
        let read = Attest::parse(&attest()).expect("a quote");
        assert_eq!((read.extra.as_slice(), read.resets, read.restarts), (&[0xaa, 0xbb][..], 1, 0));
        assert_eq!((read.registers, read.values), (vec![0, 7], declared().values()));
    }

    #[test]
    fn a_quote_that_was_changed_cut_short_or_is_something_else_is_none() {
        let whole = attest();
        for length in 0..whole.len() {
            assert!(Attest::parse(&whole[..length]).is_err(), "{length}");
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            Attest::parse(&bytes)
        };
        for (at, byte, what) in [
            (0, 0, "another magic"),
            (5, 0x17, "a certification"),
            (7, 0x21, "another length of the signer"),
            (9, 0x0c, "a signer named by SHA-384"),
            (42, 0x80, "a longer question"),
            (62, 2, "neither yes nor no"),
            (74, 2, "two banks"),
            (76, 0x04, "registers of SHA-1"),
            (77, 4, "four bytes of registers"),
            (82, 0x14, "a shorter digest"),
        ] {
            assert!(changed(at, byte).is_err(), "{what}");
        }
        assert!(Attest::parse(&[&whole[..], &[0]].concat()).is_err());
    }

    #[test]
    fn only_a_quote_for_this_question_over_these_registers_counts() {
        let asked = Digest::of(b"asked");
        let mut bytes = attest();
        bytes.splice(42..46, [&[0, 32][..], &asked.0].concat());
        let read = |declared: &Declared| declared.read(&bytes, &asked);
        let good = Quoted { as_declared: true, resets: 1, restarts: 0 };
        assert_eq!(read(&declared()), Ok(good));
        assert_eq!(declared().read(&bytes, &Digest::of(b"else")), Err(Fault::OtherQuestion));
        assert_eq!(declared().read(&attest(), &asked), Err(Fault::OtherQuestion));
        assert_eq!(declared().read(&bytes[1..], &asked), Err(Fault::Malformed));
        let mut other = declared();
        other.pcrs.insert(7, Digest([1; 32]));
        assert_eq!(read(&other), Ok(Quoted { as_declared: false, ..good }));
        other.pcrs.insert(4, Digest([0; 32]));
        assert_eq!(read(&other), Err(Fault::OtherRegisters));
        other.pcrs = BTreeMap::from([(0, Digest([0; 32]))]);
        assert_eq!(read(&other), Err(Fault::OtherRegisters));
    }

    #[test]
    fn the_question_is_of_one_nonce_one_site_and_one_coordinator() {
        let name = |name: &str| {
            format!("spiffe://t/ae-on/ae-az/coordinator/{name}").parse().expect("an id")
        };
        let asked = qualifying(&[1; 32], &[2; 32], &name("a"));
        assert_eq!(asked, qualifying(&[1; 32], &[2; 32], &name("a")));
        assert_ne!(asked, qualifying(&[3; 32], &[2; 32], &name("a")));
        assert_ne!(asked, qualifying(&[1; 32], &[3; 32], &name("a")));
        assert_ne!(asked, qualifying(&[1; 32], &[2; 32], &name("b")));
    }

    /// An RSA key of so many bits.
    fn rsa(bits: u16, scheme: u16, exponent: u32) -> Vec<u8> {
        let mut key = hex::decode("0001000b0005007200000010").expect("hex");
        for word in [scheme, SHA256, bits] {
            key.extend(word.to_be_bytes());
        }
        key.extend(exponent.to_be_bytes());
        key.extend((bits / 8).to_be_bytes());
        key.extend(vec![0xff; usize::from(bits / 8)]);
        key
    }

    #[test]
    fn only_a_strong_key_that_signs_nothing_else_is_one() {
        let good = key();
        for (bits, scheme, pss) in [(2_048, RSASSA, false), (4_096, RSAPSS, true)] {
            let read = AttestationKey::parse(&rsa(bits, scheme, 0)).expect("a key");
            let modulus = vec![0xff; usize::from(bits / 8)];
            assert_eq!(read.material(), &Material::Rsa { modulus, pss });
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.as_bytes().to_vec();
            bytes[at] = byte;
            AttestationKey::parse(&bytes).expect_err("refused")
        };
        // The attributes are 0x00050072.
        for (at, byte, name) in [
            (7, 0x70, "fixedtpm"),
            (7, 0x62, "fixedparent"),
            (7, 0x52, "sensitivedataorigin"),
            (5, 0x04, "restricted"),
            (5, 0x01, "sign"),
        ] {
            assert_eq!(changed(at, byte), TpmError::Attributes(name));
        }
        for (at, byte) in [(1, 0x08), (3, 0x0c), (13, 0x1a), (15, 0x04), (17, 0x04)] {
            assert!(matches!(changed(at, byte), TpmError::Weak(_)), "{at}");
        }
        for weak in [rsa(1_024, RSASSA, 0), rsa(2_048, ECDSA, 0), rsa(2_048, RSASSA, 3)] {
            assert!(matches!(AttestationKey::parse(&weak), Err(TpmError::Weak(_))));
        }
        for length in 0..good.as_bytes().len() {
            assert!(AttestationKey::parse(&good.as_bytes()[..length]).is_err(), "{length}");
        }
        assert!(AttestationKey::parse(&[good.as_bytes(), &[0]].concat()).is_err());
        assert!(AttestationKey::parse_sized(good.as_bytes()).is_err());
    }

    #[test]
    fn a_signature_by_another_scheme_or_of_another_length_is_none() {
        let bytes = [&[0, 0x18, 0, 0x0b, 0, 1, 5, 0, 32][..], &[9; 32]].concat();
        let parts = key().signature(&bytes).expect("a signature");
        assert_eq!((&parts[..32], &parts[32..]), (&padded(&[5]).expect("short")[..], &[9; 32][..]));
        for wrong in [
            [&bytes[..], &[0]].concat(),
            bytes[..bytes.len() - 1].to_vec(),
            [&[0, 0x14], &bytes[2..]].concat(),
            [&[0, 0x18, 0, 4], &bytes[4..]].concat(),
            [&[0, 0x18, 0, 0x0b, 0, 33][..], &[1; 33], &[0, 1, 1]].concat(),
            Vec::new(),
        ] {
            assert!(key().signature(&wrong).is_err(), "{wrong:?}");
        }
        let rsa = AttestationKey::parse(&rsa(2_048, RSASSA, 65_537)).expect("a key");
        let of = |n: u16| [&[0, 0x14, 0, 0x0b][..], &n.to_be_bytes(), &vec![1; n.into()]].concat();
        assert!(rsa.signature(&of(256)).is_ok());
        assert!(rsa.signature(&of(255)).is_err());
    }

    #[test]
    fn what_came_of_it_is_read_as_it_was_written() {
        let quote = Quote { nonce: [3; 32], attest: attest(), signature: vec![1, 2] };
        let good = Quoted { as_declared: true, resets: 4, restarts: u32::MAX };
        for (quote, found) in [
            (None, Err(Fault::Absent)),
            (Some(quote.clone()), Err(Fault::OtherKey)),
            (Some(quote), Ok(good)),
        ] {
            let tpm = Tpm { declared: declared(), quote, found };
            let bytes = tpm.to_canon().to_bytes();
            let read = Document::parse(&bytes).expect("canonical");
            assert_eq!(Tpm::read(read.root()), Some(tpm));
        }
    }
}
