//! What an operator watches by holds to what there is: every metric that the rules, the alerts and the dashboard name is one that the
//! coordinator or an agent gives, with these labels and words, and the table of metrics is the whole list. Where `promtool` is, it
//! takes all of them, and tries each alert.

use anyhow::{Context as _, Result, bail, ensure};
use falaj_coordinator::metrics::Metrics;
use falaj_tests::{
    federation::{repository, text},
    skipped,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

const RULES: &str = "deploy/prometheus/falaj.rules.yaml";
const RULES_TEST: &str = "deploy/prometheus/falaj.rules_test.yaml";
const DASHBOARD: &str = "deploy/grafana/falaj.json";
const TABLE: &str = "docs/METRICS.md";

/// Words of `PromQL` that stand where a metric's name could.
const WORDS: [&str; 13] = [
    "and", "or", "unless", "offset", "bool", "sum", "min", "max", "avg", "count", "topk",
    "quantile", "inf",
];
/// Those before labels in brackets.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// What Prometheus adds to every series that it scrapes.
const SCRAPED: [&str; 2] = ["job", "instance"];
/// What Grafana itself puts in.
const GRAFANA: [&str; 1] = ["__rate_interval"];

/// Metrics of a coordinator to which everything has happened once.
fn touched() -> Metrics {
    let metrics = Metrics::default();
    metrics.round("promoted");
    metrics.update("accepted");
    metrics.connection("admitted");
    metrics.timestamp("granted");
    metrics.outcome("complete");
    metrics.report("made");
    metrics.policy_set("loaded");
    metrics.witness_quorum(true, Duration::from_secs(1));
    metrics.witness_asked("w.test/1", "cosigned");
    metrics.witness_cosigned("w.test/1", 1);
    metrics.alert("glass_broken");
    metrics.epsilon("heart", "hospital-1", 1.0);
    metrics.committed(1, Duration::from_millis(1));
    metrics.commit(None);
    metrics.checkpoint(Some(1));
    metrics.gate("roc_auc", true);
    metrics.verdict("published");
    metrics.evaluation("accepted");
    metrics.approval("version.promote", "given");
    metrics.quote("as_declared");
    metrics.ends("site", Some(0));
    metrics
}

/// What is there to be asked for.
struct There {
    /// Of each metric its name in the table, its type and its labels.
    metrics: BTreeMap<String, (String, BTreeSet<String>)>,
    /// Of each series its labels.
    series: BTreeMap<String, BTreeSet<String>>,
    /// The source, in which words that are labels' values stand.
    source: String,
}

impl There {
    /// As the coordinator's registry encodes itself, and as agents say in their source: no test can reach their library.
    fn look() -> Result<Self> {
        let metrics = touched();
        let text = metrics.text();
        let mut there =
            Self { metrics: BTreeMap::new(), series: BTreeMap::new(), source: String::new() };
        let mut kinds = BTreeMap::new();
        for line in text.lines() {
            if let Some(of) = line.strip_prefix("# TYPE ") {
                let (name, kind) = of.split_once(' ').context("a type")?;
                kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (name, labels) = sample(line)?;
                there.series.insert(name, labels);
            }
        }
        let registered: BTreeSet<_> =
            metrics.names().iter().map(|name| format!("falaj_{name}")).collect();
        ensure!(
            kinds.keys().eq(&registered),
            "registered is {registered:?}; to these everything has happened: {:?}",
            kinds.keys()
        );
        for (name, kind) in kinds {
            let shown = if kind == "counter" { format!("{name}_total") } else { name.clone() };
            let of = if kind == "histogram" { format!("{name}_count") } else { shown.clone() };
            let labels = there.series.get(&of).with_context(|| format!("{name} has no series"))?;
            there.metrics.insert(shown, (kind, labels.clone()));
        }
        let agent = fs::read_to_string(repository().join("client/src/egress.rs"))?;
        let named: Vec<&str> = agent.split("# TYPE ").skip(1).collect();
        for after in &named {
            let name = after.split_once(" counter\\n").context("agents have counters alone")?.0;
            let series = format!("{name}_total");
            ensure!(agent.contains(&format!("\"{series}{{{{kind=")), "{series} has another label");
            let labels = BTreeSet::from(["kind".to_owned()]);
            there.series.insert(series.clone(), labels.clone());
            there.metrics.insert(series, ("counter".into(), labels));
        }
        ensure!(named.len() == 2, "agents have {} metrics", named.len());
        for room in ["coordinator/src", "core/src", "certs/src", "proto/src", "policies/src"] {
            read_below(&repository().join(room), &mut there.source)?;
        }
        Ok(there)
    }

    /// Checks an expression; `recorded` are the names of what rules record.
    fn check(&self, expr: &str, recorded: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let asked = asked(expr).with_context(|| expr.to_owned())?;
        let mut names = BTreeSet::new();
        ensure!(!asked.selectors.is_empty(), "`{expr}` asks for no metric");
        for (name, matchers) in &asked.selectors {
            let labels = self.series.get(name);
            ensure!(
                labels.is_some() || recorded.contains(name),
                "`{expr}` asks for {name}, which nobody gives"
            );
            for (label, value) in matchers {
                let known = labels.is_none_or(|labels| labels.contains(label));
                ensure!(
                    known || SCRAPED.contains(&label.as_str()),
                    "`{expr}`: {name} has no label {label}"
                );
                for word in value.split('|').filter(|_| !value.starts_with('$')) {
                    let said = format!("\"{word}\"");
                    ensure!(self.source.contains(&said), "`{expr}`: nobody says {said}");
                }
            }
            names.insert(name.clone());
        }
        for label in &asked.groups {
            let known = label == "le" || self.series.values().any(|labels| labels.contains(label));
            ensure!(
                known || SCRAPED.contains(&label.as_str()),
                "`{expr}` groups by {label}, which nothing has"
            );
        }
        Ok(names)
    }

    /// The metric of which a series is.
    fn metric_of(&self, series: &str) -> Option<&String> {
        let suffixes = ["_bucket", "_sum", "_count"];
        let stem = suffixes.iter().find_map(|suffix| series.strip_suffix(suffix));
        let mut names = [Some(series), stem].into_iter().flatten();
        names.find_map(|name| self.metrics.get_key_value(name)).map(|(name, _)| name)
    }
}

/// The name of a sample, and those of its labels.
fn sample(line: &str) -> Result<(String, BTreeSet<String>)> {
    let (series, _) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
    let Some((name, labels)) = series.split_once('{') else {
        return Ok((series.to_owned(), BTreeSet::new()));
    };
    // What is not between quotes is a name, and marks.
    let labels = labels.split('"').step_by(2);
    let labels =
        labels.map(|label| label.trim_matches(&[',', '=', '}'][..])).filter(|l| !l.is_empty());
    let labels = labels.filter(|label| *label != "le").map(str::to_owned).collect();
    Ok((name.to_owned(), labels))
}

/// The text of all Rust files below a folder.
fn read_below(folder: &Path, into: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_below(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// What an expression asks for.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    /// Names, and the labels that are matched, with what.
    selectors: Vec<(String, Vec<(String, String)>)>,
    /// Labels by which is grouped or matched.
    groups: Vec<String>,
}

/// Reads an expression so far as its names go: whatever is a word, and none of the language's own or a function, is a metric's name.
fn asked(expr: &str) -> Result<Asked> {
    let mut asked = Asked::default();
    let mut rest = expr;
    while let Some(first) = rest.chars().next() {
        if first == '"' || first == '\'' {
            rest = until(&rest[1..], first)?.1;
        } else if first == '[' {
            rest = until(&rest[1..], ']')?.1;
        } else if first == '{' {
            bail!("a selector without a name");
        } else if first.is_ascii_digit() {
            // A duration such as `15m` is a number here.
            rest = word(rest, |c| c.is_ascii_alphanumeric() || c == '.').1;
        } else if first.is_ascii_alphabetic() || first == '_' || first == ':' {
            let (name, after) = word(rest, |c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
            rest = after.trim_start();
            if GROUPING.contains(&name) {
                if let Some(list) = rest.strip_prefix('(') {
                    let (labels, after) = until(list, ')')?;
                    let labels = labels.split(',').map(str::trim).filter(|l| !l.is_empty());
                    asked.groups.extend(labels.map(str::to_owned));
                    rest = after;
                }
            } else if !WORDS.contains(&name) && !rest.starts_with('(') {
                let mut matchers = Vec::new();
                if let Some(inside) = rest.strip_prefix('{') {
                    (matchers, rest) = matched(inside)?;
                }
                asked.selectors.push((name.to_owned(), matchers));
            }
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(asked)
}

/// The matchers of a selector, and what comes after it.
fn matched(mut rest: &str) -> Result<(Vec<(String, String)>, &str)> {
    let mut matchers = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',', '\n']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((matchers, after));
        }
        let (label, after) = word(rest, |c| c.is_ascii_alphanumeric() || c == '_');
        ensure!(!label.is_empty(), "`{rest}` is no matcher");
        let value = after.trim_start_matches(['=', '!', '~']);
        let value = value.strip_prefix('"').with_context(|| format!("`{after}` has no value"))?;
        let (value, after) = until(value, '"')?;
        matchers.push((label.to_owned(), value.to_owned()));
        rest = after;
    }
}

fn until(text: &str, end: char) -> Result<(&str, &str)> {
    text.split_once(end).with_context(|| format!("`{text}` lacks `{end}`"))
}

fn word(text: &str, is_part: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c: char| !is_part(c)).unwrap_or(text.len()))
}

