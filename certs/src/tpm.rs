//! Whether a TPM's attestation key has signed a quote, and whether the quote is good. No input or output.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    RsaPublicKeyComponents, VerificationAlgorithm as _,
};
use falaj_core::{
    id::SpiffeId,
    tpm::{AttestationKey, Declared, Fault, Material, Quote, Quoted, Tpm, TpmError, qualifying},
};

/// Reads a key as `tpm2_readpublic -o` writes it, and looks whether anything can be signed by it.
///
/// # Errors
/// [`TpmError`].
pub fn key(bytes: &[u8]) -> Result<AttestationKey, TpmError> {
    let key = AttestationKey::parse_sized(bytes)?;
    if let Material::P256(point) = key.material()
        && ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).is_err()
    {
        return Err(TpmError::Malformed("point on P-256"));
    }
    Ok(key)
}

/// Whether this key has signed these bytes. `signature` is a `TPMT_SIGNATURE`.
///
/// # Errors
/// [`Fault::Malformed`] when it is no signature by such a key, [`Fault::OtherKey`] when the key has not made it.
pub fn verify(key: &AttestationKey, signed: &[u8], signature: &[u8]) -> Result<(), Fault> {
    let parts = key.signature(signature).map_err(|_| Fault::Malformed)?;
    let verified = match key.material() {
        Material::P256(point) => {
            ECDSA_P256_SHA256_FIXED.verify_sig(point, signed, &parts).map_err(drop)
        }
        Material::Rsa { modulus: n, pss } => {
            let by = if *pss { &RSA_PSS_2048_8192_SHA256 } else { &RSA_PKCS1_2048_8192_SHA256 };
            let key = RsaPublicKeyComponents { n: n.as_slice(), e: &[1, 0, 1][..] };
            key.verify(by, signed, &parts).map_err(drop)
        }
    };
    verified.map_err(|()| Fault::OtherKey)
}

/// What a quote says, if it is one by the declared key, for a site with this key and this coordinator. Whoever reads the log
/// asks the same.
///
/// # Errors
/// [`Fault`].
pub fn judge(
    declared: &Declared,
    quote: Option<&Quote>,
    site_key: &[u8; 32],
    coordinator: &SpiffeId,
) -> Result<Quoted, Fault> {
    let Quote { nonce, attest, signature } = quote.ok_or(Fault::Absent)?;
    verify(&declared.key, attest, signature)?;
    declared.read(attest, &qualifying(nonce, site_key, coordinator))
}

/// What came of a TPM that was declared for a site with this key.
#[must_use]
pub fn judged(
    declared: Declared,
    quote: Option<Quote>,
    site_key: &[u8; 32],
    coordinator: &SpiffeId,
) -> Tpm {
    let found = judge(&declared, quote.as_ref(), site_key, coordinator);
    Tpm { declared, quote, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::id::Digest;
    use std::collections::BTreeMap;

    /// A scheme's name, a key, a quote and its signature.
    type Vector = (&'static str, Vec<u8>, Vec<u8>, Vec<u8>);

    fn vectors() -> Vec<Vector> {
        let lines = include_str!("../testdata/tpm.txt").lines().filter(|l| !l.starts_with('#'));
        let bytes = |text: &str| -> Vec<u8> {
            let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
            (0..text.len()).step_by(2).map(digit).collect()
        };
        let read = |line: &'static str| {
            let [name, key, attest, signature] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("four words")
            };
            (name, bytes(key), bytes(attest), bytes(signature))
        };
        lines.map(read).collect()
    }

    #[test]
    fn what_a_tpm_signed_verifies_by_each_scheme_and_nothing_else_does() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 3);
        for (name, public, attest, signature) in &vectors {
            let read = key(public).expect("a key");
            assert_eq!(verify(&read, attest, signature), Ok(()), "{name}");
            let zeros = BTreeMap::from([(0, Digest([0; 32])), (7, Digest([0; 32]))]);
            let declared = Declared { key: read.clone(), pcrs: zeros };
            let quoted = declared.read(attest, &Digest::of(b"asked")).expect("a quote");
            assert!(quoted.as_declared, "{name}");
            for at in [0, 40, attest.len() - 1] {
                let mut changed = attest.clone();
                changed[at] ^= 1;
                assert_eq!(verify(&read, &changed, signature), Err(Fault::OtherKey), "{name}");
            }
            let mut changed = signature.clone();
            *changed.last_mut().expect("bytes") ^= 1;
            assert_eq!(verify(&read, attest, &changed), Err(Fault::OtherKey), "{name}");
            let [a, b] = &vectors.iter().filter(|other| other.0 != *name).collect::<Vec<_>>()[..]
            else {
                panic!("two others")
            };
            for (_, other, ..) in [a, b] {
                let other = key(other).expect("a key");
                assert_eq!(verify(&other, attest, signature), Err(Fault::Malformed), "{name}");
            }
        }
    }

    #[test]
    fn signatures_of_zeros_and_a_point_beside_the_curve_are_refused() {
        let (_, public, attest, signature) = vectors().remove(0);
        let read = key(&public).expect("a key");
        for number in [[0; 32], [0xff; 32]] {
            let mut changed = signature[..4].to_vec();
            for part in [number, number] {
                changed.extend([0, 32]);
                changed.extend(part);
            }
            assert_eq!(verify(&read, &attest, &changed), Err(Fault::OtherKey));
        }
        for point in [[0; 32], [0xff; 32]] {
            let mut beside = public.clone();
            let at = beside.len() - 32;
            beside[at..].copy_from_slice(&point);
            assert_eq!(key(&beside).expect_err("refused"), TpmError::Malformed("point on P-256"));
        }
    }

    #[test]
    fn a_quote_for_another_question_is_not_good_however_well_it_is_signed() {
        let (_, public, attest, signature) = vectors().remove(0);
        let zeros = BTreeMap::from([(0, Digest([0; 32])), (7, Digest([0; 32]))]);
        let declared = Declared { key: key(&public).expect("a key"), pcrs: zeros };
        let quote = Quote { nonce: [1; 32], attest, signature };
        let name = "spiffe://t/ae-on/ae-az/coordinator/main".parse().expect("an id");
        let asked = judge(&declared, Some(&quote), &[2; 32], &name);
        assert_eq!(asked, Err(Fault::OtherQuestion));
        assert_eq!(judge(&declared, None, &[2; 32], &name), Err(Fault::Absent));
    }
}
