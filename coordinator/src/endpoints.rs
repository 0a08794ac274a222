//! What the coordinator itself speaks to, and where that is: its database, witnesses, an authority for time-stamps, identity
//! providers, a server for tracking; and the folder into which it writes reports by itself. Each is declared with a place; before any of them is spoken to policy decides, over the place and over the addresses that the name
//! has now. All but the database are looked up again for each connection, and an address elsewhere is not connected to. The
//! database is looked up by its driver: it is looked at again every half minute, and the coordinator ends when it has moved.
//!
//! The bucket of a mirror is an endpoint, too, to which an operator's program writes. And so is where the operator says that
//! state and log are stored, and that the coordinator computes: sites are told of that, and decide for themselves.

use crate::{
    config::Config,
    policy::{Action, Decision, PolicyEngine},
    store::Database,
    trusted::Trusted,
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_certs::identity::Identity;
use falaj_core::{
    audit::{Actor, Draft, Kind},
    evidence::Evidence,
    id::{Place, SpiffeId},
};
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::lookup_host,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether the database is where it was. It has moved when two looks, one after the other, see that.
const LOOK: Duration = Duration::from_secs(30);

/// What policies call a bucket to which a mirror of the log is written.
const MIRROR: &str = "mirror";

/// What policies call the folder into which reports are written.
const REPORTS: &str = "reports";

/// Something that the coordinator speaks to.
struct Endpoint {
    /// What it is to the coordinator, as policies name it.
    kind: &'static str,
    /// Where the configuration names it.
    key: &'static str,
    at: At,
    place: Place,
}

/// Where an endpoint is to be found.
enum At {
    /// On this machine.
    Here,
    /// Where it is said to be: there is nothing that could be looked up.
    Said,
    /// At a name or an address, and a port.
    Host(String, u16),
}

impl At {
    /// For people and entries.
    fn shown(&self) -> &str {
        match self {
            Self::Here => "this machine",
            Self::Said => "as declared",
            Self::Host(host, _) => host,
        }
    }
}

/// The database, if it is a server.
fn database(config: &Config) -> Result<Option<Endpoint>> {
    let (Some(database), Database::Postgres(url)) =
        (&config.state.database, config.state.database()?)
    else {
        return Ok(None);
    };
    let local = url.get_socket().is_some() || url.get_host().starts_with('/');
    let at = if local { At::Here } else { At::Host(url.get_host().to_owned(), url.get_port()) };
    let (kind, key) = ("database", "state.database");
    Ok(Some(Endpoint { kind, key, at, place: database.place.clone() }))
}

/// Every endpoint that a configuration names.
fn configured(config: &Config) -> Result<Vec<Endpoint>> {
    let mut all: Vec<Endpoint> = database(config)?.into_iter().collect();
    let url = |kind, key, url: &str, place: &Place| -> Result<Endpoint> {
        let url: Url = url.parse().with_context(|| format!("`{key}.url` is no URL: {url}"))?;
        let host = url.host_str().with_context(|| format!("`{key}.url` names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let at = At::Host(host, url.port_or_known_default().unwrap_or_default());
        Ok(Endpoint { kind, key, at, place: place.clone() })
    };
    let declared = &config.declared;
    for (kind, key, said) in [
        ("storage", "declared.storage", &declared.storage),
        ("compute", "declared.compute", &declared.compute),
    ] {
        let said = said.iter().cloned();
        all.extend(said.map(|place| Endpoint { kind, key, at: At::Said, place }));
    }
    if let Some(reports) = &config.log.reports {
        let (kind, key, place) = (REPORTS, "log.reports", reports.place.clone());
        all.push(Endpoint { kind, key, at: At::Said, place });
    }
    if let Some(authority) = &config.log.timestamps {
        all.push(url("timestamps", "log.timestamps", &authority.url, &authority.place)?);
    }
    for witness in &config.log.witnesses {
        all.push(url("witness", "log.witnesses", &witness.url, &witness.place)?);
    }
    for provider in config.oidc.iter().flat_map(|oidc| &oidc.providers) {
        let place = provider.server_place();
        all.push(url("identity-provider", "oidc.provider", &provider.issuer, place)?);
    }
    if let Some(tracking) = &config.tracking {
        all.push(url("tracking", "tracking", &tracking.mlflow, &tracking.place)?);
    }
    Ok(all)
}

/// Has policy decide over every endpoint that a configuration names, before any is spoken to: the entries that say so, once
/// there is a log to write to.
///
/// # Errors
/// Which endpoint may not be used, and why; or whose name leads nowhere.
pub async fn permitted(
    config: &Config,
    policy: &PolicyEngine,
    trusted: &Trusted,
    identity: &Identity,
) -> Result<Vec<Draft>> {
    let me = &identity.spiffe;
    let actor = &of(identity);
    let mut entries = Vec::new();
    for endpoint in configured(config)? {
        let found = endpoint.found(trusted, me).await?;
        let Endpoint { kind, key, at, place } = endpoint;
        let shown = at.shown();
        let decision = policy.decide_endpoint(me, kind, &place, &found);
        if !decision.allow {
            bail!(
                "`{key}`: {shown}, declared in {place}, may not be used as {kind}: {}",
                decision.reason
            );
        }
        tracing::info!(kind, at = shown, %place, "may be spoken to");
        let entry = about(actor, kind, (shown, &place), &found)
            .text("action", Action::EndpointUse.as_str())
            .decided(decision.allow, &decision.policies, &decision.policy_set);
        entries.push(entry);
    }
    Ok(entries)
}

/// The coordinator, as whoever asks.
fn of(identity: &Identity) -> Actor {
    let (id, cert) = (Some(identity.spiffe.clone()), Some(identity.cert_sha256));
    Actor { id, cert, ..Actor::default() }
}

/// The entry about an endpoint, but for what was decided.
fn about(actor: &Actor, kind: &str, (host, place): (&str, &Place), found: &Evidence) -> Draft {
    Draft::new(Kind::EndpointAllowed)
        .actor(actor)
        .text("endpoint", kind)
        .asked([("place", &*place.to_string()), ("host", host)])
        .evidence(found)
}

/// Whether a mirror of the log may be written to a host at these addresses, which is said to lie in a place; and the entry about
/// it.
///
/// # Errors
/// When the coordinator's own certificate names nobody.
pub fn mirrored(
    (policy, trusted): (&PolicyEngine, &Trusted),
    (host, addresses): (&str, &[IpAddr]),
    place: &Place,
) -> Result<(Decision, Draft)> {
    let identity = trusted.own_identity()?;
    let me = &identity.spiffe;
    let addresses: Vec<SocketAddr> = addresses.iter().map(|at| (*at, 0).into()).collect();
    let found = located(trusted, place, &addresses);
    let decision = policy.decide_endpoint(me, MIRROR, place, &found);
    Ok((decision, about(&of(&identity), MIRROR, (host, place), &found)))
}

/// Whether reports, with their bundle of the log, may be written into a folder that is declared in a place.
#[must_use]
pub fn reported(policy: &PolicyEngine, me: &SpiffeId, place: &Place) -> Decision {
    policy.decide_endpoint(me, REPORTS, place, &Evidence::default())
}

/// Watches whether the database stays where it may be; where it is no server there is nothing to watch. What it comes to is
/// known when everything ends.
///
/// # Errors
/// When the file with the database's URL cannot be used.
pub fn watch(
    config: &Config,
    (policy, trusted): (PolicyEngine, Trusted),
    shutdown: CancellationToken,
) -> Result<JoinHandle<Result<()>>> {
    let (endpoint, me) = (database(config)?, trusted.own_identity()?.spiffe);
    Ok(tokio::spawn(async move {
        match endpoint {
            Some(endpoint) => endpoint.stays((&policy, &trusted), &me, &shutdown).await,
            None => Ok(()),
        }
    }))
}

/// What looks have seen, one after the other.
#[derive(Default)]
struct Moved(bool);

impl Moved {
    /// Why something is refused, if the look before saw it refused, too: a name server errs, and a list is replaced in two steps.
    fn sees(&mut self, refused: Option<String>) -> Option<String> {
        let before = std::mem::replace(&mut self.0, refused.is_some());
        refused.filter(|why| {
            if !before {
                tracing::error!(why, "the database may not be used; the coordinator ends unless the next look sees otherwise");
            }
            before
        })
    }
}

impl Endpoint {
    /// Ends everything when it is somewhere else than where it may be: its name leads elsewhere, or networks or policies have
    /// changed.
    async fn stays(
        &self,
        (policy, trusted): (&PolicyEngine, &Trusted),
        me: &SpiffeId,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut moved = Moved::default();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = look.tick() => {}
            }
            let found = match self.found(trusted, me).await {
                Ok(found) => found,
                // A name that leads nowhere leads nobody astray.
                Err(e) => {
                    tracing::warn!(error = %format!("{e:#}"), "it is not known where an endpoint is");
                    continue;
                }
            };
            let decision = policy.decide_endpoint(me, self.kind, &self.place, &found);
            if let Some(why) = moved.sees((!decision.allow).then_some(decision.reason)) {
                shutdown.cancel();
                bail!("`{}`: what is there may not be used any more: {why}", self.key);
            }
        }
    }

    /// What is known of where it is now.
    async fn found(&self, trusted: &Trusted, me: &SpiffeId) -> Result<Evidence> {
        let (host, port) = match &self.at {
            // This machine lies where the coordinator's certificate says.
            At::Here => {
                let address_in_place = self.place == *me.place();
                let known =
                    Evidence { address_known: true, address_in_place, ..Evidence::default() };
                return Ok(known);
            }
            At::Said => return Ok(Evidence::default()),
            At::Host(host, port) => (host, port),
        };
        let addresses = addresses(host, *port).await;
        let addresses =
            addresses.with_context(|| format!("`{}`: `{host}` leads to no address", self.key))?;
        Ok(located(trusted, &self.place, &addresses))
    }
}

/// What is known of addresses that should all lie in a place.
fn located(trusted: &Trusted, place: &Place, addresses: &[SocketAddr]) -> Evidence {
    let now = trusted.now();
    let one = |at: &SocketAddr| now.located(Evidence::default(), place, Some(*at));
    let elsewhere = addresses.iter().map(one).find(|found| !found.address_in_place);
    elsewhere.unwrap_or_else(|| match addresses.first() {
        Some(at) => one(at),
        None => now.located(Evidence::default(), place, None),
    })
}

async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}

