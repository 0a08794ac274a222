//! Decisions in a bundle: of what the entry tells, by policies that were in force, over what was known.

use super::{
    Parts, continued,
    fixture::{Cast, by_minutes, minute, parts, permitted, policies},
};
use falaj_core::{
    audit::{Actor, Draft, Kind, policy_set},
    evidence::Evidence,
    id::Digest,
};
use falaj_policies::{POLICIES, SCHEMA, rescue};

type Files = Vec<(String, Vec<u8>)>;

/// The shipped policies, with a rule more.
fn with_rule(rule: &str) -> Files {
    let mut files = policies();
    files[0].1.extend_from_slice(rule.as_bytes());
    files
}

/// Policies by which every site reads every model.
fn lax() -> Files {
    with_rule(
        "@id(\"LAX\") permit (principal is Falaj::Site, action == Falaj::Action::\"model.read\", resource);",
    )
}

fn loaded(files: &[(String, Vec<u8>)]) -> Draft {
    Draft::new(Kind::PolicyLoaded).digest("policy_set_sha256", &policy_set(files))
}

/// The same entry, decided by these rules of another set.
fn by(draft: Draft, files: &[(String, Vec<u8>)], rules: &[&str]) -> Draft {
    let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
    draft.decided(true, &rules, &policy_set(files))
}

/// The usual bundle and entries after it, the first of which is entry 5.
fn then(more: impl FnOnce(&Cast) -> Vec<Draft>) -> Parts {
    by_minutes(|drafts, cast| drafts.extend(more(cast)))
}

/// Asserts that an entry is wrong for a reason.
fn is_wrong(bundle: &Parts, index: u64, says: &str) {
    let (found, what) = bundle.wrong();
    assert!(found == index && what.contains(says), "entry {found}: {what}");
}

/// Asserts that a bundle holds, and that its report tells of a read that nobody allowed.
fn is_told(bundle: &Parts) {
    let report = bundle.verify().expect("verified").sections.to_bytes();
    let report = String::from_utf8(report).expect("text");
    assert!(report.contains("\"finding\":\"read_without_grant\""), "{report}");
}

#[test]
fn a_decision_is_made_again_by_the_policies_that_were_in_force() {
    let set = policy_set(&policies());
    // By the site whose update the bundle counts; it is the entry after that.
    let deciding = |action: &str, allow: bool, ids: &[&str]| {
        parts(|drafts| {
            let kind = match (allow, action) {
                (false, _) => Kind::AccessDenied,
                (true, "model.read") => Kind::ModelRead,
                (true, _) => Kind::AdminRead,
            };
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            let asked = drafts[3].clone().into_kind(kind).text("action", action);
            drafts.insert(4, asked.decided(allow, &ids, &set));
        })
    };
    let report = deciding("model.read", true, &["ACC-101"]).verify().expect("as decided");
    assert_eq!(report.decisions, 3);
    for (action, allow, ids) in [
        ("model.read", true, &["ACC-999"][..]),
        ("model.read", true, &[]),
        ("model.read", true, &["ACC-101", "ACC-201"]),
        ("model.read", false, &["ACC-101"]),
        ("study.stop", true, &["ACC-201"]),
        ("model.steal", true, &["ACC-101"]),
    ] {
        let (index, what) = deciding(action, allow, ids).wrong();
        assert_eq!(index, 4, "{action} {ids:?}: {what}");
    }
}

/// A study that the log does not tell of lies in a shard before it, or nowhere.
#[test]
fn a_decision_about_a_study_that_nobody_submitted_is_named() {
    let of_another = |cast: &Cast| cast.reads().text("study", "another");
    is_wrong(&then(|cast| vec![of_another(cast)]), 5, "no study `another` was submitted");
    let (statements, opened, rotated) = continued();
    let bundle = by_minutes(|drafts, cast| {
        drafts.insert(0, opened);
        drafts.insert(2, rotated);
        drafts.push(of_another(cast));
    });
    let report = bundle.saying(&statements).verify().expect("verified");
    assert_eq!(report.decisions, 2, "what is not known here is not counted");
}

