//! The error catalog: every error that a caller can see, with its stable code, its HTTP and gRPC
//! status, and its page in `docs/errors/`.
//!
//! Internal detail never crosses: what a caller gets is a [`Problem`], made of one row of [`Code`] and a
//! sentence that says what was wrong with the request and what to do.

use serde::{Deserialize, Serialize};
use std::fmt;
use tonic::{Code as Grpc, Status, metadata::MetadataValue};

/// The gRPC metadata key that carries a [`Code`] beside a status.
pub const CODE_METADATA: &str = "falaj-code";
/// Longer details are cut here: an error is a sentence, and foreign text has a bound.
const DETAIL_CHARS_MAX: usize = 1_000;

macro_rules! catalog {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $title:literal, $http:literal, $grpc:ident;)*) => {
        /// One row of the catalog.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every row.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name, for machines.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $code,)* } }

            /// The short title, for people.
            #[must_use]
            pub const fn title(self) -> &'static str { match self { $(Self::$variant => $title,)* } }

            /// The HTTP status.
            #[must_use]
            pub const fn http(self) -> u16 { match self { $(Self::$variant => $http,)* } }

            /// The gRPC status.
            #[must_use]
            pub const fn grpc(self) -> Grpc { match self { $(Self::$variant => Grpc::$grpc,)* } }
        }
    };
}

catalog! {
    /// The request cannot be read.
    Malformed = "malformed", "The request cannot be read", 400, InvalidArgument;
    /// The study file is wrong.
    StudyInvalid = "study_invalid", "The study is not valid", 400, InvalidArgument;
    /// The update's header cannot be read.
    HeaderMalformed = "header_malformed", "The update's header cannot be read", 400, InvalidArgument;
    /// The update has another shape than the study's model.
    ShapeMismatch = "shape_mismatch", "The update does not fit the model", 400, InvalidArgument;
    /// A value lies outside the agreed bits.
    ValueOutOfRange = "value_out_of_range", "A value lies outside the agreed bits", 400, InvalidArgument;
    /// The stream ended before the declared size, or went on after it.
    SizeMismatch = "size_mismatch", "The stream is not as long as declared", 400, InvalidArgument;
    /// The payload's digest is not the one in the header.
    DigestMismatch = "digest_mismatch", "The payload is not what the header says", 400, InvalidArgument;
    /// The declared size is over the limit.
    TooLarge = "too_large", "The declared size is over the limit", 413, InvalidArgument;
    /// The certificate does not name a Falaj identity.
    Unidentified = "unidentified", "It is not known who this is", 401, Unauthenticated;
    /// The certificate was revoked, has expired, or is vouched for by nobody any more.
    Revoked = "revoked", "The certificate is not trusted any more", 401, Unauthenticated;
    /// The signature over the header does not verify.
    SignatureInvalid = "signature_invalid", "The signature does not verify", 401, Unauthenticated;
    /// A token, or a request for a certificate, that is not good.
    EnrolmentRefused = "enrolment_refused", "No certificate is given for this", 403, PermissionDenied;
    /// Policy says no.
    Denied = "denied", "Policy does not permit this", 403, PermissionDenied;
    /// The update names another site than the certificate.
    SiteMismatch = "site_mismatch", "The update is somebody else's", 403, PermissionDenied;
    /// No such study.
    UnknownStudy = "unknown_study", "There is no such study", 404, NotFound;
    /// No such model.
    UnknownModel = "unknown_model", "There is no such model", 404, NotFound;
    /// No such person, or one who was erased.
    UnknownPerson = "unknown_person", "There is no such person", 404, NotFound;
    /// No such hold, or one that was released.
    UnknownHold = "unknown_hold", "There is no such hold", 404, NotFound;
    /// No such enrolment token.
    UnknownToken = "unknown_token", "There is no such enrolment token", 404, NotFound;
    /// No such certificate or identity, or nothing of it was revoked.
    UnknownCertificate = "unknown_certificate", "There is no such certificate", 404, NotFound;
    /// No such page.
    NotFound = "not_found", "There is nothing here", 404, NotFound;
    /// The address does not take this method.
    MethodNotAllowed = "method_not_allowed", "This cannot be done here", 405, NotFound;
    /// A study of that name exists.
    StudyExists = "study_exists", "A study of that name exists", 409, AlreadyExists;
    /// The study is over.
    StudyOver = "study_over", "The study is over", 409, FailedPrecondition;
    /// The version stands where this cannot be done.
    WrongStage = "wrong_stage", "The version stands where this cannot be done", 409, FailedPrecondition;
    /// The version fails a gate of its study that is asked when it is promoted.
    GateFailed = "gate_failed", "The version does not pass a gate of its study", 409, FailedPrecondition;
    /// The update is for another round than the one that collects.
    WrongRound = "wrong_round", "The update is for another round", 409, FailedPrecondition;
    /// The update starts from another model.
    WrongBase = "wrong_base", "The update starts from another model", 409, FailedPrecondition;
    /// It was taken from this party before, and counts once.
    Duplicate = "duplicate", "It has been taken already", 409, FailedPrecondition;
    /// The site has no seat in the round.
    NotEnrolled = "not_enrolled", "The site is not in this round", 409, FailedPrecondition;
    /// The round takes no more updates.
    Late = "late", "The round takes no more updates", 409, FailedPrecondition;
    /// A legal hold keeps it from being erased.
    LegalHold = "legal_hold", "A legal hold stands", 409, FailedPrecondition;
    /// A study's retention class keeps it from being erased.
    Retained = "retained", "It must be kept for longer", 409, FailedPrecondition;
    /// What was there has been deleted under the policy of retention.
    Pruned = "pruned", "It was deleted when its term was over", 410, FailedPrecondition;
    /// Somebody else changed it first.
    Conflict = "conflict", "Somebody else changed it first", 409, Aborted;
    /// Too much at once.
    Busy = "busy", "Too much at once", 429, ResourceExhausted;
    /// The coordinator has no room to make the update durable.
    StorageFull = "storage_full", "There is no room to keep this", 507, ResourceExhausted;
    /// The audit log cannot take an entry, so nothing is served.
    LogUnavailable = "log_unavailable", "The audit log cannot take an entry", 503, Unavailable;
    /// Not now.
    Unavailable = "unavailable", "Not available now", 503, Unavailable;
    /// The bytes of a stored model are not those that were published.
    ModelDamaged = "model_damaged", "The stored model is not the one that was published", 500, Internal;
    /// Our fault.
    Internal = "internal", "Something went wrong here", 500, Internal;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Code {
    /// The row named `code`.
    #[must_use]
    pub fn find(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.as_str() == code)
    }

    /// This row with a sentence of detail.
    pub fn because(self, detail: impl fmt::Display) -> Problem {
        let detail = detail.to_string().chars().take(DETAIL_CHARS_MAX).collect();
        Problem { code: self, detail }
    }
}

