//! Records from CSV files, read under a study's schema.
//!
//! A row or file that breaks the schema is reported by file, line and column, to the site alone: neither
//! the report nor a cell ever crosses the wire.

use crate::noise::NoiseSource;
use falaj_core::{
    dp::NoiseError,
    evaluation::{
        Attribute, Watched,
        holdout::{Key, is_held_out},
    },
    study::{Bounds, Data, FeatureKind, LabelValues, Missing},
};
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

/// The most rows that are read: memory has a bound.
pub const ROWS_MAX: usize = 50_000_000;
/// Complaints kept about one data set; the rest is counted.
const COMPLAINTS_MAX: usize = 50;
/// Powers of two between which bounds are estimated.
const EXPONENTS: std::ops::RangeInclusive<i32> = -20..=40;

/// Records as numbers: rows × inputs, scaled to [-1, 1], with a label each.
#[derive(Clone)]
pub struct Batch {
    /// Row by row.
    pub features: Vec<f32>,
    /// Class of each row; or, where the label is a number, its place between its bounds: 0 at the least, `u32::MAX` at the most.
    pub labels: Vec<u32>,
    /// Inputs per row.
    pub width: usize,
}

impl Batch {
    /// Number of rows.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.labels.len()
    }

    /// One row's inputs.
    #[must_use]
    pub fn row(&self, i: usize) -> &[f32] {
        &self.features[i * self.width..(i + 1) * self.width]
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} rows x {}, redacted)", self.rows(), self.width)
    }
}

/// What is wrong at one place of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; 0 for the file as a whole.
    pub line: u64,
    /// The column's name, if it is about one.
    pub column: Option<String>,
    /// What is wrong. Never the cell itself.
    pub what: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)?;
        if let Some(column) = &self.column {
            write!(f, ", column `{column}`")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Why records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// They break the schema.
    #[error("{0}")]
    Schema(Complaints),
    /// Noise for bounds could not be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

/// Everything that is wrong with a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaints {
    /// The first ones.
    pub first: Vec<Complaint>,
    /// How many there are.
    pub total: usize,
}

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.first.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            c.fmt(f)?;
        }
        if self.total > self.first.len() {
            write!(f, "\nand {} more", self.total - self.first.len())?;
        }
        Ok(())
    }
}

impl Complaints {
    fn add(&mut self, file: &Path, line: u64, column: Option<&str>, what: impl Into<String>) {
        self.total += 1;
        if self.first.len() < COMPLAINTS_MAX {
            self.first.push(Complaint {
                file: file.to_owned(),
                line,
                column: column.map(str::to_owned),
                what: what.into(),
            });
        }
    }
}

/// Numeric bounds by column, declared or estimated.
pub type ColumnBounds = BTreeMap<String, (f64, f64)>;

/// The bounds that a study declares; columns with estimated ones are left out.
#[must_use]
pub fn declared_bounds(data: &Data) -> ColumnBounds {
    data.features
        .iter()
        .filter_map(|f| match f.kind {
            FeatureKind::Numeric { bounds: Bounds::Declared { min, max }, .. } => {
                Some((f.name.clone(), (min, max)))
            }
            _ => None,
        })
        .collect()
}

