//! What was signed of a version beside the bundle: that the log's key signed it, and that each of its fields follows from the
//! entries and the study's file.

use crate::Wrong;
use falaj_core::{
    canon,
    id::{Digest, StudyId},
    note::VerifierKey,
    registry::{
        dsse::Envelope,
        lineage::Lineage,
        provenance::{About, PAYLOAD_TYPE, Provenance, differs},
    },
    witness::InclusionProof,
};
use serde::Serialize;

/// What one envelope shows.
#[derive(Clone, Debug, Serialize)]
pub struct VersionReport {
    /// The study.
    pub study: String,
    /// The version.
    pub version: u32,
    /// SHA-256 of its parameters.
    pub model_sha256: String,
    /// SHA-256 of its `safetensors` file.
    pub safetensors_sha256: String,
    /// Where the log says that it stands.
    pub stage: String,
    /// Updates that it came from.
    pub updates: u64,
    /// The entry that made it.
    pub index: u64,
}

/// Checks an envelope against the entries of a log and the keys that spoke for it. `about` says what a study's file does.
pub(crate) fn check(
    json: &[u8],
    origin: &str,
    keys: &[VerifierKey],
    lineage: &Lineage,
    about: impl Fn(&Digest) -> Option<About>,
) -> Result<VersionReport, Wrong> {
    let wrong = |what: String| Wrong::Provenance { what };
    let envelope = Envelope::parse(json).map_err(|e| wrong(e.to_string()))?;
    let mut signed = Ok(());
    for key in keys {
        signed = envelope.verify(PAYLOAD_TYPE, key);
        if signed.is_ok() {
            break;
        }
    }
    // A field that was changed is named, whatever the signature is worth.
    let unsigned = |what: String| match &signed {
        Ok(()) => wrong(what),
        Err(e) => wrong(format!("{what}; and {e}")),
    };
    let said = Provenance::read(&envelope.payload).map_err(|e| unsigned(e.to_string()))?;
    let (study, number) = (&said.study, said.version);
    let name = |study: &StudyId| format!("version {number} of study `{study}`");
    let (index, leaf) = lineage
        .made(study, number)
        .ok_or_else(|| unsigned(format!("this log tells of no {}", name(study))))?;
    let of_study = lineage.study_sha256(study).and_then(|digest| about(&digest));
    let of_study =
        of_study.ok_or_else(|| unsigned(format!("the file of study `{study}` is missing")))?;
    let follows = lineage.provenance(study, number, of_study, origin, said.log.proof.clone());
    let follows =
        follows.ok_or_else(|| unsigned(format!("nothing follows for {}", name(study))))?;
    let payload = canon::parse(&envelope.payload).map_err(|e| unsigned(e.to_string()))?;
    if let Some(difference) = differs(&payload, &follows.statement()) {
        return Err(unsigned(difference.to_string()));
    }
    signed.map_err(|e| wrong(e.to_string()))?;
    let proof = InclusionProof::parse(&said.log.proof);
    let mut proven = proof.clone().map(drop);
    if let Ok(proof) = &proof {
        for key in keys {
            proven = proof.verify(&leaf, key).map(drop);
            if proven.is_ok() {
                break;
            }
        }
    }
    proven.map_err(|e| wrong(format!("`predicate.falaj_log.proof`: {e}")))?;
    let stage = lineage.registry(study).and_then(|registry| registry.version(number).ok());
    Ok(VersionReport {
        study: study.to_string(),
        version: number,
        model_sha256: said.model.to_string(),
        safetensors_sha256: said.file.to_string(),
        stage: stage.map(|version| version.stage.as_str().to_owned()).unwrap_or_default(),
        updates: said.rounds.iter().map(|round| round.updates.len() as u64).sum(),
        index,
    })
}