/// How a study's updates are sealed stands in its file, whatever an entry says of it.
#[test]
fn a_decision_over_a_study_goes_by_its_file() {
    let strict = with_rule(
        "@id(\"FTRL\") forbid (principal, action == Falaj::Action::\"update.send\", resource)
when { resource.mechanism != \"dp_ftrl\" };",
    );
    let told = by_minutes(|drafts, _| {
        let update = by(drafts[3].clone(), &strict, &["ACC-101"]).text("mechanism", "dp_ftrl");
        drafts[3] = update;
        drafts.insert(2, loaded(&strict));
    });
    is_wrong(&told.with_sets([&strict]), 4, "they decide `deny` by [FTRL]");
}

#[test]
fn policies_decide_while_they_are_in_force_and_no_others() {
    let lax = lax();
    let reads = |cast: &Cast, rules: &[&str]| by(cast.reads(), &lax, rules);
    let both = ["ACC-101", "LAX"];
    // Their text is in the bundle, and nobody ever put them in force.
    let bundle = then(|cast| vec![reads(cast, &both)]).with_sets([&lax]);
    is_wrong(&bundle, 5, "were not in force");
    let denied = then(|cast| {
        vec![reads(cast, &both).into_kind(Kind::AccessDenied).decided(
            false,
            &[],
            &policy_set(&lax),
        )]
    });
    is_wrong(&denied.with_sets([&lax]), 5, "were not in force");
    // They are, until others are.
    let bundle = then(|cast| vec![loaded(&lax), reads(cast, &both)]).with_sets([&lax]);
    assert_eq!(bundle.verify().expect("verified").decisions, 3);
    let before = then(|cast| vec![loaded(&lax), cast.reads()]).with_sets([&lax]);
    is_wrong(&before, 6, "in force no longer");
    let again = |cast: &Cast| vec![loaded(&lax), loaded(&policies()), reads(cast, &both)];
    is_wrong(&then(again).with_sets([&lax]), 7, "in force no longer");
    // A start puts in force what it says, and nothing else.
    let started = by_minutes(|drafts, cast| {
        let first = drafts[0].clone();
        drafts.extend([loaded(&lax), first, reads(cast, &both)]);
    });
    is_wrong(&started.with_sets([&lax]), 7, "were not in force");
    let refused = loaded(&lax).into_kind(Kind::PolicyRefused);
    is_wrong(&then(|_| vec![refused]).with_sets([&lax]), 5, "they never were");
}

/// Whoever began to send before other policies came into force was let do so by those of before.
#[test]
fn an_update_rests_on_the_policies_of_its_round() {
    let lax = lax();
    let loaded_at = |at: usize| {
        by_minutes(|drafts, _| drafts.insert(at, loaded(&lax))).with_sets([&lax]).verify().map(drop)
    };
    loaded_at(3).expect("verified");
    let wrong = loaded_at(2).expect_err("before its round opened").to_string();
    assert!(wrong.contains("entry 4") && wrong.contains("in force no longer"), "{wrong}");
}

/// The glass is broken from minute 5 on.
fn broken(until: usize, more: impl FnOnce(&Cast) -> Vec<Draft>) -> Parts {
    let until = minute(until).to_string();
    let says = Draft::new(Kind::GlassBroken).text("reason", "locked out").text("until", &until);
    then(|cast| [vec![loaded(&rescue()), says], more(cast)].concat()).with_sets([&rescue()])
}

#[test]
fn the_rescue_policies_are_asked_while_the_glass_is_broken() {
    let looks = |cast: &Cast| {
        let looks = cast.may(Kind::AdminRead, &cast.operator, "status.read", &[]);
        by(looks, &rescue(), &["BRK-200"])
    };
    broken(7, |cast| vec![looks(cast)]).verify().expect("verified");
    // The files may be read again meanwhile.
    broken(8, |cast| vec![loaded(&rescue()), looks(cast)]).verify().expect("verified");
    is_wrong(&broken(7, |cast| vec![looks(cast); 2]), 8, "stood for a broken glass, until");
    is_wrong(&broken(6 + 241, |_| vec![]), 6, "for more than four hours");
    is_wrong(&broken(9, |cast| vec![loaded(&policies()), looks(cast)]), 8, "in force no longer");
    let mended = || Draft::new(Kind::GlassMended).text("reason", "locked out");
    is_wrong(&broken(9, |cast| vec![mended(), looks(cast)]), 8, "stood for a broken glass");
    let unsaid = then(|cast| vec![loaded(&rescue()), looks(cast)]).with_sets([&rescue()]);
    is_wrong(&unsaid, 6, "no entry says that it was broken");
}

#[test]
fn what_is_done_is_what_policy_allowed() {
    // Each stands for itself, and for nothing else.
    let kinds = [
        (Kind::ConnectionAdmitted, "connect"),
        (Kind::EvidenceTaken, "connect"),
        (Kind::EndpointAllowed, "endpoint.use"),
        (Kind::CertificateRevoked, "site.revoke"),
        (Kind::CertificateReinstated, "site.revoke"),
        (Kind::EnrolmentOffered, "site.enroll"),
        (Kind::EnrolmentWithdrawn, "site.enroll"),
        (Kind::TaskSent, "task.get"),
        (Kind::ExchangeAnswered, "update.send"),
        (Kind::EvaluationAccepted, "update.send"),
        (Kind::ModelRead, "model.read"),
        (Kind::LogExported, "log.export"),
        (Kind::HoldPlaced, "hold.place"),
        (Kind::HoldReleased, "hold.release"),
        (Kind::ErasureBegun, "person.erase"),
        (Kind::ErasureRefused, "person.erase"),
        (Kind::PruningBegun, "log.prune"),
        (Kind::PruningRefused, "log.prune"),
    ];
    let reads =
        |cast: &Cast| cast.may(Kind::AdminRead, &cast.operator, "status.read", &["ACC-205"]);
    then(|cast| vec![reads(cast)]).verify().expect("verified");
    for (kind, action) in kinds {
        is_wrong(&then(|cast| vec![reads(cast).into_kind(kind)]), 5, action);
        let only =
            |cast: &Cast| vec![Draft::new(kind).actor(&cast.operator).text("action", action)];
        if matches!(kind, Kind::ModelRead | Kind::LogExported) {
            is_told(&then(only));
        } else {
            let bare = |cast: &Cast| vec![Draft::new(kind).actor(&cast.operator)];
            is_wrong(&then(bare), 5, "and it says nothing");
            is_wrong(&then(only), 5, "does not say which policies allowed");
        }
        let denied = |cast: &Cast| {
            let set = policy_set(&policies());
            let draft = cast.may(kind, &cast.operator, action, &[]);
            vec![draft.decided(false, &[], &set)]
        };
        is_wrong(&then(denied), 5, "does not say which policies allowed");
    }
    // What has a kind of its own is not looked at as if it were nothing.
    for action in ["model.read", "log.export", "connect", "endpoint.use"] {
        let looks = |cast: &Cast| vec![cast.may(Kind::AdminRead, &cast.operator, action, &[])];
        is_wrong(&then(looks), 5, "its action is");
    }
    is_told(&then(|cast| vec![Draft::new(Kind::AdminRead).actor(&cast.operator)]));
    let silent = |cast: &Cast| {
        let draft = Draft::new(Kind::AdminRead).actor(&cast.operator);
        vec![permitted(draft, &["ACC-205"])]
    };
    is_wrong(&then(silent), 5, "its action is not there");
    // Nor is anybody refused what was allowed, or served whom nobody can name.
    for kind in [Kind::AccessDenied, Kind::ConnectionRefused, Kind::ConnectionEnded] {
        is_wrong(&then(|cast| vec![reads(cast).into_kind(kind)]), 5, "that it was allowed");
    }
    let nobody = then(|cast| vec![cast.reads().actor(&Actor::default())]);
    is_wrong(&nobody, 5, "names nobody who asked");
}

/// The same decision is another one where the coordinator has moved meanwhile.
#[test]
fn a_coordinator_that_starts_elsewhere_decides_anew() {
    let moved = |to: &str| {
        let to = format!("spiffe://t/{to}/coordinator/main");
        by_minutes(|drafts, cast| {
            let started = drafts[0].clone().text("coordinator", &to);
            drafts.extend([cast.reads(), started, cast.reads()]);
        })
    };
    moved("ae-on/ae-du").verify().expect("verified");
    is_wrong(&moved("gb/gb-lnd"), 7, "they decide `deny` by [RES-003]");
}

#[test]
fn what_was_known_of_a_connection_is_told_and_names_the_issuer() {
    let comes =
        |cast: &Cast| cast.may(Kind::ConnectionAdmitted, &cast.site, "connect", &["ACC-100"]);
    then(|cast| vec![comes(cast)]).verify().expect("verified");
    let bare = |cast: &Cast| {
        let draft = Draft::new(Kind::ConnectionAdmitted).actor(&cast.site);
        vec![permitted(draft.text("action", "connect"), &["ACC-100"])]
    };
    is_wrong(&then(bare), 5, "says nothing of what was known");
    for issuer in [None, Some(Digest::of(b"another's key"))] {
        let of_another =
            |cast: &Cast| vec![comes(cast).evidence(&Evidence { issuer, ..cast.evidence() })];
        is_wrong(&then(of_another), 5, "it names another issuer than");
    }
    // Policies that know nothing of it are asked without.
    let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    let old = vec![
        file(POLICIES, "@id(\"OLD\") permit (principal, action, resource);"),
        file(
            SCHEMA,
            "namespace Falaj {
    entity Site = { name: String, trust_domain: String, jurisdiction: String, region: String };
    entity Service = { jurisdiction: String, region: String };
    action connect appliesTo { principal: [Site], resource: [Service] };
}",
        ),
    ];
    let before = |cast: &Cast| {
        let draft = Draft::new(Kind::ConnectionAdmitted).actor(&cast.site);
        vec![loaded(&old), by(draft.text("action", "connect"), &old, &["OLD"])]
    };
    then(before).with_sets([&old]).verify().expect("verified");
}

#[test]
fn what_was_known_of_an_endpoint_is_told_and_where_it_is_declared() {
    let uses = |cast: &Cast| {
        let draft = Draft::new(Kind::EndpointAllowed).actor(&cast.coordinator);
        permitted(draft.text("action", "endpoint.use").text("endpoint", "database"), &["ACC-300"])
    };
    is_wrong(&then(|cast| vec![uses(cast)]), 5, "says nothing of what was known");
    let placeless = |cast: &Cast| vec![uses(cast).evidence(&Evidence::default())];
    is_wrong(&then(placeless), 5, "in which place the endpoint is declared");
    let whole = |cast: &Cast| {
        let known = Evidence { address_known: true, address_in_place: true, ..Evidence::default() };
        vec![uses(cast).evidence(&known).asked([("place", "ae-on/ae-az"), ("host", "db.example")])]
    };
    then(whole).verify().expect("verified");
}
