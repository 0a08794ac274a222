//! Who may be here no longer is out within seconds, on open streams too; what is trusted changes without a restart.

use anyhow::{Context as _, Result, ensure};
use falaj_certs::ca::first_certificate;
use falaj_core::id::Digest;
use falaj_proto::problem::{Code, code_of};
use falaj_tests::{
    federation::{Federation, Process, run, study_yaml, text, wait_for},
    rogue::Rogue,
};
use serde_json::Value;
use std::{fs, net::Ipv4Addr, path::Path, time::Instant};
use tonic::{Status, Streaming};

const PLACES: [&str; 4] = ["ae-on/ae-az", "ae-on/ae-du", "ae-on/ae-sh", "gb/gb-lnd"];
const SITE: &str = "spiffe://falaj.test/ae-on/ae-az/site/hospital-1";

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// A federation of which a site is about to be revoked, and the site.
fn federation(extra: impl FnOnce(&Federation) -> Result<String>) -> Result<(Federation, Process)> {
    let mut federation = Federation::new()?;
    federation.coordinator_extra = extra(&federation)?;
    federation.issue("site", "hospital-1", "ae-on/ae-az")?;
    let coordinator = federation.start_coordinator()?;
    Ok((federation, coordinator))
}

async fn connect(federation: &Federation) -> Result<Rogue> {
    let address = federation.addresses.context("started")?.grpc;
    let credentials = federation.credentials("site", "hospital-1")?;
    Rogue::connect(address, credentials, &federation.trust()?).await
}

/// Reads a stream to its end: the status that ends it.
async fn end(stream: &mut Streaming<falaj_proto::v1::Push>) -> Result<Status> {
    loop {
        let next =
            tokio::time::timeout(falaj_tests::federation::PATIENCE, stream.message()).await?;
        match next {
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("the stream ended without a reason"),
            Err(status) => return Ok(status),
        }
    }
}

/// Index of the first entry of a kind about hospital-1 that holds `reason`.
fn index(federation: &Federation, kind: &str, reason: &str) -> Result<u64> {
    wait_for(&format!("{kind} with `{reason}`"), || {
        let entries = federation.entries(kind)?;
        let found = entries.iter().find(|e| {
            let text = e.to_string();
            let about = ["trust.loaded", "certificate.revoked"].contains(&kind);
            text.contains(reason) && (about || text.contains("hospital-1"))
        });
        Ok(found.and_then(|e| e["index"].as_u64()))
    })
}

/// An open stream, what is done to its site, and everything that must follow. Prints how long it took.
fn is_out(
    federation: &Federation,
    cause: &str,
    reason: &str,
    revoke: impl FnOnce() -> Result<()>,
) -> Result<()> {
    runtime()?.block_on(async {
        let mut rogue = connect(federation).await?;
        let mut stream = rogue.open().await?;
        ensure!(stream.message().await?.is_some(), "no welcome");
        rogue.checkpoint(0).await?;
        revoke()?;
        let started = Instant::now();
        let told = end(&mut stream).await?;
        println!("{cause}: an open stream ended after {:?}", started.elapsed());
        ensure!(code_of(&told) == Some(Code::Revoked), "{told:?}");
        let refused = rogue.checkpoint(0).await.expect_err("the connection is cut");
        println!("{cause}: the next request: {}", refused.message());
        // A new connection is refused in the handshake, or answered with the reason.
        match connect(federation).await {
            Ok(mut again) => {
                let status = again.open().await.expect_err("revoked");
                let told = code_of(&status);
                ensure!(
                    told.is_none_or(|c| matches!(c, Code::Revoked | Code::Unidentified)),
                    "{status:?}"
                );
            }
            Err(e) => println!("{cause}: {e:#}"),
        }
        let admitted = index(federation, "connection.admitted", "hospital-1")?;
        let caused = index(federation, cause, "")?;
        let ended = index(federation, "connection.ended", reason)?;
        ensure!(admitted < caused && caused < ended, "{admitted} {caused} {ended}");
        Ok(())
    })?;
    let refused = wait_for("a refused connection", || {
        let refused = federation.entries("connection.refused")?;
        Ok(refused.into_iter().find(|e| e["entry"]["reason"] == reason))
    })?;
    let ended = index(federation, "connection.ended", reason)?;
    ensure!(refused["index"].as_u64().is_some_and(|refused| refused > ended), "{refused}");
    federation.verified()?;
    Ok(())
}

fn falaj(federation: &Federation, args: &[&str]) -> Result<()> {
    let out = federation.falaj(args)?;
    ensure!(out.status.success(), "{}", text(&out));
    Ok(())
}

