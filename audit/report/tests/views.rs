//! What a reader of a report can rely on: words, clauses, and the files that the program makes of a report.

use anyhow::{Context as _, Result, ensure};
use falaj_core::{
    audit::Kind,
    id::Digest,
    report::{FACTS, FINDINGS, Scope, Sections},
};
use falaj_report::{
    catalog, html, pdf,
    source::{Level, SECTIONS, Source},
    view::{View, missing_words},
    words::{Lang, Words},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const REPORT: &[u8] = include_bytes!("data/report.json");
const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn joined() -> Result<Source> {
    Ok(Source::join(REPORT, Some(&catalog::embedded()?))?)
}

fn page(source: &Source, lang: Lang) -> Result<String> {
    Ok(html::page(&View::of(source, &Words::of(lang)?)))
}

fn program(args: &[&str]) -> Result<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_falaj-report")).args(args).output()?)
}

fn render(into: &Path, more: &[&str]) -> Result<Output> {
    let report = format!("{HERE}/tests/data/report.json");
    let into = into.to_str().context("a path")?;
    program(&[&["render", &report, "-o", into], more].concat())
}

/// Every file below a folder, with its bytes.
fn files(below: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut out = BTreeMap::new();
    let mut open = vec![below.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                out.insert(path.strip_prefix(below)?.to_owned(), fs::read(&path)?);
            }
        }
    }
    Ok(out)
}

fn placeholders(text: &str) -> BTreeSet<&str> {
    let opened = text.split('{').skip(1);
    opened.filter_map(|rest| rest.split_once('}')).map(|(name, _)| name).collect()
}

#[test]
fn both_languages_have_the_same_keys_and_the_same_placeholders() -> Result<()> {
    let [en, ar] = [Words::of(Lang::En)?, Words::of(Lang::Ar)?];
    let [a, b]: [BTreeSet<_>; 2] = [en.keys().collect(), ar.keys().collect()];
    ensure!(a == b, "only in one: {:?}", a.symmetric_difference(&b).collect::<Vec<_>>());
    for key in a {
        let [x, y] = [en.say(key), ar.say(key)];
        ensure!(!x.trim().is_empty() && !y.trim().is_empty(), "{key} is empty");
        ensure!(placeholders(&x) == placeholders(&y), "{key}: {x} / {y}");
    }
    Ok(())
}

#[test]
fn there_is_a_word_for_every_kind_level_fact_and_section() -> Result<()> {
    for lang in Lang::ALL {
        let words = Words::of(lang)?;
        let mut keys: Vec<String> = Kind::ALL.iter().map(|k| format!("kind_{k}")).collect();
        keys.extend(Level::ALL.iter().map(|l| format!("level_{}", l.as_str())));
        keys.extend(FACTS.iter().map(|f| format!("fact_{f}")));
        let words_of = |f: &str| [format!("finding_{f}"), format!("finding_{f}_about")];
        keys.extend(FINDINGS.iter().flat_map(|(finding, _)| words_of(finding)));
        let parts = |s: &str| ["title", "about"].map(|part| format!("{}_{part}", s.to_lowercase()));
        keys.extend(SECTIONS.iter().flat_map(|s| parts(s)));
        keys.extend((1..=12).map(|m| format!("month_{m}")));
        for key in keys {
            ensure!(words.find(&key).is_some(), "{lang:?} has no `{key}`");
        }
        let lacks = missing_words(joined()?.report(), &words);
        ensure!(lacks.is_empty(), "{lang:?} lacks {lacks:?}");
    }
    Ok(())
}

/// CMP-02: the catalogues are machine-readable, and the program carries all of them.
#[test]
fn every_catalogue_of_the_repository_is_well_formed_and_carried() -> Result<()> {
    let folder = Path::new(HERE).join("../../policies/clauses");
    ensure!(!catalog::read(&folder)?.is_empty());
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_some_and(|e| e == "yaml") {
            there.insert(name);
        }
    }
    let carried: BTreeSet<String> = catalog::embedded_names().map(str::to_owned).collect();
    ensure!(there == carried, "{there:?} / {carried:?}");
    let source = joined()?;
    let mut ids = BTreeSet::new();
    for clause in &source.report().clauses {
        ensure!(ids.insert(&clause.id), "{} is there twice", clause.id);
    }
    ensure!(ids.len() >= 79, "{} clauses", ids.len());
    Ok(())
}