/// Estimates the bounds of one column: a histogram over powers of two with discrete Laplace noise, from which
/// the bins that rise above the noise are kept. Adding or removing one record changes one count by one, so
/// noise of scale 1/epsilon makes it epsilon-DP.
///
/// # Errors
/// [`DataError`] when the records cannot be read or noise cannot be drawn.
pub fn estimate_bounds(
    path: &Path,
    column: &str,
    epsilon: f64,
    source: &mut dyn NoiseSource,
) -> Result<(f64, f64), DataError> {
    let exponents: Vec<i32> = EXPONENTS.collect();
    let bins = 2 * exponents.len() + 1;
    let mut counts = vec![0_i64; bins];
    let bin = |v: f64| -> usize {
        let exponent = (v.abs().log2().floor()).clamp(-20.0, 40.0);
        #[expect(clippy::cast_possible_truncation, reason = "clamped to the exponents")]
        let step = (exponent as i32 + 20).unsigned_abs() as usize;
        if v == 0.0 {
            exponents.len()
        } else if v > 0.0 {
            exponents.len() + 1 + step
        } else {
            exponents.len() - 1 - step
        }
    };
    let mut complaints = Complaints { first: Vec::new(), total: 0 };
    each_row(path, &mut complaints, |header, row, _, _, _| {
        let cell = header.iter().position(|h| h == column).and_then(|i| row.get(i));
        if let Some(v) = cell.and_then(|c| c.trim().parse::<f64>().ok()).filter(|v| v.is_finite()) {
            counts[bin(v)] += 1;
        }
    });
    if complaints.total > 0 {
        return Err(DataError::Schema(complaints));
    }
    source.laplace(&mut counts, 1.0 / epsilon)?;
    // A bin of nobody rises above this with a chance of about one in a thousand over all bins.
    #[expect(clippy::cast_precision_loss, reason = "a small number of bins")]
    let threshold = (1_000.0 * bins as f64).ln() / epsilon;
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    let kept: Vec<usize> = (0..bins).filter(|&i| counts[i] as f64 > threshold).collect();
    let edges = |i: usize| -> (f64, f64) {
        let middle = exponents.len();
        match i.cmp(&middle) {
            std::cmp::Ordering::Equal => (0.0, 0.0),
            std::cmp::Ordering::Greater => {
                let low = 2_f64.powi(exponents[i - middle - 1]);
                (low, 2.0 * low)
            }
            std::cmp::Ordering::Less => {
                let low = 2_f64.powi(exponents[middle - 1 - i]);
                (-2.0 * low, -low)
            }
        }
    };
    let (Some(&first), Some(&last)) = (kept.first(), kept.last()) else { return Ok((-1.0, 1.0)) };
    let (min, max) = (edges(first).0, edges(last).1);
    Ok(if min < max { (min, max) } else { (min - 1.0, max + 1.0) })
}

/// Which of the records are read: those that are held out, or those that are not.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The site's secret.
    pub key: &'a Key,
    /// The data set's name.
    pub dataset: &'a str,
    /// Columns that say whose a record is; the whole row when there are none.
    pub identity: &'a [String],
    /// The part that is held out.
    pub share: f64,
    /// Whether it is that part that is read.
    pub held_out: bool,
    /// Protected attributes: by them the rows that are read are grouped.
    pub attributes: &'a [Attribute],
    /// Columns whose distribution is watched.
    pub watched: &'a [Watched],
}

/// What each record has in columns that the model need not see.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The group of each, in the finest grouping.
    pub groups: Vec<usize>,
    /// For each watched column, what each record's value is put together to.
    pub watched: Vec<Vec<usize>>,
}

/// Reads every CSV file under `path` as the study's schema says.
///
/// # Errors
/// [`DataError::Schema`]: everything that breaks it.
pub fn load(path: &Path, data: &Data, bounds: &ColumnBounds) -> Result<Batch, DataError> {
    load_part(path, data, bounds, None).map(|(batch, _)| batch)
}

/// Where in a file a study's columns are.
struct Columns {
    file: PathBuf,
    features: Vec<Option<usize>>,
    label: Option<usize>,
    identity: Vec<Option<usize>>,
    attributes: Vec<Option<usize>>,
    watched: Vec<Option<usize>>,
}