fn yaml(path: &str) -> Result<Value> {
    let text = fs::read_to_string(repository().join(path))?;
    serde_saphyr::from_str(&text).with_context(|| path.to_owned())
}

fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(repository().join(DASHBOARD))?)?)
}

fn list<'a>(value: &'a Value, member: &str) -> &'a [Value] {
    value[member].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn word_of<'a>(value: &'a Value, member: &str) -> Result<&'a str> {
    value[member].as_str().with_context(|| format!("no `{member}` in {value}"))
}

/// Every rule.
fn rules() -> Result<Vec<Value>> {
    let file = yaml(RULES)?;
    let rules: Vec<Value> =
        list(&file, "groups").iter().flat_map(|group| list(group, "rules")).cloned().collect();
    ensure!(rules.len() > 30, "{} rules", rules.len());
    Ok(rules)
}

/// The names of what rules record.
fn recorded(rules: &[Value]) -> BTreeSet<String> {
    rules.iter().filter_map(|rule| rule["record"].as_str()).map(str::to_owned).collect()
}

/// The expressions of the dashboard, by the panels' titles.
fn shown(dashboard: &Value) -> Result<Vec<(String, String)>> {
    let mut shown = Vec::new();
    for panel in list(dashboard, "panels").iter().filter(|panel| panel["type"] != "row") {
        let title = word_of(panel, "title")?;
        ensure!(!list(panel, "targets").is_empty(), "{title} shows nothing");
        for target in list(panel, "targets") {
            shown.push((title.to_owned(), word_of(target, "expr")?.to_owned()));
        }
    }
    ensure!(shown.len() > 30, "{} expressions", shown.len());
    Ok(shown)
}