/// CMP-02: a clause without evidence prints GAP.
#[test]
fn a_clause_without_evidence_is_a_gap_and_one_with_some_says_which_is_missing() -> Result<()> {
    let source = joined()?;
    for clause in &source.report().clauses {
        let all_missing = clause.evidence.iter().all(|e| e.level == Level::Gap);
        ensure!(all_missing == (clause.assurance == Level::Gap), "{}", clause.id);
        let missing = clause.evidence.iter().filter(|e| e.level == Level::Gap).count();
        ensure!(missing == clause.gaps.len(), "{}", clause.id);
    }
    let [en, ar] = [page(&source, Lang::En)?, page(&source, Lang::Ar)?];
    let gaps = source.report().clauses.iter().filter(|c| c.assurance == Level::Gap).count();
    ensure!(gaps > 0 && en.matches(">GAP<").count() == gaps);
    ensure!(ar.matches(">فجوة<").count() == gaps);
    Ok(())
}

/// CMP-02: the report knows no verdict.
#[test]
fn no_word_clause_or_view_says_that_somebody_is_compliant() -> Result<()> {
    // Whatever could be read as a verdict, whether for or against.
    const VERDICTS: [&str; 6] = ["complian", "complies", "متوافق", "ممتثل", "امتثال", "مطابق"];
    let source = joined()?;
    let mut texts = vec![("source", String::from_utf8(source.bytes().to_vec())?)];
    for lang in Lang::ALL {
        let words = Words::of(lang)?;
        texts.push((lang.tag(), words.keys().map(|k| words.say(k) + "\n").collect()));
        texts.push((lang.tag(), page(&source, lang)?));
        texts.push((lang.tag(), serde_json::to_string(&View::of(&source, &words))?));
    }
    for (name, text) in texts {
        let text = text.to_lowercase();
        for verdict in VERDICTS {
            let at = text.find(verdict);
            let near = at.map(|i| text[i..].chars().take(60).collect::<String>());
            ensure!(near.is_none(), "{name}: {near:?}");
        }
    }
    Ok(())
}

/// CMP-07: both languages show every section and finding, and name the same source.
#[test]
fn both_views_have_every_section_and_print_the_same_digest() -> Result<()> {
    let source = joined()?;
    let digest = Digest::of(source.bytes()).to_string();
    for lang in Lang::ALL {
        let (page, words) = (page(&source, lang)?, Words::of(lang)?);
        for id in SECTIONS {
            let title = words.say(&format!("{}_title", id.to_lowercase()));
            ensure!(page.contains(&format!("<h3 id=\"{id}\">")), "{lang:?} lacks {id}");
            ensure!(page.contains(&title), "{lang:?} lacks {title}");
        }
        for finding in &source.report().findings {
            let title = words.say(&format!("finding_{}", finding.finding));
            ensure!(page.contains(&title), "{lang:?} lacks {title}");
        }
        for clause in &source.report().clauses {
            ensure!(page.contains(&format!("<tr id=\"{}\">", clause.id)), "{}", clause.id);
        }
        ensure!(page.matches(&digest).count() >= 3, "{lang:?}: the digest");
        let head = format!("<html lang=\"{}\" dir=\"{}\">", lang.tag(), lang.dir());
        ensure!(page.contains(&head), "{head}");
    }
    Ok(())
}