impl Columns {
    /// Finds them in a header, and complains of those that are not there.
    fn find(
        header: &csv::StringRecord,
        file: &Path,
        (data, part): (&Data, Option<&Part<'_>>),
        complaints: &mut Complaints,
    ) -> Self {
        let mut find = |name: &str| {
            let at = header.iter().position(|h| h == name);
            if at.is_none() {
                complaints.add(file, 1, Some(name), "the file has no such column");
            }
            at
        };
        Self {
            file: file.to_owned(),
            features: data.features.iter().map(|f| find(&f.name)).collect(),
            label: find(&data.label.column),
            identity: part.map_or(&[][..], |p| p.identity).iter().map(|c| find(c)).collect(),
            attributes: part
                .map_or(&[][..], |p| p.attributes)
                .iter()
                .map(|a| find(&a.column))
                .collect(),
            watched: part
                .map_or(&[][..], |p| p.watched)
                .iter()
                .map(|w| find(&w.values.column))
                .collect(),
        }
    }

    fn all_there(&self) -> bool {
        let lists = [&self.features, &self.identity, &self.attributes, &self.watched];
        self.label.is_some() && lists.into_iter().flatten().all(Option::is_some)
    }

    /// Whether a row belongs to the part that is read.
    fn wanted(&self, row: &csv::StringRecord, part: &Part<'_>) -> bool {
        let cells: Vec<&str> = if self.identity.is_empty() {
            row.iter().collect()
        } else {
            self.identity.iter().map(|at| at.and_then(|i| row.get(i)).unwrap_or_default()).collect()
        };
        let identity = [part.dataset].into_iter().chain(cells.into_iter().map(str::trim));
        is_held_out(part.key, identity, part.share) == part.held_out
    }

    /// The group of a row, in the finest grouping: the first attribute changes slowest.
    fn group(&self, row: &csv::StringRecord, attributes: &[Attribute]) -> usize {
        attributes.iter().zip(&self.attributes).fold(0, |group, (attribute, at)| {
            let cell = at.and_then(|i| row.get(i)).unwrap_or_default().trim();
            group * attribute.len() + attribute.group_of(cell)
        })
    }
}

/// As [`load`], only those records that belong to a part, and what is asked of each. Every row is checked, whichever part it
/// belongs to.
///
/// # Errors
/// [`DataError::Schema`]: everything that breaks the schema.
pub fn load_part(
    path: &Path,
    data: &Data,
    bounds: &ColumnBounds,
    part: Option<&Part<'_>>,
) -> Result<(Batch, Told), DataError> {
    let mut complaints = Complaints { first: Vec::new(), total: 0 };
    let width: usize = data
        .features
        .iter()
        .map(|f| match &f.kind {
            FeatureKind::Numeric { .. } => 1,
            FeatureKind::Categorical { values, missing } => {
                values.len() + usize::from(*missing == Missing::Keep)
            }
        })
        .sum();
    let mut batch = Batch { features: Vec::new(), labels: Vec::new(), width };
    let (attributes, watched) = part.map_or((&[][..], &[][..]), |p| (p.attributes, p.watched));
    let mut told = Told { groups: Vec::new(), watched: vec![Vec::new(); watched.len()] };
    let mut seen = 0_usize;
    let mut columns: Option<Columns> = None;
    let mut too_many = false;
    each_row(path, &mut complaints, |header, row, file, line, complaints| {
        let here = columns.take().filter(|c| c.file == file);
        let here = here.unwrap_or_else(|| Columns::find(header, file, (data, part), complaints));
        let here = &*columns.insert(here);
        if !here.all_there() {
            return;
        }
        if batch.labels.len() >= ROWS_MAX {
            too_many = true;
            return;
        }
        seen += 1;
        let before = batch.features.len();
        let mut good = true;
        for (feature, at) in data.features.iter().zip(&here.features) {
            let cell = at.and_then(|i| row.get(i)).unwrap_or_default().trim();
            let read =
                read_cell(cell, &feature.kind, bounds.get(&feature.name), &mut batch.features);
            if let Err(what) = read {
                complaints.add(file, line, Some(&feature.name), what);
                good = false;
            }
        }
        let cell = here.label.and_then(|i| row.get(i)).unwrap_or_default().trim();
        match read_label(cell, &data.label.values) {
            Ok(label) if good && part.is_none_or(|p| here.wanted(row, p)) => {
                batch.labels.push(label);
                told.groups.push(here.group(row, attributes));
                for ((w, at), values) in watched.iter().zip(&here.watched).zip(&mut told.watched) {
                    let cell = at.and_then(|i| row.get(i)).unwrap_or_default().trim();
                    values.push(w.values.group_of(cell));
                }
            }
            Ok(_) => batch.features.truncate(before),
            Err(what) => {
                complaints.add(file, line, Some(&data.label.column), what);
                batch.features.truncate(before);
            }
        }
    });
    if too_many {
        complaints.add(path, 0, None, format!("there are more than {ROWS_MAX} rows"));
    }
    if complaints.total == 0 && seen == 0 {
        complaints.add(path, 0, None, "there are no rows");
    }
    // Of a few records all may be on one side; nothing can be trained on none.
    if complaints.total == 0 && batch.labels.is_empty() && part.is_some_and(|p| !p.held_out) {
        complaints.add(path, 0, None, "every row is held out for evaluation");
    }
    if complaints.total > 0 { Err(DataError::Schema(complaints)) } else { Ok((batch, told)) }
}

/// A label as [`Batch`] holds it.
fn read_label(cell: &str, values: &LabelValues) -> Result<u32, String> {
    match values {
        LabelValues::Classes(classes) => {
            let class = classes.iter().position(|c| c == cell);
            let none = || format!("the label is none of {}", classes.join(", "));
            class.and_then(|class| u32::try_from(class).ok()).ok_or_else(none)
        }
        LabelValues::Number { min, max } => match cell.parse::<f64>() {
            Ok(v) if v.is_finite() => {
                let place = (v.clamp(*min, *max) - min) / (max - min);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a place lies in 0 to 1"
                )]
                let label = (place * f64::from(u32::MAX)).round() as u32;
                Ok(label)
            }
            _ => Err("the label is not a number".into()),
        },
    }
}

