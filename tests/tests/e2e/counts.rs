//! Counts that a site with a certificate of its own and its own signature sends and that cannot be: each is refused by name, each refusal is in
//! the log, nothing of it goes into a figure, and the round goes on.

use crate::evaluation::evaluated;
use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    evaluation::{
        answer::{CONTEXT, EvaluationHeader},
        cells::Block,
    },
    id::Digest,
};
use falaj_proto::problem::{Code, code_of};
use falaj_tests::{
    federation::Federation,
    rogue::{Answer, Counts, Rogue, Tasked},
};

const STUDY: &str = "counted";

/// A wrong answer: what it is, what is said of it, and by which code.
type Forged = (Answer, &'static str, Code);

/// Two sites that train and count, and one that has no seat.
struct Cast {
    liar: Rogue,
    other: Rogue,
    stranger: Rogue,
}

async fn cast(federation: &Federation) -> Result<Cast> {
    let connect = async |name: &str| {
        federation.issue("site", name, "ae-on/ae-sh")?;
        let address = federation.agents_connect_to()?;
        Rogue::connect(address, federation.credentials("site", name)?, &federation.trust()?).await
    };
    Ok(Cast {
        liar: connect("liar").await?,
        other: connect("other").await?,
        stranger: connect("stranger").await?,
    })
}

/// Trains as a site does, to the task that asks for counts about what came of it.
async fn trained(site: &mut Rogue, tasked: &mut Tasked, first: u8) -> Result<()> {
    let mut payload = Rogue::zeros(tasked)?;
    payload[0] = first;
    let mut header = site.honest(tasked)?;
    header.payload = Digest::of(&payload);
    site.submit(site.forge(&header, payload)).await?;
    tasked.evaluates().await
}

/// Counts that no records give.
fn impossible(liar: &Rogue, tasked: &Tasked, good: &Counts) -> Result<Vec<Forged>> {
    let with = |change: &dyn Fn(&mut Counts)| {
        let mut counts = good.clone();
        change(&mut counts);
        liar.answers(tasked, &counts)
    };
    let out = Code::ValueOutOfRange;
    Ok(vec![
        (with(&|c| *c.of(Block::Scores) = -1_000)?, "is -1000: below zero by more than", out),
        (with(&|c| *c.of(Block::LogLoss) = i64::MIN)?, "below zero by more than", out),
        (with(&|c| *c.of(Block::Columns) += 1_000)?, "do not add up: watched column 0 are", out),
        (with(&|c| *c.of(Block::LogLoss) = 1 << 50)?, "the log loss is", out),
        (with(&|c| *c.of(Block::SquaredError) = 1 << 50)?, "the squared error is", out),
        (with(&|c| *c.of(Block::Changed) = 5_000)?, "a perturbation's count is", out),
        // It would drown everybody else's, and be beyond what a sum can hold.
        (with(&|c| *c.of(Block::Scores) = i64::MAX)?, "records, and a site counts", out),
        (with(&|c| c.counts.truncate(3))?, "there are 3 counts, and", out),
        (with(&|c| c.counts.push(0))?, "cells", out),
        (with(&|c| c.counts.clear())?, "there are 0 counts, and", out),
    ])
}

/// Counts about something else, well signed.
fn elsewhere(
    liar: &Rogue,
    tasked: &Tasked,
    good: &Counts,
    other: &EvaluationHeader,
) -> Result<Vec<Forged>> {
    let with = |change: &dyn Fn(&mut EvaluationHeader)| {
        let mut counts = good.clone();
        change(&mut counts.header);
        liar.answers(tasked, &counts)
    };
    let round = Code::WrongRound;
    let mut forged = vec![
        (with(&|h| h.round.number += 1)?, "about another round", round),
        (with(&|h| h.round.study = "another".parse().expect("a name"))?, "another round", round),
        (with(&|h| h.attempt += 1)?, "about another try of the round", round),
        (with(&|h| h.candidate = Digest::of(b"base"))?, "about another candidate", round),
        (with(&|h| h.site = other.site.clone())?, "about another site", round),
        (with(&|h| h.study_sha256 = Digest::of(b"study"))?, "about another study", round),
        (with(&|h| h.noise = "none".into())?, "about another noise", round),
    ];
    let answer = liar.answers(tasked, good)?;
    let mut later = answer.clone();
    later.round.number += 1;
    forged.push((later, "the answer is for try 0 of round 2", round));
    let mut again = answer.clone();
    again.attempt += 1;
    forged.push((again, "the answer is for try 1 of round 1", round));
    let mut unknown = answer.clone();
    unknown.round.study = "no-such-study".parse()?;
    forged.push((unknown, "no-such-study", Code::UnknownStudy));
    let mut phase = answer;
    phase.phase = "reveals".into();
    forged.push((phase, "takes no updates any more", Code::Late));
    Ok(forged)
}

/// Answers whose parts do not belong together.
fn torn(liar: &Rogue, other: &Rogue, tasked: &Tasked, good: &Counts) -> Result<Vec<Forged>> {
    let answer = liar.answers(tasked, good)?;
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut torn = answer.clone();
        change(&mut torn.messages);
        torn
    };
    let not_by_it = other.answers(tasked, good)?;
    let update = liar.sign(&answer.messages[0]);
    let unread = liar.signed(CONTEXT, b"{}");
    let (signature, digest) = (Code::SignatureInvalid, Code::DigestMismatch);
    Ok(vec![
        (not_by_it, "not signed by this site's key", signature),
        (with(&|m| m[1] = vec![0; 64]), "not signed by this site's key", signature),
        (with(&|m| m[1].truncate(63)), "not signed by this site's key", signature),
        // By the right key, and for something else.
        (with(&|m| m[1].clone_from(&update)), "not signed by this site's key", signature),
        (with(&|m| m[2][0] ^= 1), "not those that the header names", digest),
        (with(&|m| m[2].truncate(9)), "not those that the header names", digest),
        (with(&|m| m.truncate(2)), "not those that the header names", digest),
        (with(&|m| m.push(Vec::new())), "not those that the header names", digest),
        (with(&Vec::clear), "not those that the header names", digest),
        (
            with(&|m| (m[0], m[1]) = (b"{}".to_vec(), unread.clone())),
            "the header cannot be read",
            Code::HeaderMalformed,
        ),
    ])
}

