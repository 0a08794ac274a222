//! Models as ONNX: what a runtime that is not ours makes of a record is what the agent makes of it, for every architecture that a
//! study can declare, and a version of a study goes that way through the command line.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use falaj_core::{aggregate::params_to_bytes, id::Digest, registry::safetensors, study::Study};
use falaj_proto::{
    onnx::{About, export},
    study,
};
use falaj_tests::{
    federation::{Federation, binary, repository, study_yaml, text, wisconsin},
    python, skipped,
};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// How far two of the same may be apart, for a number of at most one, or by its part of a greater one: both compute in f32.
const TOLERANCE: f64 = 1e-5;
/// Records of each study here.
const RECORDS: usize = 40;
/// What most transformers here have.
const BLOCKS: &str = "width: 8, heads: 2, blocks: 2, feed_forward: 12 }";

/// Python with a runtime; none where it cannot be had.
fn outsiders() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| match python::with_packages("onnx") {
        Ok(python) => Some(python),
        Err(e) => {
            skipped(&format!("nothing outside runs ONNX (Python 3 and pip are needed): {e:#}"));
            None
        }
    });
    found.as_deref()
}

/// What onnxruntime makes of records: a number for each column, or none.
fn outside(python: &Path, model: &Path, records: &[Vec<Option<f64>>]) -> Result<Value> {
    let columns = model.with_extension("json");
    fs::write(&columns, json!(records).to_string())?;
    let script = repository().join("tests/onnx/run.py");
    let out = Command::new(python).arg(script).arg(model).arg(columns).output()?;
    ensure!(out.status.success(), "{}", text(&out));
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// What the agent makes of records, whatever it was built with; none where that is not libtorch and has to be.
fn inside(study: &Path, model: &Path, records: &Path) -> Result<Option<Vec<Vec<f64>>>> {
    let outputs = records.with_extension("outputs");
    let mut agent = Command::new(binary("falaj-agent"));
    agent.arg("evaluate").arg(study).arg("--model").arg(model).arg("--data").arg(records);
    let out = agent.arg("--outputs").arg(&outputs).output()?;
    if text(&out).contains("use a trainer built with libtorch") {
        skipped(
            "ONNX of this model is compared with nothing: the agent was built without libtorch",
        );
        return Ok(None);
    }
    ensure!(out.status.success(), "{}", text(&out));
    let lines = fs::read_to_string(outputs)?;
    let row = |line: &str| -> Result<Vec<f64>> {
        line.split(',').map(|cell| Ok(cell.parse()?)).collect()
    };
    Ok(Some(lines.lines().skip(1).map(row).collect::<Result<_>>()?))
}

fn rows(answer: &Value, name: &str) -> Result<Vec<Vec<Option<f64>>>> {
    Ok(serde_json::from_value(answer[name].clone())?)
}

/// That both made the same of records, and probabilities of it.
fn agree(ours: &[Vec<f64>], answer: &Value) -> Result<()> {
    let (logits, probabilities) = (rows(answer, "logits")?, rows(answer, "probabilities")?);
    ensure!(ours.len() == logits.len() && ours.len() == probabilities.len(), "{}", ours.len());
    for (row, ours) in ours.iter().enumerate() {
        let most = ours.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = ours.iter().map(|l| (l - most).exp()).sum();
        let expected = ours.iter().map(|l| (l - most).exp() / total);
        ensure!(
            logits[row].len() == ours.len(),
            "{} logits, not {}",
            logits[row].len(),
            ours.len()
        );
        for (class, (&ours, expected)) in ours.iter().zip(expected).enumerate() {
            let theirs = logits[row][class].context("a number")?;
            let apart = (ours - theirs).abs() / ours.abs().max(1.0);
            ensure!(apart <= TOLERANCE, "record {row}, class {class}: {ours} and {theirs}");
            let theirs = probabilities[row][class].context("a number")?;
            ensure!((expected - theirs).abs() <= TOLERANCE, "{row} {class}: {expected}, {theirs}");
        }
    }
    Ok(())
}

/// Whether both are numbers, and the same: a runtime may add in another order where there are more records.
fn near(a: &[Option<f64>], b: &[Option<f64>]) -> bool {
    let same = |(a, b): (&Option<f64>, &Option<f64>)| {
        a.zip(*b).is_some_and(|(a, b)| (a - b).abs() <= TOLERANCE * a.abs().max(1.0))
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// The same chances each time: xorshift (Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Between -1 and 1, and an f32.
    fn unit(&mut self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
        let unit = (self.bits() >> 40) as f32 / (1_u32 << 23) as f32;
        unit - 1.0
    }

    /// From zero to below `n`.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.bits() >> 33).map_or(0, |bits| bits % n)
    }
}

/// A study's text: so many columns between bounds, or others in their place.
fn declared(columns: &str, model: &str) -> String {
    format!(
        "study: tried\npurpose: test\ndata:\n  dataset: d\n  label: {{ column: y, classes: [a, b, c] }}\n  features:\n{columns}model: {model}\n\
         training: {{ local_steps: 1, sample_rate: 0.1, learning_rate: 0.5 }}\n\
         privacy: {{ mechanism: dp_sgd, noise_multiplier: 1.0, clip_norm: 1.0, delta: 1.0e-5, epsilon_limit: 900.0 }}\n\
         cohort: {{ places: [\"ae-on/*\"], min_sites: 2 }}\nrounds: {{ count: 2 }}\n"
    )
}

fn numeric(count: usize, (min, max): (f64, f64)) -> String {
    (0..count).fold(String::new(), |mut text, i| {
        let _ = writeln!(text, "    - {{ name: c{i}, min: {min:?}, max: {max:?} }}");
        text
    })
}

/// Columns of every kind.
const MIXED: &str = "    - { name: age, min: 18.0, max: 90.0 }
    - { name: sex, values: [f, m] }
    - { name: bmi, min: 12.5, max: 60.25, missing: keep }
    - { name: smoker, values: [never, once, now], missing: keep }
    - { name: marker, estimate_epsilon: 0.5 }
    - { name: one, values: [only] }
    - { name: tall, min: -250000.0, max: -1000.0 }
";

/// A cell of a column: what stands in the file, and what a graph is given for it.
fn cell(dice: &mut Dice, of: &Study, column: usize, whole: bool) -> (String, Option<f64>) {
    use falaj_core::study::{Bounds, FeatureKind, Missing};
    let one_in_four = dice.below(4) == 0;
    match &of.data.features[column].kind {
        FeatureKind::Numeric { missing: Missing::Keep, .. }
        | FeatureKind::Categorical { missing: Missing::Keep, .. }
            if one_in_four =>
        {
            (String::new(), None)
        }
        FeatureKind::Categorical { values, .. } => {
            let at = dice.below(values.len());
            (values[at].clone(), u32::try_from(at).ok().map(f64::from))
        }
        FeatureKind::Numeric { bounds, .. } => {
            let (min, max) = match *bounds {
                Bounds::Declared { min, max } => (min, max),
                Bounds::Estimated { .. } => (-1.0, 1.0),
            };
            // Some lie beyond the bounds.
            let part = f64::from(dice.unit()) * 0.6 + 0.5;
            let value = min + part * (max - min);
            let value = if whole { value.round() } else { value };
            #[expect(clippy::cast_possible_truncation, reason = "a graph takes f32")]
            let value = f64::from(value as f32);
            (value.to_string(), Some(value))
        }
    }
}

/// A study with a model that says something else of each record, as files, and records for it.
struct Tried {
    dir: tempfile::TempDir,
    study: Study,
    records: Vec<Vec<Option<f64>>>,
}

impl Tried {
    fn new(text: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let study = study::parse(text, "study.yaml")?;
        fs::write(dir.path().join("study.yaml"), text)?;
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let manifest = study.manifest()?;
        // Also biases, scales and shifts, which begin at zero and one.
        let start = study.model_spec().init([5; 32])?;
        let params: Vec<f32> = start.iter().map(|p| p + 0.3 * dice.unit()).collect();
        let raw = params_to_bytes(&params);
        let (study_sha256, model_sha256) = (Digest::of(text.as_bytes()), Digest::of(&raw));
        let mut file = safetensors::head(&study.id, &study_sha256, 2, &model_sha256, &manifest);
        file.extend(raw);
        fs::write(dir.path().join("model.safetensors"), &file)?;
        let about = About { study: &study, study_sha256, version: 1, round: 2, model_sha256 };
        fs::write(dir.path().join("model.onnx"), export(&Bytes::from(file), &about)?)?;

        let columns: Vec<&str> = study.data.features.iter().map(|f| f.name.as_str()).collect();
        let (mut csv, mut records) = (format!("{},y\n", columns.join(",")), Vec::new());
        // Codes are whole numbers.
        let whole = !study.model_spec().takes_any_number();
        for _ in 0..RECORDS {
            let cells: Vec<_> =
                (0..columns.len()).map(|at| cell(&mut dice, &study, at, whole)).collect();
            let words: Vec<&str> = cells.iter().map(|(word, _)| word.as_str()).collect();
            writeln!(csv, "{},{}", words.join(","), ["a", "b", "c"][dice.below(3)])?;
            records.push(cells.into_iter().map(|(_, number)| number).collect());
        }
        fs::write(dir.path().join("records.csv"), csv)?;
        Ok(Self { dir, study, records })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// That a runtime and the agent agree about every record; gives what the former says.
    fn holds(&self, python: &Path) -> Result<Value> {
        let model = self.path("model.onnx");
        let answer = outside(python, &model, &self.records)?;
        let classes = u64::from(self.study.classes());
        let columns = self.study.data.features.len();
        ensure!(answer["inputs"] == json!({ "features": ["batch", columns] }), "{answer}");
        let shape = json!(["batch", classes]);
        let shapes = json!({ "logits": shape, "probabilities": shape });
        ensure!(answer["outputs"] == shapes, "{}", answer["outputs"]);
        ensure!(answer["logits_of_nobody"] == json!([0, classes]), "{answer}");
        let files = ["study.yaml", "model.safetensors", "records.csv"].map(|name| self.path(name));
        if let Some(ours) = inside(&files[0], &files[1], &files[2])? {
            // A model that says the same of everybody would agree with anything.
            let first = &ours[0];
            ensure!(ours.iter().filter(|row| *row != first).count() > RECORDS / 2, "{ours:?}");
            agree(&ours, &answer)?;
        }
        Ok(answer)
    }
}

fn tried(columns: &str, model: &str) -> Result<()> {
    let tried = Tried::new(&declared(columns, model))?;
    let Some(python) = outsiders() else { return Ok(()) };
    tried.holds(python).with_context(|| model.to_owned())?;
    Ok(())
}

#[test]
fn a_runtime_agrees_about_models_of_tables() -> Result<()> {
    tried(&numeric(7, (-3.0, 11.0)), "{ kind: logistic }")?;
    tried(&numeric(7, (-3.0, 11.0)), "{ kind: mlp, hidden: [9, 5] }")?;
    tried(MIXED, "{ kind: mlp, hidden: 16 }")?;
    tried(MIXED, &format!("{{ kind: transformer, tokens: columns, {BLOCKS}"))
}

#[test]
fn a_runtime_agrees_about_models_of_images_and_series() -> Result<()> {
    let image = "{ kind: cnn, image: [9, 9, 1], conv: [{ filters: 4, kernel: 3, pool: 2, norm: none }, { filters: 5, kernel: 2, stride: 2, norm: none }], hidden: 7 }";
    tried(&numeric(81, (0.0, 255.0)), image)?;
    let normed = "{ kind: cnn, image: [8, 7, 2], conv: [{ filters: 6, kernel: 2, pool: 2, norm: group, groups: 3 }, { filters: 4, kernel: 2, norm: group }], hidden: 7 }";
    tried(&numeric(112, (0.0, 1.0)), normed)?;
    let series = "{ kind: cnn, series: [20, 2], conv: [{ filters: 4, kernel: 3, pool: 2, norm: group, groups: 2 }, { filters: 6, kernel: 3, stride: 2, norm: none }], hidden: 7 }";
    tried(&numeric(40, (-2.0, 2.0)), series)
}

#[test]
fn a_runtime_agrees_about_transformers_of_codes_and_steps() -> Result<()> {
    let codes = format!("{{ kind: transformer, tokens: codes, vocabulary: 600, {BLOCKS}");
    tried(&numeric(9, (0.0, 599.0)), &codes)?;
    let steps = format!("{{ kind: transformer, tokens: steps, channels: 4, {BLOCKS}");
    tried(&numeric(24, (-2.0, 2.0)), &steps)
}

/// A record that a site would refuse to train on gets no answer, and those beside it the same as ever.
#[test]
fn a_record_that_the_schema_refuses_gets_no_number_from_a_runtime() -> Result<()> {
    let Some(python) = outsiders() else { return Ok(()) };
    let mut tried = Tried::new(&declared(MIXED, "{ kind: mlp, hidden: 16 }"))?;
    let (sound, before) = (tried.records.len(), tried.holds(python)?);
    let good = vec![Some(40.0), Some(1.0), None, None, Some(0.25), Some(0.0), Some(-5000.0)];
    // No age; a third sex; half a sex; a sex below the first; no sex; a fifth kind of smoker; a second of one.
    let bad = [
        (0, None),
        (1, Some(2.0)),
        (1, Some(0.5)),
        (1, Some(-1.0)),
        (1, None),
        (3, Some(4.0)),
        (5, Some(1.0)),
    ];
    for (column, value) in bad {
        let mut record = good.clone();
        record[column] = value;
        tried.records.push(record);
    }
    // A missing category that may be missing is NaN, or the number after the last.
    let mut named = good.clone();
    named[3] = Some(3.0);
    tried.records.extend([good, named]);
    let answer = outside(python, &tried.path("model.onnx"), &tried.records)?;
    let (all, known) = (rows(&answer, "logits")?, rows(&before, "logits")?);
    ensure!(known.iter().zip(&all).all(|(a, b)| near(a, b)), "those beside them are affected");
    for output in ["logits", "probabilities"] {
        let rows = rows(&answer, output)?;
        let none = |row: &Vec<Option<f64>>| row.iter().all(Option::is_none);
        ensure!(rows[sound..sound + bad.len()].iter().all(none), "{:?}", &rows[sound..]);
        let [first, second] = &rows[sound + bad.len()..] else { panic!("two more") };
        ensure!(near(first, second), "{first:?} {second:?}");
    }
    // Codes too are looked up only where there are some.
    let codes = format!("{{ kind: transformer, tokens: codes, vocabulary: 5, {BLOCKS}");
    let mut tried = Tried::new(&declared(&numeric(3, (0.0, 4.0)), &codes))?;
    tried.records = vec![vec![Some(1.0), None, Some(3.0)], vec![Some(1.0), Some(9.0), Some(4.0)]];
    let answer = outside(python, &tried.path("model.onnx"), &tried.records)?;
    let logits = rows(&answer, "logits")?;
    ensure!(logits[0].iter().all(Option::is_none), "{logits:?}");
    ensure!(logits[1].iter().all(Option::is_some), "{logits:?}");
    Ok(())
}

/// The columns of a study in records with a header, as a graph is given them.
fn columns_of(csv: &str, study: &Study) -> Result<Vec<Vec<Option<f64>>>> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().context("a header")?.split(',').collect();
    let at = |name: &str| header.iter().position(|h| *h == name).context("a column");
    let places: Vec<usize> =
        study.data.features.iter().map(|f| at(&f.name)).collect::<Result<_>>()?;
    let row = |line: &str| -> Result<Vec<Option<f64>>> {
        let cells: Vec<&str> = line.split(',').collect();
        places.iter().map(|&at| Ok(Some(cells[at].parse()?))).collect()
    };
    lines.map(row).collect()
}

#[test]
fn a_version_of_a_study_is_exported_and_says_which_it_is() -> Result<()> {
    let mut federation = Federation::new()?;
    let _coordinator = federation.start_coordinator()?;
    let _agents = federation.start_hospitals()?;
    let yaml = study_yaml("heart", 2, 2);
    federation.submit(&yaml)?;
    federation.finishes("heart")?;
    let at = |name: &str| federation.dir().join(name).display().to_string();
    let study = at("study.yaml");
    let before = federation.entries("model.read")?.len();
    let exported = |version: &str, more: &[&str]| {
        let words = ["model", "export", "heart", version, "--study", &study];
        federation.falaj_json(&[&words[..], more].concat())
    };
    let told = exported("1", &["-o", &at("heart.onnx")])?;
    let version = federation.falaj_json(&["model", "show", "heart", "1"])?;
    ensure!(told["model_sha256"] == version["model_sha256"], "{told}");
    let bytes = fs::read(at("heart.onnx"))?;
    ensure!(told["onnx_sha256"] == Digest::of(&bytes).to_string(), "{told}");
    let read = federation.entries("model.read")?;
    ensure!(read.len() == before + 1, "{} downloads, not one more than {before}", read.len());

    // The same from a file that was downloaded before, byte by byte, and nobody downloads anything.
    let model = at("heart.safetensors");
    let words = ["model", "download", "heart", "--round", "2", "-o", &model];
    federation.falaj_json(&words)?;
    exported("1", &["--file", &model, "-o", &at("again.onnx")])?;
    ensure!(bytes == fs::read(at("again.onnx"))?, "another file of the same");
    ensure!(federation.entries("model.read")?.len() == before + 2, "one download");

    refusals(&federation, (&yaml, &model))?;
    let Some(python) = outsiders() else { return Ok(()) };
    let (csv, parsed) = (wisconsin(1)?.remove(0), study::parse(&yaml, "study.yaml")?);
    let answer = outside(python, Path::new(&at("heart.onnx")), &columns_of(&csv, &parsed)?)?;
    for (key, expected) in [
        ("study_sha256", Digest::of(yaml.as_bytes()).to_string().into()),
        ("model_sha256", version["model_sha256"].clone()),
        ("manifest_sha256", version["manifest_sha256"].clone()),
        ("safetensors_sha256", version["safetensors_sha256"].clone()),
        ("version", "1".into()),
        ("round", "2".into()),
        ("classes", "[\"benign\",\"malignant\"]".into()),
    ] {
        let found = &answer["metadata"][format!("falaj.{key}")];
        ensure!(*found == expected, "{key}: {found}, not {expected}");
    }
    ensure!(answer["version"] == 1, "{answer}");
    fs::write(at("all.csv"), csv)?;
    let files = [&study, &model, &at("all.csv")].map(PathBuf::from);
    if let Some(ours) = inside(&files[0], &files[1], &files[2])? {
        ensure!(ours.len() == 569, "{} records", ours.len());
        agree(&ours, &answer)?;
    }
    federation.verified()?;
    Ok(())
}

/// Whatever is not the version, or may not be used, or would be written over, is refused with a reason, and nothing is written.
fn refusals(federation: &Federation, (yaml, model): (&str, &str)) -> Result<()> {
    let at = |name: &str| federation.dir().join(name).display().to_string();
    let (study, to) = (at("study.yaml"), at("refused.onnx"));
    let refused = |words: &[&str], reason: &str| -> Result<()> {
        let out = federation.falaj(&[&["model", "export"], words].concat())?;
        ensure!(!out.status.success() && text(&out).contains(reason), "{reason}: {}", text(&out));
        ensure!(!Path::new(&to).exists(), "{reason}: something was written");
        Ok(())
    };
    let before = federation.entries("model.read")?.len();
    let kept = fs::read(at("heart.onnx"))?;
    let there = at("heart.onnx");
    refused(&["heart", "1", "--study", &study, "-o", &there], "is there already")?;
    ensure!(kept == fs::read(&there)?, "it was written over");
    let nowhere = at("nowhere/heart.onnx");
    refused(&["heart", "1", "--study", &study, "-o", &nowhere], "is no folder")?;
    let other = at("other.yaml");
    fs::write(&other, yaml.replace("end-to-end test", "another purpose"))?;
    refused(&["heart", "1", "--study", &other, "-o", &to], "is not what was submitted as `heart`")?;
    fs::write(&other, yaml.replace("study: heart", "study: lung"))?;
    refused(&["heart", "1", "--study", &other, "-o", &to], "is the study `lung`")?;
    refused(&["heart", "7", "--study", &study, "-o", &to], "unknown_model")?;
    refused(&["heart", "1", "--study", &at("nowhere.yaml"), "-o", &to], "cannot read")?;
    ensure!(federation.entries("model.read")?.len() == before, "something was downloaded");

    let damaged = at("damaged.safetensors");
    let mut bytes = fs::read(model)?;
    *bytes.last_mut().context("bytes")? ^= 1;
    fs::write(&damaged, &bytes)?;
    let with = |file: &str, reason: &str| {
        refused(&["heart", "1", "--study", &study, "--file", file, "-o", &to], reason)
    };
    with(&damaged, "is not version 1 of heart: its digest is")?;
    let earlier = at("earlier.safetensors");
    federation.falaj_json(&["model", "download", "heart", "--round", "1", "-o", &earlier])?;
    with(&earlier, "is not version 1 of heart")?;
    with(&at("nothing.safetensors"), "cannot read")?;
    // Policy decides over where it is taken, as of every download.
    let abroad = ["heart", "1", "--study", &study, "-o", &to, "--to-place", "gb/gb-lnd"];
    refused(&abroad, "RES-004")?;
    let made = federation.falaj_json(&["model", "make", "heart", "--round", "1"])?;
    ensure!(made["version"] == 2, "{made}");
    federation.falaj_json(&["model", "revoke", "heart", "2", "--reason", "a test"])?;
    refused(&["heart", "2", "--study", &study, "--file", &earlier, "-o", &to], "was revoked")
}
