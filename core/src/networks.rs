//! Which networks belong to which place: lists of networks, read. No file is opened here.
//!
//! A line is `network,place`, for example `192.0.2.0/24,ae-on/ae-az`. A provider's list (RFC 8805) says country and region
//! instead, and no jurisdiction: whoever configures it says in which one its lines count. Of two of its lines the narrower one
//! counts: a network abroad that lies in one of ours is not ours. What follows on a line, and on a line
//! that begins with `#`, is for people. An address that is an IPv4 address in an IPv6 one counts as the former.

use crate::id::Place;
use core::net::IpAddr;
use ipnet::IpNet;
use std::{fmt, sync::Arc};

/// Networks in all lists, at most.
pub const NETWORKS_MAX: usize = 200_000;

/// One list.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    /// Its name, for whoever reads what is wrong.
    pub name: &'a str,
    /// The jurisdiction in which the lines of a provider's list count; none in a list of places.
    pub jurisdiction: Option<&'a str>,
    /// Its text.
    pub text: &'a str,
}

/// Why lists are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}, line {line}: {what}")]
pub struct NetworksError {
    /// The list.
    pub name: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub what: String,
}

/// A network, as the first and the last of its addresses.
struct Span {
    first: u128,
    last: u128,
    place: Arc<Place>,
    /// Where it stands: which list, which line.
    at: (usize, usize),
}

/// Which networks belong to which place. None lies in another.
#[derive(Default)]
pub struct Networks {
    /// In the order of their addresses.
    spans: Vec<Span>,
    /// What lies in one of them and belongs to no place, in the order of its addresses.
    outside: Vec<(u128, u128)>,
}

/// A network that a provider's list says to be elsewhere: its ends, and where it stands.
type Elsewhere = (u128, u128, (usize, usize));

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Networks({})", self.spans.len())
    }
}

impl Networks {
    /// Reads lists.
    ///
    /// # Errors
    /// [`NetworksError`]: a line that is no network of a place, one that lies in another, a list that was cut short or that
    /// names nothing.
    pub fn parse(lists: &[List<'_>]) -> Result<Self, NetworksError> {
        let mut spans: Vec<Span> = Vec::new();
        let mut elsewhere: Vec<Elsewhere> = Vec::new();
        for (number, list) in lists.iter().enumerate() {
            let wrong = |line: usize, what: String| NetworksError {
                name: list.name.to_owned(),
                line,
                what,
            };
            let lines = list.text.lines().count();
            if !list.text.is_empty() && !list.text.ends_with('\n') {
                let what = "the last line has no end: it may be cut short; end it";
                return Err(wrong(lines, what.to_owned()));
            }
            let before = spans.len();
            for (n, line) in list.text.lines().enumerate() {
                let read = match list.jurisdiction {
                    _ if line.trim().is_empty() || line.starts_with('#') => continue,
                    None => of_place(line).map(|(net, place)| (net, Some(place))),
                    Some(jurisdiction) => of_provider(line, jurisdiction),
                };
                let (net, place) = read.map_err(|what| wrong(n + 1, what))?;
                let (first, last) = ends(&net);
                let Some(place) = place else {
                    elsewhere.push((first, last, (number, n + 1)));
                    continue;
                };
                if spans.len() >= NETWORKS_MAX {
                    return Err(wrong(n + 1, format!("more than {NETWORKS_MAX} networks")));
                }
                let place = match spans.last() {
                    Some(last) if *last.place == place => last.place.clone(),
                    _ => Arc::new(place),
                };
                spans.push(Span { first, last, place, at: (number, n + 1) });
            }
            if spans.len() == before {
                let what = "it names no network: nobody could be in one; leave it out instead";
                return Err(wrong(lines.max(1), what.to_owned()));
            }
        }
        spans.sort_by_key(|span| (span.first, span.at));
        for pair in spans.windows(2) {
            let [before, span] = pair else { continue };
            if span.first <= before.last {
                let (later, other) =
                    if span.at > before.at { (span, before) } else { (before, span) };
                let name = |span: &Span| lists[span.at.0].name.to_owned();
                return Err(NetworksError {
                    name: name(later),
                    line: later.at.1,
                    what: format!(
                        "it overlaps {}, line {}: an address lies in one network; take one of them out",
                        name(other),
                        other.at.1
                    ),
                });
            }
        }
        let outside = outside(&spans, elsewhere).map_err(|Both { at, other }| NetworksError {
            name: lists[at.0].name.to_owned(),
            line: at.1,
            what: format!("it is the network of line {other}, of which it says otherwise: take one of them out"),
        })?;
        Ok(Self { spans, outside })
    }

    /// The place to which an address belongs, if it is in any list.
    #[must_use]
    pub fn place_of(&self, address: IpAddr) -> Option<&Place> {
        let address = number(address);
        let after = self.spans.partition_point(|span| span.first <= address);
        let span = self.spans.get(after.checked_sub(1)?)?;
        let after = self.outside.partition_point(|(first, _)| *first <= address);
        let outside = after.checked_sub(1).and_then(|i| self.outside.get(i));
        let outside = outside.is_some_and(|(_, last)| address <= *last);
        (address <= span.last && !outside).then_some(&*span.place)
    }

    /// How many networks there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.spans.len()
    }
}

