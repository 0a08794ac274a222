//! Versions of models: what there are, what is signed of them, where they came from, and having them move.

use crate::{
    args::{CardFormat, LineageArgs, NumberedVersion, OfVersion, VersionCommand},
    client::Client,
    show,
};
use anyhow::{Context as _, Result};
use falaj_core::id::StudyId;
use falaj_proto::rest::{
    AliasRequest, LineageGate, Page, PromotionRequest, ReasonRequest, Touched, TouchedVersion,
    Version, VersionLineage, VersionRequest,
};
use serde_json::json;
use std::{fmt::Write as _, fs, path::Path};

/// Does what the command line says about versions.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn run(client: &Client, command: VersionCommand, json: bool) -> Result<()> {
    match command {
        VersionCommand::Versions { id } => {
            let id = id.as_deref().map(named).transpose()?;
            show::answer(json, &client.versions(id.as_ref()).await?, table)
        }
        VersionCommand::Show { of: OfVersion { id, version } } => {
            let shown = client.version(&named(&id)?, &version).await?;
            show::answer(json, &shown, |v| facts(v) + &asked(&v.gates))
        }
        VersionCommand::Card { of: OfVersion { id, version }, format, output } => {
            let format = match format {
                CardFormat::Markdown => "markdown",
                CardFormat::Html => "html",
            };
            let card = client.card(&named(&id)?, &version, format).await?;
            match output {
                Some(path) => put(&card, &path, json),
                None => show::answer(json, &json!({ "card": card }), |_| card.clone()),
            }
        }
        VersionCommand::Provenance { of: OfVersion { id, version }, output } => {
            let envelope = client.provenance(&named(&id)?, &version).await?;
            match output {
                Some(path) => put(&envelope, &path, json),
                // It is JSON already, and what is signed is these bytes.
                None => show::line(envelope.trim_end()),
            }
        }
        VersionCommand::Make { id, round } => {
            let asked = VersionRequest { round };
            let made = client.move_version(&named(&id)?, "versions", &asked, None).await?;
            show::answer(json, &made, stands)
        }
        VersionCommand::Promote { of, to, serve_in, seen } => {
            let place = serve_in.map(|place| place.to_string());
            let asked = PromotionRequest { stage: to.as_str().to_owned(), place };
            let (id, what) = (named(&of.id)?, path(&of, "promote"));
            let moved = client.move_version(&id, &what, &asked, seen.if_revision).await?;
            show::answer(json, &moved, stands)
        }
        VersionCommand::Reject { of, why, seen } => {
            let asked = ReasonRequest { reason: why.reason };
            let (id, what) = (named(&of.id)?, path(&of, "reject"));
            let moved = client.move_version(&id, &what, &asked, seen.if_revision).await?;
            show::answer(json, &moved, stands)
        }
        VersionCommand::Revoke { of, why, seen } => {
            let asked = ReasonRequest { reason: why.reason };
            let (id, what) = (named(&of.id)?, path(&of, "revoke"));
            let moved = client.move_version(&id, &what, &asked, seen.if_revision).await?;
            show::answer(json, &moved, stands)
        }
        VersionCommand::Rollback { id, why, seen } => {
            let asked = ReasonRequest { reason: why.reason };
            let id = named(&id)?;
            let moved = client.move_version(&id, "roll-back", &asked, seen.if_revision).await?;
            show::answer(json, &moved, stands)
        }
        VersionCommand::Alias { id, alias, version, seen } => {
            let (what, asked) = (format!("aliases/{alias}"), AliasRequest { version });
            let moved = client.move_version(&named(&id)?, &what, &asked, seen.if_revision).await?;
            show::answer(json, &moved, |v| {
                let verb = if version.is_some() { "is" } else { "is no longer" };
                format!("version {} of {} {verb} the {alias}", v.version, v.study)
            })
        }
    }
}

/// Shows which versions learned from something, or what made one.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn lineage(client: &Client, args: &LineageArgs, json: bool) -> Result<()> {
    if let (Some(study), Some(version)) = (&args.study, &args.version) {
        return show::answer(json, &client.ancestry(&named(study)?, version).await?, ancestry);
    }
    let place = args.from_place.as_ref().map(ToString::to_string);
    let filters = [
        ("site", args.site.clone()),
        ("place", place),
        ("update", args.update.clone()),
        ("since", args.since.clone()),
        ("until", args.until.clone()),
    ];
    let filters: Vec<(&str, String)> =
        filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    show::answer(json, &client.touched(&filters).await?, touched)
}

fn named(id: &str) -> Result<StudyId> {
    Ok(id.parse()?)
}

fn path(of: &NumberedVersion, verb: &str) -> String {
    format!("versions/{}/{verb}", of.version)
}

/// Writes a text to a file, and says so.
fn put(text: &str, path: &Path, json: bool) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let bytes = text.len() as u64;
    show::answer(json, &json!({ "file": path, "bytes": bytes }), |_| {
        format!("{} ({})", path.display(), show::bytes(bytes))
    })
}

