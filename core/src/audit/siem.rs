//! An entry as a SIEM reads it: an event in the shape of OCSF, or a message of syslog (RFC 5424). Pure; each kind of entry
//! has its row in [`shape`].
//!
//! What is made here is a copy for watching. What the log proves is proven by the entry's own bytes, which both carry.

use super::{Entry, Kind};
use crate::{canon::Canon, time::Timestamp};
use std::collections::BTreeMap;

/// The version of the Open Cybersecurity Schema Framework.
pub const OCSF_VERSION: &str = "1.3.0";
/// What a receiver of datagrams should take whole (RFC 5424, section 6.1).
pub const DATAGRAM_BYTES_MAX: usize = 2_048;
/// "log audit" (RFC 5424, table 1).
const FACILITY: u8 = 13;
/// Names our structured data, under the number that is kept for documentation (RFC 5612): we have none of our own.
const SD_ID: &str = "falaj@32473";
/// The longest name of a host.
const HOST_CHARS_MAX: usize = 255;

/// A class of events, of those that OCSF has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// What OCSF has no class for.
    Base,
    /// Somebody proves who they are.
    Authentication,
    /// Something is started or changed.
    ApplicationLifecycle,
    /// Somebody asks the coordinator for something, or hands something in.
    ApiActivity,
}

impl Class {
    /// `class_uid`. A thousandth of it is `category_uid`.
    #[must_use]
    pub const fn uid(self) -> i64 {
        match self {
            Self::Base => 0,
            Self::Authentication => 3_002,
            Self::ApplicationLifecycle => 6_002,
            Self::ApiActivity => 6_003,
        }
    }
}

/// How much it should be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It happens all the time.
    Informational,
    /// Worth knowing.
    Low,
    /// Somebody was refused, or something failed.
    Medium,
    /// Somebody should look now.
    High,
}

impl Severity {
    /// `severity_id` of OCSF.
    const fn ocsf(self) -> i64 {
        match self {
            Self::Informational => 1,
            Self::Low => 2,
            Self::Medium => 3,
            Self::High => 4,
        }
    }

    /// Informational, notice, warning or error (RFC 5424, table 2).
    const fn syslog(self) -> u8 {
        match self {
            Self::Informational => 6,
            Self::Low => 5,
            Self::Medium => 4,
            Self::High => 3,
        }
    }
}

/// How a kind of entry is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The class.
    pub class: Class,
    /// `activity_id` in the class; 99 where none of its own fits.
    pub activity: i64,
    /// How much it should be looked at.
    pub severity: Severity,
    /// Whether it went as its actor wanted.
    pub success: bool,
}