#[test]
fn what_an_attacker_writes_into_the_log_is_text_in_the_page() -> Result<()> {
    let source = joined()?;
    for lang in Lang::ALL {
        let page = page(&source, lang)?;
        ensure!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;"));
        ensure!(!page.contains("<script") && !page.contains("<img"), "{lang:?}: markup");
        // The page's own markup has no such character; whatever is there came from an entry.
        let odd = |c: char| {
            (c.is_control() && c != '\n')
                || matches!(c as u32, 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F)
        };
        ensure!(!page.contains(odd), "{lang:?}: {:?}", page.find(odd));
        ensure!(page.contains("approved\\u{202e}gnp.xcod\\u{202c}"), "{lang:?}");
        ensure!(page.contains("&lt;b&gt;inf&lt;/b&gt;") && !page.contains("<b>inf"), "{lang:?}");
        // Every attribute that holds foreign text is quoted, so no quote may stand in it.
        ensure!(!page.contains("onerror=\"") && !page.contains("href=\"http"), "{lang:?}");
        // Nothing is fetched: every address is an anchor or stands in the page.
        for rest in page.split("src").skip(1) {
            ensure!(!rest.starts_with("=\"http") && !rest.starts_with(":url(http"), "{lang:?}");
        }
    }
    Ok(())
}

/// CMP-01: the same report gives the same files, byte for byte.
#[test]
fn two_runs_give_the_same_bytes_and_a_report_made_again_from_its_source_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
    let formats = ["html", "pdf", "json", "csv", "jsonl", "parquet"];
    let formats: Vec<&str> = formats.iter().flat_map(|f| ["--format", f]).collect();
    for path in &paths[..2] {
        let out = render(path, &formats)?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let source = paths[0].join("report.json");
    let again = ["render", source.to_str().context("a path")?, "-o"];
    let again = [&again[..], &[paths[2].to_str().context("a path")?], &formats].concat();
    ensure!(program(&again)?.status.success());
    let [a, b, c] = [files(&paths[0])?, files(&paths[1])?, files(&paths[2])?];
    ensure!(a.len() > 20, "{} files", a.len());
    ensure!(a.keys().eq(b.keys()) && a.keys().eq(c.keys()), "other files");
    for (name, bytes) in &a {
        ensure!(b.get(name) == Some(bytes) && c.get(name) == Some(bytes), "{}", name.display());
    }
    let digest = Digest::of(&a[Path::new("report.json")]).to_string();
    for name in ["report.en.pdf", "report.ar.pdf"] {
        let pdf = &a[Path::new(name)];
        ensure!(pdf.starts_with(b"%PDF-1."), "{name}");
        let has = |text: &str| pdf.windows(text.len()).any(|w| w == text.as_bytes());
        ensure!(has(&digest), "{name} does not name its source");
        ensure!(has("<pdfuaid:part>1</pdfuaid:part>"), "{name} is not marked as accessible");
    }
    Ok(())
}

#[test]
fn every_table_is_exported_and_no_csv_cell_is_a_formula() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = render(folder.path(), &["--format", "csv", "--format", "jsonl", "--json"])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let made = files(folder.path())?;
    ensure!(said["files"].as_array().map(Vec::len) == Some(made.len()));
    for file in said["files"].as_array().context("files")? {
        let bytes = &made[Path::new(file["file"].as_str().context("file")?)];
        ensure!(file["sha256"] == Digest::of(bytes).to_string());
    }
    let source = joined()?;
    for section in &source.report().sections {
        for table in &section.tables {
            let name = |ending| format!("tables/{}.{}.{ending}", section.id, table.name);
            let csv = &made[Path::new(&name("csv"))];
            let mut reader = csv::Reader::from_reader(csv.as_slice());
            ensure!(reader.headers()?.iter().eq(table.columns.iter().map(String::as_str)));
            let mut rows = 0;
            for record in reader.records() {
                rows += 1;
                for cell in &record? {
                    ensure!(!cell.starts_with(['=', '+', '@', '\t', '\r']), "{cell}");
                }
            }
            let lines = std::str::from_utf8(&made[Path::new(&name("jsonl"))])?.lines().count();
            ensure!(rows == table.rows.len() && lines == rows, "{}", table.name);
        }
    }
    let consents = String::from_utf8_lossy(&made[Path::new("tables/E12.consents.csv")]);
    ensure!(consents.contains("\"'=HYPERLINK("), "{consents}");
    Ok(())
}

