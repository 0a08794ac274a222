//! Policies before they are in force: whether they fit their schema, decide as their cases say, and why they decide so;
//! and what they would have decided.

mod diff;

use crate::{args::Span, client::Client, show};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use falaj_core::{
    id::{Place, Role, SpiffeId, StudyId},
    registry::version::Stage,
    roles::{OperatorRole, Roles},
};
use falaj_policies::{
    Action, CASES, Cases, POLICIES, Party, Policies, Resource, Rule, SCHEMA, With,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Check, try, explain and compare policies; only the comparison asks a coordinator, for its log.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Check that the policies in a folder parse and fit their schema.
    #[command(after_help = "Example:\n  falaj policy check policies")]
    Check {
        /// The folder.
        policies: PathBuf,
    },
    /// Try every case of `coordinator_test.toml` beside the policies.
    ///
    /// Ends with code 1 when one is decided otherwise.
    #[command(after_help = "Example:\n  falaj policy test policies")]
    Test {
        /// The folder.
        policies: PathBuf,
    },
    /// Show what the policies decide about a request, which rules decide it, and which law they serve.
    ///
    /// Ends with code 1 when it is denied.
    #[command(
        after_help = "Examples:\n  falaj policy explain policies --who spiffe://health.example/gb/gb-lnd/site/london --action connect\n  falaj policy explain policies --who spiffe://health.example/ae-on/ae-az/site/hospital-1 --action study.join --study heart --mechanism none\n  falaj policy explain policies --who spiffe://health.example/ae-on/ae-az/operator/sara --role auditor --action log.export"
    )]
    Explain {
        /// The folder.
        policies: PathBuf,
        #[command(flatten)]
        request: Request,
    },
    /// Show which of the logged requests other policies would decide otherwise.
    ///
    /// Every request in the log, in each of its shards and in a span of time if one is given, is asked of both sets. Ends with code 1
    /// when one would be decided otherwise. Requests of people who were erased, and about studies that were submitted in a shard
    /// whose contents were deleted, cannot be asked again, and are counted.
    #[command(
        after_help = "Examples:\n  falaj policy diff policies new-policies\n  falaj --json policy diff policies new-policies --since 2026-01-01"
    )]
    Diff {
        /// The folder with the policies as they are.
        old: PathBuf,
        /// The folder with those that would come.
        new: PathBuf,
        #[command(flatten)]
        span: Span,
    },
}

/// What is asked.
#[derive(Debug, Args)]
pub(crate) struct Request {
    /// Who asks, by SPIFFE ID.
    #[arg(long, value_name = "ID")]
    who: String,
    /// A role that an operator has; give it again for each one. Every one when absent.
    #[arg(long, value_name = "ROLE")]
    role: Vec<OperatorRole>,
    /// What they want to do.
    #[arg(long)]
    action: String,
    /// Of which study; of the coordinator itself when absent.
    #[arg(long, requires = "mechanism")]
    study: Option<String>,
    /// How the study is protected, as its file says: `dp_sgd`, for example, or `none`.
    #[arg(long, requires = "study")]
    mechanism: Option<String>,
    /// Where a model or the log is taken to, or what is read of it passed on; where they are themselves when absent.
    #[arg(long, value_name = "PLACE")]
    to_place: Option<Place>,
    /// How many other people have approved that a model or the log is taken there, or a version promoted.
    #[arg(long, value_name = "N", default_value_t = 0)]
    approvals: usize,
    /// Where a version is to go on to: `staging`, `production` or `archived`.
    #[arg(long)]
    stage: Option<Stage>,
    /// Where the coordinator is.
    #[arg(long, default_value = "ae-on/ae-az", value_name = "PLACE")]
    coordinator: String,
}

