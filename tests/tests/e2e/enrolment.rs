//! Sites enrol with tokens, and their certificates are renewed while they work.

use anyhow::{Result, ensure};
use falaj_certs::{
    ca::first_certificate,
    enrolment::{Secret, Token},
    identity::Identity,
    tls::enrolment_client_config,
};
use falaj_core::{id::Digest, time::Timestamp};
use falaj_proto::v1::{EnrolRequest, enrolment_client::EnrolmentClient};
use falaj_tests::{
    enrolled::{School, enroll, federation, prepare, token},
    federation::{Federation, SiteSpec, binary, text, wait_for, wisconsin},
};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::SystemTime,
};
use tonic::transport::Endpoint;

fn leaf(folder: &Path) -> Result<Identity> {
    Ok(Identity::parse(&first_certificate(&folder.join("cert.pem"))?)?)
}

fn reasons(federation: &Federation) -> Result<BTreeSet<String>> {
    let refused = federation.entries("enrolment.refused")?;
    let reason = |e: serde_json::Value| e["entry"]["reason"].as_str().map(str::to_owned);
    Ok(refused.into_iter().filter_map(reason).collect())
}

/// Shows that no round is lost to a renewal or to another issuer: three sites enrol, learn study after study under
/// certificates that live for seconds, and the authority's issuers are replaced meanwhile, the coordinator's own certificate
/// with them.
#[test]
fn sites_learn_while_their_certificates_are_renewed_and_issuers_are_replaced() -> Result<()> {
    let mut school = School::open(12, 4)?;
    school.learn_until(|s| s.each_renewed(2))?;
    school.rotate()?;
    let before = school.renewals()?;
    school.learn_until(|s| {
        let now = s.renewals()?;
        Ok(now.iter().all(|(site, r)| before.get(site).is_some_and(|b| r.times >= b.times + 2)))
    })?;
    println!("{}", school.told()?);
    school.nothing_was_lost()?;
    school.federation.verified_by(&school.all_issuers())?;
    for agent in &mut school.agents {
        ensure!(agent.terminate()? == Some(0), "{}", agent.output());
        ensure!(agent.output().contains("gone over to another connection"), "{}", agent.output());
    }
    Ok(())
}

/// Asks by hand, with any request.
async fn ask(token: &Token, request: Vec<u8>, place: &str) -> Result<tonic::Status> {
    let config = Arc::new(enrolment_client_config(token, &["h2"])?);
    let address = token.address.clone();
    let channel = Endpoint::from_static("http://coordinator")
        .connect_with_connector(tower::service_fn(move |_| {
            let (config, address) = (config.clone(), address.clone());
            async move {
                let tcp = tokio::net::TcpStream::connect(address).await?;
                let name = "coordinator".try_into().map_err(std::io::Error::other)?;
                let connector = tokio_rustls::TlsConnector::from(config);
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        }))
        .await?;
    let asked = EnrolRequest {
        token: token.id.clone(),
        secret: token.secret.expose().to_vec().into(),
        request: request.into(),
        place: place.into(),
    };
    Ok(EnrolmentClient::new(channel).enrol(asked).await.expect_err("it is refused"))
}

/// Each token and each request that is not good is refused by its own word, in the answer and in the log, and none of them
/// uses the token up.
#[test]
fn what_is_not_good_is_refused_by_its_own_word() -> Result<()> {
    let (federation, _coordinator) = federation(3_600)?;
    let dir = federation.dir().join("bad");
    let place = "ae-on/ae-az";
    let good = token(&federation, "hospital-1", place, "5m")?;
    let refused = |name: &str, token: &Token, place: &str, says: &str| -> Result<()> {
        let folder = dir.join(name);
        let out = enroll(&folder, token, place, &[])?;
        ensure!(!out.status.success() && text(&out).contains(says), "{name}: {}", text(&out));
        ensure!(!folder.join("cert.pem").exists() && !folder.join("key.pem").exists(), "{name}");
        Ok(())
    };
    let short = token(&federation, "hospital-2", place, "1s")?;
    let mut guessed = good.clone();
    guessed.secret = Secret::new([7; 32]);
    refused("guessed", &guessed, place, "unknown_token")?;
    let mut unknown = good.clone();
    unknown.id = "00112233445566778899aabbccddeeff".into();
    refused("unknown", &unknown, place, "unknown_token")?;
    // The site itself looks where it is, and the coordinator does so too.
    refused("elsewhere", &good, "ae-on/ae-du", "`--place` says ae-on/ae-du")?;
    // Whoever answers is not whom the token names.
    let mut pinned = good.clone();
    pinned.issuer_sha256 = Digest([1; 32]);
    refused("pinned", &pinned, place, "not vouched for by the issuer that the token names")?;
    let mut other = good.clone();
    other.coordinator = "spiffe://falaj.test/ae-on/ae-du/coordinator/main".parse()?;
    refused("another", &other, place, "no issuer is trusted to vouch for ae-on/ae-az")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let weak = CertificateParams::default().serialize_request(&p256)?.der().to_vec();
    let mut changed = {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        CertificateParams::default().serialize_request(&key)?.der().to_vec()
    };
    let status = runtime.block_on(ask(&good, changed.clone(), "ae-on/ae-du"))?;
    ensure!(status.message().starts_with("other_region"), "{status:?}");
    let last = changed.len() - 1;
    changed[last] ^= 1;
    for (request, word) in [
        (weak, "key_kind"),
        (changed, "no_proof_of_possession"),
        (vec![0x30, 0x80], "unreadable_request"),
    ] {
        let status = runtime.block_on(ask(&good, request, place))?;
        ensure!(status.message().starts_with(word), "{status:?}");
    }
    // More than a message may be is not even read.
    let status = runtime.block_on(ask(&good, vec![0; 1 << 20], place))?;
    ensure!(status.code() == tonic::Code::OutOfRange, "{status:?}");
    // None of this has used it up.
    let out = enroll(&dir.join("good"), &good, place, &[])?;
    ensure!(out.status.success(), "{}", text(&out));
    refused("used", &good, place, "used_token")?;
    wait_for("the token's end", || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
        Ok((Timestamp::from_millis(i64::try_from(now)?) > short.until).then_some(()))
    })?;
    refused("late", &short, place, "expired_token")?;
    // Who was revoked gets no certificate either.
    let third = token(&federation, "hospital-3", place, "5m")?;
    let site = third.site.to_string();
    let out = federation.falaj(&["site", "revoke", &site, "--reason", "left"])?;
    ensure!(out.status.success(), "{}", text(&out));
    refused("revoked", &third, place, "revoked")?;
    let out =
        federation.falaj(&["site", "enroll-token", "x", "--at-place", place, "--ttl", "8d"])?;
    ensure!(!out.status.success() && text(&out).contains("604800 seconds"), "{}", text(&out));
    let words = [
        "unknown_token",
        "other_region",
        "key_kind",
        "no_proof_of_possession",
        "unreadable_request",
        "used_token",
        "expired_token",
        "revoked",
    ];
    ensure!(
        reasons(&federation)? == words.map(str::to_owned).into(),
        "{:?}",
        reasons(&federation)?
    );
    ensure!(federation.entries("site.enrolled")?.len() == 1, "one was enrolled");
    // No secret stands in the log.
    let log = format!("{:?}", federation.entries("enrolment.offered")?);
    ensure!(!log.contains(&hex::encode(good.secret.expose())), "the secret is in the log");
    federation.verified()?;
    Ok(())
}

