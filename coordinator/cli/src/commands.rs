//! What each command does: ask, then show.

use crate::{
    args::{
        ApprovalCommand, Cli, Command, DecideArgs, GiveArgs, HoldCommand, ModelCommand,
        PersonCommand, SiteCommand, StudyCommand,
    },
    client::Client,
    download::{ParamsHash, save},
    export, gates, log, login, policy, privacy, rounds,
    settings::{Settings, SignIn},
    show, versions,
    watch::watch,
};
use anyhow::{Context as _, Result, ensure};
use clap::CommandFactory as _;
use falaj_core::{
    id::{Digest, StudyId},
    study::{Mechanism, Study},
};
use falaj_proto::{
    rest::{self, CandidateRequest, Page},
    study::STUDY_BYTES_MAX,
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::ExitCode};

/// Names the parameters' digest beside a model's bytes.
const MODEL_SHA256: &str = "falaj-model-sha256";

/// Does what the command line says.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let json = cli.json;
    let connect = || Client::new(Settings::new(cli.connection.clone())?);
    match cli.command {
        Command::Status => {
            let status = connect()?.status().await?;
            show::answer(json, &status, status_facts)?;
        }
        Command::Login(args) => {
            let sign_in = SignIn::new(cli.connection)?;
            let login = login::run(&args, &sign_in).await?;
            show::answer(json, &login, |login| login_facts(login, &sign_in))?;
        }
        Command::Logout => login::forget(&SignIn::folder(cli.connection)?)?,
        Command::Sites => {
            let sites = connect()?.sites().await?;
            show::answer(json, &sites, sites_table)?;
        }
        Command::Study(StudyCommand::Check { file }) => {
            let (_, study) = read_study(&file)?;
            show::answer(json, &study_plan(&study)?, |plan| plan_text(&file, plan))?;
        }
        Command::Study(command) => return study(&connect()?, command, json).await,
        Command::Round(command) => rounds::run(&connect()?, command, json).await?,
        Command::Gate(command) => gates::run(&connect()?, command, json).await?,
        Command::Compare(args) => args.run(&connect()?, json).await?,
        Command::Model(command) => model(&connect()?, command, json).await?,
        Command::Lineage(args) => versions::lineage(&connect()?, &args, json).await?,
        Command::Log(command) => log::run(&connect()?, command, json).await?,
        Command::Person(command) => person(&connect()?, command, json).await?,
        Command::Hold(command) => hold(&connect()?, command, json).await?,
        Command::Site(command) => site(&connect()?, command, json).await?,
        Command::Approve(args) => give(&connect()?, args, json).await?,
        Command::Approval(command) => approval(&connect()?, command, json).await?,
        Command::Policy(command) => return policy::run(command, connect, json).await,
        Command::Privacy(command) => return privacy::run(command, json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "falaj", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn decide(client: &Client, what: &str, asked: DecideArgs, json: bool) -> Result<()> {
    let DecideArgs { id, candidate, reason } = asked;
    let asked = CandidateRequest { candidate_sha256: candidate, reason };
    let study = client.decide(&named(&id)?, what, &asked).await?;
    let told = if what == "approve" { "approved" } else { "refused" };
    show::answer(json, &study, |s| {
        format!("the candidate of round {} of {} is {told}", s.round, s.id)
    })
}

async fn study(client: &Client, command: StudyCommand, json: bool) -> Result<ExitCode> {
    match command {
        StudyCommand::Check { file } => {
            read_study(&file)?;
        }
        StudyCommand::Submit { file } => {
            // What is wrong with the file is said here, before anybody is asked.
            let (text, _) = read_study(&file)?;
            let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
            let study = client.submit(text, &name).await?;
            show::answer(json, &study, |s| {
                format!("{} runs; `falaj study watch {}` follows it", s.id, s.id)
            })?;
        }
        StudyCommand::List => show::answer(json, &client.studies().await?, studies_table)?,
        StudyCommand::Show { id } => {
            show::answer(json, &client.study(&named(&id)?).await?, study_facts)?;
        }
        StudyCommand::Watch { id } => return watch(client, &named(&id)?, json).await,
        StudyCommand::Rounds { id } => {
            show::answer(json, &client.rounds(&named(&id)?).await?, rounds::table)?;
        }
        StudyCommand::Figures(asked) => asked.run(client, json).await?,
        StudyCommand::Approve(asked) => decide(client, "approve", asked, json).await?,
        StudyCommand::Refuse(asked) => decide(client, "reject", asked, json).await?,
        StudyCommand::Stop { id } => {
            let study = client.stop(&named(&id)?).await?;
            // The round is closed first, so the study may still be on its way to `stopped`.
            show::answer(json, &study, |s| format!("{} stops; its models stay", s.id))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn model(client: &Client, command: ModelCommand, json: bool) -> Result<()> {
    match command {
        ModelCommand::List { id } => {
            show::answer(json, &client.models(&named(&id)?).await?, models_table)
        }
        ModelCommand::Download { id, round, output, to_place } => {
            let answer = client.model(&named(&id)?, round, to_place).await?;
            let promised: Digest = answer
                .headers()
                .get(MODEL_SHA256)
                .and_then(|digest| digest.to_str().ok()?.parse().ok())
                .context("the coordinator did not name the model's digest")?;
            let check = |hash: ParamsHash| {
                let found = hash.finish();
                ensure!(
                    found == promised,
                    "the model is damaged: its parameters have digest {found}, {promised} was promised"
                );
                Ok(())
            };
            let bytes = save(answer, &output, json, ParamsHash::feed, check).await?;
            let answer =
                json!({ "file": output, "bytes": bytes, "model_sha256": promised.to_string() });
            show::answer(json, &answer, |_| {
                let digest = promised.to_string();
                format!(
                    "{} ({}), model {}",
                    output.display(),
                    show::bytes(bytes),
                    show::short(&digest)
                )
            })
        }
        ModelCommand::Export(args) => export::run(client, args, json).await,
        ModelCommand::Version(command) => versions::run(client, command, json).await,
    }
}

async fn person(client: &Client, command: PersonCommand, json: bool) -> Result<()> {
    match command {
        PersonCommand::List => show::answer(json, &client.persons().await?, |page| {
            let row = |p: &rest::Person| [p.person.clone(), p.id.clone()];
            show::table(["PERSON", "WHO"], page.items.iter().map(row))
        }),
        PersonCommand::Erase { person, article } => {
            let done = client.erase(&rest::ErasureRequest { person, article }).await?;
            show::answer(json, &done, |done| {
                format!("{} is erased, entry {} says so", done.person, done.index)
            })
        }
    }
}

async fn hold(client: &Client, command: HoldCommand, json: bool) -> Result<()> {
    match command {
        HoldCommand::Place { person, study, article } => {
            let hold = client.place_hold(&rest::HoldRequest { person, study, article }).await?;
            show::answer(json, &hold, |hold| {
                format!(
                    "hold {} stands on {}; `falaj hold release` ends it",
                    hold.hold, hold.object
                )
            })
        }
        HoldCommand::Release { hold } => {
            let hold = client.release_hold(&hold).await?;
            show::answer(json, &hold, |hold| {
                format!("hold {} on {} is released", hold.hold, hold.object)
            })
        }
        HoldCommand::List => show::answer(json, &client.holds().await?, |page| {
            let row = |h: &rest::Hold| [h.hold.clone(), h.object.clone(), h.article.clone()];
            show::table(["HOLD", "ON", "ARTICLE"], page.items.iter().map(row))
        }),
    }
}

async fn site(client: &Client, command: SiteCommand, json: bool) -> Result<()> {
    match command {
        SiteCommand::List => show::answer(json, &client.sites().await?, sites_table),
        SiteCommand::Revoke { subject, reason } => {
            let done = client.revoke(&rest::RevocationRequest { subject, reason }).await?;
            show::answer(json, &done, |done| {
                format!("{} is revoked; entry {} of the log says so", done.subject, done.index)
            })
        }
        SiteCommand::Reinstate { subject, reason } => {
            let was = client.reinstate(&rest::RevocationRequest { subject, reason }).await?;
            show::answer(json, &was, |was| {
                format!("{} is revoked no longer; it was since {}", was.subject, was.at)
            })
        }
        SiteCommand::EnrollToken { name, at_place, ttl } => {
            let place = at_place.to_string();
            let asked = rest::EnrolmentTokenRequest { name, place, ttl_s: ttl };
            let made = client.enrolment_token(&asked).await?;
            if !json {
                eprintln!(
                    "for {}, until {}; its number in the log: {}",
                    made.site, made.until, made.id
                );
            }
            show::answer(json, &made, |made| made.token.clone())
        }
        SiteCommand::Tokens => show::answer(json, &client.enrolment_tokens().await?, |page| {
            let row = |t: &rest::EnrolmentTokenState| {
                [t.id.clone(), t.site.clone(), t.until.clone(), t.state.clone()]
            };
            show::table(["NUMBER", "SITE", "UNTIL", "STATE"], page.items.iter().map(row))
        }),
        SiteCommand::WithdrawToken { token } => {
            show::answer(json, &client.withdraw_token(&token).await?, |done| {
                format!("token {} for {} cannot be used any more", done.id, done.site)
            })
        }
        SiteCommand::Revocations => show::answer(json, &client.revocations().await?, |page| {
            let row = |r: &rest::Revocation| {
                [r.subject.clone(), r.at.clone(), r.reason.clone(), r.index.to_string()]
            };
            show::table(["WHO", "SINCE", "REASON", "ENTRY"], page.items.iter().map(row))
        }),
    }
}

/// Approves something, for somebody.
async fn give(client: &Client, args: GiveArgs, json: bool) -> Result<()> {
    let asked = rest::ApprovalRequest {
        action: args.action,
        study: args.study,
        version: args.version,
        stage: args.stage.map(|stage| stage.as_str().to_owned()),
        whom: args.whom,
        place: args.to_place.map(|place| place.to_string()),
        ttl_s: Some(args.ttl),
    };
    show::answer(json, &client.approve(&asked).await?, |a| {
        format!(
            "approval {}: {} by {}, to {}, until {}; entry {} of the log says so",
            a.approval,
            approved(a),
            a.whom,
            a.place,
            a.until,
            a.index
        )
    })
}

/// What an approval is of.
fn approved(a: &rest::Approval) -> String {
    match (&a.study, a.version, &a.stage) {
        (Some(study), Some(version), Some(stage)) => {
            format!("{} of {study}, version {version}, to {stage}", a.action)
        }
        (Some(study), ..) => format!("{} of {study}", a.action),
        _ => a.action.clone(),
    }
}

async fn approval(client: &Client, command: ApprovalCommand, json: bool) -> Result<()> {
    match command {
        ApprovalCommand::Give(args) => give(client, args, json).await,
        ApprovalCommand::Withdraw { approval } => {
            let was = client.withdraw(&approval).await?;
            show::answer(json, &was, |a| {
                format!(
                    "{} by {}, to {}, is approved no longer by {}",
                    approved(a),
                    a.whom,
                    a.place,
                    a.by
                )
            })
        }
        ApprovalCommand::List => show::answer(json, &client.approvals().await?, |page| {
            let row = |a: &rest::Approval| {
                let a = a.clone();
                [a.approval.clone(), approved(&a), a.whom, a.place, a.by, a.until]
            };
            let columns = ["APPROVAL", "OF", "FOR", "TO", "BY", "UNTIL"];
            show::table(columns, page.items.iter().map(row))
        }),
    }
}

fn named(id: &str) -> Result<StudyId> {
    Ok(id.parse()?)
}

/// A study file's text and the study in it.
pub(crate) fn read_study(file: &Path) -> Result<(String, Study)> {
    let shown = file.display();
    let size = fs::metadata(file).with_context(|| format!("cannot read {shown}"))?.len();
    ensure!(size <= STUDY_BYTES_MAX as u64, "{shown} is larger than a study may be: 1 MiB");
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let study = falaj_proto::study::parse(&text, &shown.to_string())?;
    Ok((text, study))
}

/// What a study would do and cost.
fn study_plan(study: &Study) -> Result<Value> {
    let epsilon = if study.privacy.mechanism == Mechanism::None {
        None
    } else {
        let rounds = study.rounds.count;
        let training = study.cost_of_rounds(rounds)?.compose(&study.cost_of_joining()?);
        let cost = training.compose(&study.cost_of_evaluations(rounds)?);
        Some(cost.epsilon(study.privacy.delta)?.value())
    };
    Ok(json!({
        "study": study.id.as_str(),
        "params": study.manifest()?.params(),
        "rounds": study.rounds.count,
        "mechanism": study.privacy.mechanism.as_str(),
        "epsilon_planned": epsilon,
        "delta": study.privacy.delta,
    }))
}

fn plan_text(file: &Path, plan: &Value) -> String {
    let cost = plan["epsilon_planned"].as_f64().map_or_else(
        || "no protection".to_owned(),
        |e| format!("epsilon {} at delta {} per site", show::epsilon(e), plan["delta"]),
    );
    format!(
        "{} is sound: study {}, {} parameters, {} rounds, {cost}",
        file.display(),
        plan["study"].as_str().unwrap_or_default(),
        plan["params"],
        plan["rounds"]
    )
}

fn status_facts(s: &rest::Status) -> String {
    let mut facts = vec![
        ("coordinator", s.identity.clone()),
        ("version", s.version.clone()),
        ("started", s.started.clone()),
        ("sites connected", s.sites_connected.to_string()),
        ("studies running", s.studies_running.to_string()),
        ("log entries", s.log_size.to_string()),
        ("policy set", s.policy_set_sha256.clone()),
        ("log key", s.log_verifier_key.clone()),
    ];
    facts.extend(s.log_ml_dsa_key.clone().map(|key| ("second log key", key)));
    show::facts(&facts)
}

fn login_facts(login: &rest::Login, sign_in: &SignIn) -> String {
    show::facts(&[
        ("signed in as", login.identity.clone()),
        ("roles", login.roles.join(", ")),
        ("until", login.until.clone()),
        ("kept in", sign_in.folder.display().to_string()),
    ])
}

fn sites_table(page: &Page<rest::Site>) -> String {
    let row = |s: &rest::Site| {
        [
            s.id.clone(),
            s.connected.clone(),
            s.address.clone(),
            s.agent_version.clone(),
            s.datasets.join(", "),
        ]
    };
    show::table(["SITE", "CONNECTED", "ADDRESS", "AGENT", "DATA SETS"], page.items.iter().map(row))
}

fn studies_table(page: &Page<rest::Study>) -> String {
    let row = |s: &rest::Study| {
        let rounds = format!("{}/{}", s.round, s.rounds);
        [
            s.id.clone(),
            s.state.clone(),
            rounds,
            s.submitted.clone(),
            show::epsilons(&s.epsilon_by_site),
        ]
    };
    show::table(["STUDY", "STATE", "ROUND", "SUBMITTED", "EPSILON"], page.items.iter().map(row))
}

fn study_facts(s: &rest::Study) -> String {
    let sent: Vec<String> =
        s.bytes_by_site.iter().map(|(site, n)| format!("{site} {}", show::bytes(*n))).collect();
    let mut facts = vec![
        ("study", s.id.clone()),
        ("state", s.state.clone()),
        ("round", format!("{}/{}, {} gave a model", s.round, s.rounds, s.rounds_promoted)),
        ("submitted", format!("{} by {}", s.submitted, s.submitted_by)),
        ("file", s.study_sha256.clone()),
        ("model", s.model_sha256.clone()),
        ("epsilon", show::epsilons(&s.epsilon_by_site)),
        ("received", if sent.is_empty() { "-".into() } else { sent.join(", ") }),
    ];
    if let Some(patience) = &s.patience {
        facts.push(("patience", waiting(patience)));
    }
    if let Some(reason) = &s.reason {
        facts.insert(2, ("reason", reason.clone()));
    }
    show::facts(&facts)
}

/// How far a study is from its end by patience.
fn waiting(of: &rest::Patience) -> String {
    let rest::Patience { figure, improve_by, rounds, without, best } = of;
    let best = best.as_ref().map_or_else(
        || "no model has a figure yet".to_owned(),
        |best| format!("the best is round {}, {:.4} at its worse end", best.round, best.end),
    );
    format!("{without} of {rounds} rounds without {figure} better by {improve_by}; {best}")
}

fn models_table(page: &Page<rest::Model>) -> String {
    let row = |m: &rest::Model| {
        [m.round.to_string(), m.published.clone(), m.params.to_string(), m.model_sha256.clone()]
    };
    show::table(["ROUND", "PUBLISHED", "PARAMS", "SHA-256"], page.items.iter().map(row))
}
