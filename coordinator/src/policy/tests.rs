//! Which policies lock every operator out.

use super::*;
use tempfile::TempDir;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies");
/// The second one is named by the demo's set.
const OPERATORS: [&str; 2] = [
    "spiffe://falaj.test/ae-on/ae-az/operator/anna",
    "spiffe://falaj.test/ae-on/ae-az/operator/health-authority",
];

/// Whether rules under the shipped schema let an operator in, with lists of networks and without.
fn lets_in(rules: &str) -> [bool; 2] {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join(POLICIES), rules).expect("written");
    fs::copy(Path::new(SHIPPED).join(SCHEMA), dir.path().join(SCHEMA)).expect("copied");
    set_lets_in(dir.path())
}

fn set_lets_in(set: &Path) -> [bool; 2] {
    let place = "ae-on/ae-az".parse().expect("a place");
    let engine = PolicyEngine::load(set, &place).expect("loaded");
    let (_dir, persons) = persons();
    [true, false].map(|networks| {
        let evidence =
            Evidence { address_known: networks, address_in_place: networks, ..Evidence::default() };
        engine.lets_in(&persons, &evidence)
    })
}

/// Two operators are known.
fn persons() -> (TempDir, Persons) {
    let dir = tempfile::tempdir().expect("a folder");
    let persons = Persons::open(&dir.path().join("persons")).expect("opened");
    for operator in OPERATORS {
        persons.meet(&operator.parse().expect("an operator")).expect("met");
    }
    (dir, persons)
}

fn shipped(more: &str) -> String {
    let rules = fs::read_to_string(Path::new(SHIPPED).join(POLICIES)).expect("read");
    format!("{rules}\n{more}\n")
}

#[test]
fn every_shipped_set_lets_operators_in() {
    for set in ["", "sets/uae-health", "sets/uae-finance", "sets/strict-demo", "sets/break-glass"] {
        assert_eq!(set_lets_in(&Path::new(SHIPPED).join(set)), [true; 2], "{set}");
    }
}

#[test]
fn whoever_may_connect_and_do_nothing_else_is_locked_out() {
    let connect = r#"permit (principal, action == Falaj::Action::"connect", resource);"#;
    assert_eq!(lets_in(connect), [false; 2]);
    for duty in ["status.read", "site.revoke"] {
        let does = format!(
            r#"{connect} permit (principal is Falaj::Operator, action == Falaj::Action::"{duty}", resource);"#
        );
        assert_eq!(lets_in(&does), [true; 2], "{duty}");
    }
    // One role connects, and another one would look.
    let apart = r#"
        permit (principal is Falaj::Operator, action == Falaj::Action::"connect", resource)
        when { principal in Falaj::Role::"auditor" };
        permit (principal is Falaj::Operator, action == Falaj::Action::"status.read", resource)
        when { principal in Falaj::Role::"operator" };"#;
    assert_eq!(lets_in(apart), [false; 2]);
}

#[test]
fn a_rule_about_addresses_locks_out_only_where_networks_are_known() {
    let known = r#"forbid (principal, action == Falaj::Action::"connect", resource)
        when { context.evidence.address_known };"#;
    assert_eq!(lets_in(&shipped(known)), [false, true]);
    let unknown = r#"forbid (principal, action == Falaj::Action::"connect", resource)
        unless { context.evidence.address_in_place };"#;
    assert_eq!(lets_in(&shipped(unknown)), [true, false]);
}

#[test]
fn duties_that_are_kept_apart_lock_nobody_out() {
    let apart = r#"forbid (principal is Falaj::Operator, action == Falaj::Action::"connect", resource)
        when { principal in Falaj::Role::"auditor" && principal in Falaj::Role::"data-scientist" };"#;
    assert_eq!(lets_in(&shipped(apart)), [true; 2]);
    assert_eq!(lets_in(&shipped("forbid (principal, action, resource);")), [false; 2]);
}
