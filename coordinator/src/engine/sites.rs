//! Who is connected: one open stream per site, on which tasks are pushed.

use crate::clock;
use falaj_core::{id::SiteId, time::Timestamp};
use falaj_proto::v1::{Push, push};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::mpsc;
use tonic::Status;

/// Pushes that wait for a slow site; beyond it the site is dropped and has to connect again.
pub const PUSHES: usize = 32;

/// What is known of a connected site.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Since when.
    pub since: Timestamp,
    /// From where.
    pub address: String,
    /// Version of its agent.
    pub agent_version: String,
    /// Data sets that it offers.
    pub datasets: Vec<String>,
    /// Its certificate, DER.
    pub certificate: Arc<[u8]>,
    /// Whether policy has let it take part by what is known of its connection: until then nothing is pushed to it but what
    /// finds that out.
    pub takes_part: bool,
    /// Tells this stream from a later one of the same site.
    serial: u64,
    pushes: mpsc::Sender<Result<Push, Status>>,
}

/// The connected sites.
#[derive(Default)]
pub struct Sites {
    by_id: Mutex<BTreeMap<SiteId, Connected>>,
    serials: AtomicU64,
}

impl Sites {
    /// A site has opened its stream. A newer stream takes the place of an older one, which ends.
    pub fn connect(
        &self,
        site: &SiteId,
        address: String,
        agent_version: String,
        datasets: Vec<String>,
        certificate: Arc<[u8]>,
    ) -> (u64, mpsc::Receiver<Result<Push, Status>>) {
        let serial = self.serials.fetch_add(1, Ordering::Relaxed);
        let (pushes, pushed) = mpsc::channel(PUSHES);
        let since = clock::now();
        let connected = Connected {
            since,
            address,
            agent_version,
            datasets,
            certificate,
            takes_part: false,
            serial,
            pushes,
        };
        self.map().insert(site.clone(), connected);
        (serial, pushed)
    }

    /// A stream has ended.
    pub fn leave(&self, site: &SiteId, serial: u64) {
        let mut map = self.map();
        if map.get(site).is_some_and(|c| c.serial == serial) {
            map.remove(site);
        }
    }

    /// From now on a site takes part, if this stream is still its own.
    pub fn take_part(&self, site: &SiteId, serial: u64) {
        if let Some(connected) = self.map().get_mut(site).filter(|c| c.serial == serial) {
            connected.takes_part = true;
        }
    }

    /// Pushes something to a site that takes part. A site that does not take its pushes is dropped.
    pub fn push(&self, site: &SiteId, message: push::Push) -> bool {
        let mut map = self.map();
        let Some(connected) = map.get(site).filter(|c| c.takes_part) else { return false };
        let sent = connected.pushes.try_send(Ok(Push { push: Some(message) })).is_ok();
        if !sent {
            map.remove(site);
        }
        sent
    }

    /// Pushes something on this stream alone, whether the site takes part already or not.
    pub fn push_on(&self, site: &SiteId, serial: u64, message: push::Push) -> bool {
        let mut map = self.map();
        let Some(connected) = map.get(site).filter(|c| c.serial == serial) else { return false };
        let sent = connected.pushes.try_send(Ok(Push { push: Some(message) })).is_ok();
        if !sent {
            map.remove(site);
        }
        sent
    }

    /// Every connected site.
    #[must_use]
    pub fn all(&self) -> Vec<(SiteId, Connected)> {
        self.map().iter().map(|(id, c)| (id.clone(), c.clone())).collect()
    }

    /// The connected sites that take part.
    #[must_use]
    pub fn taking_part(&self) -> Vec<(SiteId, Connected)> {
        let map = self.map();
        map.iter().filter(|(_, c)| c.takes_part).map(|(id, c)| (id.clone(), c.clone())).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map().len()
    }

    /// Ends every stream.
    pub fn close(&self) {
        self.map().clear();
    }

    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<SiteId, Connected>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
