//! People in a bundle: disclosed, erased, withheld, and lied about.

use super::{Parts, parts, report};
use falaj_core::{
    audit::{
        Actor, Draft, Entry, Kind, bundle,
        person::{Disclosure, Person},
    },
    id::Digest,
    merkle,
};
use falaj_verify::Wrong;

const SARA: Person = Person([7; 16]);
const OMAR: Person = Person([8; 16]);

fn who(person: Person, name: &str) -> Actor {
    Actor {
        person: Some(person),
        id: Some(format!("spiffe://t/ae-on/ae-az/operator/{name}").parse().expect("valid")),
        cert: Some(Digest::of(name.as_bytes())),
        address: Some("192.0.2.7:50123".into()),
    }
}

/// A bundle in which Omar and Sara were refused (so that no certificate is asked for) as entries 5 and 6, and `more`
/// follows; all that is disclosed of them, in order.
fn people(more: Vec<Draft>) -> (Parts, Vec<Disclosure>) {
    let mut disclosed = Vec::new();
    let bundle = parts(|drafts| {
        for (person, name) in [(OMAR, "omar"), (SARA, "sara")] {
            let draft = Draft::new(Kind::AccessDenied).actor(&who(person, name));
            drafts.push(draft.text("decision", "deny").text("reason", "nothing permits it"));
        }
        drafts.extend(more);
        for (seq, draft) in drafts.iter_mut().enumerate() {
            let salt = [u8::try_from(seq).expect("small"); 32];
            disclosed.extend(draft.commit_to_person(seq as u64, salt).map(|(_, d)| d));
        }
    });
    (bundle, disclosed)
}

fn erased(person: Person) -> Draft {
    Draft::new(Kind::ErasurePerformed).person(person).text("article", "Article 15")
}

impl Parts {
    /// The same bundle with these disclosures, and the report that follows.
    fn disclosing(mut self, disclosures: &[Disclosure]) -> Self {
        let lines: Vec<u8> =
            disclosures.iter().flat_map(|d| [&d.to_bytes()[..], b"\n"].concat()).collect();
        self.files.retain(|(path, _)| !path.starts_with(bundle::PERSONAL));
        let at = self.files.iter().position(|(path, _)| path.starts_with(bundle::ENTRIES));
        if !lines.is_empty() {
            self.files.insert(at.expect("entries"), (bundle::personal(0), lines));
        }
        let root = *self.roots.last().expect("entries");
        let report = report(&self.files, root, None);
        *self.file(bundle::REPORT) = report;
        self
    }
}

/// The entry that is wrong, and how.
fn wrong(bundle: &Parts) -> (u64, String) {
    match bundle.verify().expect_err("it is wrong") {
        Wrong::Content { index, what } => (index, what),
        other => panic!("{other}"),
    }
}

/// AUD-09: a bundle is verified before an erasure and after it, and only the one from before says who it was.
#[test]
fn a_bundle_is_verified_before_an_erasure_and_after_it() {
    let (before, disclosed) = people(Vec::new());
    let before = before.disclosing(&disclosed);
    let report = before.verify().expect("verified").sections.to_bytes();
    let report = String::from_utf8(report).expect("text");
    assert!(report.contains("operator/omar") && report.contains(&format!("person:{OMAR}")));
    let (after, disclosed) = people(vec![erased(OMAR)]);
    let after = after.disclosing(&disclosed[1..]);
    let report = after.verify().expect("verified").sections.to_bytes();
    let report = String::from_utf8(report).expect("text");
    assert!(!report.contains("omar") && report.contains("operator/sara"), "{report}");
    assert!(report.contains("E12.erasures") && report.contains(&format!("person:{OMAR}")));
}

/// AUD-09: whoever is not disclosed and was not erased was withheld, and the first entry of theirs is named.
#[test]
fn a_person_who_is_withheld_is_missed() {
    let (bundle, disclosed) = people(vec![erased(OMAR)]);
    let (index, what) = wrong(&bundle.disclosing(&disclosed[..1]));
    assert_eq!(index, 6);
    assert!(what.contains("withheld") && what.contains(&SARA.to_string()), "{what}");
    let (bundle, _) = people(Vec::new());
    assert_eq!(wrong(&bundle.disclosing(&[])).0, 5);
}

