//! Who may connect: each certificate that may not is refused, with a reason, and the refusal is logged.

use anyhow::{Context, Result, bail, ensure};
use falaj_certs::tls::Credentials;
use falaj_proto::problem::{Code, code_of};
use falaj_tests::{
    federation::{Federation, SiteSpec, wait_for, wisconsin},
    rogue::Rogue,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ED25519, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};
use tonic::Status;

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// The folder of a certificate signed by the Abu Dhabi issuer, changed by `change`.
fn certificate(
    federation: &Federation,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> Result<std::path::PathBuf> {
    let issuer_dir = federation.ca().join("issuers/ae-on_ae-az");
    let issuer_pem = fs::read_to_string(issuer_dir.join("cert.pem"))?;
    let issuer_key = KeyPair::from_pem(&fs::read_to_string(issuer_dir.join("key.pem"))?)?;
    let issuer = rcgen::Issuer::from_ca_cert_pem(&issuer_pem, issuer_key)?;
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 1, 1);
    params.subject_alt_names = vec![uri("spiffe://falaj.test/ae-on/ae-az/site/odd")?];
    change(&mut params);
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let cert = params.signed_by(&key, &issuer)?;
    write(federation, name, &format!("{}{issuer_pem}", cert.pem()), &key.serialize_pem())
}

fn write(federation: &Federation, name: &str, cert: &str, key: &str) -> Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = federation.dir().join("odd").join(name);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("cert.pem"), cert)?;
    fs::write(dir.join("key.pem"), key)?;
    fs::set_permissions(dir.join("key.pem"), fs::Permissions::from_mode(0o600))?;
    Ok(dir)
}

fn uri(s: &str) -> Result<SanType> {
    Ok(SanType::URI(s.try_into()?))
}

/// Connects by TLS with the PEM files in `dir`, without any check of our own, and says what came back
/// when one byte was read after the handshake.
fn bare_tls(
    federation: &Federation,
    dir: Option<&std::path::Path>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<String> {
    let address = federation.addresses.context("started")?.grpc;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(anyone::Anyone));
    let config = match dir {
        None => builder.with_no_client_auth(),
        Some(dir) => {
            let chain =
                CertificateDer::pem_file_iter(dir.join("cert.pem"))?.collect::<Result<_, _>>()?;
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(dir.join("key.pem"))?)?
        }
    };
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut connection = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into()?)?;
    let mut stream = rustls::Stream::new(&mut connection, &mut tcp);
    let mut byte = [0];
    match stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte)) {
        Ok(()) => bail!("the coordinator answered"),
        Err(e) => Ok(e.to_string()),
    }
}

/// The certificate that a server shows to whoever has the PEM files in `dir`.
pub(crate) fn server_certificate(
    address: SocketAddr,
    dir: &std::path::Path,
) -> Result<CertificateDer<'static>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(dir.join("cert.pem"))?.collect::<Result<_, _>>()?;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(anyone::Anyone))
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(dir.join("key.pem"))?)?;
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut connection = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into()?)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    let shown = connection.peer_certificates().and_then(<[_]>::first);
    Ok(shown.context("no certificate")?.clone().into_owned())
}

/// A verifier for clients that do not care whom they talk to.
pub(crate) mod anyone {
    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub(crate) struct Anyone;

    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
}

/// Waits until a refusal that holds `reason` is in the log.
fn refusal_is_logged(federation: &Federation, reason: &str) -> Result<()> {
    wait_for(&format!("a logged refusal for {reason}"), || {
        let refused = federation.entries("connection.refused")?;
        Ok(refused.iter().any(|e| e.to_string().contains(reason)).then_some(()))
    })
}

/// What the coordinator tells a site that holds the certificate in `dir` and opens its stream.
fn answer(federation: &Federation, dir: &std::path::Path) -> Result<Status> {
    let address: SocketAddr = federation.addresses.context("started")?.grpc;
    let credentials = Credentials::load(&dir.join("cert.pem"), &dir.join("key.pem"))?;
    let trust = federation.trust()?;
    runtime()?.block_on(async {
        let mut rogue = Rogue::connect(address, credentials, &trust).await?;
        match rogue.open().await {
            Ok(_) => bail!("the coordinator let it in"),
            Err(status) => Ok(status),
        }
    })
}

/// Anybody can have handshakes fail: the log says how many did, and does not grow with each.
#[test]
fn handshakes_that_fail_too_often_are_told_together() -> Result<()> {
    const TRIED: u64 = 12;
    let mut federation = Federation::new()?;
    federation.coordinator_extra = "[limits]\nrefusals_logged_max = 2\n".into();
    let mut coordinator = federation.start_coordinator()?;
    for _ in 0..TRIED {
        bare_tls(&federation, None, &[&rustls::version::TLS13])?;
    }
    wait_for("all of them to be counted", || {
        let counted =
            format!("falaj_connections_total{{outcome=\"no_client_certificate\"}} {TRIED}\n");
        Ok(federation.metrics()?.contains(&counted).then_some(()))
    })?;
    // What was left out is told when the coordinator ends, if not before.
    coordinator.terminate()?;
    let _coordinator = federation.start_coordinator()?;
    let refused = federation.entries("connection.refused")?;
    let refused: Vec<_> =
        refused.iter().filter(|e| e["entry"]["reason"] == "no_client_certificate").collect();
    let told: u64 =
        refused.iter().map(|e| 1 + e["entry"]["left_out"].as_u64().unwrap_or_default()).sum();
    ensure!(told == TRIED && refused.len() <= 6, "{refused:?}");
    ensure!(refused.iter().all(|e| e["entry"]["actor"]["address"].is_string()), "{refused:?}");
    federation.verified()?;
    Ok(())
}