/// Looks names up for an HTTP client, and gives no address that lies elsewhere than declared.
#[derive(Clone)]
pub struct Within {
    trusted: Trusted,
    place: Place,
}

impl Within {
    /// For an endpoint in a place.
    #[must_use]
    pub const fn new(trusted: Trusted, place: Place) -> Self {
        Self { trusted, place }
    }

    /// The addresses of a name, all in the place if networks are configured.
    async fn resolve(&self, host: &str) -> Result<Vec<SocketAddr>> {
        let found = addresses(host, 0).await?;
        let known = located(&self.trusted, &self.place, &found);
        ensure!(
            !known.address_known || known.address_in_place,
            "`{host}` leads to an address outside {}, where it is declared: it is not connected to",
            self.place
        );
        Ok(found)
    }
}

impl Resolve for Within {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            match Self::resolve(&this, name.as_str()).await {
                Ok(found) => Ok(Box::new(found.into_iter()) as Addrs),
                Err(e) => {
                    tracing::error!(error = %format!("{e:#}"), "an endpoint is not spoken to");
                    Err(Box::<dyn std::error::Error + Send + Sync>::from(e))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_look_alone_sees_ends_nothing() {
        let mut moved = Moved::default();
        let elsewhere = || Some("elsewhere".to_owned());
        assert_eq!(moved.sees(None), None);
        assert_eq!(moved.sees(elsewhere()), None);
        assert_eq!(moved.sees(None), None);
        assert_eq!(moved.sees(elsewhere()), None);
        assert_eq!(moved.sees(elsewhere()), elsewhere());
    }
}
