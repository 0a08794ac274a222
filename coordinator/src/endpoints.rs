//! What the coordinator itself speaks to, and where that is: its database, witnesses, an authority for time-stamps, identity
//! providers, a server for tracking. Each is declared with a place; before any of them is spoken to policy decides, over the place and over the addresses that the name
//! has now. All but the database are looked up again for each connection, and an address elsewhere is not connected to.

use crate::{
    config::Config,
    policy::{Action, PolicyEngine},
    store::Database,
    trusted::Trusted,
};
use anyhow::{Context as _, Result, bail, ensure};
use falaj_certs::identity::Identity;
use falaj_core::{
    audit::{Actor, Draft, Kind},
    evidence::Evidence,
    id::Place,
};
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use std::{io, net::SocketAddr};
use tokio::net::lookup_host;

/// Something that the coordinator speaks to.
struct Endpoint {
    /// What it is to the coordinator, as policies name it.
    kind: &'static str,
    /// Where the configuration names it.
    key: &'static str,
    /// Its name or address and its port; none on this machine.
    at: Option<(String, u16)>,
    place: Place,
}

/// Every endpoint that a configuration names.
fn configured(config: &Config) -> Result<Vec<Endpoint>> {
    let mut all = Vec::new();
    if let (Some(database), Database::Postgres(url)) =
        (&config.state.database, config.state.database()?)
    {
        let local = url.get_socket().is_some() || url.get_host().starts_with('/');
        let at = (!local).then(|| (url.get_host().to_owned(), url.get_port()));
        let (kind, key) = ("database", "state.database");
        all.push(Endpoint { kind, key, at, place: database.place.clone() });
    }
    let url = |kind, key, url: &str, place: &Place| -> Result<Endpoint> {
        let url: Url = url.parse().with_context(|| format!("`{key}.url` is no URL: {url}"))?;
        let host = url.host_str().with_context(|| format!("`{key}.url` names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let at = Some((host, url.port_or_known_default().unwrap_or_default()));
        Ok(Endpoint { kind, key, at, place: place.clone() })
    };
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
    let actor =
        &Actor { id: Some(me.clone()), cert: Some(identity.cert_sha256), ..Actor::default() };
    let mut entries = Vec::new();
    for endpoint in configured(config)? {
        let Endpoint { kind, key, at, place } = endpoint;
        let shown = at.as_ref().map_or("this machine", |(host, _)| host);
        let found = match &at {
            // On this machine, which lies where the coordinator's certificate says.
            None => Evidence {
                address_known: true,
                address_in_place: place == *me.place(),
                ..Evidence::default()
            },
            Some((host, port)) => {
                let addresses = addresses(host, *port).await;
                let addresses =
                    addresses.with_context(|| format!("`{key}`: `{host}` leads to no address"))?;
                located(trusted, &place, &addresses)
            }
        };
        let decision = policy.decide_endpoint(me, kind, &place, &found);
        if !decision.allow {
            bail!(
                "`{key}`: {shown}, declared in {place}, may not be used as {kind}: {}",
                decision.reason
            );
        }
        tracing::info!(kind, at = shown, %place, "may be spoken to");
        let entry = Draft::new(Kind::EndpointAllowed)
            .actor(actor)
            .text("action", Action::EndpointUse.as_str())
            .decided(decision.allow, &decision.policies, &decision.policy_set)
            .text("endpoint", kind)
            .asked([("place", &*place.to_string()), ("host", shown)])
            .evidence(&found);
        entries.push(entry);
    }
    Ok(entries)
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
