//! What policy has to have decided before the coordinator does what an entry of a kind tells of.

use falaj_core::audit::Kind;
use falaj_policies::Action;

/// What an entry has to say of its decision.
#[derive(Clone, Copy)]
pub(crate) enum Decided {
    /// Policy allowed this action.
    Allowed(Action),
    /// Policy allowed an action that no other kind tells of.
    Else,
    /// Policy did not allow it, if it was asked.
    Denied,
    /// Nothing.
    Nothing,
}

/// Actions that have kinds of their own, so that no other entry stands for them. Submitting a study has one, too, and whoever asks for
/// it again under the same key reads what came of it.
const OWN: [Action; 7] = [
    Action::Connect,
    Action::EndpointUse,
    Action::StudyJoin,
    Action::TaskGet,
    Action::UpdateSend,
    Action::ModelRead,
    Action::LogExport,
];

/// What an entry of this kind has to say. Each new kind gets its row here.
pub(crate) const fn decided(kind: Kind) -> Decided {
    match kind {
        Kind::ConnectionAdmitted | Kind::EvidenceTaken | Kind::OperatorSignedIn => {
            Decided::Allowed(Action::Connect)
        }
        Kind::EndpointAllowed => Decided::Allowed(Action::EndpointUse),
        Kind::CertificateRevoked | Kind::CertificateReinstated => {
            Decided::Allowed(Action::SiteRevoke)
        }
        Kind::ApprovalGiven | Kind::CandidateApproved => Decided::Allowed(Action::ApprovalGive),
        Kind::ApprovalWithdrawn => Decided::Allowed(Action::ApprovalWithdraw),
        Kind::VersionPromoted => Decided::Allowed(Action::VersionPromote),
        Kind::VersionRejected | Kind::CandidateRefused => Decided::Allowed(Action::VersionReject),
        Kind::VersionRevoked => Decided::Allowed(Action::VersionRevoke),
        Kind::VersionRolledBack => Decided::Allowed(Action::VersionRollBack),
        Kind::VersionAliased => Decided::Allowed(Action::VersionAlias),
        Kind::EnrolmentOffered | Kind::EnrolmentWithdrawn => Decided::Allowed(Action::SiteEnroll),
        Kind::StudySubmitted => Decided::Allowed(Action::StudySubmit),
        Kind::TaskSent => Decided::Allowed(Action::TaskGet),
        Kind::UpdateAccepted | Kind::ExchangeAnswered | Kind::EvaluationAccepted => Decided::Allowed(Action::UpdateSend),
        Kind::ModelRead => Decided::Allowed(Action::ModelRead),
        Kind::LogExported => Decided::Allowed(Action::LogExport),
        Kind::HoldPlaced => Decided::Allowed(Action::HoldPlace),
        Kind::HoldReleased => Decided::Allowed(Action::HoldRelease),
        // That the law keeps somebody is told only to those who may ask.
        Kind::ErasureBegun | Kind::ErasureRefused => Decided::Allowed(Action::PersonErase),
        Kind::PruningBegun | Kind::PruningRefused => Decided::Allowed(Action::LogPrune),
        Kind::AdminRead => Decided::Else,
        Kind::ConnectionRefused
        | Kind::ConnectionEnded
        | Kind::EnrolmentRefused
        | Kind::UpdateRefused
        | Kind::AccessDenied => Decided::Denied,
        Kind::LogOpened
        | Kind::LogClosed
        | Kind::KeyRotated
        | Kind::CoordinatorStarted
        | Kind::PolicyLoaded
        | Kind::PolicyRefused
        | Kind::GlassBroken
        | Kind::GlassMended
        | Kind::TrustLoaded
        | Kind::AlertRaised
        // A token and a certificate stand for it.
        | Kind::SiteEnrolled
        | Kind::CertificateRenewed
        | Kind::StudyFinished
        | Kind::StudyFailed
        // Whoever stops one has an `admin.read` for it.
        | Kind::StudyStopped
        | Kind::RoundOpened
        | Kind::RoundClosed
        | Kind::RoundFailed
        | Kind::SiteJoined
        | Kind::SiteDeclined
        | Kind::ModelPublished
        | Kind::ModelRejected
        // Gates hold it.
        | Kind::CandidateHeld
        | Kind::ModelRolledBack
        // A study that has run all its rounds makes one; whoever makes one by hand is asked for in `decisions`.
        | Kind::VersionMade
        | Kind::UpdateDuplicate
        | Kind::ReportExported
        | Kind::AccessServed
        | Kind::CheckpointStamped
        | Kind::ReportStamped
        | Kind::ErasurePerformed
        | Kind::PruningPerformed => Decided::Nothing,
    }
}

/// Whether somebody was let do something by policy, as an entry of this kind tells.
pub(crate) const fn is_let(kind: Kind) -> bool {
    matches!(decided(kind), Decided::Allowed(_) | Decided::Else)
}

/// Whether an entry of this kind may say that no policy was asked. That is no lie: the report has it as `read_without_grant`.
const fn is_read(kind: Kind) -> bool {
    matches!(kind, Kind::ModelRead | Kind::AdminRead | Kind::LogExported)
}

/// Holds what an entry says that was decided against its kind.
pub(crate) fn check(
    kind: Kind,
    action: Option<&str>,
    decision: Option<&str>,
    set: Option<&str>,
) -> Result<(), String> {
    if is_read(kind) && decision.is_none() && set.is_none() {
        return Ok(());
    }
    let wanted = match decided(kind) {
        Decided::Denied if decision == Some("allow") => {
            return Err(format!("it is {kind}, and says that it was allowed"));
        }
        Decided::Nothing | Decided::Denied => return Ok(()),
        Decided::Allowed(wanted) if action == Some(wanted.as_str()) => wanted.as_str(),
        Decided::Else if action.is_some_and(|a| OWN.iter().all(|own| own.as_str() != a)) => {
            action.unwrap_or_default()
        }
        Decided::Allowed(wanted) => {
            return Err(format!(
                "it is {kind}, for which policy decides on {}, and it says {}",
                wanted.as_str(),
                action.unwrap_or("nothing")
            ));
        }
        Decided::Else => {
            return Err(format!(
                "it is {kind}, and its action is {}",
                action.unwrap_or("not there")
            ));
        }
    };
    if decision != Some("allow") || set.is_none() {
        return Err(format!("it is {kind}, and it does not say which policies allowed {wanted}"));
    }
    Ok(())
}