#[test]
fn rules_and_dashboard_ask_for_what_is_there_and_leave_nothing_out() -> Result<()> {
    let (there, rules) = (There::look()?, rules()?);
    let recorded = recorded(&rules);
    let mut names = BTreeSet::new();
    for rule in &rules {
        names.extend(there.check(word_of(rule, "expr")?, &recorded)?);
    }
    for (title, expr) in shown(&dashboard()?)? {
        names.extend(there.check(&expr, &recorded).context(title)?);
    }
    let asked: BTreeSet<_> = names.iter().filter_map(|name| there.metric_of(name)).collect();
    for name in there.metrics.keys() {
        ensure!(asked.contains(name), "neither a rule nor the dashboard looks at {name}");
    }
    for name in &recorded {
        ensure!(names.contains(name), "{name} is recorded, and nobody looks at it");
    }
    Ok(())
}

#[test]
fn a_metric_a_label_or_a_word_that_nobody_gives_is_found() -> Result<()> {
    let there = There::look()?;
    let recorded = BTreeSet::from(["falaj:rounds_over:increase1h".to_owned()]);
    for good in [
        "sum by (job, outcome) (increase(falaj_rounds_total{outcome=~\"promoted|failed\"}[1h])) > 0",
        "falaj:rounds_over:increase1h{outcome=\"failed\"} >= 3",
        "histogram_quantile(0.5, sum by (le) (rate(falaj_commit_seconds_bucket[5m])))",
        "a_function(falaj_versions{instance=~\"$instance\", stage=\"production\"} offset 5m)",
    ] {
        there.check(good, &recorded)?;
    }
    for (bad, why) in [
        ("increase(falaj_round_total[1h]) > 0", "falaj_round_total, which nobody gives"),
        ("increase(flaj_rounds_total[1h]) > 0", "flaj_rounds_total, which nobody gives"),
        ("falaj_rounds{outcome=\"failed\"}", "falaj_rounds, which nobody gives"),
        ("falaj_log_entries_total > 0", "falaj_log_entries_total, which nobody gives"),
        ("falaj:rounds_over:increase2h", "falaj:rounds_over:increase2h, which nobody gives"),
        ("falaj_rounds_total{stage=\"failed\"}", "falaj_rounds_total has no label stage"),
        ("falaj_rounds_total{outcome=\"faild\"}", "nobody says \"faild\""),
        ("falaj_rounds_total{outcome!~\"failed|promotd\"}", "nobody says \"promotd\""),
        ("sum by (outcom) (falaj_rounds_total)", "groups by outcom, which nothing has"),
        ("vector(1) > 0", "asks for no metric"),
        ("{job=\"falaj\"}", "a selector without a name"),
    ] {
        let said = there.check(bad, &recorded).err().map(|e| format!("{e:#}"));
        ensure!(said.as_ref().is_some_and(|said| said.contains(why)), "{bad}: {said:?}");
    }
    Ok(())
}

