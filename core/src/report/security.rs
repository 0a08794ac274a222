//! The log itself, transport and certificates, policies, incidents, third parties: E5, E7, E8, E11 and E15.

use super::{
    About, Seen,
    charts::Charts,
    count_of,
    parts::{All, Level, ROWS_MAX, Section, Tally},
    people,
    stamps::Stamps,
};
use crate::{
    audit::{Kind, person::Person},
    canon::Canon,
    id::Digest,
    succession::{SUCCESSIONS_MAX, Succession},
};
use std::collections::{BTreeMap, BTreeSet};

/// A day in milliseconds.
const DAY_MS: i64 = 86_400_000;

/// What protected connections, and by which rules was decided.
#[derive(Default)]
pub(super) struct Security {
    entries: Tally,
    stamps: Stamps,
    /// TLS version and key exchange of those who were let in.
    transport: BTreeMap<(String, String), Tally>,
    transported: Tally,
    /// Certificates by which somebody was let in.
    used: BTreeMap<Digest, Tally>,
    /// The people whose certificates they are, where that is disclosed.
    owners: BTreeMap<Digest, Person>,
    /// Files of a policy set: name, digest, bytes.
    files: BTreeMap<Digest, BTreeSet<(String, Digest, u64)>>,
    /// When each set came into force.
    in_force: BTreeMap<Digest, Tally>,
    /// What each rule serves.
    laws: BTreeMap<String, String>,
    /// What each rule decided: allowed and refused.
    rules: BTreeMap<String, [u64; 2]>,
    /// Who was revoked and reinstated, by whom, and why: the first of them.
    revocations: Vec<Vec<Canon>>,
    revoked: Tally,
    /// Keys of the log that followed one another, and the shard that it goes on from.
    keys: Vec<Vec<Canon>>,
    /// What somebody has to look into: the first of them.
    incidents: Vec<Vec<Canon>>,
    incident: Tally,
    shard_before: Option<Vec<Canon>>,
}

impl Security {
    pub(super) fn policy(&mut self, set: Digest, file: &str, bytes: &[u8]) {
        let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
        self.files.entry(set).or_default().insert((file.to_owned(), digest, size));
        self.laws.extend(laws(&String::from_utf8_lossy(bytes)));
    }

    pub(super) fn take(&mut self, seen: &Seen<'_>) {
        let (body, index) = (seen.entry.body(), seen.index());
        self.entries.add(index);
        self.stamps.take(seen);
        if matches!(seen.kind(), Kind::CoordinatorStarted | Kind::PolicyLoaded)
            && let Ok(set) = body.parsed("policy_set_sha256")
        {
            self.in_force.entry(set).or_default().add(index);
        }
        let incident = match seen.kind() {
            Kind::PolicyRefused | Kind::GlassBroken | Kind::GlassMended => Some("reason"),
            Kind::AlertRaised => Some("alert"),
            _ => None,
        };
        if let Some(what) = incident {
            self.incident.add(index);
            if self.incidents.len() < ROWS_MAX {
                let texts = [seen.kind().as_str(), seen.text(what)].map(Canon::from);
                let when = [count_of(index), seen.entry.ts.as_str().into()];
                self.incidents.push(texts.into_iter().chain(when).collect());
            }
        }
        if matches!(seen.kind(), Kind::CertificateRevoked | Kind::CertificateReinstated) {
            self.revocation(seen);
        }
        if let Some(Ok(step)) = seen.succession.map(Succession::open) {
            self.succeeded(step, index);
        }
        let refused = usize::from(seen.decision != "allow");
        for id in seen.policies() {
            if let Some(counts) = self.rules.get_mut(id) {
                counts[refused] += 1;
            } else {
                self.rules.entry(id.to_owned()).or_default()[refused] += 1;
            }
        }
        if seen.kind() == Kind::ConnectionAdmitted {
            if let Some(cert) = seen.cert {
                self.used.entry(cert).or_default().add(index);
                self.owners.extend(seen.person.map(|person| (cert, person)));
            }
            let (version, group) = (seen.text("tls_version"), seen.text("tls_group"));
            if !version.is_empty() {
                self.transport.entry((version.into(), group.into())).or_default().add(index);
                self.transported.add(index);
            }
        }
    }

    fn revocation(&mut self, seen: &Seen<'_>) {
        self.revoked.add(seen.index());
        if self.revocations.len() == ROWS_MAX {
            return;
        }
        let whom = match (seen.entry.person(), &seen.site) {
            (Some(person), _) => people::name(person),
            (None, Some(site)) => site.to_string(),
            (None, None) => match seen.text("identity") {
                "" => seen.text("cert_sha256").to_owned(),
                identity => identity.to_owned(),
            },
        };
        let texts = [seen.kind().as_str().to_owned(), whom, seen.text("reason").to_owned()];
        let by = [seen.who(), seen.entry.ts.clone()];
        let cells = texts.into_iter().chain(by).map(Canon::Text);
        self.revocations.push(cells.chain([count_of(seen.index())]).collect());
    }

    fn succeeded(&mut self, step: Succession, index: u64) {
        match step.ended {
            Some((size, root)) => {
                let origin = step.from.name().into();
                self.shard_before = Some(vec![origin, count_of(size), root.to_string().into()]);
            }
            None if self.keys.len() < SUCCESSIONS_MAX => {
                let [before, after] = [step.from, step.to].map(|key| key.to_string().into());
                self.keys.push(vec![count_of(index), before, after]);
            }
            None => {}
        }
    }

