//! Gates in a bundle: no log makes a version of a model that a gate of its study was not asked about, and no verdict says
//! anything but what follows.

use super::{
    fixture::{Parts, STUDY, parts_of},
    versions::made,
};
use falaj_core::audit::Draft;

/// What the log says of the gate on sites in these tests, when it is asked.
const PASSED: &str = "pass: sites: 1, at least 1 needed";

/// A study of so many rounds with these sections.
fn study(rounds: u32, sections: &str) -> String {
    STUDY.replace("count: 1", &format!("count: {rounds}")) + sections
}

/// A bundle of this study whose first round gave a model: what its verdict says of gates, and whether a version was made of it.
fn bundle(study: &str, gates: &[&str], is_made: bool) -> Parts {
    parts_of(study, |drafts: &mut Vec<Draft>| {
        let published = drafts[4].clone().count("attempt", 0);
        drafts[4] = match gates {
            [] => published,
            gates => published.texts("gates", gates.iter().map(|line| (*line).to_owned())),
        };
        if is_made {
            drafts.push(made());
        }
    })
}

#[test]
fn a_version_of_a_round_that_a_gate_was_not_asked_about_is_named_with_the_gate() {
    let at_the_end = "gates:\n  - { metric: sites, at_least: 1, when: end }\n";
    let evaluated = "evaluation: { holdout: 0.2, every: 2, epsilon: 1.0 }\n";
    let overall = format!("{evaluated}gates:\n  - {{ metric: roc_auc, at_least: 0.7 }}\n");
    let second = format!(
        "{evaluated}gates:\n  - {{ metric: sites, at_least: 1 }}\n  - {{ metric: brier, at_most: 0.2 }}\n"
    );
    for (sections, gates, gate) in [
        (at_the_end, &[][..], "sites"),
        (&*overall, &[][..], "roc_auc"),
        (&*second, &[PASSED][..], "brier"),
    ] {
        // The round's model may be published: it is asked about it later that it has to show what the gates ask for.
        let published = bundle(&study(2, sections), gates, false);
        assert_eq!(published.verify().expect("verified").models, 1);
        let (index, what) = bundle(&study(2, sections), gates, true).wrong();
        let said = format!(
            "version 1 of study `s` is the model of round 1, which was not judged by the study's gate on `{gate}`"
        );
        assert_eq!((index, what), (5, said));
    }
}

#[test]
fn a_version_of_a_round_that_every_gate_was_asked_about_is_verified() {
    for (rounds, when) in [(1, "end"), (1, "each_round"), (2, "each_round")] {
        let gates = format!("gates:\n  - {{ metric: sites, at_least: 1, when: {when} }}\n");
        let bundle = bundle(&study(rounds, &gates), &[PASSED], true);
        let report = bundle.verify().expect("verified");
        assert_eq!((report.models, report.tree_size), (1, 6), "{rounds} {when}");
    }
}

#[test]
fn a_verdict_that_says_another_thing_of_a_gate_than_follows_is_named() {
    let of = |rounds, gates: &str, said: &[&str]| bundle(&study(rounds, gates), said, true).wrong();
    let asked = "gates:\n  - { metric: sites, at_least: 1 }\n";
    let at_the_end = "gates:\n  - { metric: sites, at_least: 1, when: end }\n";
    let failing = "gates:\n  - { metric: sites, at_least: 2 }\n";
    let uncounted = "evaluation: { holdout: 0.2, every: 1, epsilon: 1.0 }\ngates:\n  - { metric: roc_auc, at_least: 0.7 }\n";
    for (rounds, gates, said, why) in [
        // It was not asked, it was asked and nothing is said, and it says more than there is.
        (2, at_the_end, &[PASSED][..], "`gates` of round s/1 says `pass: sites"),
        (1, asked, &[][..], "`gates` of round s/1 says `nothing`"),
        (1, asked, &["pass: sites: 9, at least 1 needed"][..], "it is `pass: sites: 1, at least 1"),
        // It failed, and the model was published all the same.
        (
            1,
            failing,
            &["fail: sites: 1, at least 2 needed"][..],
            "fails a gate of its study: sites: 1",
        ),
        (
            1,
            failing,
            &["pass: sites: 2, at least 2 needed"][..],
            "fails a gate of its study: sites: 1",
        ),
        // Nobody counted: what is missing fails.
        (
            1,
            uncounted,
            &["pass: roc_auc: 0.9 [0.8, 1.0], at least 0.7 needed"][..],
            "no site has sent",
        ),
    ] {
        let (index, what) = of(rounds, gates, said);
        assert_eq!(index, 4, "{what}");
        assert!(what.contains(why), "{what}");
    }
}