#[test]
fn forged_counts_are_refused_by_name_and_the_round_goes_on() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let gates = "  - { metric: roc_auc, at_least: 0.01 }\n";
    let yaml =
        evaluated(STUDY, 1, 1, gates).replace("min_sites: 2", "sites: [liar, other], min_sites: 2");
    federation.submit(&yaml)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (refused, codes) = runtime.block_on(lied(&federation))?;
    federation.finishes(STUDY)?;

    let logged = federation.entries("update.refused")?;
    ensure!(logged.len() == refused, "{} entries of {refused}: {logged:?}", logged.len());
    for code in codes {
        let told = logged.iter().any(|e| e["entry"]["code"] == code.as_str());
        ensure!(told, "{code} is not in the log");
    }
    // What counted is what was honest, once for each site.
    let counted = federation.entries("evaluation.accepted")?;
    let sites: Vec<_> = counted.iter().map(|e| e["entry"]["site"].to_string()).collect();
    ensure!(sites.len() == 2 && sites[0] != sites[1], "{counted:?}");
    let published = federation.entries("model.published")?;
    let by = published[0]["entry"]["evaluated_by"].as_array().context("sites")?;
    ensure!(published.len() == 1 && by.len() == 2, "{published:?}");
    let figures = federation.falaj_json(&["study", "figures", STUDY])?;
    ensure!(figures["records"] == 800, "{figures}");
    let metrics = federation.metrics()?;
    for line in [
        "falaj_evaluations_total{outcome=\"accepted\"} 2\n",
        "falaj_evaluations_total{outcome=\"duplicate\"} 2\n",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    federation.verified()?;
    Ok(())
}

/// Sends everything that is wrong, and then what is right: how many refusals there were, and by which codes.
async fn lied(federation: &Federation) -> Result<(usize, Vec<Code>)> {
    let Cast { mut liar, mut other, mut stranger } = cast(federation).await?;
    let (tasked, others) = tokio::join!(liar.tasked(), other.tasked());
    let (mut tasked, mut others) = (tasked?, others?);
    let (one, two) =
        tokio::join!(trained(&mut liar, &mut tasked, 0), trained(&mut other, &mut others, 1));
    one.and(two)?;
    let (good, honest) = (liar.counts(&tasked)?, other.counts(&others)?);
    let mut forged = impossible(&liar, &tasked, &good)?;
    forged.extend(elsewhere(&liar, &tasked, &good, &honest.header)?);
    forged.extend(torn(&liar, &other, &tasked, &good)?);
    let mut codes = Vec::new();
    for (answer, why, wanted) in forged {
        let refusal = liar.answer(answer).await.err().with_context(|| why.to_owned())?;
        ensure!(code_of(&refusal) == Some(wanted), "{why}: {refusal:?}");
        ensure!(refusal.message().contains(why), "{why}: {refusal:?}");
        codes.push(wanted);
    }
    let mut refused = codes.len();
    // No seat in the round, and the counts of somebody who has one.
    let _stream = stranger.open().await?;
    for counts in [&stranger.counts(&tasked)?, &good] {
        let answer = stranger.answers(&tasked, counts)?;
        let refusal = stranger.answer(answer).await.err().context("a stranger was heard")?;
        ensure!(code_of(&refusal) == Some(Code::NotEnrolled), "{refusal:?}");
        refused += 1;
    }
    // After all this it is heard, the same again changes nothing, and it cannot say another thing any more.
    let answer = liar.answers(&tasked, &good)?;
    liar.answer(answer.clone()).await?;
    liar.answer(answer).await?;
    let mut another = good;
    another.counts[0] += 1;
    let refusal = liar.answer(liar.answers(&tasked, &another)?).await.err().context("it was")?;
    ensure!(code_of(&refusal) == Some(Code::Duplicate), "{refusal:?}");
    codes.extend([Code::NotEnrolled, Code::Duplicate]);
    other.answer(other.answers(&others, &honest)?).await?;
    Ok((refused + 1, codes))
}
