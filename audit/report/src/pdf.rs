//! A view as a PDF, set by Typst as a library. It reads the template and the view and nothing else: no system
//! fonts, no files, no packages, no network, no clock. The same view gives the same bytes.

use crate::{
    view::{TEXT_CHARS_MAX, View, cut},
    when::Local,
};
use serde_json::Value;
use std::{path::PathBuf, sync::LazyLock};
use typst::{
    Library, LibraryExt as _, World,
    diag::{FileError, FileResult, SourceDiagnostic},
    ecow::EcoVec,
    foundations::{Bytes, Datetime, Duration, Smart},
    syntax::{FileId, RootedPath, Source, VirtualPath, VirtualRoot},
    text::{Font, FontBook},
    utils::LazyHash,
};
use typst_layout::PagedDocument;
use typst_pdf::{PdfOptions, PdfStandard, PdfStandards, Timestamp};

const TEMPLATE: &str = include_str!("../template/report.typ");
/// The fonts, and no others.
const FONTS: [&[u8]; 5] = [
    include_bytes!("../fonts/IBMPlexSans-Regular.ttf"),
    include_bytes!("../fonts/IBMPlexSans-SemiBold.ttf"),
    include_bytes!("../fonts/IBMPlexSansArabic-Regular.ttf"),
    include_bytes!("../fonts/IBMPlexSansArabic-SemiBold.ttf"),
    include_bytes!("../fonts/IBMPlexMono-Regular.ttf"),
];
/// A run of text with no place to break a line gets one after this many characters.
const RUN_MAX: usize = 24;

/// Why a PDF could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PdfError {
    /// The view cannot be spelled.
    #[error("the view cannot be written as JSON")]
    View(#[source] serde_json::Error),
    /// The typesetter refused it.
    #[error("the PDF could not be set: {0}")]
    Typst(String),
}

static LIBRARY: LazyLock<LazyHash<Library>> = LazyLock::new(|| LazyHash::new(Library::default()));
static FACES: LazyLock<Vec<Font>> =
    LazyLock::new(|| FONTS.iter().flat_map(|bytes| Font::iter(Bytes::new(*bytes))).collect());
static BOOK: LazyLock<LazyHash<FontBook>> =
    LazyLock::new(|| LazyHash::new(FontBook::from_fonts(FACES.iter())));

/// The PDF of a view. `last_ts` is the last entry's time, which becomes the document's date; without it, it has none.
///
/// # Errors
/// [`PdfError`]: with the first thing that the typesetter objected to.
pub fn document(view: &View, last_ts: &str) -> Result<Vec<u8>, PdfError> {
    let pages = set(view)?;
    let date = Local::utc_parts(last_ts)
        .and_then(|(y, mo, d, h, mi, s)| Datetime::from_ymd_hms(y, mo, d, h, mi, s));
    // An archive's document needs a date; a report about no entry has none.
    let standards = match date {
        Some(_) => &[PdfStandard::Ua_1, PdfStandard::A_2a][..],
        None => &[PdfStandard::Ua_1],
    };
    let standards =
        PdfStandards::new(standards).map_err(|e| PdfError::Typst(e.message().to_string()))?;
    let options = PdfOptions {
        ident: Smart::Custom(format!("falaj/report/{}/{}", view.digest, view.lang)),
        creator: Smart::Custom(Some(format!("falaj-report {}", env!("CARGO_PKG_VERSION")))),
        timestamp: date.map(Timestamp::new_utc),
        standards,
        ..PdfOptions::default()
    };
    let bytes = typst_pdf::pdf(&pages, &options).map_err(|errors| objection(&errors))?;
    // What was laid out is kept for the next document, which has none of it.
    typst::comemo::evict(0);
    Ok(bytes)
}

/// The view's pages, set.
fn set(view: &View) -> Result<PagedDocument, PdfError> {
    let mut value = serde_json::to_value(view).map_err(PdfError::View)?;
    printable(&mut value);
    let json = serde_json::to_vec(&value).map_err(PdfError::View)?;
    typst::compile(&Desk::new(json)).output.map_err(|errors| objection(&errors))
}

fn objection(errors: &EcoVec<SourceDiagnostic>) -> PdfError {
    let first = errors.first();
    let hints = first.iter().flat_map(|e| &e.hints).map(|h| h.v.to_string());
    let what = first.map(|e| e.message.to_string()).into_iter().chain(hints);
    PdfError::Typst(what.collect::<Vec<_>>().join("; "))
}

