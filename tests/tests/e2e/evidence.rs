//! What is found out about a connection decides whether it is let in and may stay, and the log keeps it.

use anyhow::{Context as _, Result, ensure};
use falaj_proto::{
    problem::{Code, code_of},
    v1::{ConnectRequest, Push, push},
};
use falaj_tests::{
    federation::{Federation, PATIENCE, Process, SiteSpec, repository, text, wait_for, wisconsin},
    rogue::Rogue,
};
use serde_json::Value;
use std::{
    fs,
    io::{self, Read, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tonic::{Status, Streaming};

const SITE: &str = "hospital-1";
/// Where the operator comes from, and the site at first.
const HERE: &str = "127.0.0.1/32,ae-on/ae-az\n";
/// Another address of this machine, and in which place it is.
const THERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// On its way once, a byte takes so long.
const DELAY: Duration = Duration::from_millis(200);

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

fn networks(federation: &Federation) -> PathBuf {
    federation.dir().join("networks.csv")
}

/// A federation with a list of networks, or without one.
fn federation(list: Option<&str>) -> Result<(Federation, Process)> {
    let mut federation = Federation::new()?;
    if let Some(list) = list {
        fs::write(networks(&federation), list)?;
        federation.coordinator_extra = format!(
            "[evidence]\nnetworks = [{{ file = \"{}\" }}]\n",
            networks(&federation).display()
        );
    }
    federation.issue("site", SITE, "ae-on/ae-az")?;
    let coordinator = federation.start_coordinator()?;
    Ok((federation, coordinator))
}

async fn connect(federation: &Federation, from: Ipv4Addr, to: SocketAddr) -> Result<Rogue> {
    let credentials = federation.credentials("site", SITE)?;
    Rogue::connect_from(from, to, credentials, &federation.trust()?).await
}

/// The first entry of a kind about the site by which this rule decided.
fn entry(federation: &Federation, kind: &str, rule: &str) -> Result<Value> {
    wait_for(&format!("{kind} by {rule}"), || {
        let entries = federation.entries(kind)?;
        let by = |e: &&Value| {
            let e = &e["entry"];
            e["policy_ids"].to_string().contains(rule) && e["actor"].to_string().contains(SITE)
        };
        Ok(entries.iter().find(by).map(|e| e["entry"].clone()))
    })
}

/// Reads a stream to its end, and answers probes by a clock that is so far off: the status that ends it, or none once the log
/// has the evidence of a site that may stay.
async fn end(
    rogue: &mut Rogue,
    stream: &mut Streaming<Push>,
    off_ms: i64,
) -> Result<Option<Status>> {
    loop {
        match tokio::time::timeout(PATIENCE, stream.message()).await? {
            Ok(Some(Push { push: Some(push::Push::Probe(probe)) })) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
                // Whoever was cut off meanwhile reads it on the stream.
                let _ = rogue.answer_probe(&probe.nonce, i64::try_from(now)? + off_ms).await;
            }
            Ok(Some(Push { push: Some(push::Push::Task(_)) }) | None) => return Ok(None),
            Ok(Some(_)) => {}
            Err(status) => return Ok(Some(status)),
        }
    }
}

fn denied(status: &Status, words: &str) -> Result<()> {
    ensure!(code_of(status) == Some(Code::Denied), "{status:?}");
    ensure!(status.message().contains(words), "{status:?}");
    Ok(())
}

/// Shows TLS-02: whoever has stolen a certificate, and comes with it from where nobody of its place is, is refused and raises the alarm.
#[test]
fn a_stolen_certificate_that_is_refused_for_its_network_raises_the_alarm() -> Result<()> {
    let (federation, _coordinator) = federation(Some(HERE))?;
    let to = federation.agents_connect_to()?;
    let runtime = runtime()?;
    let mut site = runtime.block_on(connect(&federation, Ipv4Addr::LOCALHOST, to))?;
    let _stream = runtime.block_on(site.open())?;
    let mut thief = runtime.block_on(connect(&federation, Ipv4Addr::new(127, 0, 9, 1), to))?;
    let status = runtime.block_on(thief.open()).expect_err("outside");
    denied(&status, "RES-010")?;
    let raised = wait_for("the alarm", || {
        let raised = federation.entries("alert.raised")?;
        Ok(raised.into_iter().find(|e| e["entry"]["alert"] == "certificate_in_two_networks"))
    })?;
    let actor = &raised["entry"]["actor"];
    ensure!(actor["address"].as_str().is_some_and(|a| a.starts_with("127.0.9.1:")), "{raised}");
    ensure!(actor.to_string().contains(SITE), "{raised}");
    runtime.block_on(site.checkpoint(0))?;
    federation.verified()?;
    Ok(())
}

/// Shows RES-01: who comes from elsewhere is refused; who is elsewhere by another list is cut off; a list that is broken
/// changes nothing; all of it is in the log, and decided again there.
#[test]
fn who_comes_from_another_place_than_their_own_is_not_let_in_and_does_not_stay() -> Result<()> {
    let list = format!("{HERE}{THERE},ae-on/ae-az\n127.0.0.4/31,ae-on/ae-du\n");
    let (federation, _coordinator) = federation(Some(&list))?;
    let to = federation.agents_connect_to()?;
    let runtime = runtime()?;
    for outside in [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 4)] {
        let status = runtime.block_on(async {
            anyhow::Ok(connect(&federation, outside, to).await?.open().await.expect_err("outside"))
        })?;
        denied(&status, "RES-010")?;
    }
    let refused = entry(&federation, "connection.refused", "RES-010")?;
    ensure!(refused["evidence"]["address_known"] == true, "{refused}");
    ensure!(refused["evidence"]["address_in_place"] == false, "{refused}");
    let mut rogue = runtime.block_on(connect(&federation, THERE, to))?;
    let mut stream = runtime.block_on(rogue.open())?;
    let admitted = entry(&federation, "connection.admitted", "ACC-100")?;
    ensure!(admitted["evidence"]["address_in_place"] == true, "{admitted}");
    ensure!(admitted["evidence"]["issuer_sha256"].as_str().is_some_and(|i| i.len() == 64));
    // A line that overlaps another is in force for nobody.
    fs::write(networks(&federation), format!("{HERE}127.0.0.0/8,ae-on/ae-du\n"))?;
    wait_for("the alert", || {
        let alerts = federation.entries("alert.raised")?;
        let told = |e: &Value| e["entry"]["alert"] == "networks_not_taken";
        let told = alerts.iter().find(|e| told(e)).map(|e| e["entry"]["detail"].to_string());
        Ok(told.filter(|detail| detail.contains("networks.csv, line 2")))
    })?;
    runtime.block_on(rogue.checkpoint(0))?;
    // Now the site's address is nowhere.
    fs::write(networks(&federation), HERE)?;
    let status = runtime.block_on(end(&mut rogue, &mut stream, 0))?.context("it is cut off")?;
    denied(&status, "RES-010")?;
    ensure!(runtime.block_on(rogue.checkpoint(0)).is_err(), "the connection is cut");
    let ended = entry(&federation, "connection.ended", "RES-010")?;
    ensure!(ended["reason"] == "policy" && ended["pending"] == "kept", "{ended}");
    ensure!(ended["evidence"]["address_in_place"] == false, "{ended}");
    let loaded = federation.entries("trust.loaded")?;
    let loaded = &loaded.first().context("an entry")?["entry"];
    ensure!(loaded["changed"] == "networks", "{loaded}");
    let digest = falaj_core::id::Digest::of(HERE.as_bytes()).to_string();
    ensure!(loaded["networks_sha256"][0] == digest.as_str(), "{loaded}");
    federation.verified()?;
    Ok(())
}

