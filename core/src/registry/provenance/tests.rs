//! Statements that are changed, a field at a time.

use super::*;
use ed25519_dalek::SigningKey;

fn digest(what: &str) -> Digest {
    Digest::of(what.as_bytes())
}

pub(crate) fn site(name: &str) -> SiteId {
    format!("spiffe://t/ae-on/ae-az/site/{name}").parse().expect("a site")
}

pub(crate) fn example() -> Provenance {
    let update = |round: u32, name: &str, index| UpdateCounted {
        site: site(name),
        payload: digest(&format!("payload {round} {name}")),
        header: digest(&format!("header {round} {name}")),
        weight: 100,
        epsilon: format!("0.{round}"),
        index,
    };
    let round = |number: u32, index| RoundMade {
        number,
        base: digest(&format!("model {}", number - 1)),
        model: digest(&format!("model {number}")),
        weight: 200,
        index,
        updates: vec![update(number, "a", index - 2), update(number, "b", index - 1)],
    };
    Provenance {
        study: "heart".parse().expect("a study"),
        version: 1,
        round: 2,
        model: digest("model 2"),
        manifest: digest("manifest"),
        file: digest("file"),
        about: About {
            purpose: "Who <may> fall ill".into(),
            dataset: "cardio".into(),
            features: vec!["age".into(), "sex".into()],
            label: "ill".into(),
            classes: vec!["no".into(), "yes".into()],
            architecture: "mlp".into(),
            mechanism: "dp_sgd".into(),
            delta: "1e-5".into(),
            epsilon_limit: "4".into(),
            places: vec!["ae-on/*".into()],
            legal_basis: "consent".into(),
            dpia: String::new(),
            consent: "C-1, until 2027-06-30".into(),
        },
        study_sha256: digest("study"),
        base: digest("model 0"),
        policy_sets: vec![digest("policies")],
        rounds: vec![round(1, 10), round(2, 20)],
        epsilon: [(site("a"), "0.2".to_owned()), (site("b"), "0.2".to_owned())].into(),
        gates: vec![GateSaid {
            round: 2,
            name: "auc".into(),
            scope: "all".into(),
            figure: "0.75".into(),
            interval: "0.73..0.77".into(),
            bound: ">= 0.72".into(),
            pass: true,
        }],
        coordinator: "spiffe://t/ae-on/ae-az/coordinator/main".into(),
        software: "0.1.0".into(),
        started: "2026-03-01T00:00:00.000Z".into(),
        finished: "2026-03-02T00:00:00.000Z".into(),
        log: LogSaid {
            origin: "falaj.test/log".into(),
            index: 21,
            leaf: digest("leaf"),
            proof: "c2sp.org/tlog-proof@v1\nindex 21\n".into(),
        },
    }
}

fn signer() -> NoteSigner {
    NoteSigner::new("falaj.test/log", SigningKey::from_bytes(&[1; 32])).expect("a signer")
}

#[test]
fn a_provenance_reads_back_from_its_envelope() {
    let (provenance, signer) = (example(), signer());
    let envelope = provenance.sign(&signer).expect("signed");
    let json = envelope.to_json();
    let read = Envelope::parse(json.as_bytes()).expect("an envelope");
    assert_eq!(Provenance::open(&read, signer.verifier()), Ok(provenance));
}

