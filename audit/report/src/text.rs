//! Text from elsewhere, made harmless and readable. An entry can hold any character; a page must not obey it.

use std::fmt::Write as _;

/// The text with every character that is not a mark on paper written out as `\u{..}`: control characters, those
/// that change the direction of what follows, those of no width, and what no script uses.
///
/// Letters and digits of every script, signs and plain spaces stay as they are.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unseen(c) {
            let _ = write!(out, "\\u{{{:x}}}", c as u32);
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a character is none that a reader sees: Unicode's control, format, private and unassigned-for-ever
/// characters, its line and paragraph separators, and letters that look like nothing.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c as u32,
            0x00AD | 0x034F | 0x061C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F
            | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x206F | 0x3164
            | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB
            | 0xE000..=0xF8FF | 0xFDD0..=0xFDEF | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A
            | 0xE0000..=0x10_FFFF)
        || (c as u32) & 0xFFFE == 0xFFFE
}

/// Text as HTML has it between tags and within quoted attributes.
#[must_use]
pub fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A cell as a spreadsheet may open it: text that a spreadsheet would run as a formula gets an apostrophe in
/// front. That is text which begins, spaces and unseen characters aside, with `=`, `+`, `-`, `@`, or their
/// full-width forms; and text that begins with a tab or a line break.
///
/// Numbers stay numbers: a minus sign that begins a decimal number is left alone.
#[must_use]
pub fn spreadsheet(cell: &str) -> String {
    const FORMULA: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
    let first = cell.chars().find(|c| !c.is_whitespace() && !is_unseen(*c));
    let begins =
        cell.starts_with(['\t', '\r', '\n']) || first.is_some_and(|c| FORMULA.contains(&c));
    if begins && !is_decimal(cell) { format!("'{cell}") } else { cell.to_owned() }
}

/// Whether this is a decimal number as reports have them: `12`, `-0.5`, `1e-5`.
#[must_use]
pub fn is_decimal(text: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let mantissa = mantissa.strip_prefix('-').unwrap_or(mantissa);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    digits(whole) && digits(fraction) && digits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_cannot_see_is_written_out() {
        assert_eq!(
            visible("a\u{202e}b\u{0}\u{200f}\u{2066}c\n"),
            "a\\u{202e}b\\u{0}\\u{200f}\\u{2066}c\\u{a}"
        );
        assert_eq!(visible("موقع ١، é — 日本"), "موقع ١، é — 日本");
    }

    #[test]
    fn markup_is_text() {
        assert_eq!(html("<a href='x'>\"&\""), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;");
    }

    #[test]
    fn a_formula_is_text_and_a_number_is_a_number() {
        for formula in
            ["=1+1", "+1+1", "-1+1", "@SUM(A1)", " =1", "\t=1", "\r\n", "\u{200f}=1", "＝1"]
        {
            assert_eq!(spreadsheet(formula), format!("'{formula}"));
        }
        for plain in ["", "-0.5", "-1e-5", "a=b", "spiffe://x/y", "2026-11-25", "12"] {
            assert_eq!(spreadsheet(plain), plain);
        }
    }

    #[test]
    fn decimals_are_recognised() {
        for yes in ["0", "12", "-0.5", "1e-5", "2.5E+3"] {
            assert!(is_decimal(yes), "{yes}");
        }
        for no in ["", "-", ".5", "1.", "1e", "0x1", "1,5", "1.2.3", "+1", "٣"] {
            assert!(!is_decimal(no), "{no}");
        }
    }
}