/// Lists that cannot be used stop the start, with file and line.
#[test]
fn a_coordinator_does_not_start_with_a_broken_list_of_networks() -> Result<()> {
    for (list, what) in [
        ("127.0.0.1/32,ae-on/ae-az\n127.0.0.1/8,ae-on/ae-du\n", "line 2: `127.0.0.1/8` has bits"),
        ("127.0.0.1/32,ae-on/ae-az", "line 1: the last line has no end"),
    ] {
        let failed = federation(Some(list)).err().context("it started")?;
        let told = format!("{failed:#}");
        ensure!(told.contains("networks.csv, ") && told.contains(what), "{told}");
    }
    Ok(())
}

/// A clock that is an hour off is refused by name; one that is right stays, and the log has how far off it was.
#[test]
fn a_site_whose_clock_is_an_hour_off_is_cut_off_and_told_why() -> Result<()> {
    let (federation, _coordinator) = federation(None)?;
    let to = federation.agents_connect_to()?;
    let probed = || ConnectRequest { answers_probes: true, ..ConnectRequest::default() };
    runtime()?.block_on(async {
        for hour in [3_600_000, -3_600_000] {
            let mut rogue = connect(&federation, Ipv4Addr::LOCALHOST, to).await?;
            let mut stream = rogue.open_as(probed()).await?;
            let status = end(&mut rogue, &mut stream, hour).await?.context("it is cut off")?;
            denied(&status, "the site's clock is more than five minutes off")?;
        }
        let ended = entry(&federation, "connection.ended", "RES-012")?;
        let skew = ended["evidence"]["skew_ms"].as_i64().context("a skew")?;
        let near = ended["evidence"]["skew_uncertainty_ms"].as_i64().context("an uncertainty")?;
        ensure!((skew - 3_600_000).abs() <= near, "{ended}");
        let mut rogue = connect(&federation, Ipv4Addr::LOCALHOST, to).await?;
        let mut stream = rogue.open_as(probed()).await?;
        let yaml = falaj_tests::federation::study_yaml("clock", 1, 1);
        federation.submit(&yaml)?;
        ensure!(end(&mut rogue, &mut stream, 0).await?.is_none(), "it has a task");
        let taken = entry(&federation, "evidence.taken", "ACC-100")?;
        ensure!(taken["evidence"]["probed"] == true, "{taken}");
        ensure!(taken["evidence"]["rtt_us"].as_i64().is_some_and(|us| us > 0), "{taken}");
        anyhow::Ok(())
    })?;
    federation.verified()?;
    Ok(())
}