/// Shows TLS-02: what an operator revokes is out at once, whatever its certificate, and stays out over a restart.
#[test]
fn a_site_that_an_operator_revokes_is_out_at_once_and_after_a_restart() -> Result<()> {
    let (mut federation, mut coordinator) = federation(|_| Ok(String::new()))?;
    let revoke = || falaj(&federation, &["site", "revoke", SITE, "--reason", "key lost"]);
    is_out(&federation, "certificate.revoked", "revoked", revoke)?;
    coordinator.terminate()?;
    let _coordinator = federation.start_coordinator()?;
    runtime()?.block_on(async {
        let status = connect(&federation).await?.open().await.expect_err("revoked");
        ensure!(code_of(&status) == Some(Code::Revoked), "{status:?}");
        anyhow::Ok(())
    })?;
    let listed = federation.falaj_json(&["site", "revocations"])?;
    ensure!(listed["items"][0]["subject"] == SITE, "{listed}");
    falaj(&federation, &["site", "reinstate", SITE, "--reason", "found again"])?;
    runtime()?.block_on(async {
        connect(&federation).await?.open().await?;
        anyhow::Ok(())
    })
}

/// Shows TLS-02, by certificate: another certificate of the same site goes on.
#[test]
fn a_revoked_certificate_leaves_the_sites_other_one_alone() -> Result<()> {
    let (federation, _coordinator) = federation(|_| Ok(String::new()))?;
    let cert = federation.identity("site", "hospital-1").join("cert.pem");
    let digest = Digest::of(&first_certificate(&cert)?).to_string();
    let unseen = federation.falaj(&["site", "revoke", &digest, "--reason", "unseen"])?;
    ensure!(text(&unseen).contains("unknown_certificate"), "{}", text(&unseen));
    let revoke = || falaj(&federation, &["site", "revoke", &digest, "--reason", "key lost"]);
    is_out(&federation, "certificate.revoked", "revoked", revoke)?;
    fs::remove_dir_all(federation.identity("site", "hospital-1"))?;
    federation.issue("site", "hospital-1", "ae-on/ae-az")?;
    runtime()?.block_on(async {
        connect(&federation).await?.open().await?;
        anyhow::Ok(())
    })
}

#[test]
fn whom_the_deny_file_names_is_out_and_a_broken_line_keeps_the_old_list() -> Result<()> {
    let (federation, _coordinator) = federation(|federation| {
        fs::write(federation.dir().join("denied"), "# nobody yet\n")?;
        let path = federation.dir().join("denied").display().to_string();
        Ok(format!("[revocation]\ndeny = \"{path}\"\n"))
    })?;
    let list = federation.dir().join("denied");
    let revoke = || Ok(fs::write(&list, format!("{SITE} # left\n"))?);
    is_out(&federation, "trust.loaded", "revoked", revoke)?;
    fs::write(&list, "hospital-1\n")?;
    alert_is_raised(&federation, "deny_list_not_taken")?;
    runtime()?.block_on(async {
        let status = connect(&federation).await?.open().await.expect_err("still denied");
        ensure!(code_of(&status) == Some(Code::Revoked), "{status:?}");
        anyhow::Ok(())
    })
}

fn alert_is_raised(federation: &Federation, alert: &str) -> Result<Value> {
    wait_for(&format!("the alert {alert}"), || {
        let raised = federation.entries("alert.raised")?;
        Ok(raised.into_iter().find(|e| e["entry"]["alert"] == alert))
    })
}

/// A revocation list for every issuer, and the configuration that names them.
fn lists(federation: &Federation) -> Result<String> {
    let ca = federation.ca().display().to_string();
    let mut paths = Vec::new();
    for place in PLACES {
        paths.push(format!("{:?}", run("falaj-certs", &["crl", &ca, place])?.trim()));
    }
    Ok(format!("[revocation]\ncrls = [{}]\n", paths.join(", ")))
}

fn revoke_by_list(federation: &Federation) -> Result<()> {
    let cert = federation.identity("site", "hospital-1").join("cert.pem").display().to_string();
    run("falaj-certs", &["revoke", &federation.ca().display().to_string(), &cert]).map(drop)
}

/// Shows TLS-02: a new list is in force without a restart, in handshakes and on open connections.
#[test]
fn whom_a_new_revocation_list_names_is_out_without_a_restart() -> Result<()> {
    let (federation, _coordinator) = federation(lists)?;
    is_out(&federation, "trust.loaded", "revoked", || revoke_by_list(&federation))
}

