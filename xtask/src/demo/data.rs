//! The records: Wisconsin's, split into rows that nobody trains on and three unequal, unlike parts; and those of card holders, split by
//! age.

use crate::tools;
use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use std::{fmt::Write as _, fs, io::Read as _};

/// One in this many records is held out.
const HELD_OUT: u64 = 5;
/// Of a hundred records with this diagnosis, how many go to each hospital: benign ones, malignant ones.
const SHARES: [[u64; 2]; 3] = [[58, 34], [27, 36], [15, 30]];

/// How a record ends that is malignant.
const MALIGNANT: &str = "malignant";

/// The split: CSV texts, each with the header.
pub(crate) struct Split {
    /// Rows that no site has.
    pub(crate) held_out: String,
    /// Each hospital's rows.
    pub(crate) hospitals: [String; 3],
}

/// Splits the records; the same seed gives the same split.
pub(crate) fn split(seed: u64) -> Result<Split> {
    let path = tools::root().join("tests/data/wdbc.csv");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut lines = text.lines();
    let header = lines.next().context("the records have a header")?;
    let start = format!("{header}\n");
    let mut split =
        Split { held_out: start.clone(), hospitals: [start.clone(), start.clone(), start] };
    for (row, line) in lines.enumerate() {
        let hash = mix(seed, row as u64);
        let to = if hash.is_multiple_of(HELD_OUT) {
            &mut split.held_out
        } else {
            &mut split.hospitals[hospital(hash / HELD_OUT, line)]
        };
        to.push_str(line);
        to.push('\n');
    }
    Ok(split)
}

/// Which hospital a record goes to, by its diagnosis and a drawn number.
fn hospital(drawn: u64, line: &str) -> usize {
    let kind = usize::from(line.ends_with(MALIGNANT));
    let mut reach = 0;
    let hospital = SHARES.iter().position(|share| {
        reach += share[kind];
        drawn % 100 < reach
    });
    hospital.unwrap_or(2)
}

/// The records of three hospitals, all of them, and with a column more: a number for each patient. CSV texts, each with the header.
pub(crate) fn patients() -> Result<[String; 3]> {
    let path = tools::root().join("tests/data/wdbc.csv");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut lines = text.lines();
    let header = lines.next().context("the records have a header")?;
    let mut hospitals: [String; 3] = std::array::from_fn(|_| format!("patient,{header}\n"));
    for (row, line) in lines.enumerate() {
        let to = &mut hospitals[hospital(mix(1, row as u64) / HELD_OUT, line)];
        let _ = writeln!(to, "{},{line}", row + 1);
    }
    Ok(hospitals)
}

/// The same records with the other diagnosis each.
pub(crate) fn swapped(records: &str) -> Result<String> {
    let mut lines = records.lines();
    let mut swapped = format!("{}\n", lines.next().context("the records have a header")?);
    for line in lines {
        let (rest, diagnosis) = line.rsplit_once(',').context("a record without a diagnosis")?;
        let other = if diagnosis == MALIGNANT { "benign" } else { MALIGNANT };
        let _ = writeln!(swapped, "{rest},{other}");
    }
    Ok(swapped)
}

/// Ages at which the next bank begins.
const AGES: [u32; 4] = [28, 32, 37, 44];

/// The card holders of five banks, youngest first: CSV texts, each with the header.
pub(crate) fn by_age() -> Result<[String; 5]> {
    let path = tools::root().join("tests/data/credit_default.csv.gz");
    let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let mut text = String::new();
    let read = GzDecoder::new(file).read_to_string(&mut text);
    read.with_context(|| format!("reading {}", path.display()))?;
    let mut lines = text.lines();
    let header = lines.next().context("the records have a header")?;
    let column = header.split(',').position(|name| name == "AGE").context("no column AGE")?;
    let mut banks: [String; 5] = std::array::from_fn(|_| format!("{header}\n"));
    for line in lines {
        let age: u32 = line.split(',').nth(column).context("a row without AGE")?.parse()?;
        let bank = &mut banks[AGES.iter().filter(|from| age >= **from).count()];
        bank.push_str(line);
        bank.push('\n');
    }
    ensure!(banks.iter().all(|bank| bank.lines().nth(1).is_some()), "a bank has no card holder");
    Ok(banks)
}

/// A fixed mixing of two numbers (Steele, Lea, Flood 2014, the finaliser of SplitMix64).
fn mix(seed: u64, row: u64) -> u64 {
    let mut z = seed.wrapping_add((row + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
