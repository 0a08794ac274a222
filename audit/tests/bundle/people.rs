//! People in a bundle: disclosed, erased, withheld, and lied about.

use super::{Parts, parts, report};
use ed25519_dalek::SigningKey;
use falaj_core::{
    audit::{
        Actor, Draft, Entry, Kind, bundle,
        person::{Disclosure, Person},
    },
    canon::{self, Canon},
    id::Digest,
    merkle,
    note::{Checkpoint, NoteSigner},
    succession::Succession,
    time::Timestamp,
    witness::InclusionProof,
};
use falaj_verify::ErasedReport;

/// Statements that lead on from where a bundle ends.
type Statements<'s> = &'s dyn Fn(Checkpoint) -> Vec<String>;

const SARA: Person = Person([7; 16]);
const OMAR: Person = Person([8; 16]);

fn who(person: Person, name: &str) -> Actor {
    Actor {
        person: Some(person),
        id: Some(format!("spiffe://t/ae-on/ae-az/operator/{name}").parse().expect("valid")),
        cert: Some(Digest::of(name.as_bytes())),
        address: Some("192.0.2.7:50123".into()),
        ..Actor::default()
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
    let (index, what) = bundle.disclosing(&disclosed[..1]).wrong();
    assert_eq!(index, 6);
    assert!(what.contains("withheld") && what.contains(&SARA.to_string()), "{what}");
    let (bundle, _) = people(Vec::new());
    assert_eq!(bundle.disclosing(&[]).wrong().0, 5);
}

/// The shard that goes on from this log, and its key.
fn after() -> NoteSigner {
    NoteSigner::new("t/log/after", SigningKey::from_bytes(&[6; 32])).expect("a signer")
}

/// Where a bundle ends.
fn end(bundle: &Parts) -> Checkpoint {
    let (tree_size, root_hash) = (bundle.roots.len() as u64, *bundle.roots.last().expect("roots"));
    Checkpoint { origin: "t/log".into(), tree_size, root_hash }
}

/// An entry of the shard after, and its proof under this key.
fn later(draft: Draft, signer: &NoteSigner) -> (Vec<u8>, String) {
    let at = Timestamp::from_millis(1_000);
    let first = Draft::new(Kind::LogOpened).finish(0, at, [1; 16]);
    let entry = draft.finish(1, at, [2; 16]);
    let mut tree = merkle::Frontier::new();
    let leaves = [&first, &entry].map(|bytes| merkle::leaf_hash(bytes));
    leaves.iter().for_each(|leaf| tree.push(*leaf));
    let origin = signer.verifier().name().to_owned();
    let head = Checkpoint { origin, tree_size: 2, root_hash: tree.root() };
    let (hashes, note) = (vec![leaves[0]], signer.sign(&head.body()).expect("signs"));
    (entry, InclusionProof { index: 1, hashes, note }.to_text())
}

impl Parts {
    /// The same bundle, which says by these entries of later shards who was erased, and by statements who speaks for those.
    fn shown(mut self, erased: &[(Person, (Vec<u8>, String))], statements: &[String]) -> Self {
        let about = canon::parse(self.file(bundle::ABOUT)).expect("canonical");
        let Canon::Map(mut members) = about else { panic!("a map") };
        if !statements.is_empty() {
            let list = statements.iter().map(|text| text.as_str().into()).collect();
            members.insert("later".into(), Canon::List(list));
        }
        *self.file(bundle::ABOUT) = Canon::Map(members).to_bytes();
        let at = self.files.iter().position(|(path, _)| path.starts_with(bundle::TILES));
        let files = erased.iter().flat_map(|(person, (entry, proof))| {
            let proof = (bundle::erased_proof(*person), proof.clone().into_bytes());
            [(bundle::erased(*person), entry.clone()), proof]
        });
        let at = at.expect("a tile");
        self.files.splice(at..at, files.collect::<Vec<_>>());
        self
    }
}

/// AUD-09, AUD-11: who was erased after the log went on in another shard is not missed, if the entry there is proven.
#[test]
fn whoever_was_erased_in_a_later_shard_is_not_missed_in_the_one_that_ended() {
    let (bundle, disclosed) = people(vec![Draft::new(Kind::LogClosed).text("next", "t/log/after")]);
    let statement =
        Succession::sign(&super::signer(), &after(), Some(&end(&bundle))).expect("signs");
    let omar = (OMAR, later(erased(OMAR), &after()));
    let bundle = bundle.disclosing(&disclosed[1..]).shown(&[omar], &[statement]);
    let verified = bundle.verify().expect("verified");
    let shown =
        ErasedReport { person: format!("person:{OMAR}"), origin: "t/log/after".into(), index: 1 };
    assert_eq!(verified.erased, [shown]);
    let report = String::from_utf8(verified.sections.to_bytes()).expect("text");
    assert!(!report.contains("operator/omar") && report.contains("operator/sara"), "{report}");
}

/// AUD-09: what does not show that somebody was erased is named, and so is what shows it of somebody who is disclosed.
#[test]
fn an_erasure_that_a_later_shard_does_not_prove_is_wrong() {
    let fresh = || people(Vec::new());
    let leads = |end: Checkpoint| {
        vec![Succession::sign(&super::signer(), &after(), Some(&end)).expect("signs")]
    };
    let none = |_: Checkpoint| Vec::new();
    let elsewhere = |end| leads(Checkpoint { root_hash: Digest::of(b"other"), ..end });
    let shorter = |end: Checkpoint| leads(Checkpoint { tree_size: end.tree_size - 1, ..end });
    let twice = |end: Checkpoint| [leads(end.clone()), leads(end)].concat();
    let stranger = NoteSigner::new("t/log/after", SigningKey::from_bytes(&[7; 32])).expect("one");
    let of = |draft: Draft, signer: &NoteSigner| vec![(OMAR, later(draft, signer))];
    let right = || of(erased(OMAR), &after());
    let (entry, _) = later(erased(OMAR).text("article", "Article 16"), &after());
    let swapped = vec![(OMAR, (entry, right().remove(0).1.1))];
    let begun = Draft::new(Kind::ErasureBegun).person(OMAR);
    let cases: [(_, Statements<'_>, _, _); 13] = [
        (right(), &none, 1, "no statement leads to a key of t/log/after"),
        (of(erased(OMAR), &super::signer()), &leads, 1, "no statement leads to a key of t/log,"),
        (of(erased(OMAR), &stranger), &leads, 1, "t/log/after"),
        (of(erased(SARA), &after()), &leads, 1, "erases nobody of that name"),
        (of(begun, &after()), &leads, 1, "erases nobody of that name"),
        (swapped, &leads, 1, "is not shown to be in the log"),
        (right(), &elsewhere, 1, "this shard ended elsewhere"),
        (right(), &shorter, 1, "this shard ended elsewhere"),
        (right(), &leads, 0, "nothing of theirs in this log is withheld"),
        (right(), &leads, 2, "withheld"),
        (vec![], &leads, 0, "of which the bundle has nothing"),
        (right(), &twice, 1, "`later` has a gap"),
        (vec![], &none, 1, "withheld"),
    ];
    for (shown, statements, hidden, what) in cases {
        let (bundle, disclosed) = fresh();
        let statements = statements(end(&bundle));
        let bundle = bundle.disclosing(&disclosed[hidden..]).shown(&shown, &statements);
        let wrong = bundle.verify().expect_err(what).to_string();
        assert!(wrong.contains(what), "{what}: {wrong}");
    }
    // Each stands once, before all entries, with its proof behind it.
    let placed = |change: &dyn Fn(&mut Parts)| {
        let (bundle, disclosed) = fresh();
        let statements = leads(end(&bundle));
        let mut bundle = bundle.disclosing(&disclosed[1..]).shown(&right(), &statements);
        change(&mut bundle);
        bundle.verify().expect_err("it is wrong").to_string()
    };
    let at =
        |b: &Parts| b.files.iter().position(|(p, _)| p.starts_with(bundle::ERASED)).expect("it");
    let cut = placed(&|b| drop(b.files.remove(at(b) + 1)));
    assert!(cut.contains(&bundle::erased_proof(OMAR)), "{cut}");
    let alone = placed(&|b| drop(b.files.remove(at(b))));
    assert!(alone.contains("does not stand behind the entry"), "{alone}");
    let late = placed(&|b| {
        let both: Vec<_> = b.files.drain(at(b)..at(b) + 2).collect();
        b.files.extend(both);
    });
    assert!(late.contains("stands behind entries"), "{late}");
    let twice = placed(&|b| {
        let both: Vec<_> = b.files[at(b)..at(b) + 2].to_vec();
        b.files.splice(at(b)..at(b), both);
    });
    assert!(twice.contains("or twice"), "{twice}");
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
        let (found, what) = bundle.wrong();
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
    let (index, what) = bundle.wrong();
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