/// Shows TLS-02: a list that is missing, cut short, or older than the one in force changes nothing, and somebody hears of it.
#[test]
fn a_broken_revocation_list_leaves_the_old_one_in_force_and_stops_a_start() -> Result<()> {
    let (mut federation, mut coordinator) = federation(lists)?;
    let list = federation.ca().join("issuers/ae-on_ae-az/crl.pem");
    let first = fs::read(&list)?;
    revoke_by_list(&federation)?;
    index(&federation, "trust.loaded", "revocation lists")?;
    let refused = |federation: &Federation| {
        runtime()?.block_on(async {
            let Ok(mut rogue) = connect(federation).await else { return Ok(()) };
            ensure!(rogue.open().await.is_err(), "it was let in");
            anyhow::Ok(())
        })
    };
    refused(&federation)?;
    for (n, bytes) in
        [Some(&first[..]), Some(&first[..first.len() / 2]), None].into_iter().enumerate()
    {
        match bytes {
            Some(bytes) => fs::write(&list, bytes)?,
            None => fs::remove_file(&list)?,
        }
        wait_for("an alert of the list", || {
            let raised = federation.entries("alert.raised")?;
            let lists =
                raised.iter().filter(|e| e["entry"]["alert"] == "revocation_list_not_taken");
            Ok((lists.count() > n).then_some(()))
        })?;
        refused(&federation)?;
    }
    coordinator.terminate()?;
    let said = federation.start_coordinator().expect_err("a list is missing").to_string();
    ensure!(said.contains("crl.pem"), "{said}");
    // An older one that would hold for days yet is not taken because nobody was there when it was put back.
    fs::write(&list, &first)?;
    let said = federation.start_coordinator().expect_err("a list is older").to_string();
    ensure!(said.contains("older than the list in force"), "{said}");
    Ok(())
}

/// When a site is revoked whose update is counted, and how.
enum Revoked {
    /// While it is connected, by its name.
    There,
    /// After it has left, by its name.
    Gone,
    /// After it has left, by its certificate alone.
    GoneByCertificate,
    /// While the coordinator is down, by the deny file.
    CoordinatorDown,
}

/// What a round makes of a site that was revoked after its update was counted.
fn pending(kept: Option<bool>, when: &Revoked) -> Result<Vec<Value>> {
    let (mut federation, mut coordinator) = federation(|federation| {
        let denied = federation.dir().join("denied");
        fs::write(&denied, "# nobody yet\n")?;
        let pending = kept.map_or(String::new(), |kept| {
            format!("pending = \"{}\"\n", if kept { "keep" } else { "drop" })
        });
        Ok(format!("[revocation]\ndeny = \"{}\"\n{pending}", denied.display()))
    })?;
    let kept = kept.unwrap_or_default();
    let yaml = study_yaml("revoked", 1, 2).replace("grace_s: 2", "grace_s: 2, retries: 3");
    federation.submit(&yaml)?;
    federation.issue("site", "hospital-2", "ae-on/ae-du")?;
    let cert = federation.identity("site", "hospital-1").join("cert.pem");
    let digest = Digest::of(&first_certificate(&cert)?).to_string();
    runtime()?.block_on(async {
        let address = federation.addresses.context("started")?.grpc;
        let other = federation.credentials("site", "hospital-2")?;
        let mut other = Rogue::connect(address, other, &federation.trust()?).await?;
        let _there = other.open().await?;
        let mut rogue = connect(&federation).await?;
        let tasked = rogue.tasked().await?;
        let forgery = rogue.forge(&rogue.honest(&tasked)?, Rogue::zeros(&tasked)?);
        rogue.submit(forgery).await?;
        match when {
            Revoked::There => {
                falaj(&federation, &["site", "revoke", SITE, "--reason", "poison"])?;
                let ended = index(&federation, "connection.ended", "revoked")?;
                let told = federation.entries("connection.ended")?;
                let told = told.iter().find(|e| e["index"] == ended).context("there")?;
                let pending = told["entry"]["pending"].as_str().unwrap_or_default().to_owned();
                ensure!(pending == if kept { "kept" } else { "dropped" }, "{told}");
            }
            Revoked::Gone | Revoked::GoneByCertificate => {
                drop((rogue, tasked));
                wait_for("the site to be gone", || {
                    let sites = federation.falaj_json(&["sites"])?;
                    Ok((!sites.to_string().contains("hospital-1")).then_some(()))
                })?;
                let whom = if matches!(when, Revoked::Gone) { SITE } else { &digest };
                falaj(&federation, &["site", "revoke", whom, "--reason", "poison"])?;
            }
            Revoked::CoordinatorDown => {}
        }
        if kept {
            // The other site ends the round, in which both are counted.
            let tasked = other.tasked().await?;
            let forgery = other.forge(&other.honest(&tasked)?, Rogue::zeros(&tasked)?);
            other.submit(forgery).await?;
            federation.finishes("revoked")?;
            let published = federation.entries("model.published")?;
            let counted = published[0]["entry"]["updates"].as_array().map(Vec::len);
            ensure!(counted == Some(2), "{published:?}");
        }
        anyhow::Ok(())
    })?;
    if matches!(when, Revoked::CoordinatorDown) {
        coordinator.terminate()?;
        fs::write(federation.dir().join("denied"), format!("{SITE}\n"))?;
        coordinator = federation.start_coordinator()?;
    }
    if !kept {
        wait_for("the round to fail", || {
            Ok((!federation.entries("round.failed")?.is_empty()).then_some(()))
        })?;
    }
    federation.verified()?;
    let failed = federation.entries("round.failed");
    drop(coordinator);
    failed
}

