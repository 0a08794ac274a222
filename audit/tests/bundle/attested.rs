//! TPMs in a bundle: what an entry says of a quote follows from the quote.

use super::fixture::by_minutes;
use falaj_core::{
    audit::Kind,
    evidence::Evidence,
    id::Digest,
    tpm::{AttestationKey, Declared, Fault, Quote, Quoted, Tpm},
};
use falaj_verify::{Report, Wrong};

/// A quote as a TPM in software made it, for another question than this site's: a key, the quote, its signature.
fn quote() -> [Vec<u8>; 3] {
    let mut lines = include_str!("../../../certs/testdata/tpm.txt").lines();
    let line = lines.find_map(|line| line.strip_prefix("ecdsa ")).expect("a quote");
    let byte =
        |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("a byte");
    let bytes = |part: &str| part.as_bytes().chunks(2).map(byte).collect();
    let parts: Vec<Vec<u8>> = line.split(' ').map(bytes).collect();
    parts.try_into().expect("three parts")
}

/// The usual bundle, and a site that was let in with this TPM.
fn with(tpm: Tpm) -> Result<Report, Wrong> {
    let bundle = by_minutes(|drafts, cast| {
        let known = Evidence { tpm: Some(tpm), ..cast.evidence() };
        let taken = cast.may(Kind::EvidenceTaken, &cast.site, "connect", &["ACC-100"]);
        drafts.push(taken.evidence(&known));
    });
    bundle.verify()
}

#[test]
fn what_an_entry_says_of_a_tpm_follows_from_the_quote_in_it() {
    let [key, attest, signature] = quote();
    let key = AttestationKey::parse_sized(&key).expect("a key");
    let pcrs = [0, 7].map(|n| (n, Digest([0; 32]))).into();
    let declared = Declared { key, pcrs };
    let whole = Quote { nonce: [1; 32], attest, signature };
    let said = |quote: Option<&Quote>, found| {
        with(Tpm { declared: declared.clone(), quote: quote.cloned(), found })
    };
    let report = said(Some(&whole), Err(Fault::OtherQuestion)).expect("as it is");
    assert_eq!(report.quotes, 1);
    assert_eq!(said(None, Err(Fault::Absent)).expect("as it is").quotes, 0);
    let good = Quoted { as_declared: true, resets: 1, restarts: 0 };
    let mut other = whole.clone();
    other.attest[50] ^= 1;
    for (quote, found) in [
        (Some(&whole), Ok(good)),
        (Some(&whole), Err(Fault::Absent)),
        (Some(&other), Err(Fault::OtherQuestion)),
        (None, Ok(good)),
    ] {
        let wrong = said(quote, found).expect_err("it does not follow");
        assert!(matches!(wrong, Wrong::Content { index: 5, .. }), "{wrong}");
        assert!(wrong.to_string().contains("TPM"), "{wrong}");
    }
}