/// Does what the command line says about policies.
///
/// # Errors
/// What is wrong, with the file.
pub(crate) async fn run(
    command: PolicyCommand,
    connect: impl FnOnce() -> Result<Client>,
    json: bool,
) -> Result<ExitCode> {
    match command {
        PolicyCommand::Diff { old, new, span } => {
            let sets = (load(&old)?, load(&new)?);
            diff::run(&connect()?, (&sets.0, &sets.1), &span, json).await
        }
        PolicyCommand::Check { policies } => {
            let set = load(&policies)?;
            let answer = json!({ "policy_set_sha256": set.digest().to_string(), "rules": set.rules().len() });
            show::answer(json, &answer, |_| {
                format!(
                    "{} rules that fit their schema; policy set {}",
                    set.rules().len(),
                    set.digest()
                )
            })?;
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Test { policies } => {
            let set = load(&policies)?;
            let cases = Cases::parse(&read(&policies, CASES)?)?;
            let wrong: Vec<String> =
                cases.mismatches(&set).iter().map(ToString::to_string).collect();
            let answer = json!({ "cases": cases.count(), "mismatches": wrong });
            show::answer(json, &answer, |_| {
                let mut lines = wrong.clone();
                lines.push(format!("{} cases, {} decided otherwise", cases.count(), wrong.len()));
                lines.join("\n")
            })?;
            Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        PolicyCommand::Explain { policies, request } => explain(&load(&policies)?, &request, json),
    }
}

fn explain(set: &Policies, request: &Request, json: bool) -> Result<ExitCode> {
    let who: SpiffeId = request.who.parse().with_context(|| format!("--who {}", request.who))?;
    let action: Action = match request.action.parse() {
        Ok(action) => action,
        Err(e) => {
            let known: Vec<&str> = Action::ALL.iter().map(|a| a.as_str()).collect();
            bail!("{e}; there are {}", known.join(", "))
        }
    };
    let here: Place = request
        .coordinator
        .parse()
        .with_context(|| format!("--coordinator {}", request.coordinator))?;
    let study: Option<StudyId> = match &request.study {
        Some(name) => Some(name.parse().with_context(|| format!("--study {name}"))?),
        None => None,
    };
    ensure!(
        // What is approved is a study's model, or the log.
        action == Action::ApprovalGive || study.is_none() == action.is_of_service(),
        "`{}` is asked of {}",
        action.as_str(),
        if action.is_of_service() {
            "the coordinator: leave out --study"
        } else {
            "a study: name it with --study and --mechanism"
        }
    );
    let resource = match (&study, &request.mechanism) {
        (Some(study), Some(mechanism)) => Resource::Study(study, mechanism),
        _ => Resource::Service,
    };
    let goes = action.is_somewhere() && action != Action::EndpointUse;
    ensure!(
        request.to_place.is_none() || goes,
        "`{}` takes nothing anywhere: leave out --to-place",
        action.as_str()
    );
    ensure!(
        request.role.is_empty() || who.role() == Role::Operator,
        "only an operator has roles: leave out --role"
    );
    let roles = match (who.role(), request.role.as_slice()) {
        (Role::Operator, []) => Roles::ALL,
        (_, roles) => roles.iter().copied().collect(),
    };
    let place = who.place();
    let to = request.to_place.as_ref().unwrap_or(place);
    let stage = request.stage.map_or("", Stage::as_str);
    let approvals = request.approvals;
    let with = With { destination: to, approvals, stage, ..With::of(&who) };
    let (decision, rules) = set.explain(&here, Party { id: &who, roles }, action, &resource, &with);
    let of = |rule: &Rule| json!({ "id": rule.id, "effect": effect(rule), "law": rule.law, "reason": rule.reason, "text": rule.text });
    let to = goes.then(|| to.to_string());
    let approvals = Action::TAKING.contains(&action).then_some(request.approvals);
    let answer = json!({
        "decision": if decision.allow { "allow" } else { "deny" },
        "rules": rules.iter().map(of).collect::<Vec<Value>>(),
        "reason": decision.reason,
        "attributes": {
            "principal.jurisdiction": place.jurisdiction(), "principal.region": place.region(),
            "principal.roles": (who.role() == Role::Operator).then(|| roles.to_string()),
            "principal.name": who.name(), "principal.trust_domain": who.trust_domain(),
            "resource.jurisdiction": here.jurisdiction(), "resource.mechanism": request.mechanism,
            "context.destination": to, "context.approvals": approvals,
            "context.stage": request.stage.map(Stage::as_str),
        },
        "policy_set_sha256": decision.policy_set.to_string(),
    });
    show::answer(json, &answer, |answer| text(answer, decision.allow, &decision.reason, &rules))?;
    Ok(if decision.allow { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const fn effect(rule: &Rule) -> &'static str {
    if rule.forbids { "forbid" } else { "permit" }
}

fn text(answer: &Value, allow: bool, reason: &str, rules: &[Rule]) -> String {
    let mut lines = vec![if allow { "allowed".to_owned() } else { format!("denied: {reason}") }];
    for rule in rules {
        lines.push(String::new());
        lines.push(format!("{} {}s:", rule.id, effect(rule)));
        lines.extend(rule.text.lines().map(|line| format!("  {line}")));
    }
    lines.push("\nwhat the rules saw:".to_owned());
    let attributes = answer["attributes"].as_object().into_iter().flatten();
    for (name, value) in attributes.filter(|(_, value)| !value.is_null()) {
        lines.push(format!("  {name} = {value}"));
    }
    lines.join("\n")
}

fn read(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn load(folder: &Path) -> Result<Policies> {
    let mut files = Vec::new();
    for name in [POLICIES, SCHEMA] {
        files.push((name.to_owned(), read(folder, name)?.into_bytes()));
    }
    Policies::parse(&files).with_context(|| format!("the policies in {}", folder.display()))
}