/// An error that a caller sees.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail} [{code}]")]
pub struct Problem {
    /// Which row of the catalog.
    pub code: Code,
    /// What was wrong with this request, where, and what to do.
    pub detail: String,
}

impl From<Problem> for Status {
    fn from(p: Problem) -> Self {
        let mut status = Self::new(p.code.grpc(), p.detail);
        status.metadata_mut().insert(CODE_METADATA, MetadataValue::from_static(p.code.as_str()));
        status
    }
}

/// The catalog's row for a status that a coordinator sent, if it sent one.
#[must_use]
pub fn code_of(status: &Status) -> Option<Code> {
    Code::find(status.metadata().get(CODE_METADATA)?.to_str().ok()?)
}

/// A problem as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProblemJson {
    /// Where the error is explained: its page in the documentation.
    pub r#type: String,
    /// The short title.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong with this request.
    pub detail: String,
    /// The stable code.
    pub code: String,
}

impl From<&Problem> for ProblemJson {
    fn from(p: &Problem) -> Self {
        Self {
            r#type: format!("urn:falaj:error:{}", p.code),
            title: p.code.title().to_owned(),
            status: p.code.http(),
            detail: p.detail.clone(),
            code: p.code.as_str().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_survives_the_wire() {
        for &code in Code::ALL {
            let status = Status::from(code.because("why"));
            assert_eq!((code_of(&status), status.code()), (Some(code), code.grpc()));
            assert_eq!(Code::find(code.as_str()), Some(code));
        }
    }

    #[test]
    fn every_code_has_its_page() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
        for code in Code::ALL {
            assert!(pages.join(format!("{code}.md")).is_file(), "docs/errors/{code}.md is missing");
        }
    }

    #[test]
    fn foreign_text_in_a_detail_is_bounded() {
        assert_eq!(Code::Denied.because("x".repeat(9_999)).detail.len(), DETAIL_CHARS_MAX);
    }
}