/// The place between its bounds, from 0 to 1, of a label that is a number.
#[must_use]
pub fn place(label: u32) -> f64 {
    f64::from(label) / f64::from(u32::MAX)
}

/// What a model should say of such a label: -1 at the least, 1 at the most.
#[must_use]
pub(crate) fn aim(label: u32) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "models are f32")]
    let aim = (2.0 * place(label) - 1.0) as f32;
    aim
}

fn read_cell(
    cell: &str,
    kind: &FeatureKind,
    bounds: Option<&(f64, f64)>,
    out: &mut Vec<f32>,
) -> Result<(), String> {
    match kind {
        FeatureKind::Numeric { missing, .. } => {
            let (min, max) = bounds.copied().unwrap_or((-1.0, 1.0));
            let value = match (cell.is_empty(), missing) {
                (true, Missing::Keep) => f64::midpoint(min, max),
                (true, Missing::Refuse) => {
                    return Err(
                        "the cell is empty; say `missing: keep` in the study if that may be".into(),
                    );
                }
                (false, _) => match cell.parse::<f64>() {
                    Ok(v) if v.is_finite() => v,
                    _ => return Err("the cell is not a number".into()),
                },
            };
            let unit = (value.clamp(min, max) - min) / (max - min);
            #[expect(clippy::cast_possible_truncation, reason = "inputs are f32 in [-1, 1]")]
            out.push((2.0 * unit - 1.0) as f32);
        }
        FeatureKind::Categorical { values, missing } => {
            let extra = usize::from(*missing == Missing::Keep);
            let at = match values.iter().position(|v| v == cell) {
                Some(at) => at,
                None if cell.is_empty() && extra == 1 => values.len(),
                None => return Err(format!("the cell is none of {}", values.join(", "))),
            };
            out.extend((0..values.len() + extra).map(|i| if i == at { 1.0 } else { 0.0 }));
        }
    }
    Ok(())
}

/// Every CSV file under `path`, by name.
pub(crate) fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn each_row(
    path: &Path,
    complaints: &mut Complaints,
    mut visit: impl FnMut(&csv::StringRecord, &csv::StringRecord, &Path, u64, &mut Complaints),
) {
    let files = match files(path) {
        Ok(files) if files.is_empty() => {
            complaints.add(path, 0, None, "the folder holds no CSV file");
            return;
        }
        Ok(files) => files,
        Err(e) => {
            complaints.add(path, 0, None, format!("cannot be read ({e})"));
            return;
        }
    };
    for file in files {
        let mut reader = match csv::Reader::from_path(&file) {
            Ok(reader) => reader,
            Err(e) => {
                complaints.add(&file, 0, None, format!("cannot be read ({e})"));
                continue;
            }
        };
        let Ok(header) = reader.headers().cloned() else {
            complaints.add(&file, 1, None, "the header is not UTF-8 text");
            continue;
        };
        let mut row = csv::StringRecord::new();
        loop {
            let line = reader.position().line();
            match reader.read_record(&mut row) {
                Ok(false) => break,
                Ok(true) => {
                    let line = row.position().map_or(line, csv::Position::line);
                    visit(&header, &row, &file, line, complaints);
                }
                Err(e) => {
                    let line = e.position().map_or(line, csv::Position::line);
                    let what = match e.kind() {
                        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                            format!("the row has {len} cells, the header {expected_len}")
                        }
                        csv::ErrorKind::Utf8 { .. } => "the row is not UTF-8 text".to_owned(),
                        _ => "the row cannot be read".to_owned(),
                    };
                    complaints.add(&file, line, None, what);
                    if matches!(e.kind(), csv::ErrorKind::Io(_)) {
                        break;
                    }
                }
            }
        }
    }
}