#[test]
fn what_a_revoked_site_sent_before_is_kept_when_that_is_configured() -> Result<()> {
    ensure!(pending(Some(true), &Revoked::There)?.is_empty(), "the round failed");
    Ok(())
}

/// That is so unless something else is configured, and wherever the site is when it is revoked.
#[test]
fn a_round_that_counts_a_revoked_site_fails_wherever_that_site_is() -> Result<()> {
    for (configured, when) in [
        (None, Revoked::There),
        (Some(false), Revoked::Gone),
        (None, Revoked::GoneByCertificate),
        (None, Revoked::CoordinatorDown),
    ] {
        let failed = pending(configured, &when)?;
        ensure!(failed[0]["entry"]["reason"].to_string().contains("revoked"), "{failed:?}");
    }
    Ok(())
}

/// The updates are fixed and the candidate is there; only witnesses are waited for.
#[test]
fn a_round_that_is_about_to_publish_does_not_when_a_site_in_it_is_revoked() -> Result<()> {
    let (federation, _coordinator) = federation(|_| Ok(String::new()))?;
    let governance = "governance: { witnesses: { quorum: 1, within_s: 600 } }\n";
    federation.submit(&(study_yaml("gated", 1, 1) + governance))?;
    runtime()?.block_on(async {
        let mut rogue = connect(&federation).await?;
        let tasked = rogue.tasked().await?;
        let forgery = rogue.forge(&rogue.honest(&tasked)?, Rogue::zeros(&tasked)?);
        rogue.submit(forgery).await?;
        wait_for("a candidate", || {
            let rounds = federation.falaj_json(&["study", "rounds", "gated"])?;
            Ok((rounds["items"][0]["stage"] == "gated").then_some(()))
        })?;
        falaj(&federation, &["site", "revoke", SITE, "--reason", "poison"])
    })?;
    wait_for("the round to fail", || {
        Ok((!federation.entries("round.failed")?.is_empty()).then_some(()))
    })?;
    ensure!(federation.entries("model.published")?.is_empty(), "it was published");
    federation.verified().map(drop)
}

/// What certificate the coordinator shows.
fn shown(federation: &Federation) -> Result<Digest> {
    let address = federation.addresses.context("started")?.grpc;
    let dir = federation.identity("site", "hospital-1");
    let certificate = crate::identity::server_certificate(address, &dir)?;
    Ok(Digest::of(&certificate))
}

/// Shows TLS-03, for the server's own: the stream that is open stays, and whoever comes sees the new certificate.
#[test]
fn a_new_server_certificate_is_shown_without_a_restart_and_breaks_no_stream() -> Result<()> {
    let (federation, _coordinator) = federation(|_| Ok(String::new()))?;
    let before = shown(&federation)?;
    runtime()?.block_on(async {
        let mut rogue = connect(&federation).await?;
        let mut stream = rogue.open().await?;
        ensure!(stream.message().await?.is_some(), "no welcome");
        let home = federation.identity("coordinator", "main");
        let (cert, key) = (home.join("cert.pem"), home.join("key.pem"));
        let (old_cert, old_key) = (fs::read(&cert)?, fs::read(&key)?);
        // A key that is not the certificate's is told of, and the old pair stays.
        fs::write(&key, fs::read(federation.identity("site", "hospital-1").join("key.pem"))?)?;
        alert_is_raised(&federation, "certificate_not_taken")?;
        ensure!(shown(&federation)? == before, "a broken pair was taken");
        fs::write(&key, old_key)?;
        replace(&federation, "coordinator", "main", &home)?;
        ensure!(fs::read(&cert)? != old_cert, "the same certificate");
        wait_for("the new certificate", || Ok((shown(&federation)? != before).then_some(())))?;
        rogue.checkpoint(0).await?;
        let mut again = connect(&federation).await?;
        again.open().await?;
        anyhow::Ok(())
    })?;
    federation.verified()?;
    Ok(())
}

