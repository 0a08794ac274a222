//! What other policies would have decided: every logged request, asked of two sets.

use crate::{
    args::{Filter, Span},
    client::Client,
    log::{entries, with_contents},
    show,
};
use anyhow::{Context as _, Result};
use falaj_core::{
    audit::{
        Entry, Kind,
        person::{Disclosure, is_person},
    },
    evidence::Evidence,
    id::{Place, SpiffeId, StudyId},
    roles::Roles,
};
use falaj_policies::{Action, Party, Policies, Resource, With};
use falaj_proto::rest::LogEntry;
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    process::ExitCode,
};

/// Who, by which roles, what, of which study, where to, how it was and would be decided, and in which shard it stands.
type Change = [String; 8];

/// A request as both sets are asked about it: five words, how its study is protected, what was known of the connection, the
/// endpoint, and how many people had approved it.
type Request = ([String; 5], String, Option<Evidence>, String, usize);

/// The requests that were looked at.
#[derive(Default)]
struct Asked {
    requests: u64,
    /// Requests by people who were erased, and about studies of which the log says nothing any more.
    unknown: u64,
    /// The mechanism of each study, as it was submitted.
    mechanisms: BTreeMap<String, String>,
    /// How often, and the first and the last entry.
    changes: BTreeMap<Change, (u64, u64, u64)>,
    /// Decisions by request: most are asked over and over.
    known: HashMap<Request, Option<(String, String)>>,
}

/// Asks both sets about every logged request in a span of time, of every shard that has contents, and shows where they differ. Ends
/// with code 1 when they do.
///
/// # Errors
/// When the log cannot be asked, or an entry cannot be read.
pub(super) async fn run(
    client: &Client,
    (old, new): (&Policies, &Policies),
    span: &Span,
    json: bool,
) -> Result<ExitCode> {
    let identity = client.status().await?.identity;
    let identity: SpiffeId = identity.parse().context("the coordinator's identity")?;
    let shards = with_contents(client).await?;
    let mut asked = Asked::default();
    // A study of an earlier shard is asked about in a later one.
    for shard in &shards {
        asked.learn(client, &shard.origin).await?;
    }
    for origin in shards.iter().map(|shard| &*shard.origin) {
        for decision in ["allow", "deny"] {
            let decision = Some(decision.to_owned());
            let filter = Filter { decision, span: span.clone(), ..Filter::default() };
            entries(client, &filter, Some(origin), 0, None, |page| {
                let here = (identity.place(), origin);
                page.iter().try_for_each(|found| asked.take(found, (old, new), here))
            })
            .await?;
        }
    }
    asked.show(json)
}

impl Asked {
    /// How the studies that were submitted in a shard are protected.
    async fn learn(&mut self, client: &Client, origin: &str) -> Result<()> {
        let submitted = Some(Kind::StudySubmitted.as_str().to_owned());
        let filter = Filter { kind: submitted, ..Filter::default() };
        entries(client, &filter, Some(origin), 0, None, |page| {
            for LogEntry { entry, .. } in page {
                let text = |name: &str| entry[name].as_str().map(str::to_owned);
                self.mechanisms.extend(text("study").zip(text("mechanism")));
            }
            Ok(())
        })
        .await
    }

