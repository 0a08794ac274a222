//! Every route, by every role, from onshore and from abroad, with every kind of certificate, over mutual TLS to a running
//! coordinator: each answer is what `policies/matrix.txt` says, and each refusal is in the log.

#[path = "../../../policies/tests/matrix/table.rs"]
mod table;

use super::identity::anyone::Anyone;
use anyhow::{Context as _, Result, bail, ensure};
use falaj_tests::federation::{Federation, repository, study_yaml};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ED25519, SanType,
    date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};
use table::{Route, Table};

/// Groups of certificates, and the roles that they stand for under [`ROLES`].
const GROUPS: [(Option<&str>, &str); 9] = [
    (None, "approver auditor data-scientist operator site-steward"),
    (Some("approver"), "approver"),
    (Some("auditor"), "auditor"),
    (Some("data-scientist"), "data-scientist"),
    (Some("operator"), "operator"),
    (Some("site-steward"), "site-steward"),
    (Some("Internal Audit"), "auditor"),
    (Some("Model Risk"), "approver data-scientist"),
    (Some("Visitors"), ""),
];
const ROLES: &str = "[roles]\n[roles.groups]\n\"Internal Audit\" = [\"auditor\"]\n\"Model Risk\" = [\"data-scientist\", \"approver\"]\n";
/// Refused by a word like this, nobody gets as far as a request.
const IN_HANDSHAKE: [&str; 4] =
    ["expired", "not_yet_valid", "unknown_issuer", "no_client_certificate"];
/// Nothing in an answer matters after so many bytes.
const HEAD_BYTES: usize = 16 << 10;

/// What somebody hears.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// Nothing: the connection was closed.
    Closed,
    /// No, by this code.
    No(String),
    /// Anything else: it was decided that they may.
    Yes(u16),
}

/// Who comes.
struct Caller {
    config: Arc<ClientConfig>,
}

impl Caller {
    fn new(chain: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> Result<Self> {
        let provider = Arc::new(falaj_certs::tls::provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let config = match chain {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        Ok(Self { config: Arc::new(config) })
    }

    /// Asks over a connection of its own.
    fn ask(&self, address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Heard> {
        let mut tcp = TcpStream::connect(address)?;
        tcp.set_read_timeout(Some(Duration::from_mins(1)))?;
        let mut tls = ClientConnection::new(self.config.clone(), "localhost".try_into()?)?;
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(request.as_bytes()).is_err() {
            return Ok(Heard::Closed);
        }
        let (mut head, mut block) = (Vec::new(), [0; 4096]);
        loop {
            let text = String::from_utf8_lossy(&head).into_owned();
            let status = text.get(9..12).and_then(|s| s.parse::<u16>().ok());
            let code = text.split_once("\"code\":\"").and_then(|(_, rest)| rest.split_once('"'));
            match (status, code) {
                (Some(401 | 403), Some((code, _))) => return Ok(Heard::No(code.to_owned())),
                (Some(401 | 403) | None, None) if head.len() < HEAD_BYTES => {}
                (Some(status), _) if ![401, 403].contains(&status) => {
                    return Ok(Heard::Yes(status));
                }
                _ => bail!("no answer of a coordinator: {text}"),
            }
            match stream.read(&mut block) {
                Ok(0) | Err(_) if head.is_empty() => return Ok(Heard::Closed),
                Ok(0) => bail!("the answer broke off: {text}"),
                Ok(n) => head.extend_from_slice(&block[..n]),
                Err(e) => return Err(e).context(text),
            }
        }
    }
}

/// Makes certificates of every kind.
struct Authority<'a> {
    federation: &'a Federation,
}

impl Authority<'_> {
    fn issuer(&self, place: &str) -> Result<Issuer<'static, KeyPair>> {
        let dir = self.federation.ca().join("issuers").join(place.replace('/', "_"));
        let key = KeyPair::from_pem(&fs::read_to_string(dir.join("key.pem"))?)?;
        Ok(Issuer::from_ca_cert_pem(&fs::read_to_string(dir.join("cert.pem"))?, key)?)
    }

    /// Whoever comes with a certificate of this kind from this place, as a member of this group.
    fn caller(&self, kind: &str, place: &str, group: Option<&str>, name: &str) -> Result<Caller> {
        if kind == "none" {
            return Caller::new(None);
        }
        let domain = if kind == "of-another-federation" { "other.test" } else { "falaj.test" };
        let claimed = match (kind, place) {
            ("of-a-place-that-has-no-issuer", "gb/gb-lnd") => "fr/fr-idf",
            ("of-a-place-that-has-no-issuer", _) => "ae-on/ae-fu",
            (_, place) => place,
        };
        let by = match (kind, place) {
            ("of-another-places-issuer", "ae-on/ae-az") => "ae-on/ae-du",
            ("of-another-places-issuer", _) => "ae-on/ae-az",
            (_, place) => place,
        };
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // Since there is an authority: whoever looks later asks whether its issuer could sign then.
        params.not_before =
            fs::metadata(self.federation.ca().join("trust.toml"))?.modified()?.into();
        params.not_after = date_time_ymd(2099, 1, 1);
        match kind {
            "expired" => {
                params.not_before = date_time_ymd(2025, 1, 1);
                params.not_after = date_time_ymd(2025, 2, 1);
            }
            "not-yet-valid" => params.not_before = date_time_ymd(2090, 1, 1),
            _ => {}
        }
        let id = format!("spiffe://{domain}/{claimed}/operator/{name}");
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationalUnitName, group);
        }
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let cert = if kind == "self-signed" {
            params.self_signed(&key)?
        } else {
            params.signed_by(&key, &self.issuer(by)?)?
        };
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Caller::new(Some((vec![cert.der().clone()], key)))
    }
}

