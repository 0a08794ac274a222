//! `falaj round`: the rounds of a study.

use crate::{args::RoundCommand, client::Client, gates, show, watch::each_round};
use anyhow::{Result, ensure};
use falaj_core::id::StudyId;
use falaj_proto::rest::{Gate, Page, Round, StudyEvent};
use serde::Serialize;

/// Does what the command line says about rounds.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn run(client: &Client, command: RoundCommand, json: bool) -> Result<()> {
    match command {
        RoundCommand::List { id, watch } => {
            let id: StudyId = id.parse()?;
            let list = async || show::answer(json, &client.rounds(&id).await?, table);
            if !watch {
                return list().await;
            }
            each_round(client, &id, async |event: &StudyEvent| {
                if !json {
                    show::line(&show::moment(event))?;
                }
                list().await
            })
            .await
        }
        RoundCommand::Show { id, round } => {
            let id: StudyId = id.parse()?;
            let mut tries = client.rounds(&id).await?.items;
            tries.retain(|t| t.round == round);
            ensure!(
                !tries.is_empty(),
                "{id} has had no round {round}; `falaj round list {id}` shows those that it has had"
            );
            let gates = client.gates(&id, Some(round)).await?.items;
            show::answer(json, &Shown { tries, gates }, told)
        }
    }
}

/// One round.
#[derive(Debug, Serialize)]
struct Shown {
    tries: Vec<Round>,
    gates: Vec<Gate>,
}

fn told(of: &Shown) -> String {
    let mut text = String::new();
    for t in &of.tries {
        let mut facts = vec![
            ("round", t.round.to_string()),
            ("try", t.attempt.to_string()),
            ("stage", t.stage.clone()),
            ("base", t.base_sha256.clone()),
        ];
        facts.extend(t.model_sha256.clone().map(|model| ("model", model)));
        facts.extend(t.reason.clone().map(|reason| ("reason", reason)));
        text += &show::facts(&facts);
        let sites = t.sites.iter().map(|(site, how)| [site.clone(), how.clone()]);
        text += &show::table(["SITE", "STANDS"], sites);
        text.push('\n');
    }
    if !of.gates.is_empty() {
        text += &gates::table(&of.gates, None);
    }
    text
}

/// Rounds, a row for each try.
pub(crate) fn table(page: &Page<Round>) -> String {
    let row = |r: &Round| {
        let sites: Vec<String> =
            r.sites.iter().map(|(site, how)| format!("{site} {how}")).collect();
        let model = r.model_sha256.as_deref().map_or("-", show::short).to_owned();
        let reason = r.reason.clone().unwrap_or_default();
        [
            r.round.to_string(),
            r.attempt.to_string(),
            r.stage.clone(),
            model,
            sites.join(", "),
            reason,
        ]
    };
    show::table(["ROUND", "TRY", "STAGE", "MODEL", "SITES", "REASON"], page.items.iter().map(row))
}