/// What stands for each kind.
#[must_use]
pub const fn shape(kind: Kind) -> Shape {
    use Class::{ApiActivity, ApplicationLifecycle, Authentication, Base};
    use Severity::{High, Informational, Low, Medium};
    const CREATE: i64 = 1;
    const LOGON: i64 = 1;
    const LOGOFF: i64 = 2;
    const READ: i64 = 2;
    const START: i64 = 3;
    const UPDATE: i64 = 3;
    const DELETE: i64 = 4;
    const OTHER: i64 = 99;
    let (class, activity, severity, success) = match kind {
        Kind::CoordinatorStarted => (ApplicationLifecycle, START, Low, true),
        Kind::PolicyLoaded | Kind::TrustLoaded | Kind::EndpointAllowed => {
            (ApplicationLifecycle, OTHER, Low, true)
        }
        Kind::PolicyRefused => (ApplicationLifecycle, OTHER, Medium, false),
        Kind::GlassBroken => (ApplicationLifecycle, OTHER, High, false),
        Kind::GlassMended => (ApplicationLifecycle, OTHER, Medium, true),
        Kind::ConnectionAdmitted | Kind::OperatorSignedIn => {
            (Authentication, LOGON, Informational, true)
        }
        Kind::EvidenceTaken => (Authentication, OTHER, Informational, true),
        Kind::ConnectionRefused => (Authentication, LOGON, Medium, false),
        Kind::ConnectionEnded => (Authentication, LOGOFF, Medium, false),
        Kind::StudySubmitted | Kind::VersionMade => (ApiActivity, CREATE, Low, true),
        Kind::CertificateReinstated
        | Kind::CandidateApproved
        | Kind::VersionPromoted
        | Kind::VersionRolledBack => (ApiActivity, UPDATE, Medium, true),
        Kind::ApprovalGiven | Kind::EnrolmentOffered | Kind::SiteEnrolled => {
            (ApiActivity, CREATE, Medium, true)
        }
        Kind::StudyStopped
        | Kind::HoldPlaced
        | Kind::HoldReleased
        | Kind::VersionRejected
        | Kind::VersionAliased
        | Kind::CandidateRefused => (ApiActivity, UPDATE, Low, true),
        Kind::CertificateRenewed | Kind::SiteJoined | Kind::SiteDeclined => {
            (ApiActivity, UPDATE, Informational, true)
        }
        Kind::ExchangeAnswered | Kind::EvaluationAccepted | Kind::UpdateAccepted => {
            (ApiActivity, CREATE, Informational, true)
        }
        Kind::UpdateDuplicate => (ApiActivity, OTHER, Informational, true),
        Kind::EnrolmentRefused | Kind::UpdateRefused => (ApiActivity, CREATE, Medium, false),
        Kind::TaskSent | Kind::ModelRead | Kind::AdminRead => {
            (ApiActivity, READ, Informational, true)
        }
        Kind::LogExported => (ApiActivity, READ, Low, true),
        Kind::AccessServed => (ApiActivity, READ, Informational, true),
        Kind::ApprovalWithdrawn | Kind::ErasureBegun | Kind::ErasurePerformed => {
            (ApiActivity, DELETE, Low, true)
        }
        Kind::EnrolmentWithdrawn
        | Kind::CertificateRevoked
        | Kind::VersionRevoked
        | Kind::PruningBegun
        | Kind::PruningPerformed => (ApiActivity, DELETE, Medium, true),
        Kind::ErasureRefused | Kind::PruningRefused => (ApiActivity, DELETE, Medium, false),
        Kind::AccessDenied => (ApiActivity, OTHER, Medium, false),
        Kind::LogOpened
        | Kind::LogClosed
        | Kind::KeyRotated
        | Kind::ReportExported
        | Kind::StudyFinished
        | Kind::ModelPublished => (Base, OTHER, Low, true),
        Kind::RoundOpened | Kind::RoundClosed | Kind::CheckpointStamped | Kind::ReportStamped => {
            (Base, OTHER, Informational, true)
        }
        Kind::StudyFailed
        | Kind::RoundFailed
        | Kind::ModelRejected
        | Kind::CandidateHeld
        | Kind::ModelRolledBack
        | Kind::AlertRaised => (Base, OTHER, Medium, false),
    };
    Shape { class, activity, severity, success }
}

/// Members that have a place of their own in an event, or that say nothing outside the log.
const PLACED: [&str; 6] = ["v", "seq", "ts", "kind", "nonce", "actor"];