#[test]
fn a_client_without_a_certificate_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let said = bare_tls(&federation, None, &[&rustls::version::TLS13])?;
    ensure!(said.to_lowercase().contains("certificate"), "{said}");
    refusal_is_logged(&federation, "no_client_certificate")
}

#[test]
fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate_for(&PKCS_ED25519)?)?;
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri("spiffe://falaj.test/ae-on/ae-az/site/odd")?];
    let cert = params.signed_by(&key, &ca)?;
    let dir = write(&federation, "wrong-ca", &cert.pem(), &key.serialize_pem())?;
    bare_tls(&federation, Some(&dir), &[&rustls::version::TLS13])?;
    refusal_is_logged(&federation, "unknown_issuer")
}

#[test]
fn an_expired_certificate_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let dir = certificate(&federation, "expired", |p| {
        p.not_before = rcgen::date_time_ymd(2020, 1, 1);
        p.not_after = rcgen::date_time_ymd(2021, 1, 1);
    })?;
    let said = bare_tls(&federation, Some(&dir), &[&rustls::version::TLS13])?;
    ensure!(said.to_lowercase().contains("expired"), "{said}");
    refusal_is_logged(&federation, "expired")
}

#[test]
fn a_certificate_that_is_not_yet_valid_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let dir = certificate(&federation, "future", |p| {
        p.not_before = rcgen::date_time_ymd(2090, 1, 1);
    })?;
    bare_tls(&federation, Some(&dir), &[&rustls::version::TLS13])?;
    refusal_is_logged(&federation, "not_yet_valid")
}

#[test]
fn a_certificate_with_no_spiffe_uri_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let dir = certificate(&federation, "none", |p| p.subject_alt_names.clear())?;
    let status = answer(&federation, &dir)?;
    ensure!(code_of(&status) == Some(Code::Unidentified), "{status:?}");
    ensure!(status.message().to_lowercase().contains("spiffe"), "{status:?}");
    refusal_is_logged(&federation, "no_identity")
}

#[test]
fn a_certificate_with_two_spiffe_uris_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let second = uri("spiffe://falaj.test/ae-on/ae-az/site/other")?;
    let dir = certificate(&federation, "two", |p| p.subject_alt_names.push(second))?;
    let status = answer(&federation, &dir)?;
    ensure!(code_of(&status) == Some(Code::Unidentified), "{status:?}");
    refusal_is_logged(&federation, "many_identities")
}

#[test]
fn an_issuer_cannot_vouch_for_another_place() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let dubai = uri("spiffe://falaj.test/ae-on/ae-du/site/odd")?;
    let dir = certificate(&federation, "claim", |p| p.subject_alt_names = vec![dubai])?;
    let status = answer(&federation, &dir)?;
    ensure!(code_of(&status) == Some(Code::Unidentified), "{status:?}");
    refusal_is_logged(&federation, "issuer_not_bound")
}

#[test]
fn a_site_outside_the_permitted_regions_is_refused_by_policy() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let mut london = SiteSpec::new("london", "gb/gb-lnd");
    london.args = vec!["--exit-on-refusal".into()];
    federation.prepare_site(&london, &wisconsin(1)?[0])?;
    let mut agent = federation.start_agent(&london)?;
    ensure!(agent.exit_code()? == Some(3), "{}", agent.output());
    ensure!(agent.output().contains("RES-001"), "{}", agent.output());
    refusal_is_logged(&federation, "gb/gb-lnd")
}

#[test]
fn a_tls_1_2_client_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    federation.issue("site", "old", "ae-on/ae-az")?;
    let dir = federation.identity("site", "old");
    let said = bare_tls(&federation, Some(&dir), &[&rustls::version::TLS12])?;
    ensure!(said.to_lowercase().contains("version"), "{said}");
    refusal_is_logged(&federation, "tls_version")
}

#[test]
fn a_plain_text_client_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let mut tcp = TcpStream::connect(federation.addresses.context("started")?.grpc)?;
    tcp.set_read_timeout(Some(Duration::from_secs(30)))?;
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let mut rest = Vec::new();
    // The other side closes, with or without a TLS alert first.
    let _ = tcp.read_to_end(&mut rest);
    ensure!(!rest.starts_with(b"HTTP"), "it was answered");
    refusal_is_logged(&federation, "not_tls")
}

#[test]
fn an_agent_refuses_a_coordinator_outside_its_own_regions() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let mut site = SiteSpec::new("strict", "ae-on/ae-du");
    site.args = vec!["--exit-on-refusal".into()];
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("[\"ae-on/*\"]", "[\"ae-difc/*\"]"))?;
    let mut agent = federation.start_agent(&site)?;
    ensure!(agent.exit_code()? == Some(3), "{}", agent.output());
    ensure!(agent.output().contains("ae-on/ae-az"), "{}", agent.output());
    ensure!(agent.output().contains("ae-difc/*"), "{}", agent.output());
    Ok(())
}