#[test]
fn a_report_that_is_not_one_is_refused_with_what_to_do_and_nothing_is_written() -> Result<()> {
    let text = String::from_utf8(REPORT.to_vec())?;
    let spaced = text.replacen(':', ": ", 1);
    let swapped = text.replacen("\"id\":\"E2\"", "\"id\":\"E3\"", 1);
    let other = text.replacen("\"v\":1", "\"v\":2", 1);
    let level = text.replacen("\"level\":\"proven\"", "\"level\":\"certain\"", 1);
    let name =
        text.replacen("\"name\":\"parties\",\"rows\"", "\"name\":\"../parties\",\"rows\"", 1);
    for (bad, want) in [
        (&spaced, "canonical"),
        (&swapped, "E1 to E15"),
        (&other, "is not known here"),
        (&level, "unknown variant `certain`"),
        (&name, "a-z, 0-9 and _"),
    ] {
        ensure!(*bad != text, "{want}: nothing was changed");
        let folder = tempfile::tempdir()?;
        let [report, into] = ["report.json", "out"].map(|n| folder.path().join(n));
        fs::write(&report, bad)?;
        let paths = [&report, &into].map(|p| p.to_string_lossy().into_owned());
        let out = program(&["render", &paths[0], "-o", &paths[1]])?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.code() == Some(1) && said.contains(want), "{want}: {said}");
        ensure!(!into.exists(), "{want}: something was written");
    }
    Ok(())
}

#[test]
fn levels_that_do_not_follow_from_the_facts_are_refused() -> Result<()> {
    let source = String::from_utf8(joined()?.bytes().to_vec())?;
    let forged = source.replacen("\"assurance\":\"gap\"", "\"assurance\":\"proven\"", 1);
    ensure!(forged != source);
    let refused = Source::join(forged.as_bytes(), None).err().context("it was taken")?;
    ensure!(refused.to_string().contains("do not follow from the facts"), "{refused}");
    Ok(())
}

#[test]
fn catalogues_of_another_folder_take_the_place_of_ours() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [clauses, into] = ["clauses", "out"].map(|n| folder.path().join(n));
    fs::create_dir(&clauses)?;
    let ours = Path::new(HERE).join("../../policies/clauses/uae-ia.yaml");
    let text = fs::read_to_string(&ours)?;
    fs::write(clauses.join("uae-ia.yaml"), &text)?;
    let path = clauses.to_str().context("a path")?;
    let out = render(&into, &["--format", "json", "--clauses", path])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let source = Source::join(&fs::read(into.join("report.json"))?, None)?;
    let [catalogue] = source.report().catalogues.as_slice() else { anyhow::bail!("not one") };
    ensure!(catalogue.sha256 == Digest::of(text.as_bytes()).to_string());

    fs::write(clauses.join("uae-ia.yaml"), text.replacen("verified: M", "verified: X", 1))?;
    let out = render(&into, &["--format", "json", "--clauses", path])?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.code() == Some(1) && said.contains("uae-ia.yaml, line "), "{said}");
    Ok(())
}

#[test]
fn a_report_about_no_entry_at_all_is_still_a_report() -> Result<()> {
    let report = Sections::new(Scope::default()).finish("t", 0, &Digest::of(b""));
    let source = Source::join(&report.to_bytes(), Some(&catalog::embedded()?))?;
    for lang in Lang::ALL {
        let words = Words::of(lang)?;
        let lacks = missing_words(source.report(), &words);
        ensure!(lacks.is_empty(), "{lang:?} lacks {lacks:?}");
        let view = View::of(&source, &words);
        ensure!(html::page(&view).contains(&words.say("no_entries")));
        ensure!(pdf::document(&view, "")?.starts_with(b"%PDF-1."));
    }
    Ok(())
}