/// A token is used once, whoever is quick; whoever was used by may come again when the answer was lost; and nothing that is
/// there is written over.
#[test]
fn a_token_is_used_once_and_a_lost_answer_is_given_again() -> Result<()> {
    let (mut federation, mut coordinator) = federation(3_600)?;
    let (place, dir) = ("ae-on/ae-az", federation.dir().join("sites"));
    let wanted = token(&federation, "hospital-1", place, "5m")?;
    let folders: Vec<PathBuf> = (0..4).map(|i| dir.join(format!("racer-{i}"))).collect();
    let outcomes: Vec<Result<Output>> = std::thread::scope(|scope| {
        let racers = folders.iter().map(|f| scope.spawn(|| enroll(f, &wanted, place, &[])));
        let racers: Vec<_> = racers.collect();
        racers.into_iter().map(|racer| racer.join().expect("it ends")).collect()
    });
    let outcomes: Vec<Output> = outcomes.into_iter().collect::<Result<_>>()?;
    let won: Vec<usize> = (0..4).filter(|i| outcomes[*i].status.success()).collect();
    ensure!(won.len() == 1, "{won:?} of them got a certificate");
    for (i, out) in outcomes.iter().enumerate().filter(|(i, _)| !won.contains(i)) {
        ensure!(text(out).contains("used_token"), "{i}: {}", text(out));
    }
    let folder = &folders[won[0]];
    let first = leaf(folder)?;
    let out = enroll(folder, &wanted, place, &[])?;
    ensure!(
        !out.status.success() && text(&out).contains("nothing is written over"),
        "{}",
        text(&out)
    );
    // As if it had been cut off before the answer came: over a restart of the coordinator, too.
    coordinator.terminate()?;
    let _coordinator = federation.start_coordinator()?;
    fs::rename(folder.join("key.pem"), folder.join("key.pem.enrolling"))?;
    fs::remove_file(folder.join("cert.pem"))?;
    let mut wanted = wanted;
    wanted.address = federation.enrolment()?.to_string();
    let out = enroll(folder, &wanted, place, &[])?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(leaf(folder)? == first, "it is another certificate");
    let enrolled = federation.entries("site.enrolled")?;
    ensure!(enrolled.len() == 2 && enrolled[1]["entry"]["again"] == "true", "{enrolled:?}");
    let mode = fs::metadata(folder.join("key.pem"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    federation.verified()?;
    Ok(())
}

/// A token that nobody has used is taken back, for ever; one that was used is not, and neither is one that there is not.
#[test]
fn a_token_is_taken_back_while_nobody_has_used_it() -> Result<()> {
    let (mut federation, mut coordinator) = federation(3_600)?;
    let (place, dir) = ("ae-on/ae-az", federation.dir().join("sites"));
    let (astray, used) = (
        token(&federation, "hospital-1", place, "5m")?,
        token(&federation, "hospital-2", place, "5m")?,
    );
    let out = enroll(&dir.join("used"), &used, place, &[])?;
    ensure!(out.status.success(), "{}", text(&out));
    let out = federation.falaj(&["site", "withdraw-token", &astray.id])?;
    ensure!(out.status.success() && text(&out).contains("hospital-1"), "{}", text(&out));
    for (id, code) in [(&*used.id, "conflict"), ("none", "unknown_token")] {
        let out = federation.falaj(&["--json", "site", "withdraw-token", id])?;
        ensure!(!out.status.success() && text(&out).contains(code), "{id}: {}", text(&out));
    }
    coordinator.terminate()?;
    let _coordinator = federation.start_coordinator()?;
    let told = federation.falaj_json(&["site", "tokens"])?;
    let state = |id: &str| {
        let items = told["items"].as_array().into_iter().flatten();
        items.filter(|t| t["id"] == id).map(|t| t["state"].clone()).next()
    };
    ensure!(state(&astray.id) == Some("withdrawn".into()), "{told}");
    ensure!(state(&used.id) == Some("used".into()), "{told}");
    let mut astray = astray;
    astray.address = federation.enrolment()?.to_string();
    let out = enroll(&dir.join("astray"), &astray, place, &[])?;
    ensure!(!out.status.success() && text(&out).contains("withdrawn_token"), "{}", text(&out));
    ensure!(federation.entries("enrolment.withdrawn")?.len() == 1, "one was taken back");
    federation.verified()?;
    Ok(())
}

/// An agent that slept past the end of its certificate says so and what to do; enrolled again with its key it goes on.
#[test]
fn an_agent_that_slept_says_what_to_do_and_goes_on_with_the_key_that_it_has() -> Result<()> {
    let (federation, _coordinator) = federation(5)?;
    let place = "ae-on/ae-az";
    let dir = prepare(&federation, "hospital-1", place, &wisconsin(1)?[0])?;
    let identity = dir.join("identity");
    let first = leaf(&identity)?;
    wait_for("the certificate's end", || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        Ok((i64::try_from(now)? > first.not_after).then_some(()))
    })?;
    let mut site = SiteSpec::new("hospital-1", place);
    site.args = vec!["--exit-on-refusal".into()];
    let mut slept = federation.start_agent(&site)?;
    ensure!(slept.exit_code()? == Some(3), "{}", slept.output());
    ensure!(slept.output().contains("falaj-agent enroll --again"), "{}", slept.output());
    // Whom it trusts is the site's own affair, and so is who it is.
    let again = |token: &Token| -> Result<Output> {
        let file = dir.join("again.token");
        fs::write(&file, token.to_string())?;
        Ok(Command::new(binary("falaj-agent"))
            .args(["enroll", "--again", "--place", place, "--config"])
            .args([dir.join("agent.toml"), file])
            .output()?)
    };
    let other = token(&federation, "hospital-2", place, "5m")?;
    let out = again(&other)?;
    ensure!(!out.status.success() && text(&out).contains("and the token is for"), "{}", text(&out));
    let stranger = token(&federation, "hospital-1", place, "5m")?;
    let (trust, root) = (identity.join("trust.toml"), identity.join("root.pem"));
    let whole = fs::read_to_string(&trust)? + "# kept by hand\n";
    let without: Vec<&str> =
        whole.split("[[issuer]]").filter(|part| !part.contains(place)).collect();
    fs::write(&trust, without.join("[[issuer]]"))?;
    let out = again(&stranger)?;
    ensure!(!out.status.success() && text(&out).contains("stays as it is"), "{}", text(&out));
    ensure!(leaf(&identity)? == first, "it was taken");
    fs::write(&trust, &whole)?;
    let renewed = dir.join("state/identity/cert.pem");
    fs::create_dir_all(dir.join("state/identity"))?;
    fs::copy(identity.join("cert.pem"), &renewed)?;
    let kept = fs::read(&root)?;
    let wanted = token(&federation, "hospital-1", place, "5m")?;
    let out = again(&wanted)?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(fs::read_to_string(&trust)? == whole && fs::read(&root)? == kept, "they are others");
    ensure!(!renewed.exists(), "an earlier one would be used if it lived longer");
    let again = leaf(&identity)?;
    ensure!(again.public_key == first.public_key && again.not_after > first.not_after, "{again:?}");
    site.args.clear();
    let mut awake = federation.start_agent(&site)?;
    awake.says("the certificate was renewed")?;
    // An agent does not start with a key that others can read.
    awake.terminate()?;
    fs::set_permissions(identity.join("key.pem"), fs::Permissions::from_mode(0o640))?;
    let mut exposed = federation.start_agent(&site)?;
    ensure!(exposed.exit_code()? == Some(1), "{}", exposed.output());
    ensure!(exposed.output().contains("can be read or changed by others"), "{}", exposed.output());
    federation.verified()?;
    Ok(())
}
