//! What a site may send: each update that breaks a rule is refused by name, the refusal is logged, and
//! the round goes on with the others.

use anyhow::{Context, Result, bail, ensure};
use falaj_core::{
    id::Digest,
    update::{Encoding, UpdateHeader},
};
use falaj_proto::problem::{Code, code_of};
use falaj_tests::{
    federation::{Federation, Process, study_yaml, wait_for},
    rogue::{Forgery, Rogue, Tasked},
};
use std::fs;

const STUDY: &str = "probed";

/// A coordinator, two honest sites, and one that is not, all in one round that needs two.
struct Scene {
    federation: Federation,
    _coordinator: Process,
    _agents: Vec<Process>,
}

fn scene() -> Result<Scene> {
    let mut federation = Federation::new()?;
    let coordinator = federation.start_coordinator()?;
    let agents = federation.start_hospitals()?;
    federation.issue("site", "rogue", "ae-on/ae-sh")?;
    Ok(Scene { federation, _coordinator: coordinator, _agents: agents })
}

/// Lets the rogue join a study of three sites and send what `forge` makes. Gives the code of the refusal;
/// the study must finish all the same, and the refusal must be in a log that verifies.
fn refused(
    scene: &Scene,
    forge: impl FnOnce(&Rogue, &Tasked, UpdateHeader, Vec<u8>) -> Result<Forgery>,
) -> Result<Code> {
    let federation = &scene.federation;
    let yaml = study_yaml(STUDY, 1, 2)
        .replace("min_sites: 2", "sites: [hospital-1, hospital-2, rogue], min_sites: 2");
    federation.submit(&yaml)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let status = runtime.block_on(async {
        let address = federation.addresses.context("started")?.grpc;
        let credentials = federation.credentials("site", "rogue")?;
        let mut rogue = Rogue::connect(address, credentials, &federation.trust()?).await?;
        let tasked = rogue.tasked().await?;
        let header = rogue.honest(&tasked)?;
        let payload = Rogue::zeros(&tasked)?;
        let forgery = forge(&rogue, &tasked, header, payload)?;
        match rogue.submit(forgery).await {
            Ok(_) => bail!("the coordinator took it"),
            Err(status) => Ok(status),
        }
    })?;
    let code = code_of(&status).with_context(|| format!("no code in {status:?}"))?;
    ensure!(!status.message().is_empty(), "no explanation");
    let study = federation.study_reaches(STUDY, &["finished", "failed"])?;
    ensure!(study["state"] == "finished", "one bad site ended the study: {study}");
    let logged = federation.entries("update.refused")?;
    ensure!(
        logged.iter().any(|e| e.to_string().contains(code.as_str())),
        "{code} is not in the log: {logged:?}"
    );
    let accepted = federation.entries("update.accepted")?;
    ensure!(accepted.iter().all(|e| !e["entry"]["actor"].to_string().contains("rogue")));
    federation.verified()?;
    Ok(code)
}

#[test]
fn an_update_for_an_unknown_study_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, payload| {
        header.round.study = "no-such-study".parse()?;
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::UnknownStudy, "{code}");
    Ok(())
}

#[test]
fn an_update_for_another_round_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, payload| {
        header.round.number += 1;
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::WrongRound, "{code}");
    Ok(())
}

#[test]
fn an_update_on_another_base_model_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, payload| {
        header.base = Digest::of(b"another model");
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::WrongBase, "{code}");
    Ok(())
}

#[test]
fn an_update_of_another_shape_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, mut payload| {
        payload.extend([0, 0]);
        header.params += 1;
        header.payload_bytes += 2;
        header.payload = Digest::of(&payload);
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::ShapeMismatch, "{code}");
    Ok(())
}

#[test]
fn an_update_on_another_grid_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, payload| {
        header.encoding = Encoding::new(16, header.encoding.step() * 2.0)?;
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::ShapeMismatch, "{code}");
    Ok(())
}

#[test]
fn a_value_outside_the_agreed_bits_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, mut payload| {
        // -2^15 is a 16-bit pattern, but no value of the symmetric grid.
        payload[..2].copy_from_slice(&i16::MIN.to_le_bytes());
        header.payload = Digest::of(&payload);
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::ValueOutOfRange, "{code}");
    Ok(())
}

#[test]
fn a_truncated_stream_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, header, mut payload| {
        payload.truncate(payload.len() - 1);
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::SizeMismatch, "{code}");
    Ok(())
}

#[test]
fn a_stream_longer_than_declared_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, header, mut payload| {
        payload.extend([0; 64]);
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::SizeMismatch, "{code}");
    Ok(())
}

#[test]
fn a_digest_that_does_not_match_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, payload| {
        header.payload = Digest::of(b"something else");
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::DigestMismatch, "{code}");
    Ok(())
}

#[test]
fn a_signature_that_does_not_match_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, header, payload| {
        let mut forgery = rogue.forge(&header, payload);
        forgery.signature[0] ^= 1;
        Ok(forgery)
    })?;
    ensure!(code == Code::SignatureInvalid, "{code}");
    Ok(())
}

#[test]
fn an_update_in_the_name_of_another_site_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, payload| {
        header.site = "spiffe://falaj.test/ae-on/ae-az/site/hospital-1".parse()?;
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::SiteMismatch, "{code}");
    Ok(())
}

#[test]
fn a_declared_size_of_10_gb_is_refused_before_a_byte_is_read() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, mut header, payload| {
        header.payload_bytes = 10_000_000_000;
        header.params = 5_000_000_000;
        Ok(rogue.forge(&header, payload))
    })?;
    ensure!(code == Code::TooLarge, "{code}");
    Ok(())
}