    /// What it came to. Ends with code 1 when anything would be decided otherwise.
    fn show(&self, json: bool) -> Result<ExitCode> {
        let row = |(change, (count, first, last)): (&Change, &(u64, u64, u64))| {
            let [who, roles, action, study, to, was, will, shard] = change.clone();
            [
                who,
                roles,
                action,
                study,
                to,
                was,
                will,
                shard,
                count.to_string(),
                first.to_string(),
                last.to_string(),
            ]
        };
        let rows: Vec<_> = self.changes.iter().map(row).collect();
        let names = [
            "who",
            "roles",
            "action",
            "study",
            "destination",
            "old",
            "new",
            "shard",
            "count",
            "first",
            "last",
        ];
        let object = |row: &[String; 11]| {
            let members =
                names.iter().zip(row).map(|(name, cell)| ((*name).to_owned(), json!(cell)));
            members.collect::<serde_json::Map<_, _>>()
        };
        let answer = json!({
            "requests": self.requests,
            "unknown": self.unknown,
            "changes": rows.iter().map(object).collect::<Vec<_>>(),
        });
        show::answer(json, &answer, |_| {
            let mut text = String::new();
            if !rows.is_empty() {
                text = show::table(
                    names.map(str::to_uppercase).each_ref().map(String::as_str),
                    rows.clone(),
                );
            }
            text + &format!(
                "{} logged requests, {} of which would be decided otherwise; {} could not be asked again\n",
                self.requests,
                self.changes.values().map(|(count, ..)| count).sum::<u64>(),
                self.unknown
            )
        })?;
        Ok(if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Asks about an entry of a shard, at a coordinator that is here.
    fn take(
        &mut self,
        found: &LogEntry,
        sets: (&Policies, &Policies),
        (here, shard): (&Place, &str),
    ) -> Result<()> {
        let index = found.index;
        let entry = Entry::parse(found.entry.to_string().as_bytes())
            .with_context(|| format!("entry {index} cannot be read"))?;
        let Ok(action) = entry.body().parsed::<Action>("action") else { return Ok(()) };
        self.requests += 1;
        let entry = match &found.personal {
            None => entry,
            Some(personal) => Disclosure::parse(personal.as_bytes())
                .and_then(|disclosure| entry.disclosed(&disclosure))
                .with_context(|| format!("entry {index}: do not believe this answer"))?,
        };
        let named = if action.is_of_service() { None } else { entry.body().text("study").ok() };
        let study = named.unwrap_or_default();
        let told = entry.body().text("mechanism").ok();
        let known = told.or_else(|| self.mechanisms.get(study).map(String::as_str));
        // Of no study, it needs none.
        let mechanism = known.or_else(|| study.is_empty().then_some(""));
        let (Some(who), Some(mechanism)) = (entry.requester(), mechanism) else {
            self.unknown += 1;
            return Ok(());
        };
        let destination = entry.destination().filter(|_| action.is_somewhere());
        let endpoint = entry.body().find_text("endpoint").unwrap_or_default();
        let to = destination.as_ref().unwrap_or(who.place());
        let evidence = entry.evidence().with_context(|| format!("entry {index} cannot be read"))?;
        let named = destination.as_ref().map(ToString::to_string).unwrap_or_default();
        let roles = entry.actor_roles();
        let roles = roles.with_context(|| format!("entry {index} cannot be read"))?;
        // Before there were roles, everybody could do what those can who have every one.
        let roles = roles.unwrap_or(Roles::ALL);
        let told = if is_person(&who) { roles.to_string() } else { String::new() };
        let key = [who.to_string(), told, action.as_str().to_owned(), study.to_owned(), named];
        let approvals = entry.approvals();
        let approvals = approvals.with_context(|| format!("entry {index} cannot be read"))?.len();
        // No request has both.
        let stage = entry.body().find_text("stage").filter(|_| action == Action::VersionPromote);
        let stage = stage.unwrap_or_default();
        let key = (key, mechanism.to_owned(), evidence, format!("{endpoint}{stage}"), approvals);
        let decided = self.known.entry(key.clone()).or_insert_with(|| {
            let study: Option<StudyId> = study.parse().ok();
            let resource = match &study {
                Some(study) => Resource::Study(study, mechanism),
                None => Resource::Service,
            };
            let said = |set: &Policies| {
                let evidence = key.2.as_ref();
                let with = With { destination: to, evidence, endpoint, approvals, stage };
                let who = Party { id: &who, roles };
                let said = set.decide_with(here, who, action, &resource, &with);
                let word = if said.allow { "allow" } else { "deny" };
                let by = if said.policies.is_empty() {
                    "no rule".into()
                } else {
                    said.policies.join(", ")
                };
                (said.allow, format!("{word} ({by})"))
            };
            let (was, will) = (said(sets.0), said(sets.1));
            (was.0 != will.0).then_some((was.1, will.1))
        });
        if let Some((was, will)) = decided {
            let [who, roles, action, study, to] = key.0;
            let (was, will, shard) = (was.clone(), will.clone(), shard.to_owned());
            let change = [who, roles, action, study, to, was, will, shard];
            let (count, first, last) = self.changes.entry(change).or_insert((0, index, index));
            *count += 1;
            *first = index.min(*first);
            *last = index.max(*last);
        }
        Ok(())
    }
}