    /// `log` is the whole log: its size, root, and the time of the last entry in range.
    pub(super) fn write(
        &self,
        sections: &mut All,
        about: &About,
        charts: &mut Charts,
        log: (u64, &Digest, &str),
    ) {
        let (tree_size, root_hash, now) = log;
        let [_, _, _, _, e5, _, e7, e8, _, _, e11, .., e15] = sections;
        e5.fact("E5.integrity", Level::Proven, self.entries);
        let witnesses = || {
            about.witnesses.iter().map(|(id, (size, time))| {
                vec![Canon::Text(id.clone()), count_of(*size), Canon::Text(time.clone())]
            })
        };
        let mut seen = Tally::default();
        about.witnesses.values().for_each(|(size, _)| seen.add(size.saturating_sub(1)));
        e5.fact("E5.witnesses", Level::Attested, seen);
        let head = [count_of(tree_size), root_hash.to_string().into()];
        e5.table("log", &["tree_size", "root_hash"], [head.to_vec()]);
        e5.table("shard_before", &["origin", "tree_size", "root_hash"], self.shard_before.clone());
        e5.table("log_keys", &["first", "key_before", "key_after"], self.keys.clone());
        e5.table("witnesses", &["witness", "tree_size", "time"], witnesses());
        // Without a witness the log alone says who takes part.
        e15.fact("E15.third_parties", Level::Recorded, self.stamps.all());
        e15.fact("E15.third_parties", Level::Attested, seen);
        e15.table("third_parties", &["witness", "tree_size", "time"], witnesses());
        self.stamps.write(e5, e15);

        e7.fact("E7.transport", Level::Recorded, self.transported);
        let transport = self.transport.iter().map(|((version, group), tally)| {
            let [count, first, last] = tally.cells();
            vec![Canon::Text(version.clone()), Canon::Text(group.clone()), count, first, last]
        });
        e7.table("transport", &["tls", "key_exchange", "count", "first", "last"], transport);
        self.certificates(e7, about, charts, now);
        e11.fact("E11.incidents", Level::Recorded, self.incident);
        let columns = ["kind", "reason", "index", "ts"];
        e11.first_of("incidents", &columns, self.incidents.clone(), self.incident.count);
        self.policies(e8);
    }

    fn certificates(&self, e7: &mut Section, about: &About, charts: &mut Charts, now: &str) {
        let mut held = Tally::default();
        let mut rows = Vec::new();
        let mut bars = Vec::new();
        for (cert, tally) in &self.used {
            let Some(holder) = about.holders.get(cert) else { continue };
            held.add(tally.last);
            // Times are written in one fixed form, so whole days follow from the difference.
            let days = (holder.until.as_millis() - holder.from.as_millis()).div_euclid(DAY_MS);
            let (from, until) = (holder.from.to_string(), holder.until.to_string());
            let over = *until < *now;
            let owner = self.owners.get(cert).map(|person| people::name(*person));
            let label = owner.clone().unwrap_or_else(|| holder.id.name().to_owned());
            bars.push((label, vec![days.to_string()]));
            rows.push(vec![
                owner.unwrap_or_else(|| holder.id.to_string()).into(),
                cert.to_string().into(),
                holder.issuer.to_string().into(),
                from.into(),
                until.into(),
                Canon::Int(days),
                if over { "expired".into() } else { "valid".into() },
            ]);
        }
        e7.fact("E7.certificates", Level::Attested, held);
        let columns =
            ["party", "certificate", "issuer", "valid_from", "valid_until", "days", "state"];
        e7.table("certificates", &columns, rows);
        e7.fact("E7.revocation", Level::Recorded, self.revoked);
        let columns = ["kind", "revoked", "reason", "revoked_by", "ts", "index"];
        e7.first_of("revocations", &columns, self.revocations.clone(), self.revoked.count);
        bars.sort();
        charts.over_names("chart_certificates", &["days"], bars);
    }

    fn policies(&self, e8: &mut Section) {
        let mut known = Tally::default();
        let mut rows = Vec::new();
        for (set, tally) in &self.in_force {
            for (file, digest, bytes) in self.files.get(set).into_iter().flatten() {
                known.add(tally.last);
                let texts = [set.to_string(), file.clone(), digest.to_string()].map(Canon::Text);
                let first = count_of(tally.first);
                rows.push(texts.into_iter().chain([count_of(*bytes), first]).collect());
            }
        }
        e8.fact("E8.policies", Level::Proven, known);
        e8.table("policies", &["policy_set", "file", "digest", "bytes", "first"], rows);
        let rules = self.rules.iter().map(|(id, [allowed, refused])| {
            let law = self.laws.get(id).cloned().unwrap_or_default();
            vec![id.as_str().into(), law.into(), count_of(*allowed), count_of(*refused)]
        });
        e8.table("decisions", &["policy", "law", "allow", "deny"], rules);
    }
}

/// The laws that Cedar rules are annotated with: each `@id("…")` with the `@law("…")` beside it.
fn laws(text: &str) -> Vec<(String, String)> {
    let value = |line: &str, key: &str| {
        let rest = line.trim().strip_prefix(key)?.strip_prefix("(\"")?;
        Some(rest.strip_suffix("\")")?.to_owned())
    };
    let (mut found, mut id) = (Vec::new(), None);
    for line in text.lines() {
        if let Some(named) = value(line, "@id") {
            id = Some(named);
        } else if let (Some(law), Some(id)) = (value(line, "@law"), &id) {
            found.push((id.clone(), law));
        }
    }
    found
}