/// Makes every text of the view printable: characters that no font here has are written as `\u{..}`, and long runs
/// get places to break. Foreign text can hold either.
fn printable(value: &mut Value) {
    match value {
        Value::String(text) => *text = broken(&covered(text)),
        Value::Array(items) => items.iter_mut().for_each(printable),
        Value::Object(members) => members.values_mut().for_each(printable),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text in characters that a font here has. Where codes make it longer than texts of others may be, the end is
/// left out, so that a row still fits on a page.
fn covered(text: &str) -> String {
    let has = |c: char| FACES.iter().any(|f| f.info().coverage.contains(c as u32));
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if has(c) {
            out.push(c);
        } else {
            out.push_str(&c.escape_unicode().to_string());
        }
    }
    if out == text { out } else { cut(&out, TEXT_CHARS_MAX) }
}

/// Puts spaces of no width into runs that have no place to break. Digests are set where they have room, and stay as
/// they are, so that they can be copied from the page.
fn broken(text: &str) -> String {
    const BREAK: char = '\u{200B}';
    let mut out = String::with_capacity(text.len());
    let ends_run = |c: char| c.is_whitespace() || matches!(c, '/' | '-');
    for run in text.split_inclusive(ends_run) {
        let whole = run.len() == 64 && run.bytes().all(|b| b.is_ascii_hexdigit());
        for (i, c) in run.chars().enumerate() {
            if !whole && i > 0 && i % RUN_MAX == 0 && !ends_run(c) {
                out.push(BREAK);
            }
            out.push(c);
        }
    }
    out
}

/// All that the typesetter can see.
struct Desk {
    main: Source,
    view: FileId,
    json: Bytes,
}

impl Desk {
    fn new(json: Vec<u8>) -> Self {
        let id = |name: &str| {
            let path = VirtualPath::new(name).expect("invariant: a constant path is a path");
            RootedPath::new(VirtualRoot::Project, path).intern()
        };
        let main = Source::new(id("report.typ"), TEMPLATE.to_owned());
        Self { main, view: id("view.json"), json: Bytes::new(json) }
    }

    fn missing<T>(id: FileId) -> FileResult<T> {
        Err(FileError::NotFound(PathBuf::from(id.vpath().get_without_slash())))
    }
}

impl World for Desk {
    fn library(&self) -> &LazyHash<Library> {
        &LIBRARY
    }

    fn book(&self) -> &LazyHash<FontBook> {
        &BOOK
    }

    fn main(&self) -> FileId {
        self.main.id()
    }

    fn source(&self, id: FileId) -> FileResult<Source> {
        if id == self.main.id() { Ok(self.main.clone()) } else { Self::missing(id) }
    }

    fn file(&self, id: FileId) -> FileResult<Bytes> {
        if id == self.view { Ok(self.json.clone()) } else { Self::missing(id) }
    }

    fn font(&self, index: usize) -> Option<Font> {
        FACES.get(index).cloned()
    }

    /// A report knows no today.
    fn today(&self, _: Option<Duration>) -> Option<Datetime> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog,
        source::Source as Joined,
        words::{Lang, Words},
    };
    use std::collections::BTreeSet;
    use typst::layout::{Frame, FrameItem};

    /// Each run of glyphs on the pages: its font's family, its text, and whether a glyph is missing.
    fn runs(frame: &Frame, out: &mut Vec<(String, String, bool)>) {
        for (_, item) in frame.items() {
            match item {
                FrameItem::Group(group) => runs(&group.frame, out),
                FrameItem::Text(text) => {
                    let missing = text.glyphs.iter().any(|g| g.id == 0);
                    let family = text.font.font().info().family.clone();
                    out.push((family, text.text.to_string(), missing));
                }
                _ => {}
            }
        }
    }

    fn is_arabic(c: char) -> bool {
        matches!(c as u32, 0x0600..=0x06FF)
    }

    #[test]
    fn pages_hold_every_section_and_the_digest_in_fonts_that_the_program_carries() {
        let report = include_bytes!("../tests/data/report.json");
        let files = catalog::embedded().expect("catalogues");
        let source = Joined::join(report, Some(&files)).expect("the fixture");
        for lang in Lang::ALL {
            let view = View::of(&source, &Words::of(lang).expect("words"));
            let pages = set(&view).expect("pages");
            assert!(pages.pages().len() > 3, "{} pages", pages.pages().len());
            let mut found = Vec::new();
            for page in pages.pages() {
                runs(&page.frame, &mut found);
            }
            let whole: String = found.iter().map(|(_, text, _)| text.as_str()).collect();
            let whole: String = whole.split_whitespace().collect();
            for part in &view.sections {
                let title: String = part.title.split_whitespace().collect();
                assert!(whole.contains(&title), "{lang:?}: {title}");
            }
            assert!(
                whole.matches(&view.digest).count() >= 2,
                "{lang:?}: the digest is not printed"
            );
            let families: BTreeSet<&str> = found.iter().map(|(f, _, _)| f.as_str()).collect();
            let ours = ["IBM Plex Mono", "IBM Plex Sans", "IBM Plex Sans Arabic"];
            assert!(families.iter().all(|f| ours.contains(f)), "{families:?}");
            for (family, text, missing) in &found {
                assert!(!missing, "{lang:?}: a glyph of {text:?} is missing");
                let arabic = text.chars().any(|c| is_arabic(c) && c.is_alphabetic());
                assert!(!arabic || family == "IBM Plex Sans Arabic", "{text:?} in {family}");
            }
            let arabic = found.iter().filter(|(_, text, _)| text.chars().any(is_arabic)).count();
            assert_eq!(lang == Lang::Ar, arabic > found.len() / 3, "{arabic} of {}", found.len());
        }
    }

    #[test]
    fn what_no_font_has_is_written_out() {
        assert_eq!(covered("é ١ ا A"), "é ١ ا A");
        assert_eq!(covered("日\u{1F600}"), "\\u{65e5}\\u{1f600}");
        assert_eq!(covered(&"日".repeat(400)).chars().count(), TEXT_CHARS_MAX + 1);
    }

    #[test]
    fn a_long_run_can_be_broken_and_a_short_one_stays_whole() {
        let short = "spiffe://falaj.demo/ae-on/ae-az/site/hospital-1";
        assert_eq!(broken(short), short);
        assert_eq!(broken(&"a".repeat(64)), "a".repeat(64));
        assert_eq!(broken(&"x".repeat(64)).matches('\u{200B}').count(), 2);
    }
}
