//! The shipped rules against the table that was written by hand from their prose: every set of roles, every action, wherever
//! whoever asks and the coordinator are. Over a running coordinator the same is done in the end-to-end tests.

mod table;

use falaj_core::{
    id::{Place, SpiffeId, StudyId},
    roles::{OperatorRole, Roles},
};
use falaj_policies::{Action, POLICIES, Party, Policies, Resource, SCHEMA};
use std::collections::BTreeSet;

const PLACES: [&str; 6] =
    ["ae-on/ae-az", "ae-on/ae-du", "ae-difc/ae-du", "ae-adgm/ae-az", "gb/gb-lnd", "ae/ae-az"];

fn shipped() -> Policies {
    let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    let files = [
        file(POLICIES, include_str!("../../coordinator.cedar")),
        file(SCHEMA, include_str!("../../coordinator.cedarschema")),
    ];
    Policies::parse(&files).expect("policies that fit their schema")
}

fn place(text: &str) -> Place {
    text.parse().expect("a place")
}

/// Every set of roles.
fn every_set() -> Vec<Roles> {
    let all = OperatorRole::ALL;
    let chosen = |bits: usize| {
        let roles = all.iter().enumerate().filter(move |(i, _)| bits & (1 << i) != 0);
        roles.map(|(_, role)| *role).collect()
    };
    (0..1 << all.len()).map(chosen).collect()
}

#[test]
fn the_table_names_every_role_and_every_action_that_operators_have() {
    let table = table::read(include_str!("../../matrix.txt"));
    let roles: Vec<&str> = OperatorRole::ALL.iter().map(|role| role.as_str()).collect();
    assert_eq!(table.roles, roles);
    // Of which each is asked only over a connection.
    for route in &table.routes {
        assert!(["CONNECT", "GET", "POST"].contains(&route.method.as_str()), "{}", route.path);
    }
    for certificate in &table.certificates {
        let valid = certificate.kind == "valid";
        assert_eq!(valid, certificate.onshore.is_none(), "{}", certificate.kind);
        assert!(certificate.abroad.is_some(), "{}: nobody abroad may", certificate.kind);
    }
    let told: BTreeSet<&str> = table.routes.iter().map(|route| route.action.as_str()).collect();
    let of_others = [Action::StudyJoin, Action::TaskGet, Action::UpdateSend, Action::EndpointUse];
    let wanted = Action::ALL.iter().filter(|action| !of_others.contains(action));
    assert_eq!(told, wanted.map(|action| action.as_str()).collect());
}

#[test]
fn every_cell_of_the_table_is_decided_as_it_says() {
    let (table, policies) = (table::read(include_str!("../../matrix.txt")), shipped());
    let study: StudyId = "heart".parse().expect("a study");
    let mut asked = 0;
    for kind in ["operator", "site", "coordinator", "witness"] {
        for at in PLACES {
            let id = format!("spiffe://falaj.test/{at}/{kind}/sara");
            let id: SpiffeId = id.parse().expect("an identity");
            for (here, destination) in
                PLACES.iter().flat_map(|here| PLACES.iter().map(move |to| (*here, *to)))
            {
                let sets = match kind {
                    "operator" => every_set(),
                    _ => vec![Roles::NONE, Roles::ALL],
                };
                for roles in sets {
                    for route in &table.routes {
                        let action: Action = route.action.parse().expect("an action");
                        // Or approving that another person takes it there.
                        let taking = action.is_somewhere();
                        if destination != at && !taking {
                            continue;
                        }
                        let of_study = !action.is_of_service();
                        for mechanism in
                            ["dp_sgd", "none"].into_iter().take(1 + usize::from(of_study))
                        {
                            let resource = if action.is_of_service() {
                                Resource::Service
                            } else {
                                Resource::Study(&study, mechanism)
                            };
                            let who = Party { id: &id, roles };
                            let said = policies.decide_to(
                                &place(here),
                                who,
                                action,
                                &resource,
                                &place(destination),
                            );
                            let onshore = |place: &str| place.starts_with("ae-on/");
                            let by_kind = match kind {
                                "operator" => {
                                    roles.iter().any(|r| route.roles.contains(r.as_str()))
                                }
                                // Over gRPC, and whatever roles somebody thinks that it has.
                                "site" => matches!(action, Action::Connect | Action::ModelRead),
                                _ => false,
                            };
                            let wanted = by_kind
                                && onshore(at)
                                && onshore(here)
                                && (!taking || onshore(destination))
                                && !(action == Action::StudySubmit && mechanism == "none");
                            assert_eq!(
                                said.allow, wanted,
                                "{id} ({roles}) {} to {destination} at {here}, {mechanism}: {:?}",
                                route.action, said.policies
                            );
                            asked += 1;
                        }
                    }
                }
            }
        }
    }
    println!("{asked} decisions, as the table says");
    assert!(asked > 50_000, "{asked}");
}
