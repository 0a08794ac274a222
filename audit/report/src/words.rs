//! The report's words, in two languages, and how numbers are written in each. No word is chosen here.

use std::collections::BTreeMap;

/// The languages a report can be read in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Lang {
    /// English, left to right.
    En,
    /// Arabic, right to left.
    Ar,
}

impl Lang {
    /// Every language.
    pub const ALL: [Self; 2] = [Self::En, Self::Ar];

    /// The language's tag (BCP 47).
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Ar => "ar",
        }
    }

    /// The direction of its lines, as HTML and Typst name it.
    #[must_use]
    pub const fn dir(self) -> &'static str {
        match self {
            Self::En => "ltr",
            Self::Ar => "rtl",
        }
    }

    const fn file(self) -> &'static str {
        match self {
            Self::En => include_str!("../words/en.yaml"),
            Self::Ar => include_str!("../words/ar.yaml"),
        }
    }
}

/// A words file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("audit/report/words/{lang}.yaml, line {line}: {what}")]
pub struct WordsError {
    lang: &'static str,
    line: u64,
    what: String,
}

/// One language's words.
#[derive(Clone, Debug)]
pub struct Words {
    lang: Lang,
    words: BTreeMap<String, String>,
}

impl Words {
    /// The words that the program carries.
    ///
    /// # Errors
    /// [`WordsError`], should the file be no flat list of texts.
    pub fn of(lang: Lang) -> Result<Self, WordsError> {
        let words = serde_saphyr::from_str(lang.file()).map_err(|e| WordsError {
            lang: lang.tag(),
            line: e.location().map_or(0, |l| l.line()),
            what: e.without_snippet().to_string(),
        })?;
        Ok(Self { lang, words })
    }

    /// Which language these are.
    #[must_use]
    pub const fn lang(&self) -> Lang {
        self.lang
    }

    /// The word under `key`, if there is one.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&str> {
        self.words.get(key).map(String::as_str)
    }

    /// The word under `key`. Where there is none the key itself stands, so that a report from a newer program
    /// is still printed whole.
    #[must_use]
    pub fn say(&self, key: &str) -> String {
        self.find(key).unwrap_or(key).to_owned()
    }

    /// The word under `key`, with `{name}` replaced by its value.
    #[must_use]
    pub fn fill(&self, key: &str, values: &[(&str, &str)]) -> String {
        values
            .iter()
            .fold(self.say(key), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
    }

    /// Every key.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.words.keys().map(String::as_str)
    }

    /// A count, with groups of three digits.
    #[must_use]
    pub fn count(&self, n: i64) -> String {
        let digits = n.unsigned_abs().to_string();
        let mut out = String::new();
        if n < 0 {
            out.push('-');
        }
        for (i, c) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                out.push(',');
            }
            out.push(c);
        }
        self.digits(&out)
    }

    /// A number in decimal text, as the language writes its digits and its decimal mark.
    #[must_use]
    pub fn digits(&self, decimal: &str) -> String {
        match self.lang {
            Lang::En => decimal.to_owned(),
            Lang::Ar => decimal
                .chars()
                .map(|c| match c {
                    '0'..='9' => char::from_u32(0x0660 + (c as u32 - '0' as u32)).unwrap_or(c),
                    '.' => '\u{066B}',
                    ',' => '\u{066C}',
                    _ => c,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arabic_numbers_have_arabic_digits_and_marks() {
        let [en, ar] = Lang::ALL.map(|lang| Words::of(lang).expect("the words"));
        assert_eq!(en.count(1_234_567), "1,234,567");
        assert_eq!(ar.count(1_234_567), "١٬٢٣٤٬٥٦٧");
        assert_eq!(en.count(-12), "-12");
        assert_eq!(ar.digits("2.50"), "٢٫٥٠");
    }

    #[test]
    fn a_key_without_a_word_is_printed_as_it_is() {
        let en = Words::of(Lang::En).expect("the words");
        assert_eq!(en.say("a_column_of_tomorrow"), "a_column_of_tomorrow");
        let said = en.fill("none_in_range", &[("from", "0"), ("to", "{n}")]);
        assert_eq!(said, "none: all entries from 0 to {n} were read");
    }
}