/// An entry as an event of OCSF. `bytes` are those of the entry, `origin` is the log's name where it is known.
#[must_use]
pub fn ocsf(entry: &Entry, bytes: &[u8], origin: Option<&str>) -> Canon {
    let Shape { class, activity, severity, success } = shape(entry.kind);
    let kind = entry.kind.as_str();
    let number = |n: i64| Canon::Int(n);
    let mut metadata = BTreeMap::from([
        ("version".to_owned(), OCSF_VERSION.into()),
        ("uid".to_owned(), entry.seq.to_string().into()),
        ("sequence".to_owned(), Canon::Int(i64::try_from(entry.seq).unwrap_or(i64::MAX))),
        ("event_code".to_owned(), kind.into()),
        ("product".to_owned(), product()),
    ]);
    if let Some(origin) = origin {
        metadata.insert("log_name".to_owned(), origin.into());
    }
    let time = Timestamp::parse(&entry.ts).map_or(0, Timestamp::as_millis);
    let mut event = BTreeMap::from([
        ("class_uid".to_owned(), number(class.uid())),
        ("category_uid".to_owned(), number(class.uid() / 1_000)),
        ("activity_id".to_owned(), number(activity)),
        ("type_uid".to_owned(), number(class.uid() * 100 + activity)),
        ("severity_id".to_owned(), number(severity.ocsf())),
        ("status_id".to_owned(), number(if success { 1 } else { 2 })),
        ("time".to_owned(), number(time)),
        ("message".to_owned(), kind.into()),
        ("metadata".to_owned(), Canon::Map(metadata)),
        ("raw_data".to_owned(), String::from_utf8_lossy(bytes).into_owned().into()),
    ]);
    if activity == 99 {
        event.insert("activity_name".to_owned(), kind.into());
    }
    if let Ok(reason) = entry.body().text("reason") {
        event.insert("status_detail".to_owned(), reason.into());
    }
    match class {
        Class::Base => {}
        Class::Authentication => {
            event.insert("user".to_owned(), user(entry));
            event.insert("src_endpoint".to_owned(), endpoint(entry));
            event.insert("service".to_owned(), Canon::map([("name", "falaj".into())]));
        }
        Class::ApplicationLifecycle => {
            event.insert("app".to_owned(), product());
        }
        Class::ApiActivity => {
            let operation = entry.body().text("action").unwrap_or(kind);
            event.insert("actor".to_owned(), Canon::map([("user", user(entry))]));
            event.insert("src_endpoint".to_owned(), endpoint(entry));
            event.insert("api".to_owned(), Canon::map([("operation", operation.into())]));
        }
    }
    let rest = entry.body().members().filter(|(name, _)| !PLACED.contains(name));
    let rest = rest.map(|(name, value)| (name.to_owned(), value.to_canon())).collect();
    event.insert("unmapped".to_owned(), Canon::Map(rest));
    Canon::Map(event)
}

fn product() -> Canon {
    Canon::map([("name", "Falaj coordinator".into()), ("vendor_name", "Falaj".into())])
}

fn actor<'a>(entry: &'a Entry, member: &str) -> Option<&'a str> {
    entry.body().member("actor").and_then(|actor| actor.text(member).ok())
}

/// Who did it: by the certificate's identity, people by their pseudonyms.
fn who(entry: &Entry) -> Option<&str> {
    let of_actor = actor(entry, "id").or_else(|| actor(entry, "person"));
    of_actor.or_else(|| entry.body().text("site").ok())
}

fn user(entry: &Entry) -> Canon {
    let cert = actor(entry, "cert_sha256").map(|cert| ("credential_uid", cert.into()));
    let id = match who(entry) {
        Some(id) => ("uid", id.into()),
        None => ("name", "unknown".into()),
    };
    Canon::map([id].into_iter().chain(cert))
}

/// Where it came from.
fn endpoint(entry: &Entry) -> Canon {
    let Some(address) = actor(entry, "address") else {
        return Canon::map([("name", "unknown".into())]);
    };
    let parts = address.rsplit_once(':');
    let parts = parts.and_then(|(ip, port)| Some((ip, port.parse::<u16>().ok()?)));
    match parts {
        Some((ip, port)) => Canon::map([
            ("ip", ip.trim_matches(['[', ']']).into()),
            ("port", Canon::Int(port.into())),
        ]),
        None => Canon::map([("name", address.into())]),
    }
}

/// An entry as a message of syslog, without a frame. `bytes` are those of the entry, `host` is where the coordinator runs.
/// A message longer than `limit` has in place of the entry's bytes a sentence that says so.
#[must_use]
pub fn syslog(entry: &Entry, bytes: &[u8], host: &str, limit: Option<usize>) -> Vec<u8> {
    let Shape { severity, .. } = shape(entry.kind);
    let kind = entry.kind.as_str();
    let priority = FACILITY * 8 + severity.syslog();
    let host: String = host.chars().filter(char::is_ascii_graphic).take(HOST_CHARS_MAX).collect();
    let host = if host.is_empty() { "-" } else { &host };
    let body = entry.body();
    let mut data = format!("[{SD_ID} seq=\"{}\" kind=\"{kind}\"", entry.seq);
    let params = [
        ("decision", body.text("decision").ok()),
        ("actor", who(entry)),
        ("address", actor(entry, "address")),
        ("study", body.text("study").ok()),
    ];
    for (name, value) in params.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        data.push(' ');
        data.push_str(name);
        data.push_str("=\"");
        for c in value.chars() {
            if matches!(c, '"' | '\\' | ']') {
                data.push('\\');
            }
            data.push(c);
        }
        data.push('"');
    }
    data.push(']');
    // The mark says that what follows is UTF-8.
    let head = format!("<{priority}>1 {} {host} falaj - {kind} {data} \u{feff}", entry.ts);
    if limit.is_some_and(|limit| head.len() + bytes.len() > limit) {
        let instead = format!("entry {} is longer than a datagram: ask the log for it", entry.seq);
        return [head.as_bytes(), instead.as_bytes()].concat();
    }
    [head.as_bytes(), bytes].concat()
}

