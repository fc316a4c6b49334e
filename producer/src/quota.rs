//! Bounds what clients hold at once (connections, feeds, trails, memory), in all and for each address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// A number of units, of which no address may hold more than its share; clones share the units.
#[derive(Clone, Debug)]
pub struct Quota {
    free: Arc<Semaphore>,
    address_limit: usize,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Units of a quota, held until this is dropped.
#[derive(Debug)]
pub struct Held {
    units: OwnedSemaphorePermit,
    share: Option<Share>,
}

/// Holds a part of a quota for one address until it is dropped.
#[derive(Debug)]
pub struct Share {
    address: IpAddr,
    units: usize,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Quota {
    /// Creates a quota. `share` is the percentage that one address may hold, at least one unit.
    pub fn new(units: usize, share: u8) -> Self {
        Self::with_least(units, share, 1)
    }

    /// Creates a quota in which one address may always hold `least` units.
    pub fn with_least(units: usize, share: u8, least: usize) -> Self {
        let address_limit = (units * usize::from(share) / 100).max(least);
        Self { free: Arc::new(Semaphore::new(units)), address_limit, held: Arc::default() }
    }

    /// Takes units for a client, or for the process itself. `None` if too few are free, or the address would have more
    /// than its share.
    pub fn try_take(&self, units: u32, client: Option<IpAddr>) -> Option<Held> {
        let share = self.share(units, client)?;
        let units = self.free.clone().try_acquire_many_owned(units).ok()?;
        Some(Held { units, share })
    }

    /// Takes units as [`Self::try_take`] does, but waits until enough are free.
    pub async fn take(&self, units: u32, client: Option<IpAddr>, longest: Duration) -> Option<Held> {
        let share = self.share(units, client)?;
        let units = timeout(longest, self.free.clone().acquire_many_owned(units)).await.ok()?.ok()?;
        Some(Held { units, share })
    }

    /// Waits for a unit whose holder is not known yet; [`Self::hold`] assigns it.
    pub async fn next(&self) -> OwnedSemaphorePermit {
        self.free.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Assigns a unit to a client. `None` if its address has its share.
    pub fn hold(&self, unit: OwnedSemaphorePermit, client: IpAddr) -> Option<Held> {
        Some(Held { share: self.share(1, Some(client))?, units: unit })
    }

    #[expect(clippy::option_option, reason = "no share is needed, or none is left")]
    fn share(&self, units: u32, client: Option<IpAddr>) -> Option<Option<Share>> {
        let Some(client) = client else { return Some(None) };
        let (address, units) = (network_of(client), units as usize);
        let mut held = lock(&self.held);
        let units_held = held.entry(address).or_default();
        if *units_held + units > self.address_limit {
            if *units_held == 0 {
                held.remove(&address);
            }
            return None;
        }
        *units_held += units;
        drop(held);
        Some(Some(Share { address, units, held: self.held.clone() }))
    }
}

impl Held {
    /// Gives back all but `units`.
    pub fn shrink_to(&mut self, units: usize) {
        let surplus = self.units.num_permits().saturating_sub(units);
        drop(self.units.split(surplus));
        if let Some(share) = &mut self.share {
            share.give_back(surplus);
        }
    }
}

impl Share {
    fn give_back(&mut self, units: usize) {
        let mut held = lock(&self.held);
        self.units -= units;
        if let Some(units_held) = held.get_mut(&self.address) {
            *units_held -= units;
            // Addresses that hold nothing are forgotten, so that the map is no larger than the quota.
            if *units_held == 0 {
                held.remove(&self.address);
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.units);
    }
}

fn lock(held: &Mutex<HashMap<IpAddr, usize>>) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns an IPv4 address, or the /64 network of an IPv6 address: a host has all addresses of its network.
fn network_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(quota: &Quota, units: u32, client: &str) -> Option<Held> {
        quota.try_take(units, Some(client.parse().unwrap()))
    }

    #[test]
    fn an_address_gets_its_share_and_others_the_rest() {
        let quota = Quota::new(10, 30);
        let first: Vec<Held> = std::iter::from_fn(|| take(&quota, 1, "10.0.0.1")).collect();
        assert_eq!(first.len(), 3);
        let second = take(&quota, 3, "10.0.0.2").unwrap();
        assert!(take(&quota, 1, "10.0.0.2").is_none());
        let own = quota.try_take(4, None).unwrap();
        assert!(quota.try_take(1, None).is_none() && take(&quota, 1, "10.0.0.3").is_none());
        drop((first, own));
        assert_eq!(take(&quota, 3, "10.0.0.1").map(|held| held.units.num_permits()), Some(3));
        drop(second);
        assert!(quota.held.lock().unwrap().is_empty());
        assert_eq!(quota.free.available_permits(), 10);
    }

    #[test]
    fn units_that_are_given_back_early_are_given_back_once() {
        let quota = Quota::with_least(10, 1, 8);
        let mut held = take(&quota, 8, "10.0.0.1").unwrap();
        assert!(take(&quota, 1, "10.0.0.1").is_none());
        held.shrink_to(2);
        held.shrink_to(5);
        let more = take(&quota, 6, "10.0.0.1").unwrap();
        assert_eq!(quota.free.available_permits(), 2);
        drop((held, more));
        assert!(quota.held.lock().unwrap().is_empty());
        assert_eq!(quota.free.available_permits(), 10);
    }

    #[test]
    fn a_host_with_many_addresses_has_one_share() {
        let quota = Quota::new(10, 10);
        let _held = take(&quota, 1, "2001:db8::1").unwrap();
        assert!(take(&quota, 1, "2001:db8::ffff:1").is_none());
        assert!(take(&quota, 1, "2001:db8:0:1::1").is_some());
        let _held = take(&quota, 1, "::ffff:10.0.0.1").unwrap();
        assert!(take(&quota, 1, "10.0.0.1").is_none());
    }
}
