//! A promotion: the last model of a study is a version, two people put it into production, what is signed of it is checked by
//! software that is not ours, and whatever is changed in it is named.

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use falaj_core::id::Digest;
use falaj_tests::{
    federation::{Federation, Process, binary, repository, run, study_yaml, text},
    python, skipped,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

const OMAR: &str = "spiffe://falaj.test/ae-on/ae-az/operator/omar";
pub(crate) const SARA: &str = "spiffe://falaj.test/ae-on/ae-az/operator/sara";

/// Python with the packages that check provenances; none where they cannot be had.
fn outsiders() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| match python::with_packages("provenance") {
        Ok(python) => Some(python),
        Err(e) => {
            skipped(&format!(
                "nothing outside checks provenances (Python 3 and pip are needed): {e:#}"
            ));
            None
        }
    });
    found.as_deref()
}

/// What software that is not ours says of envelopes, one line for each.
fn outside(python: &Path, key: &str, envelopes: &[PathBuf]) -> Result<Vec<Value>> {
    let script = repository().join("tests/provenance/verify.py");
    let out = Command::new(python).arg(script).arg(key).args(envelopes).output()?;
    ensure!(out.status.success(), "{}", text(&out));
    let lines = str::from_utf8(&out.stdout)?.lines();
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn federation() -> Result<(Federation, Process, Vec<Process>)> {
    learned(Federation::new()?)
}

/// A federation of two hospitals whose study has run its rounds. Omar submitted it; Sara and Lina approve.
pub(crate) fn learned(mut federation: Federation) -> Result<(Federation, Process, Vec<Process>)> {
    let coordinator = federation.start_coordinator()?;
    let ca = federation.ca().display().to_string();
    for name in ["sara", "lina"] {
        let group = if name == "sara" { "operator" } else { "approver" };
        let asked = ["issue", &ca, "operator", name, "--place", "ae-on/ae-az", "--group", group];
        run("falaj-certs", &asked)?;
    }
    let agents = federation.start_hospitals()?;
    federation.submit(&study_yaml("heart", 2, 2))?;
    federation.finishes("heart")?;
    Ok((federation, coordinator, agents))
}

pub(crate) fn json_of(federation: &Federation, by: &str, words: &[&str]) -> Result<Value> {
    let out = federation.falaj_as(by, &[&["--json"], words].concat())?;
    ensure!(out.status.success(), "{by} {words:?}: {}", text(&out));
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// What the verifier says of the newest bundle with this envelope beside it.
fn verify(federation: &Federation, envelope: &Path) -> Result<Output> {
    let bundle = federation.dir().join("bundle.tar");
    let mut verifier = Command::new(binary("falaj-verify"));
    verifier.arg(bundle).arg("--trust").arg(federation.ca().join("trust.toml"));
    Ok(verifier.arg("--provenance").arg(envelope).output()?)
}

#[test]
fn a_version_goes_into_production_by_two_people_and_its_provenance_holds_outside() -> Result<()> {
    let (mut federation, mut coordinator, _agents) = federation()?;
    let version = federation.falaj_json(&["model", "show", "heart", "1"])?;
    ensure!(version["stage"] == "candidate" && version["round"] == 2, "{version}");

    // Omar submitted the study: nobody promotes alone, and his own approval counts for nobody.
    ensure!(
        json_of(&federation, "sara", &["model", "promote", "heart", "1", "--to", "staging"])?["stage"]
            == "staging"
    );
    let production = ["model", "promote", "heart", "1", "--to", "production"];
    let alone = federation.falaj_as("sara", &production)?;
    ensure!(text(&alone).contains("APR-002"), "{}", text(&alone));
    let approve = [
        "approval",
        "give",
        "version.promote",
        "--study",
        "heart",
        "--version",
        "1",
        "--stage",
        "production",
        "--for",
        SARA,
    ];
    let own = federation.falaj(&approve)?;
    ensure!(text(&own).contains("their own study"), "{}", text(&own));
    counted(&federation, &["falaj_versions{stage=\"staging\"} 1\n"])?;
    let approval = json_of(&federation, "lina", &approve)?;
    let waiting = "falaj_approvals_waiting{action=\"version.promote\"}";
    counted(&federation, &[&format!("{waiting} 1\n")])?;
    let champion = json_of(&federation, "sara", &production)?;
    ensure!(champion["aliases"] == json!(["champion"]), "{champion}");
    let promoted = federation.entries("version.promoted")?;
    let last = &promoted.last().context("an entry")?["entry"];
    ensure!(last["approvals"] == json!([approval["approval"]]), "{last}");

    let envelope = federation.dir().join("heart-1.dsse.json");
    let file = envelope.display().to_string();
    let out = federation.falaj(&["model", "provenance", "heart", "champion", "-o", &file])?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(last["provenance_sha256"] == Digest::of(&fs::read(&envelope)?).to_string());
    let card = text(&federation.falaj(&["model", "card", "heart", "1"])?);
    let model = champion["model_sha256"].as_str().context("a model")?;
    ensure!(card.contains(model) && card.contains("hospital-2"), "{card}");
    let told = federation.falaj_json(&["model", "card", "heart", "1"])?;
    ensure!(told["card"].as_str().is_some_and(|told| told.trim_end() == card.trim_end()), "{told}");
    let kept = federation.dir().join("heart-1.md");
    let written = kept.display().to_string();
    let told = federation.falaj_json(&["model", "card", "heart", "1", "-o", &written])?;
    let bytes = fs::metadata(&kept)?.len();
    ensure!(told == json!({ "file": written, "bytes": bytes }), "{told}");

    federation.verified()?;
    let out = verify(&federation, &envelope)?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(text(&out).contains("heart 1, now production: signed"), "{}", text(&out));
    tampered(&federation, &envelope, &champion)?;
    let used = format!("{waiting} 0\n");
    let stay = ["falaj_versions{stage=\"production\"} 1\n", used.as_str()];
    counted(&federation, &stay)?;
    let approvals = "falaj_approvals_total{action=\"version.promote\"";
    for outcome in ["given", "used", "missing"] {
        counted(&federation, &[&format!("{approvals},outcome=\"{outcome}\"}} 1\n")])?;
    }
    // What stands so is known again after a restart, from what is stored; what was counted begins anew.
    coordinator.kill()?;
    let _coordinator = federation.start_coordinator()?;
    counted(&federation, &stay)?;
    counted(&federation, &[&format!("{approvals},outcome=\"used\"}} 0\n")])?;
    Ok(())
}

/// That the coordinator's metrics have these lines.
fn counted(federation: &Federation, lines: &[&str]) -> Result<()> {
    let metrics = federation.metrics()?;
    for line in lines {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    Ok(())
}

/// Every field of the statement changed by itself: refused outside, and named by our verifier.
fn tampered(federation: &Federation, good: &Path, champion: &Value) -> Result<()> {
    let whole: Value = serde_json::from_slice(&fs::read(good)?)?;
    let payload = BASE64.decode(whole["payload"].as_str().context("a payload")?)?;
    let statement: Value = serde_json::from_slice(&payload)?;
    let mut envelopes = vec![good.to_owned()];
    let mut fields = Vec::new();
    let mut put = |envelope: &Value| -> Result<PathBuf> {
        let path = federation.dir().join(format!("forged-{}.json", envelopes.len()));
        fs::write(&path, envelope.to_string())?;
        envelopes.push(path.clone());
        Ok(path)
    };
    for pointer in pointers(&statement, "") {
        let mut forged = statement.clone();
        let value = forged.pointer_mut(&pointer).context("it is there")?;
        *value = other(value)?;
        let mut envelope = whole.clone();
        // The members of an object stay in the order in which they were read, which is the canonical one.
        envelope["payload"] = BASE64.encode(forged.to_string()).into();
        fields.push((pointer, put(&envelope)?));
    }
    ensure!(fields.len() > 60, "{} fields", fields.len());
    for member in ["payloadType", "payload"] {
        let mut envelope = whole.clone();
        envelope[member] = other(&envelope[member])?;
        put(&envelope)?;
    }
    let mut envelope = whole.clone();
    let signature =
        BASE64.decode(whole["signatures"][0]["sig"].as_str().context("a signature")?)?;
    envelope["signatures"][0]["sig"] =
        BASE64.encode([&[signature[0] ^ 1], &signature[1..]].concat()).into();
    put(&envelope)?;

    // Ours reads the whole bundle for each, so a few fields of each part stand for the rest: `core` tries every one.
    for part in [
        "/subject",
        "/predicate/buildDefinition/internal",
        "/predicate/buildDefinition/resolved",
        "/predicate/runDetails",
        "/predicate/falaj_epsilon",
        "/predicate/falaj_log/index",
    ] {
        let (pointer, path) = fields.iter().rfind(|(p, _)| p.starts_with(part)).context(part)?;
        let out = verify(federation, path)?;
        let name =
            pointer.rsplit('/').find(|word| word.parse::<u32>().is_err()).context("a name")?;
        let name = &name.replace("~1", "/").replace("~0", "~");
        let said = text(&out);
        ensure!(out.status.code() == Some(1), "{pointer}: {said}");
        ensure!(
            said.contains("a provenance is wrong: `") && said.contains(name),
            "{pointer}: {said}"
        );
    }
    let Some(python) = outsiders() else { return Ok(()) };
    let status = federation.falaj_json(&["status"])?;
    let key = status["log_verifier_key"].as_str().context("a key")?;
    let answers = outside(python, key, &envelopes)?;
    ensure!(answers.len() == envelopes.len(), "{} of {}", answers.len(), envelopes.len());
    let verified = &answers[0]["verified"];
    ensure!(verified["heart-1.params"]["sha256"] == champion["model_sha256"], "{}", answers[0]);
    ensure!(
        verified["heart-1.safetensors"]["sha256"] == champion["safetensors_sha256"],
        "{}",
        answers[0]
    );
    for (answer, path) in answers[1..].iter().zip(&envelopes[1..]) {
        ensure!(answer.get("refused").is_some(), "{}: {answer}", path.display());
    }
    let wrong_key = outside(python, &key.replace("+A", "+B"), &envelopes[..1]);
    ensure!(wrong_key.is_err() || wrong_key?[0].get("refused").is_some(), "by another key");
    // The file that is downloaded is the first subject.
    let model = federation.dir().join("heart.safetensors");
    let words = ["model", "download", "heart", "--round", "2", "-o", &model.display().to_string()];
    let out = federation.falaj(&words)?;
    ensure!(out.status.success(), "{}", text(&out));
    ensure!(champion["safetensors_sha256"] == Digest::of(&fs::read(model)?).to_string());
    Ok(())
}

/// Where in a document every text, number and truth stands.
fn pointers(value: &Value, at: &str) -> Vec<String> {
    match value {
        Value::Object(members) => members
            .iter()
            .flat_map(|(key, v)| {
                pointers(v, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")))
            })
            .collect(),
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(n, v)| pointers(v, &format!("{at}/{n}"))).collect()
        }
        _ => vec![at.to_owned()],
    }
}

/// Another value of the same kind.
fn other(value: &Value) -> Result<Value> {
    Ok(match value {
        Value::Bool(is) => (!is).into(),
        Value::Number(n) => (n.as_i64().context("a whole number")? + 1).into(),
        Value::String(text) => {
            let last = if text.ends_with('0') { '1' } else { '0' };
            let mut chars: Vec<char> = text.chars().collect();
            chars.pop();
            chars.into_iter().chain([last]).collect::<String>().into()
        }
        _ => bail!("{value} has parts"),
    })
}

#[test]
fn what_learned_from_a_site_is_found_and_taken_out_of_use() -> Result<()> {
    let (federation, _coordinator, _agents) = federation()?;
    let site = federation.entries("update.accepted")?[0]["entry"]["site"].clone();
    let site = site.as_str().context("a site")?;
    let touched = federation.falaj_json(&["lineage", "--site", site])?;
    ensure!(
        touched["versions"][0]["version"] == 1 && touched["versions"][0]["updates"] == 2,
        "{touched}"
    );
    ensure!(touched["versions"][0]["remedy"] == "reject", "{touched}");
    let never = federation.falaj_json(&["lineage", "--site", site, "--until", "2020-01-01"])?;
    ensure!(never["versions"] == json!([]), "{never}");
    let made = federation.falaj_json(&["lineage", "--study", "heart", "--version", "1"])?;
    ensure!(
        made["rounds"][1]["updates"].as_array().is_some_and(|updates| updates.len() == 2),
        "{made}"
    );
    let reason = ["--reason", "a hospital withdrew its consent"];
    let revoked =
        federation.falaj_json(&[&["model", "revoke", "heart", "1"], &reason[..]].concat())?;
    ensure!(revoked["stage"] == "revoked", "{revoked}");
    let file = federation.dir().join("gone").display().to_string();
    let out = federation.falaj(&["model", "download", "heart", "-o", &file])?;
    ensure!(text(&out).contains("wrong_stage") && !Path::new(&file).exists(), "{}", text(&out));
    let touched = federation.falaj_json(&["lineage", "--site", site])?;
    ensure!(touched["versions"][0]["remedy"] == "nothing", "{touched}");
    // An older round may be made a version, and is one only once.
    let made = federation.falaj_json(&["model", "make", "heart", "--round", "1"])?;
    ensure!(made["version"] == 2 && made["stage"] == "candidate", "{made}");
    let again = federation.falaj(&["model", "make", "heart", "--round", "1"])?;
    ensure!(text(&again).contains("wrong_stage"), "{}", text(&again));
    let asked = [
        "approve",
        "version.promote",
        "--study",
        "heart",
        "--version",
        "2",
        "--stage",
        "production",
        "--for",
        OMAR,
    ];
    ensure!(federation.falaj_as("lina", &asked)?.status.success());
    for stage in ["staging", "production"] {
        federation.falaj_json(&["model", "promote", "heart", "2", "--to", stage])?;
    }
    let compared = federation.falaj_json(&["compare", "heart:1", "heart:champion"])?;
    let stages = [&compared["left"]["version"]["stage"], &compared["right"]["version"]["stage"]];
    ensure!(stages == ["revoked", "production"] && compared["figures"] == json!([]), "{compared}");
    // Each is compared by what was spent on it: the version of the first round cost less.
    let spent = compared["epsilon_by_site"].as_object().context("by site")?;
    let less =
        |s: &Value| s["right"].as_f64() > Some(0.0) && s["right"].as_f64() < s["left"].as_f64();
    ensure!(!spent.is_empty() && spent.values().all(less), "{compared}");
    let listed = text(&federation.falaj(&["model", "versions", "heart"])?);
    ensure!(listed.contains("revoked") && listed.contains("champion"), "{listed}");
    federation.verified()?;
    Ok(())
}