#[test]
fn a_header_that_is_no_header_is_refused() -> Result<()> {
    let code = refused(&scene()?, |rogue, _, _, payload| {
        let header = b"{\"v\":1}".to_vec();
        Ok(Forgery { signature: rogue.sign(&header), header, payload })
    })?;
    ensure!(code == Code::HeaderMalformed, "{code}");
    Ok(())
}

#[test]
fn an_update_sent_twice_counts_once_and_a_different_second_one_is_refused() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    federation.issue("site", "rogue", "ae-on/ae-sh")?;
    federation.issue("site", "idle", "ae-on/ae-sh")?;
    let address = federation.addresses.context("started")?.grpc;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let trust = federation.trust()?;
    let (mut rogue, mut idle) = runtime.block_on(async {
        let credentials = |name| federation.credentials("site", name);
        let rogue = Rogue::connect(address, credentials("rogue")?, &trust).await?;
        let idle = Rogue::connect(address, credentials("idle")?, &trust).await?;
        anyhow::Ok((rogue, idle))
    })?;
    // The round waits its grace for the idle site: time enough to send three times.
    let yaml = study_yaml(STUDY, 1, 1)
        .replace("min_sites: 1", "sites: [idle, rogue], min_sites: 1")
        .replace("grace_s: 2", "grace_s: 8");
    federation.submit(&yaml)?;
    runtime.block_on(async {
        let (tasked, _idle) = tokio::try_join!(rogue.tasked(), idle.tasked())?;
        let header = rogue.honest(&tasked)?;
        let payload = Rogue::zeros(&tasked)?;
        let first = rogue.submit(rogue.forge(&header, payload.clone())).await?;
        let again = rogue.submit(rogue.forge(&header, payload.clone())).await?;
        ensure!(!first.already_counted && again.already_counted);
        ensure!(first.receipt == again.receipt && first.signature == again.signature);
        let mut other = payload;
        other[0] = 1;
        let mut header = header;
        header.payload = Digest::of(&other);
        let refusal = rogue.submit(rogue.forge(&header, other)).await.err().context("taken")?;
        ensure!(code_of(&refusal) == Some(Code::Duplicate), "{refusal:?}");
        Ok(())
    })?;
    let study = federation.study_reaches(STUDY, &["finished", "failed"])?;
    ensure!(study["state"] == "finished", "{study}");
    ensure!(federation.entries("update.accepted")?.len() == 1);
    ensure!(federation.entries("update.duplicate")?.len() == 1);
    federation.verified()?;
    Ok(())
}

#[test]
fn of_many_updates_that_a_site_sends_at_once_one_counts_and_no_other_is_kept() -> Result<()> {
    const AT_ONCE: u8 = 8;
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    federation.issue("site", "rogue", "ae-on/ae-sh")?;
    federation.issue("site", "idle", "ae-on/ae-sh")?;
    let address = federation.addresses.context("started")?.grpc;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let trust = federation.trust()?;
    federation.submit(
        &study_yaml(STUDY, 1, 2).replace("min_sites: 2", "sites: [idle, rogue], min_sites: 2"),
    )?;
    let spool = federation.coordinator_state().join("updates");
    let kept = || anyhow::Ok(fs::read_dir(&spool)?.count());
    runtime.block_on(async {
        let connect = async |name| {
            let credentials = federation.credentials("site", name)?;
            Rogue::connect(address, credentials, &trust).await
        };
        let (mut rogue, mut idle) = tokio::try_join!(connect("rogue"), connect("idle"))?;
        let (tasked, last) = tokio::try_join!(rogue.tasked(), idle.tasked())?;
        let mut sending = Vec::new();
        for value in 0..AT_ONCE {
            let payload = vec![value; Rogue::zeros(&tasked)?.len()];
            let header = UpdateHeader { payload: Digest::of(&payload), ..rogue.honest(&tasked)? };
            let forgery = rogue.forge(&header, payload);
            let mut one = rogue.clone();
            sending.push(async move { one.submit(forgery).await });
        }
        let answers = futures_util::future::join_all(sending).await;
        let refused: Vec<_> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
        ensure!(refused.len() == usize::from(AT_ONCE) - 1, "{answers:?}");
        ensure!(refused.iter().all(|r| code_of(r) == Some(Code::Duplicate)), "{answers:?}");
        // Those that wait for the writer to let go of them are gone once the round is over.
        let mut header = idle.honest(&last)?;
        let payload = vec![AT_ONCE; Rogue::zeros(&last)?.len()];
        header.payload = Digest::of(&payload);
        idle.submit(idle.forge(&header, payload)).await?;
        anyhow::Ok(())
    })?;
    federation.finishes(STUDY)?;
    wait_for("nothing but the two that count", || Ok((kept()? == 2).then_some(())))?;
    ensure!(federation.entries("update.accepted")?.len() == 2);
    federation.verified()?;
    Ok(())
}

#[test]
fn a_model_of_an_unknown_study_is_not_found() -> Result<()> {
    let scene = scene()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let error = runtime.block_on(async {
        let address = scene.federation.addresses.context("started")?.grpc;
        let credentials = scene.federation.credentials("site", "rogue")?;
        let mut rogue = Rogue::connect(address, credentials, &scene.federation.trust()?).await?;
        let digest = Digest::of(b"x").to_string();
        let _stream = rogue.open().await?;
        rogue.fetch("no-such-study", &digest).await.err().context("it was served")
    })?;
    let status = error.downcast_ref::<tonic::Status>().context("a status")?;
    ensure!(code_of(status) == Some(Code::UnknownStudy), "{status:?}");
    Ok(())
}