#[test]
fn the_table_of_metrics_is_the_whole_list() -> Result<()> {
    let there = There::look()?;
    let table = fs::read_to_string(repository().join(TABLE))?;
    let mut rows = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| `falaj_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, unit, meaning] = &cells[..] else { bail!("{line}") };
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`'));
        let labels: BTreeSet<_> = labels.filter(|l| !l.is_empty()).map(str::to_owned).collect();
        ensure!(!unit.is_empty() && !meaning.is_empty(), "{line}");
        // What a name ends with says what is counted or measured.
        let unit_of = if name.contains("_bytes") {
            "bytes"
        } else if name.contains("_seconds") {
            "seconds"
        } else {
            *unit
        };
        ensure!(*unit == unit_of, "{name} is in {unit_of}, not {unit}");
        let row = rows.insert(name.trim_matches('`').to_owned(), ((*kind).to_owned(), labels));
        ensure!(row.is_none(), "{name} stands there twice");
    }
    for (name, described) in &there.metrics {
        ensure!(rows.get(name) == Some(described), "{name}: {:?}, {described:?}", rows.get(name));
    }
    ensure!(rows.len() == there.metrics.len(), "{TABLE} has metrics that there are not: {rows:?}");
    Ok(())
}

/// The headings of a text, as links name them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let heading = |line: &str| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    headings.map(heading).collect()
}

#[test]
fn every_alert_says_what_to_do_and_is_tried_both_ways() -> Result<()> {
    let tests = yaml(RULES_TEST)?;
    let mut tried: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for test in list(&tests, "tests").iter().flat_map(|test| list(test, "alert_rule_test")) {
        let (fires, is_quiet) = tried.entry(word_of(test, "alertname")?).or_default();
        let count = if list(test, "exp_alerts").is_empty() { is_quiet } else { fires };
        *count += 1;
    }
    let rules = rules()?;
    let alerts: Vec<_> = rules.iter().filter(|rule| rule["alert"].is_string()).collect();
    ensure!(alerts.len() + recorded(&rules).len() == rules.len());
    for alert in alerts {
        let name = word_of(alert, "alert")?;
        let severity = word_of(&alert["labels"], "severity")?;
        ensure!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        for said in ["summary", "description"] {
            ensure!(!word_of(&alert["annotations"], said)?.is_empty(), "{name} has no {said}");
        }
        let runbook = word_of(&alert["annotations"], "runbook")?;
        let (path, anchor) = runbook.split_once('#').unwrap_or((runbook, ""));
        ensure!(path.starts_with("docs/runbooks/"), "{name}: {path}");
        let page = fs::read_to_string(repository().join(path)).with_context(|| path.to_owned())?;
        ensure!(anchor.is_empty() || anchors(&page).contains(anchor), "{name}: {runbook}");
        let (fires, is_quiet) = tried.get(name).copied().unwrap_or_default();
        ensure!(fires > 0 && is_quiet > 0, "{name} is not tried both ways in {RULES_TEST}");
    }
    Ok(())
}