/// A request by this route.
fn request(route: &Route) -> (String, String) {
    let path = route.path.replace("{id}", "heart").replace("{round}", "latest");
    let path = path.replace("{index}", "0").replace("{tree_size}", "1").replace("{hold}", "none");
    let path = path.replace("{token}", "none");
    let path = path.replace("{approval}", "none");
    let path = path.replace("{version}", "1").replace("{alias}", "champion");
    let subject = r#"{"subject":"spiffe://falaj.test/ae-on/ae-az/site/newcomer","reason":"left"}"#;
    let body = match (route.method.as_str(), route.path.as_str()) {
        ("GET", _) => String::new(),
        (_, "/api/v1/studies") => study_yaml("other", 1, 2),
        (_, "/api/v1/log/prunings") => {
            format!(r#"{{"shard":"falaj.test/none","bundle_sha256":"{}"}}"#, "0".repeat(64))
        }
        (_, "/api/v1/erasures") => {
            r#"{"person":"spiffe://falaj.test/ae-on/ae-az/operator/none","article":"Article 14"}"#
                .to_owned()
        }
        (_, "/api/v1/holds") => r#"{"study":"none","article":"Article 1"}"#.to_owned(),
        (_, "/api/v1/enrolment-tokens") => {
            r#"{"name":"newcomer","place":"ae-on/ae-az","ttl_s":60}"#.to_owned()
        }
        (_, "/api/v1/approvals") => {
            r#"{"action":"log.export","for":"spiffe://falaj.test/ae-on/ae-az/operator/noor"}"#
                .to_owned()
        }
        (_, "/api/v1/revocations" | "/api/v1/reinstatements") => subject.to_owned(),
        _ => String::new(),
    };
    let path = match route.path.as_str() {
        "/api/v1/log/mirror" => format!("{path}?from=0&place=ae-on/ae-az"),
        "/api/v1/log/accesses" => format!("{path}?object=heart"),
        _ => path,
    };
    (path, body)
}

/// By what the log counts a refusal: its kind, and its word or its rules.
type Refusals = BTreeMap<(String, String), usize>;

/// What the log says of refusals.
fn refusals(federation: &Federation) -> Result<Refusals> {
    let mut found = Refusals::new();
    for kind in ["connection.refused", "access.denied"] {
        for told in federation.entries(kind)? {
            let entry = &told["entry"];
            let word = match entry["policy_ids"].as_array() {
                Some(ids) => {
                    let ids: Vec<&str> = ids.iter().filter_map(|id| id.as_str()).collect();
                    format!("{} {}", entry["action"].as_str().unwrap_or_default(), ids.join(", "))
                }
                None => entry["reason"].as_str().unwrap_or_default().to_owned(),
            };
            *found.entry((kind.to_owned(), word)).or_default() += 1;
        }
    }
    Ok(found)
}

#[test]
fn every_route_by_every_role_from_everywhere_is_answered_as_the_table_says() -> Result<()> {
    let text = fs::read_to_string(repository().join("policies/matrix.txt"))?;
    let Table { routes, certificates, .. } = table::read(&text);
    let (_, described) = falaj_coordinator::rest::routes();
    let described = serde_json::to_value(described)?;
    let mut there = BTreeSet::new();
    for (path, methods) in described["paths"].as_object().context("paths")? {
        for method in methods.as_object().context("methods")?.keys() {
            there.insert((method.to_uppercase(), path.clone()));
        }
    }
    let told = routes.iter().filter(|route| route.method != "CONNECT");
    let told: BTreeSet<_> = told.map(|r| (r.method.clone(), r.path.clone())).collect();
    ensure!(told == there, "the table names {told:?}, and there are {there:?}");

    let mut federation = Federation::new()?;
    let denied = federation.dir().join("denied");
    let lines = ["ae-on/ae-az", "ae-on/ae-du", "gb/gb-lnd"]
        .map(|place| format!("spiffe://falaj.test/{place}/operator/gone\n"));
    fs::write(&denied, lines.concat())?;
    federation.coordinator_extra = format!(
        "[limits]\nrefusals_logged_max = 100000\n[revocation]\ndeny = \"{}\"\n{ROLES}",
        denied.display()
    );
    let _coordinator = federation.start_coordinator()?;
    federation.submit(&study_yaml("heart", 1, 2))?;
    let address = federation.addresses.context("started")?.rest;
    let authority = Authority { federation: &federation };
    let (mut asked, mut wanted) = (0, Refusals::new());
    for certificate in &certificates {
        for (place, word) in [
            ("ae-on/ae-az", &certificate.onshore),
            ("ae-on/ae-du", &certificate.onshore),
            ("gb/gb-lnd", &certificate.abroad),
        ] {
            for (n, (group, roles)) in GROUPS.into_iter().enumerate() {
                // Whom nobody lets in is nobody, whatever group they say.
                if word.is_some() && !matches!(group, None | Some("auditor")) {
                    continue;
                }
                let name = if certificate.kind == "revoked" { "gone" } else { &format!("o-{n}") };
                let caller = authority.caller(&certificate.kind, place, group, name)?;
                let roles: BTreeSet<String> = roles.split_whitespace().map(str::to_owned).collect();
                for route in &routes {
                    if route.method == "CONNECT" {
                        continue;
                    }
                    let shown = format!(
                        "{} from {place} as {group:?}: {} {}",
                        certificate.kind, route.method, route.path
                    );
                    let (path, body) = request(route);
                    let heard = caller.ask(address, &route.method, &path, &body)?;
                    asked += 1;
                    let connection = "connection.refused".to_owned();
                    let (right, refused) = match word.as_deref() {
                        Some(word) if IN_HANDSHAKE.contains(&word) => {
                            (heard == Heard::Closed, Some((connection, word.to_owned())))
                        }
                        Some("RES-002") => {
                            let word = "connect RES-002".to_owned();
                            (heard == Heard::No("denied".into()), Some((connection, word)))
                        }
                        Some(word) => {
                            let code = if word == "revoked" { "revoked" } else { "unidentified" };
                            let right = heard == Heard::No(code.into());
                            (right, Some((connection, word.to_owned())))
                        }
                        None if roles.is_empty() => {
                            let word = "connect ".to_owned();
                            (heard == Heard::No("denied".into()), Some((connection, word)))
                        }
                        None if roles.is_disjoint(&route.roles) => {
                            let told = ("access.denied".to_owned(), format!("{} ", route.action));
                            (heard == Heard::No("denied".into()), Some(told))
                        }
                        None => (matches!(heard, Heard::Yes(_)), None),
                    };
                    ensure!(right, "{shown}: {heard:?}");
                    if let Some(refused) = refused {
                        *wanted.entry(refused).or_default() += 1;
                    }
                }
            }
        }
    }
    let found = refusals(&federation)?;
    ensure!(found == wanted, "the log tells of {found:#?}, and refused were {wanted:#?}");
    let refused: usize = wanted.values().sum();
    println!("{asked} requests, {refused} of them refused, all of these in the log");
    ensure!(asked > 2_000 && refused > 1_500, "{asked} requests, {refused} refused");
    // Each decision is made again by the verifier, from the roles in its entry.
    federation.verified()?;
    Ok(())
}