/// A network that is in a place, and elsewhere.
struct Both {
    /// The list and the line that say so.
    at: (usize, usize),
    /// The line that says otherwise.
    other: usize,
}

/// What of the networks elsewhere lies in a network of the same list.
fn outside(spans: &[Span], elsewhere: Vec<Elsewhere>) -> Result<Vec<(u128, u128)>, Both> {
    let mut inside = Vec::new();
    for (first, last, at) in elsewhere {
        let after = spans.partition_point(|span| span.first <= first);
        let Some(span) = after.checked_sub(1).and_then(|i| spans.get(i)) else { continue };
        // Networks lie in each other or apart: a wider one, which may begin at the same address, counts less.
        if last > span.last || span.at.0 != at.0 {
            continue;
        }
        if (first, last) == (span.first, span.last) {
            return Err(Both { at, other: span.at.1 });
        }
        inside.push((first, last));
    }
    inside.sort_by_key(|(first, last)| (*first, std::cmp::Reverse(*last)));
    inside.dedup_by(|narrower, wider| narrower.1 <= wider.1);
    Ok(inside)
}

/// `network,place`.
fn of_place(line: &str) -> Result<(IpNet, Place), String> {
    let mut fields = line.split(',').map(str::trim);
    let (net, place) = (fields.next().unwrap_or_default(), fields.next());
    let place = place.ok_or("write `network,place`, for example `192.0.2.0/24,ae-on/ae-az`")?;
    Ok((network(net)?, place.parse().map_err(|e| format!("{e}"))?))
}

/// `network,country,region,…` (RFC 8805). Lines about another country, or about no region, say that the network is in no place here.
fn of_provider(line: &str, jurisdiction: &str) -> Result<(IpNet, Option<Place>), String> {
    let fields: Vec<String> = line.split(',').map(|f| f.trim().to_ascii_lowercase()).collect();
    let [net, country, region, ..] = &fields[..] else {
        return Err("a provider's list (RFC 8805) has `network,country,region`".into());
    };
    let net = network(net)?;
    let of_country = jurisdiction.split('-').next().unwrap_or_default();
    if region.is_empty() || country != of_country {
        return Ok((net, None));
    }
    let place = format!("{jurisdiction}/{region}").parse();
    Ok((net, Some(place.map_err(|e| format!("{e}"))?)))
}

/// A network, or one address. Bits beyond its prefix are a mistake.
fn network(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>(),
    };
    let net = net.map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        format!("`{shown}` is no network: write it as 192.0.2.0/24 or 2001:db8::/32")
    })?;
    if net.trunc() != net {
        return Err(format!("`{net}` has bits beyond its prefix: write {}", net.trunc()));
    }
    Ok(net)
}