/// The number of rows as the site discloses it: with discrete Laplace noise of scale 1/epsilon.
///
/// # Errors
/// [`NoiseError`].
pub fn noised_count(
    rows: usize,
    epsilon: f64,
    noise: &mut dyn NoiseSource,
) -> Result<u32, NoiseError> {
    let mut count = [i64::try_from(rows).unwrap_or(i64::MAX)];
    noise.laplace(&mut count, 1.0 / epsilon)?;
    let most = i64::from(falaj_core::study::WEIGHT_MAX);
    Ok(u32::try_from(count[0].clamp(1, most)).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use falaj_core::{
        evaluation::Groups,
        study::{Feature, Label},
    };
    use std::fmt::Write as _;

    fn data() -> Data {
        let bounds = Bounds::Declared { min: 0.0, max: 1_000.0 };
        let kind = FeatureKind::Numeric { bounds, missing: Missing::Refuse };
        Data {
            dataset: "d".into(),
            features: vec![Feature { name: "x".into(), kind }],
            label: Label {
                column: "y".into(),
                values: LabelValues::Classes(vec!["0".into(), "1".into()]),
            },
        }
    }

    /// 200 visits of 100 patients.
    fn visits() -> String {
        let rows = (0..200).fold(String::new(), |mut rows, i| {
            let _ = writeln!(rows, "{},{i},{},{}", i % 100, i % 2, 20 + i % 60);
            rows
        });
        format!("patient,x,y,age\n{rows}")
    }

    fn part(held_out: bool, identity: &[String]) -> (Vec<f32>, Vec<usize>) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("visits.csv");
        fs::write(&path, visits()).expect("written");
        let attributes = [Attribute { column: "age".into(), groups: Groups::Bands(vec![50.0]) }];
        let key = Key([7; 32]);
        let part = Part {
            key: &key,
            dataset: "d",
            identity,
            share: 0.3,
            held_out,
            attributes: &attributes,
            watched: &[Watched { values: attributes[0].clone(), reference: vec![0.5, 0.5, 0.0] }],
        };
        let bounds = declared_bounds(&data());
        let (batch, told) = load_part(&path, &data(), &bounds, Some(&part)).expect("records");
        assert_eq!(batch.rows(), told.groups.len());
        assert_eq!(told.watched, std::slice::from_ref(&told.groups));
        (batch.features, told.groups)
    }

    /// Which visit a scaled number stands for.
    fn visit(x: f32) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "test data")]
        let visit = (f64::from(x + 1.0) * 500.0).round() as usize;
        visit
    }

    #[test]
    fn each_record_is_in_one_part_and_all_of_a_patient_are_in_the_same() {
        for identity in [Vec::new(), vec!["patient".to_owned()]] {
            let ((trained, _), (held, groups)) = (part(false, &identity), part(true, &identity));
            let mut all: Vec<usize> = trained.iter().chain(&held).map(|x| visit(*x)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..200).collect::<Vec<_>>());
            assert!((30..90).contains(&held.len()), "{}", held.len());
            for (x, group) in held.iter().zip(&groups) {
                assert_eq!(*group, usize::from(visit(*x) % 60 >= 30));
            }
            let split = held.iter().filter(|x| {
                let other = (visit(**x) + 100) % 200;
                !held.iter().any(|y| visit(*y) == other)
            });
            assert_eq!(split.count() == 0, !identity.is_empty());
            // The same again, in the next round.
            assert_eq!(part(true, &identity).0, held);
        }
    }

    #[test]
    fn a_column_that_says_whose_a_record_is_has_to_be_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("visits.csv");
        fs::write(&path, visits()).expect("written");
        let (key, identity) = (Key([7; 32]), ["emirates_id".to_owned()]);
        let (share, attributes) = (0.3, []);
        let part = Part {
            key: &key,
            dataset: "d",
            identity: &identity,
            share,
            held_out: true,
            attributes: &attributes,
            watched: &[],
        };
        let bounds = declared_bounds(&data());
        let missing = load_part(&path, &data(), &bounds, Some(&part)).expect_err("refused");
        assert!(missing.to_string().contains("column `emirates_id`: the file has no such column"));
        // All of them on one side: nothing is left to train on.
        let all = Part { identity: &[], share: 1.0, held_out: false, ..part };
        let none = load_part(&path, &data(), &bounds, Some(&all)).expect_err("refused");
        assert!(none.to_string().contains("every row is held out"));
    }

    #[test]
    fn a_label_that_is_a_number_is_cut_at_its_bounds_and_what_is_none_is_reported() {
        let values = LabelValues::Number { min: 25.0, max: 345.0 };
        let read = |cell: &str| read_label(cell, &values);
        for (cell, wanted) in
            [("25", 0.0), ("185", 0.5), ("345.0", 1.0), ("-7", 0.0), ("1e9", 1.0), ("26.6", 0.005)]
        {
            let found = place(read(cell).expect("a label"));
            assert!((found - wanted).abs() < 2_f64.powi(-32), "{cell}: {found}");
        }
        assert!((aim(read("265").expect("a label")) - 0.5).abs() < 1e-6);
        for cell in ["", "high", "NaN", "inf"] {
            assert_eq!(read(cell), Err("the label is not a number".to_owned()), "{cell}");
        }
    }
}