#[test]
fn a_swapped_disclosure_and_a_changed_salt_name_the_entry() {
    let swapped = |mut d: Vec<Disclosure>| {
        let (first, second) = (d[0].payload.clone(), d[1].payload.clone());
        (d[0].payload, d[1].payload) = (second, first);
        d
    };
    let salted = |mut d: Vec<Disclosure>| {
        d[1].salt[31] ^= 1;
        d
    };
    for (index, change) in
        [(5, &swapped as &dyn Fn(Vec<Disclosure>) -> Vec<Disclosure>), (6, &salted)]
    {
        let (bundle, disclosed) = people(Vec::new());
        // The report cannot be made from a lie, so it stays the one of the truth.
        let mut bundle = bundle.disclosing(&disclosed);
        let lines = change(disclosed);
        let lines = lines.iter().flat_map(|d| [&d.to_bytes()[..], b"\n"].concat());
        *bundle.file(bundle::PERSONAL) = lines.collect();
        let (found, what) = wrong(&bundle);
        assert_eq!(found, index, "{what}");
        assert!(what.contains("not what was logged"), "{what}");
    }
}

#[test]
fn disclosures_stand_in_order_before_their_entries_and_each_opens_one() {
    let (bundle, disclosed) = people(Vec::new());
    let bundle = bundle.disclosing(&disclosed);
    let tampered = |change: &dyn Fn(&mut Parts)| {
        let (mut other, _) = people(Vec::new());
        other.files.clone_from(&bundle.files);
        other.roots.clone_from(&bundle.roots);
        change(&mut other);
        other.verify().expect_err("it is wrong").to_string()
    };
    let twice = tampered(&|b| {
        let lines = b.file(bundle::PERSONAL).clone();
        b.file(bundle::PERSONAL).extend(lines);
    });
    assert!(twice.contains("out of place"), "{twice}");
    let cut = tampered(&|b| {
        b.file(bundle::PERSONAL).pop();
    });
    assert!(cut.contains("ends early"), "{cut}");
    let nobody = tampered(&|b| {
        let of_nobody = Disclosure { seq: 2, ..disclosed[0].clone() };
        let mut lines = [&of_nobody.to_bytes()[..], b"\n"].concat();
        lines.extend(b.file(bundle::PERSONAL).clone());
        *b.file(bundle::PERSONAL) = lines;
    });
    assert!(nobody.contains("entry 2 is wrong"), "{nobody}");
    let after = tampered(&|b| {
        let at = b.files.iter().position(|(p, _)| p.starts_with(bundle::PERSONAL)).expect("there");
        b.files.swap(at, at + 1);
    });
    assert!(after.contains("between a tile and its entries"), "{after}");
}

#[test]
fn an_entry_that_names_a_person_and_commits_to_nothing_is_wrong() {
    let bundle = parts(|drafts| {
        drafts.push(Draft::new(Kind::AccessDenied).actor(&who(SARA, "sara")));
    });
    let (index, what) = wrong(&bundle);
    assert_eq!((index, what.contains("commits to nothing")), (5, true), "{what}");
}

/// What a report is made from: an entry with what is disclosed of it.
pub(super) fn entries(files: &[(String, Vec<u8>)], bytes: &[u8]) -> Vec<Entry> {
    let lines = files.iter().find(|(path, _)| path.starts_with(bundle::PERSONAL));
    let lines = lines.map(|(_, lines)| &lines[..]).unwrap_or_default();
    let read = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let disclosed: Vec<Disclosure> =
        read.map(|line| Disclosure::parse(line).expect("a disclosure")).collect();
    let entry = |bytes: &[u8]| {
        let entry = Entry::parse(bytes).expect("an entry");
        match disclosed.iter().find(|d| d.seq == entry.seq) {
            Some(disclosure) => entry.disclosed(disclosure).expect("it opens"),
            None => entry,
        }
    };
    merkle::entries(bytes).flatten().map(entry).collect()
}
