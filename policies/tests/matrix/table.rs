//! `matrix.txt`, read.

use std::collections::BTreeSet;

/// One way to ask, and the roles that may.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// What it is for the policies.
    pub(crate) action: String,
    /// `GET`, `POST`, or `CONNECT` for the connection itself.
    pub(crate) method: String,
    /// Its path, as the description of the interface has it; nothing for the connection.
    pub(crate) path: String,
    /// The roles that may.
    pub(crate) roles: BTreeSet<String>,
}

/// A kind of certificate, and what becomes of whoever comes with it.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// Its kind.
    pub(crate) kind: String,
    /// From onshore: none when roles decide, or else the word of the refusal.
    pub(crate) onshore: Option<String>,
    /// The same, from abroad.
    pub(crate) abroad: Option<String>,
}

/// The whole table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// The roles that there are.
    pub(crate) roles: Vec<String>,
    /// Routes.
    pub(crate) routes: Vec<Route>,
    /// Certificates.
    pub(crate) certificates: Vec<Certificate>,
}

/// Reads the table.
///
/// # Panics
/// When a line is not what it should be.
#[must_use]
pub(crate) fn read(text: &str) -> Table {
    let mut table = Table::default();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut next = || words.next().unwrap_or_else(|| panic!("`{line}` ends too early"));
        match next().as_str() {
            "roles" => table.roles = words.collect(),
            "route" => {
                let (action, method) = (next(), next());
                let path = if method == "CONNECT" { String::new() } else { next() };
                let marks: Vec<String> = words.collect();
                assert_eq!(marks.len(), table.roles.len(), "`{line}`");
                let mut roles = BTreeSet::new();
                for (role, mark) in table.roles.iter().zip(marks) {
                    assert!(["x", "."].contains(&mark.as_str()), "`{line}`");
                    if mark == "x" {
                        roles.insert(role.clone());
                    }
                }
                table.routes.push(Route { action, method, path, roles });
            }
            "certificate" => {
                let kind = next();
                let mut outcome = || match next().as_str() {
                    "by" => {
                        assert_eq!(next(), "role", "`{line}`");
                        None
                    }
                    word => Some(word.to_owned()),
                };
                let (onshore, abroad) = (outcome(), outcome());
                table.certificates.push(Certificate { kind, onshore, abroad });
            }
            other => panic!("`{other}` begins no line of the table"),
        }
    }
    table
}