#[test]
fn the_dashboard_takes_whatever_data_source_is_chosen() -> Result<()> {
    let dashboard = dashboard()?;
    let variables = list(&dashboard["templating"], "list");
    let names: BTreeSet<_> = variables.iter().filter_map(|v| v["name"].as_str()).collect();
    ensure!(variables[0]["type"] == "datasource" && names.contains("datasource"));
    let mut ids = BTreeSet::new();
    for panel in list(&dashboard, "panels") {
        ensure!(ids.insert(panel["id"].as_u64().context("a number")?), "{panel}");
        for of in list(panel, "targets").iter().chain([panel]).filter(|of| of["type"] != "row") {
            ensure!(of["datasource"]["uid"] == "${datasource}", "{of}");
        }
    }
    for (title, expr) in shown(&dashboard)? {
        for after in expr.split('$').skip(1) {
            let name = word(after, |c| c.is_ascii_alphanumeric() || c == '_').0;
            ensure!(names.contains(name) || GRAFANA.contains(&name), "{title}: ${name}");
        }
    }
    Ok(())
}

/// Has `promtool` look at something; nothing where it is not installed, which is said aloud.
fn promtool(words: &[&str], folder: &Path) -> Result<Option<String>> {
    if !Command::new("promtool").arg("--version").output().is_ok_and(|out| out.status.success()) {
        skipped(
            "there is no promtool; `apt-get install -y --no-install-recommends prometheus` mends that",
        );
        return Ok(None);
    }
    let out = Command::new("promtool").args(words).current_dir(folder).output()?;
    ensure!(out.status.success(), "promtool {words:?}: {}", text(&out));
    Ok(Some(text(&out)))
}

#[test]
fn promtool_takes_the_rules_and_tries_every_alert() -> Result<()> {
    let folder = repository().join("deploy/prometheus");
    let Some(checked) = promtool(&["check", "rules", "falaj.rules.yaml"], &folder)? else {
        return Ok(());
    };
    ensure!(checked.contains(&format!("{} rules found", rules()?.len())), "{checked}");
    let tested = promtool(&["test", "rules", "falaj.rules_test.yaml"], &folder)?;
    ensure!(tested.is_some_and(|said| said.contains("SUCCESS")));
    // One alert that does not fire any more is noticed.
    let broken = tempfile::tempdir()?;
    for name in ["falaj.rules.yaml", "falaj.rules_test.yaml"] {
        let file = fs::read_to_string(folder.join(name))?;
        let deaf = "falaj_commits_total{outcome=\"full\"}";
        let file = if name == "falaj.rules.yaml" {
            ensure!(file.contains(deaf));
            file.replace(deaf, "falaj_commits_total{outcome=\"fill\"}")
        } else {
            file
        };
        fs::write(broken.path().join(name), file)?;
    }
    let words = ["test", "rules", "falaj.rules_test.yaml"];
    let said = promtool(&words, broken.path()).err().map(|e| format!("{e:#}"));
    ensure!(said.as_ref().is_some_and(|said| said.contains("FalajDiskFull")), "{said:?}");
    Ok(())
}

#[test]
fn promtool_reads_every_expression_of_the_dashboard() -> Result<()> {
    let mut rules = Vec::new();
    for (n, (_, expr)) in shown(&dashboard()?)?.into_iter().enumerate() {
        let expr = expr.replace("$__rate_interval", "5m");
        rules.push(json!({ "record": format!("shown:{n}"), "expr": expr }));
    }
    let count = rules.len();
    let folder = tempfile::tempdir()?;
    // JSON is YAML.
    let file = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(folder.path().join("shown.yaml"), file.to_string())?;
    if let Some(said) = promtool(&["check", "rules", "shown.yaml"], folder.path())? {
        ensure!(said.contains(&format!("{count} rules found")), "{said}");
    }
    Ok(())
}