fn stands(v: &Version) -> String {
    let aliases =
        if v.aliases.is_empty() { String::new() } else { format!(" ({})", v.aliases.join(", ")) };
    format!("version {} of {}, from round {}, is {}{aliases}", v.version, v.study, v.round, v.stage)
}

fn table(page: &Page<Version>) -> String {
    let row = |v: &Version| {
        [
            v.study.clone(),
            v.version.to_string(),
            v.stage.clone(),
            if v.aliases.is_empty() { "-".into() } else { v.aliases.join(", ") },
            v.round.to_string(),
            show::short(&v.model_sha256).to_owned(),
            v.revision.to_string(),
        ]
    };
    let columns = ["STUDY", "VERSION", "STAGE", "ALIASES", "ROUND", "MODEL", "REVISION"];
    show::table(columns, page.items.iter().map(row))
}

fn facts(v: &Version) -> String {
    show::facts(&[
        ("study", v.study.clone()),
        ("version", v.version.to_string()),
        ("stage", v.stage.clone()),
        ("aliases", if v.aliases.is_empty() { "-".into() } else { v.aliases.join(", ") }),
        ("round", v.round.to_string()),
        ("model", v.model_sha256.clone()),
        ("file", v.safetensors_sha256.clone()),
        ("tensors", v.manifest_sha256.clone()),
        ("revision", v.revision.to_string()),
    ])
}

/// What gates say that are asked when a version is promoted.
fn asked(gates: &[LineageGate]) -> String {
    if gates.is_empty() {
        return String::new();
    }
    let row = |g: &LineageGate| {
        let verdict = if g.pass { "passes" } else { "FAILS" };
        let interval = if g.interval.is_empty() { "-" } else { &g.interval };
        [g.name.clone(), g.figure.clone(), interval.into(), g.bound.clone(), verdict.into()]
    };
    let columns = ["ASKED AT A PROMOTION", "FIGURE", "INTERVAL", "NEEDED", "VERDICT"];
    format!("\n{}", show::table(columns, gates.iter().map(row)))
}

fn touched(of: &Touched) -> String {
    let remedy = |v: &TouchedVersion| match v.back_to {
        Some(version) => format!("roll back to {version}, revoke"),
        None => v.remedy.clone(),
    };
    let row = |v: &TouchedVersion| {
        [
            v.study.clone(),
            v.version.to_string(),
            v.stage.clone(),
            v.updates.to_string(),
            format!("{}-{}", v.first_round, v.last_round),
            format!("{}-{}", v.first_index, v.last_index),
            v.untouched_round.to_string(),
            remedy(v),
        ]
    };
    let columns =
        ["STUDY", "VERSION", "STAGE", "UPDATES", "ROUNDS", "ENTRIES", "CLEAN TO", "IF WITHDRAWN"];
    let mut text = show::table(columns, of.versions.iter().map(row));
    for origin in &of.deleted {
        let _ = writeln!(text, "the contents of {origin} were deleted: nothing can be said of it");
    }
    text
}

fn ancestry(of: &VersionLineage) -> String {
    let mut text = facts(&of.version);
    let updates = of.rounds.iter().flat_map(|round| {
        round.updates.iter().map(|u| {
            [
                round.round.to_string(),
                u.site.clone(),
                u.weight.to_string(),
                u.epsilon.clone(),
                show::short(&u.payload_sha256).to_owned(),
                u.index.to_string(),
            ]
        })
    });
    text += "\n";
    text += &show::table(["ROUND", "SITE", "WEIGHT", "EPSILON", "UPDATE", "ENTRY"], updates);
    if !of.gates.is_empty() {
        let gates = of.gates.iter().map(|g| {
            let verdict = if g.pass { "passed" } else { "failed" };
            [g.round.to_string(), g.name.clone(), g.scope.clone(), g.figure.clone(), verdict.into()]
        });
        text += "\n";
        text += &show::table(["ROUND", "GATE", "SCOPE", "FIGURE", "VERDICT"], gates);
    }
    let policies = of.policies.iter().map(|p| [p.policy_set_sha256.clone(), p.index.to_string()]);
    text += "\n";
    text += &show::table(["POLICIES", "ENTRY"], policies);
    if !of.approvals.is_empty() {
        let approvals = of
            .approvals
            .iter()
            .map(|a| [a.approval.clone(), a.stage.clone(), a.by.clone(), a.index.to_string()]);
        text += "\n";
        text += &show::table(["APPROVAL", "TO", "BY", "ENTRY"], approvals);
    }
    let moves = of.moves.iter().map(|m| {
        [m.at.clone(), m.kind.clone(), m.stage.clone(), m.reason.clone(), m.index.to_string()]
    });
    text += "\n";
    text += &show::table(["AT", "KIND", "STAGE", "REASON", "ENTRY"], moves);
    for moved in &of.moves {
        text += &asked(&moved.gates);
    }
    text
}