/// Passes connections on, and every byte only after a while.
fn slow_way(to: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            // A connection that breaks is for its two ends to notice.
            let _ = pass_on(near, to);
        }
    });
    Ok(address)
}

fn pass_on(near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let far = TcpStream::connect(to)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    for (mut from, mut into) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        let (read, waiting) = mpsc::sync_channel::<(Instant, Vec<u8>)>(1_024);
        thread::spawn(move || {
            let mut bytes = [0; 1 << 14];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                if read.send((Instant::now() + DELAY, bytes[..n].to_vec())).is_err() {
                    return;
                }
            }
        });
        thread::spawn(move || {
            for (due, bytes) in waiting {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if into.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// The shipped policies, and a rule that a site is at most 100 ms away, there and back.
pub(crate) fn with_a_bound(federation: &mut Federation) -> Result<()> {
    let policies = federation.dir().join("policies");
    fs::create_dir_all(&policies)?;
    for file in ["coordinator.cedar", "coordinator.cedarschema"] {
        fs::copy(repository().join("policies").join(file), policies.join(file))?;
    }
    let rule = "@id(\"NEAR\") @reason(\"the site is not within 100 ms\") forbid (principal is Falaj::Site, \
                action == Falaj::Action::\"connect\", resource) when { context.evidence.probed } \
                unless { context.evidence has rtt_us && context.evidence.rtt_us <= 100000 };\n";
    let path = policies.join("coordinator.cedar");
    fs::write(&path, fs::read_to_string(&path)? + rule)?;
    federation.policies = policies;
    Ok(())
}

/// Shows RES-02: behind a way that takes 400 ms there and back a site is too far away by a bound of 100 ms, and nothing that it
/// says of the time brings it nearer; beside the coordinator it is not.
#[test]
fn a_site_that_is_too_far_away_is_cut_off() -> Result<()> {
    let mut federation = Federation::new()?;
    with_a_bound(&mut federation)?;
    federation.issue("site", SITE, "ae-on/ae-az")?;
    let _coordinator = federation.start_coordinator()?;
    let to = federation.agents_connect_to()?;
    let far = slow_way(to)?;
    let probed = || ConnectRequest { answers_probes: true, ..ConnectRequest::default() };
    runtime()?.block_on(async {
        for off_ms in [0, -400] {
            let mut rogue = connect(&federation, Ipv4Addr::LOCALHOST, far).await?;
            let mut stream = rogue.open_as(probed()).await?;
            let status = end(&mut rogue, &mut stream, off_ms).await?.context("it is cut off")?;
            denied(&status, "the site is not within 100 ms")?;
        }
        let ended = entry(&federation, "connection.ended", "NEAR")?;
        ensure!(ended["evidence"]["rtt_us"].as_i64().is_some_and(|us| us >= 400_000), "{ended}");
        // Who answers no probes has not shown that it is near.
        let mut rogue = connect(&federation, Ipv4Addr::LOCALHOST, to).await?;
        let mut stream = rogue.open().await?;
        let status = end(&mut rogue, &mut stream, 0).await?.context("it is cut off")?;
        denied(&status, "the site is not within 100 ms")?;
        let mut rogue = connect(&federation, Ipv4Addr::LOCALHOST, to).await?;
        let mut stream = rogue.open_as(probed()).await?;
        federation.submit(&falaj_tests::federation::study_yaml("near", 1, 1))?;
        ensure!(end(&mut rogue, &mut stream, 0).await?.is_none(), "it has a task");
        anyhow::Ok(())
    })?;
    federation.verified()?;
    Ok(())
}

/// The agent says where records are and where it computes; a place abroad is refused, and the words are the policy's.
#[test]
fn a_site_that_says_that_it_stores_records_abroad_is_refused() -> Result<()> {
    let (federation, _coordinator) = federation(None)?;
    let site = SiteSpec {
        args: vec!["--exit-on-refusal".into()],
        ..SiteSpec::new("hospital-9", "ae-on/ae-az")
    };
    let config = federation.prepare_site(&site, &wisconsin(1)?[0])?;
    let declared = |place: &str| -> Result<()> {
        let before = fs::read_to_string(&config)?;
        let before = before.split("[declared]").next().unwrap_or_default().to_owned();
        let lines = format!("[declared]\nstorage = \"{place}\"\ncompute = \"ae-on/ae-du\"\n");
        Ok(fs::write(&config, before + &lines)?)
    };
    declared("nowhere")?;
    let mut agent = federation.start_agent(&site)?;
    ensure!(agent.exit_code()? != Some(0), "{}", agent.output());
    ensure!(agent.output().contains("nowhere"), "{}", agent.output());
    declared("ie/ie-dub")?;
    let mut agent = federation.start_agent(&site)?;
    ensure!(agent.exit_code()? != Some(0), "{}", agent.output());
    ensure!(agent.output().contains("the site stores records"), "{}", agent.output());
    let ended = federation.entries("connection.ended")?;
    let ended = &ended.first().context("an entry")?["entry"];
    ensure!(ended["evidence"]["storage"] == "ie/ie-dub", "{ended}");
    ensure!(ended["evidence"]["compute"] == "ae-on/ae-du", "{ended}");
    declared("ae-on/ae-az")?;
    let mut agent = federation.start_agent(&site)?;
    wait_for("its evidence", || Ok(federation.entries("evidence.taken")?.pop()))?;
    agent.terminate()?;
    let verdict = federation.export_and_verify()?;
    ensure!(verdict.status.success(), "{}", text(&verdict));
    Ok(())
}

/// A database abroad, or an endpoint that is not where it is declared, stops the start before it is spoken to; one that may be
/// used is in the log.
#[test]
fn an_endpoint_outside_its_place_stops_the_start() -> Result<()> {
    let mut federation = Federation::new()?;
    let url = federation.dir().join("database.url");
    fs::write(&url, "postgres://falaj_writer@127.0.0.1:9/falaj\n")?;
    fs::set_permissions(&url, fs::Permissions::from_mode(0o600))?;
    let list = networks(&federation);
    fs::write(&list, "127.0.0.0/8,ae-on/ae-az\n")?;
    let evidence = format!("[evidence]\nnetworks = [{{ file = \"{}\" }}]\n", list.display());
    for (place, why) in [("ie/ie-dub", "RES-014"), ("ae-on/ae-du", "RES-015")] {
        federation.coordinator_extra = format!(
            "{evidence}[state.database]\nurl_file = \"{}\"\nplace = \"{place}\"\n",
            url.display()
        );
        let failed = federation.start_coordinator().err().context("it started")?;
        let told = format!("{failed:#}");
        ensure!(told.contains("`state.database`") && told.contains(why), "{told}");
    }
    federation.coordinator_extra = evidence;
    // An authority for time-stamps that is away, where it is declared.
    let ca = federation.ca().join("issuers/ae-on_ae-az/cert.pem");
    federation.log_extra = format!(
        "timestamps = {{ url = \"http://127.0.0.1:9/tsa\", ca = \"{}\", place = \"ae-on/ae-az\" }}\n",
        ca.display()
    );
    let _coordinator = federation.start_coordinator()?;
    let allowed = federation.entries("endpoint.allowed")?;
    let allowed = &allowed.first().context("an entry")?["entry"];
    ensure!(allowed["endpoint"] == "timestamps" && allowed["asked"]["host"] == "127.0.0.1");
    ensure!(allowed["asked"]["place"] == "ae-on/ae-az" && allowed["decision"] == "allow");
    ensure!(allowed["evidence"]["address_in_place"] == true, "{allowed}");
    federation.verified()?;
    Ok(())
}