/// Issues an identity's certificate anew, in place.
fn replace(federation: &Federation, role: &str, name: &str, home: &Path) -> Result<()> {
    let aside = federation.dir().join("aside");
    fs::rename(home, &aside)?;
    federation.issue(role, name, "ae-on/ae-az")?;
    let fresh = federation.dir().join("fresh");
    fs::rename(home, &fresh)?;
    fs::rename(&aside, home)?;
    for file in ["cert.pem", "key.pem"] {
        fs::rename(fresh.join(file), home.join(file))?;
    }
    Ok(())
}

/// Shows TLS-03, for issuers: two vouch for one place at once, and the old one's certificates go with it.
#[test]
fn an_issuer_is_replaced_without_a_restart_and_its_certificates_go_with_it() -> Result<()> {
    let (federation, _coordinator) = federation(|_| Ok(String::new()))?;
    let ca = federation.ca().display().to_string();
    runtime()?.block_on(async {
        let mut old = connect(&federation).await?;
        let mut stream = old.open().await?;
        ensure!(stream.message().await?.is_some(), "no welcome");
        run("falaj-certs", &["issuer", &ca, "ae-on/ae-az", "--next"])?;
        wait_for("the trust configuration", || {
            Ok((!federation.entries("trust.loaded")?.is_empty()).then_some(()))
        })?;
        federation.issue("site", "hospital-2", "ae-on/ae-az")?;
        let address = federation.addresses.context("started")?.grpc;
        let new = federation.credentials("site", "hospital-2")?;
        let mut new = Rogue::connect(address, new, &federation.trust()?).await?;
        let mut new_stream = new.open().await?;
        ensure!(new_stream.message().await?.is_some(), "no welcome");
        old.checkpoint(0).await?;
        // The coordinator itself and whoever asks it move to the new issuer before the old one goes.
        replace(&federation, "coordinator", "main", &federation.identity("coordinator", "main"))?;
        replace(&federation, "operator", "omar", &federation.identity("operator", "omar"))?;
        wait_for("the coordinator's new certificate", || {
            let loaded = federation.entries("trust.loaded")?;
            Ok(loaded.iter().any(|e| e["entry"]["changed"] == "certificate").then_some(()))
        })?;
        let both = fs::read_to_string(federation.ca().join("trust.toml"))?;
        run("falaj-certs", &["retire", &ca, "ae-on/ae-az"])?;
        let told = end(&mut stream).await?;
        ensure!(code_of(&told) == Some(Code::Revoked), "{told:?}");
        new.checkpoint(0).await?;
        index(&federation, "connection.ended", "unknown_issuer")?;
        // An auditor goes on trusting whoever vouched then.
        fs::write(federation.ca().join("auditor.toml"), both)?;
        anyhow::Ok(())
    })?;
    federation.verified_by(&federation.ca().join("auditor.toml"))?;
    Ok(())
}

#[test]
fn a_certificate_in_use_from_two_networks_at_once_raises_an_alert() -> Result<()> {
    let (federation, _coordinator) = federation(|_| Ok(String::new()))?;
    runtime()?.block_on(async {
        let address = federation.addresses.context("started")?.grpc;
        let mut here = connect(&federation).await?;
        let _stream = here.open().await?;
        let from = |ip: [u8; 4]| {
            let credentials = federation.credentials("site", "hospital-1")?;
            Ok::<_, anyhow::Error>((Ipv4Addr::from(ip), credentials))
        };
        // A neighbour in the same network is no alarm.
        let (ip, credentials) = from([127, 0, 0, 9])?;
        let near = Rogue::connect_from(ip, address, credentials, &federation.trust()?).await?;
        let (ip, credentials) = from([127, 0, 9, 1])?;
        let far = Rogue::connect_from(ip, address, credentials, &federation.trust()?).await?;
        alert_is_raised(&federation, "certificate_in_two_networks")?;
        // Whoever connects again on a busy machine while the far one is here is another alarm, but a later one.
        let alerts = federation.entries("alert.raised")?;
        let first = alerts[0]["entry"]["actor"]["address"].as_str().unwrap_or_default();
        ensure!(first.starts_with("127.0.9.1:"), "{alerts:?}");
        drop((near, far));
        anyhow::Ok(())
    })?;
    federation.verified()?;
    Ok(())
}