/// The first and the last address, as numbers of IPv6; IPv4 as mapped there.
fn ends(net: &IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABU_DHABI: &str = "192.0.2.0/24,ae-on/ae-az\n2001:db8:1::/48,ae-on/ae-az, hospitals\n";

    fn list<'a>(name: &'a str, text: &'a str) -> List<'a> {
        List { name, text, jurisdiction: None }
    }

    fn place_of(networks: &Networks, address: &str) -> Option<String> {
        networks.place_of(address.parse().expect("an address")).map(ToString::to_string)
    }

    /// Shows RES-01: an IPv4 address is the same whether it comes as itself or in an IPv6 one.
    #[test]
    fn an_address_belongs_to_the_place_whose_network_it_lies_in() {
        let dubai =
            "# one address\n198.51.100.7,ae-on/ae-du\n\n::ffff:203.0.113.0/120,ae-on/ae-du\n";
        let networks = Networks::parse(&[list("a", ABU_DHABI), list("d", dubai)]).expect("taken");
        assert_eq!(networks.count(), 4);
        for (address, place) in [
            ("192.0.2.0", Some("ae-on/ae-az")),
            ("192.0.2.255", Some("ae-on/ae-az")),
            ("::ffff:192.0.2.9", Some("ae-on/ae-az")),
            ("2001:db8:1:ffff::1", Some("ae-on/ae-az")),
            ("198.51.100.7", Some("ae-on/ae-du")),
            ("203.0.113.77", Some("ae-on/ae-du")),
            ("192.0.1.255", None),
            ("192.0.3.0", None),
            ("198.51.100.8", None),
            ("2001:db8:2::", None),
            ("::", None),
            ("::192.0.2.9", None),
        ] {
            assert_eq!(place_of(&networks, address).as_deref(), place, "{address}");
        }
        assert_eq!(Networks::default().place_of("192.0.2.1".parse().expect("an address")), None);
    }

    #[test]
    fn what_is_wrong_with_a_list_is_told_with_its_line() {
        let more = format!("{ABU_DHABI}192.0.2.128/25,ae-on/ae-du\n");
        let again = format!("{ABU_DHABI}192.0.2.0/24,ae-on/ae-az\n");
        let mapped = format!("{ABU_DHABI}::ffff:192.0.2.128/121,ae-on/ae-du\n");
        let cut = &ABU_DHABI[..ABU_DHABI.len() - 3];
        for (text, line, what) in [
            ("", 1, "names no network"),
            ("# nothing\n", 1, "names no network"),
            (cut, 2, "cut short"),
            ("192.0.2.0/24\n", 1, "network,place"),
            ("# a\nnonsense,ae-on/ae-az\n", 2, "`nonsense` is no network"),
            ("192.0.2.0/33,ae-on/ae-az\n", 1, "no network"),
            ("192.0.2.1/24,ae-on/ae-az\n", 1, "write 192.0.2.0/24"),
            ("192.0.2.0/24,Abu Dhabi\n", 1, "Abu Dhabi"),
            (&more, 3, "overlaps uae, line 1"),
            (&again, 3, "overlaps uae, line 1"),
            (&mapped, 3, "overlaps uae, line 1"),
        ] {
            let error = Networks::parse(&[list("uae", text)]).expect_err(text);
            assert!(error.line == line && error.what.contains(what), "{text:?}: {error}");
        }
        let wide = list("wide", "192.0.0.0/16,ae-on/ae-du\n");
        let error = Networks::parse(&[list("uae", ABU_DHABI), wide]).expect_err("they overlap");
        assert_eq!((error.name.as_str(), error.line), ("wide", 1));
        assert!(error.what.contains("overlaps uae, line 1"), "{error}");
    }

    /// RFC 8805, 2.1: `ip_prefix,alpha2code,region,city,postal_code`.
    #[test]
    fn a_providers_list_counts_in_the_jurisdiction_that_is_configured_for_it() {
        let text = "# feed\n192.0.2.0/25,AE,AE-AZ,Abu Dhabi,\n192.0.2.128/25,AE,,,\n198.51.100.0/24,GB,GB-LND,London,\n2001:db8::/48,AE,AE-DU,,\n";
        let feed = List { name: "feed", text, jurisdiction: Some("ae-on") };
        let networks = Networks::parse(&[feed]).expect("taken");
        assert_eq!(place_of(&networks, "192.0.2.1").as_deref(), Some("ae-on/ae-az"));
        assert_eq!(place_of(&networks, "2001:db8::1").as_deref(), Some("ae-on/ae-du"));
        assert_eq!(place_of(&networks, "192.0.2.200"), None);
        assert_eq!(place_of(&networks, "198.51.100.1"), None);
        let short = List { text: "192.0.2.0/24,AE\n", ..feed };
        assert!(Networks::parse(&[short]).expect_err("short").what.contains("RFC 8805"));
    }

    #[test]
    fn of_a_providers_lines_the_narrower_one_counts_also_where_it_is_about_another_country() {
        let text = "192.0.2.0/24,AE,AE-AZ,,\n192.0.2.128/25,GB,GB-LND,,\n192.0.2.192/26,,,,\n192.0.2.16/28,AE,,,\n\
                    198.51.0.0/16,GB,GB-LND,,\n198.51.100.0/24,AE,AE-DU,,\n";
        let feed = List { name: "feed", text, jurisdiction: Some("ae-on") };
        let networks = Networks::parse(&[feed]).expect("taken");
        for (address, place) in [
            ("192.0.2.15", Some("ae-on/ae-az")),
            ("192.0.2.16", None),
            ("192.0.2.31", None),
            ("192.0.2.32", Some("ae-on/ae-az")),
            ("192.0.2.127", Some("ae-on/ae-az")),
            ("192.0.2.128", None),
            ("192.0.2.200", None),
            ("192.0.2.255", None),
            ("198.51.100.1", Some("ae-on/ae-du")),
            ("198.51.101.1", None),
        ] {
            assert_eq!(place_of(&networks, address).as_deref(), place, "{address}");
        }
        let both = List { text: "192.0.2.0/24,GB,GB-LND,,\n192.0.2.0/24,AE,AE-AZ,,\n", ..feed };
        let error = Networks::parse(&[both]).expect_err("it is in two countries");
        assert!(error.line == 1 && error.what.contains("line 2"), "{error}");
    }
}