/// A message in a stream: its length, a space, and itself (RFC 6587, section 3.4.1; RFC 5425, section 4.3).
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    [format!("{} ", message.len()).as_bytes(), message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Actor, Draft},
        id::Digest,
    };

    fn entry(kind: Kind, hostile: &str) -> (Entry, Vec<u8>) {
        let actor = Actor {
            id: Some("spiffe://t/ae-on/ae-az/operator/sara".parse().expect("an id")),
            cert: Some(Digest::of(b"cert")),
            address: Some(format!("127.0.0.1:9{hostile}")),
            ..Actor::default()
        };
        let draft = Draft::new(kind).actor(&actor).text("reason", hostile).text("decision", "deny");
        let bytes = draft.finish(7, Timestamp::from_millis(1_709_251_199_999), [1; 16]);
        (Entry::parse(&bytes).expect("an entry"), bytes)
    }

    /// Takes a message apart by the grammar of RFC 5424, section 6: priority, the fields of the header, parameters, message.
    type Apart = (u8, Vec<String>, Vec<(String, String)>, String);
    fn apart(message: &[u8]) -> Option<Apart> {
        let text = str::from_utf8(message).ok()?;
        let (priority, rest) = text.strip_prefix('<')?.split_once('>')?;
        let whole = !priority.starts_with('0') && (1..=3).contains(&priority.len());
        let priority: u8 = priority.parse().ok().filter(|p| whole && *p <= 191)?;
        let mut rest = rest.strip_prefix("1 ")?;
        let mut header = Vec::new();
        // Time, host, application, process, kind of message.
        for most in [32, 255, 48, 128, 32] {
            let (field, after) = rest.split_once(' ')?;
            let fits = (1..=most).contains(&field.len());
            if !fits || !field.chars().all(|c| c.is_ascii_graphic()) {
                return None;
            }
            header.push(field.to_owned());
            rest = after;
        }
        let sd_name = |name: &str| {
            let fits = |c: char| c.is_ascii_graphic() && !"=]\"".contains(c);
            (1..=32).contains(&name.len()) && name.chars().all(fits)
        };
        let end = rest.find(' ')?;
        let id = rest.get(1..end).filter(|id| rest.starts_with('[') && sd_name(id))?;
        let (name, number) = id.split_once('@')?;
        number.parse::<u32>().ok().filter(|_| !name.is_empty())?;
        rest = &rest[end..];
        let mut params = Vec::new();
        while let Some(param) = rest.strip_prefix(' ') {
            let (name, value) = param.split_once("=\"").filter(|(name, _)| sd_name(name))?;
            let (mut out, mut chars) = (String::new(), value.char_indices());
            rest = loop {
                match chars.next()? {
                    (_, '\\') => out.push(chars.next().filter(|(_, c)| "\"\\]".contains(*c))?.1),
                    (at, '"') => break &value[at + 1..],
                    (_, ']') => return None,
                    (_, c) => out.push(c),
                }
            };
            params.push((name.to_owned(), out));
        }
        let message = rest.strip_prefix("] \u{feff}")?;
        Some((priority, header, params, message.to_owned()))
    }

    #[test]
    fn every_kind_is_a_message_by_the_grammar_of_rfc_5424() {
        for hostile in
            ["", "\"quoted\"] [x@1 a=\"b\"]", "back\\slash\\", "مرحبا\n<1>1 - - - - - -", "\u{0}"]
        {
            for &kind in Kind::ALL {
                let (entry, bytes) = entry(kind, hostile);
                let message = syslog(&entry, &bytes, "log.example", None);
                let (priority, header, params, said) = apart(&message).expect("a message");
                assert_eq!(priority >> 3, FACILITY);
                assert_eq!(priority & 7, shape(kind).severity.syslog());
                let expected =
                    ["2024-02-29T23:59:59.999Z", "log.example", "falaj", "-", kind.as_str()];
                assert_eq!(header, expected);
                assert_eq!(said.as_bytes(), bytes);
                let param =
                    |name: &str| params.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
                assert_eq!((param("seq"), param("kind")), (Some("7"), Some(kind.as_str())));
                assert_eq!(param("decision"), Some("deny"));
                assert_eq!(param("actor"), Some("spiffe://t/ae-on/ae-az/operator/sara"));
                assert_eq!(param("address"), Some(&*format!("127.0.0.1:9{hostile}")));
            }
        }
        assert_eq!(apart(b"<192>1 - - - - - [a@1] \xef\xbb\xbfx"), None);
        assert_eq!(apart(b"<1>1 - - - - - [a@1 b=\"]\"] \xef\xbb\xbfx"), None);
    }

    #[test]
    fn a_host_that_is_no_name_cannot_break_the_line() {
        let (entry, bytes) = entry(Kind::AdminRead, "");
        for (host, shown) in [("", "-"), ("a b\nc", "abc"), ("مرحبا", "-")] {
            let (_, header, ..) = apart(&syslog(&entry, &bytes, host, None)).expect("a message");
            assert_eq!(header[1], shown);
        }
        let long = syslog(&entry, &bytes, &"h".repeat(1_000), None);
        assert_eq!(apart(&long).expect("a message").1[1].len(), HOST_CHARS_MAX);
    }

    #[test]
    fn what_a_datagram_does_not_hold_is_said_to_be_missing() {
        let (entry, bytes) = entry(Kind::AdminRead, "");
        let whole = syslog(&entry, &bytes, "h", Some(DATAGRAM_BYTES_MAX));
        assert!(whole.len() <= DATAGRAM_BYTES_MAX && whole.ends_with(&bytes));
        let cut = syslog(&entry, &bytes, "h", Some(whole.len() - 1));
        let (.., said) = apart(&cut).expect("a message");
        assert_eq!(said, "entry 7 is longer than a datagram: ask the log for it");
    }

    #[test]
    fn a_frame_counts_octets() {
        assert_eq!(framed("é\n".as_bytes()), "3 é\n".as_bytes());
    }

    /// OCSF 1.3.0: what the base event and each class require is there, and the numbers fit together.
    #[test]
    fn every_kind_is_an_event_with_what_its_class_requires() {
        for &kind in Kind::ALL {
            let (entry, bytes) = entry(kind, "");
            let event = ocsf(&entry, &bytes, Some("falaj.test/log"));
            let int = |name: &str| event.int::<i64>(name).expect(name);
            assert_eq!(int("type_uid"), int("class_uid") * 100 + int("activity_id"));
            assert_eq!(int("category_uid"), int("class_uid") / 1_000);
            assert_eq!(int("time"), 1_709_251_199_999);
            assert!((1..=4).contains(&int("severity_id")) && (1..=2).contains(&int("status_id")));
            let metadata = event.member("metadata").expect("metadata");
            assert_eq!(metadata.text("version"), Ok(OCSF_VERSION));
            assert_eq!(metadata.text("event_code"), Ok(kind.as_str()));
            assert!(metadata.member("product").is_some());
            assert_eq!(event.text("raw_data").map(str::as_bytes), Ok(&bytes[..]));
            let required: &[&str] = match shape(kind).class {
                Class::Base => &[],
                Class::Authentication => &["user", "service", "src_endpoint"],
                Class::ApplicationLifecycle => &["app"],
                Class::ApiActivity => &["actor", "api", "src_endpoint"],
            };
            for name in required {
                assert!(event.member(name).is_some(), "{kind}: {name}");
            }
            assert_eq!(int("activity_id") == 99, event.member("activity_name").is_some());
        }
        let (entry, bytes) = entry(Kind::AccessDenied, "");
        let event = ocsf(&entry, &bytes, None);
        let source = event.member("src_endpoint").expect("an endpoint");
        assert_eq!((source.text("ip"), source.int("port")), (Ok("127.0.0.1"), Ok(9)));
        assert_eq!(event.int("status_id"), Ok(2));
    }
}