/// Every text, number and truth in a statement, each changed by itself.
fn tampered(value: &Canon) -> Vec<Canon> {
    match value {
        Canon::Bool(b) => vec![Canon::Bool(!b)],
        Canon::Int(n) => vec![Canon::Int(n + 1)],
        // Another digest, site or text of the same kind.
        Canon::Text(text) => {
            let last = text.chars().last().unwrap_or('x');
            let other = if last == '0' { '1' } else { '0' };
            let mut chars: Vec<char> = text.chars().collect();
            chars.pop();
            vec![Canon::Text(chars.into_iter().chain([other]).collect())]
        }
        Canon::List(items) => {
            let changed = |(n, item): (usize, &Canon)| {
                let with = move |other| {
                    let mut items = items.clone();
                    items[n] = other;
                    Canon::List(items)
                };
                tampered(item).into_iter().map(with).collect::<Vec<_>>()
            };
            let fewer = (!items.is_empty()).then(|| Canon::List(items[1..].to_vec()));
            items.iter().enumerate().flat_map(changed).chain(fewer).collect()
        }
        Canon::Map(members) => {
            let changed = |(key, member): (&String, &Canon)| {
                let key = key.clone();
                let with = move |other| {
                    let mut members = members.clone();
                    members.insert(key.clone(), other);
                    Canon::Map(members)
                };
                tampered(member).into_iter().map(with).collect::<Vec<_>>()
            };
            let more = [("more".to_owned(), Canon::Int(0))];
            let more = Canon::Map(members.clone().into_iter().chain(more).collect());
            let fewer = members.keys().map(|key| {
                let but = members.iter().filter(|(k, _)| *k != key);
                Canon::Map(but.map(|(k, v)| (k.clone(), v.clone())).collect())
            });
            members.iter().flat_map(changed).chain([more]).chain(fewer).collect()
        }
    }
}

#[test]
fn whatever_is_changed_is_named_by_its_field_and_the_signature_is_over_all_of_it() {
    let (provenance, signer) = (example(), signer());
    let whole = provenance.statement();
    let envelope = provenance.sign(&signer).expect("signed");
    let all = tampered(&whole);
    assert!(all.len() > 200, "{}", all.len());
    for changed in all {
        let difference = differs(&changed, &whole).expect("it is another");
        assert!(!difference.field.is_empty(), "{difference}");
        let payload = changed.to_bytes();
        // What can still be read is another provenance; what cannot says where.
        match Provenance::read(&payload) {
            Ok(read) => assert_ne!(read, provenance),
            Err(e) => assert!(e.to_string().contains('`'), "{e}"),
        }
        let forged = Envelope { payload, ..envelope.clone() };
        let wrong = Provenance::open(&forged, signer.verifier()).expect_err("forged");
        assert!(wrong.to_string().starts_with("`signatures`: the one by"), "{wrong}");
    }
}

#[test]
fn the_field_that_differs_is_the_one_that_was_changed() {
    let whole = example();
    let said = |change: &dyn Fn(&mut Provenance)| {
        let mut other = whole.clone();
        change(&mut other);
        differs(&other.statement(), &whole.statement()).expect("it differs").to_string()
    };
    let wanted = "`predicate.buildDefinition.resolvedDependencies[4].annotations.epsilon` is \"9\", and what follows is \"0.1\"";
    assert_eq!(said(&|p| p.rounds[0].updates[0].epsilon = "9".into()), wanted);
    let model = said(&|p| p.model = digest("other"));
    assert!(model.starts_with("`subject[1].digest.sha256` is"), "{model}");
    let gate = said(&|p| p.gates[0].pass = false);
    assert_eq!(gate, "`predicate.falaj_gates[0].pass` is false, and what follows is true");
    let gates = said(&|p| p.gates.clear());
    assert!(gates.starts_with("`predicate.falaj_gates[0]` is missing"), "{gates}");
    let more = said(&|p| p.policy_sets.push(digest("other")));
    assert!(more.starts_with("`predicate.buildDefinition.resolvedDependencies[4]"), "{more}");
}

#[test]
fn a_statement_of_another_type_or_with_more_in_it_is_refused() {
    let whole = example().statement();
    let Canon::Map(mut members) = whole else { panic!("an object") };
    members.insert("predicateType".into(), "https://example.com/other".into());
    let read = Provenance::read(&Canon::Map(members.clone()).to_bytes()).expect_err("another");
    assert!(read.to_string().starts_with("`predicateType` is"), "{read}");
    members.insert("predicateType".into(), PREDICATE_TYPE.into());
    members.insert("more".into(), true.into());
    let read = Provenance::read(&Canon::Map(members).to_bytes()).expect_err("more");
    assert_eq!(read.to_string(), "`more` is true, and should not be there");
    assert!(matches!(Provenance::read(b"{ }"), Err(ProvenanceError::Canon(_))));
}
