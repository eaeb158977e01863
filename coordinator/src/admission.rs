//! Who may hold a connection, and a place in the run: bounds for all peers together and for each identity, so that no peer
//! can keep the others out. Where a bound is reached, the oldest connection that has not proved its use gives way. Decides
//! about connections and knows nothing of what travels over them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use engine::bucket::{Bucket, BucketRate};
use proto::limits::WORKERS_MAX;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use crate::peer::Peer;
use crate::training::Identity;

/// Connections of one identity, of which each can hold one session: more workers than a machine has processors.
pub const CONNECTIONS_PER_IDENTITY_MAX: usize = 256;
/// How often one identity may connect: as many workers as it may have, twice, and then as an honest one that tries again.
const CONNECTS: BucketRate = BucketRate { n_max: 512, per_second: 32 };
/// Identities that are remembered before those are forgotten that have no connection and had none lately.
const IDENTITIES_KEPT: usize = 1024;
/// Connections beyond the workers': health checks, reflection, and peers that have not joined yet.
const CONNECTIONS_SPARE: usize = 64;
/// File descriptors that are kept for the run's own files, its local workers' pipes and the runtime.
const DESCRIPTORS_RESERVED: u64 = 128;
/// File descriptors of a connection: its socket, and the memory that it shares with its worker until that has opened it.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;

/// How many connections and sessions there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub n_connections_max: usize,
    /// Those of one identity.
    pub n_per_identity_max: usize,
    /// Sessions: connections whose worker has joined.
    pub n_sessions_max: usize,
}

impl Limits {
    /// As many as the wire and this process' file descriptors allow, after the soft limit of these was raised to the hard one.
    pub fn of_process() -> Self {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // Where it cannot be raised, it stays as it is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        Self::of_descriptors(getrlimit(Resource::Nofile).current)
    }

    /// As many as so many file descriptors allow; none for no limit.
    fn of_descriptors(n_descriptors: Option<u64>) -> Self {
        let n_usual = WORKERS_MAX + CONNECTIONS_SPARE;
        let n_possible = n_descriptors.map_or(n_usual, |n_descriptors| {
            let n_left = n_descriptors.saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_PER_CONNECTION;
            usize::try_from(n_left).unwrap_or(usize::MAX)
        });
        let n_connections_max = n_usual.min(n_possible.max(2));
        Self {
            n_connections_max,
            // So that one identity cannot take all of them.
            n_per_identity_max: CONNECTIONS_PER_IDENTITY_MAX.min(n_connections_max / 2),
            // So that there is always room for a connection that has not joined.
            n_sessions_max: WORKERS_MAX.min(n_connections_max - CONNECTIONS_SPARE.min(n_connections_max / 4)),
        }
    }
}

/// How far a connection is. It gives way as long as it has no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of use came over it.
    Connected,
    /// A worker has joined over it.
    Joined,
    /// Its worker takes part.
    Ready,
    /// Its session is over.
    Over,
}

impl Stage {
    fn has_session(self) -> bool {
        matches!(self, Self::Joined | Self::Ready)
    }
}

/// All connections there are.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// By number, which grows: the oldest first.
    by_number: BTreeMap<u64, Entry>,
    by_identity: BTreeMap<Identity, Usage>,
    n_numbers: u64,
}

/// What an identity has, and had lately.
#[derive(Debug)]
struct Usage {
    n_connections: usize,
    connects: Bucket,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    stage: Stage,
    closing: CancellationToken,
}

/// A connection that was not admitted, or a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// There are too many connections of this identity, and all of them are of use.
    #[error("expected at most {n_max} connections from {identity}, found one more")]
    Identity {
        /// Whose.
        identity: Identity,
        /// As many as there may be.
        n_max: usize,
    },
    /// This identity connects too often.
    #[error("expected at most {} connections a second from {identity}, found more", CONNECTS.per_second)]
    Often {
        /// Whose.
        identity: Identity,
    },
    /// There are too many, and all of them are of use.
    #[error("expected at most {n_max} workers, found one more")]
    All {
        /// As many as there may be.
        n_max: usize,
    },
    /// The connection has a session already.
    #[error("expected one session for each connection, found a second one")]
    SecondSession,
    /// No worker has joined over the connection, or it was sent the data set already.
    #[error(
        "expected a worker that has joined and not been sent the data set in this session, found another call for it"
    )]
    Fetch,
    /// The connection has given way to another one, or is closed.
    #[error("the connection is closed")]
    Closed,
}

impl Admission {
    /// No connections yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, entries: Mutex::default() })
    }

    /// Takes a new connection in. Another one may give way to it.
    ///
    /// # Errors
    /// If there are too many, and none gives way, or the peer connects too often.
    pub fn connect(self: &Arc<Self>, peer: Peer, now: Instant) -> Result<Lease, NotAdmitted> {
        let (identity, closing) = (peer.identity(), CancellationToken::new());
        let mut entries = self.entries();
        if !entries.usage(&identity, now).connects.take(now) {
            return Err(NotAdmitted::Often { identity });
        }
        entries.make_room_for(&identity, &self.limits)?;
        let number = entries.insert(Entry { identity, stage: Stage::Connected, closing: closing.clone() });
        drop(entries);
        let handle = ConnectionHandle {
            admission: Arc::clone(self),
            number,
            peer,
            closing,
            is_admitted: Arc::default(),
            has_fetched: Arc::default(),
        };
        Ok(Lease(handle))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn insert(&mut self, entry: Entry) -> u64 {
        self.n_numbers += 1;
        if let Some(usage) = self.by_identity.get_mut(&entry.identity) {
            usage.n_connections += 1;
        }
        self.by_number.insert(self.n_numbers, entry);
        self.n_numbers
    }

    /// Counts a connection as another identity's from now on.
    fn set_identity(
        &mut self,
        number: u64,
        identity: &Identity,
        limits: &Limits,
        now: Instant,
    ) -> Result<(), NotAdmitted> {
        self.usage(identity, now);
        let entry = self.remove(number).ok_or(NotAdmitted::Closed)?;
        self.make_room_for(identity, limits)?;
        if let Some(usage) = self.by_identity.get_mut(identity) {
            usage.n_connections += 1;
        }
        self.by_number.insert(number, Entry { identity: identity.clone(), ..entry });
        Ok(())
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.by_number.remove(&number)?;
        if let Some(usage) = self.by_identity.get_mut(&entry.identity) {
            usage.n_connections -= 1;
        }
        Some(entry)
    }

    fn usage(&mut self, identity: &Identity, now: Instant) -> &mut Usage {
        if self.by_identity.len() >= IDENTITIES_KEPT {
            self.by_identity.retain(|_, usage| usage.n_connections > 0 || !usage.connects.is_full(now));
        }
        let new = || Usage { n_connections: 0, connects: Bucket::new(CONNECTS, now) };
        self.by_identity.entry(identity.clone()).or_insert_with(new)
    }

    fn n_of(&self, identity: &Identity) -> usize {
        self.by_identity.get(identity).map_or(0, |usage| usage.n_connections)
    }

    /// Makes room for a connection of an identity: of its own ones if it has as many as it may have, else of those of the
    /// identity that has the most.
    fn make_room_for(&mut self, identity: &Identity, limits: &Limits) -> Result<(), NotAdmitted> {
        let is_silent = |entry: &Entry| !entry.stage.has_session();
        if self.n_of(identity) >= limits.n_per_identity_max {
            let oldest = self.by_number.iter().find(|(_, entry)| is_silent(entry) && entry.identity == *identity);
            let Some(number) = oldest.map(|(&number, _)| number) else {
                let n_max = limits.n_per_identity_max;
                return Err(NotAdmitted::Identity { identity: identity.clone(), n_max });
            };
            self.close(number);
        }
        if self.by_number.len() >= limits.n_connections_max {
            let number = self.victim(is_silent).ok_or(NotAdmitted::All { n_max: limits.n_sessions_max })?;
            self.close(number);
        }
        Ok(())
    }

    /// The oldest connection that `may` give way, of the identity that has the most.
    fn victim(&self, may: impl Fn(&Entry) -> bool) -> Option<u64> {
        let able = self.by_number.iter().filter(|(_, entry)| may(entry));
        // The last one of equals is the oldest one.
        able.rev().max_by_key(|(_, entry)| self.n_of(&entry.identity)).map(|(&number, _)| number)
    }

    /// Closes a connection, whose place is free at once.
    fn close(&mut self, number: u64) {
        if let Some(entry) = self.remove(number) {
            entry.closing.cancel();
        }
    }

    fn join(&mut self, number: u64, limits: &Limits) -> Result<(), NotAdmitted> {
        let entry = self.by_number.get(&number).ok_or(NotAdmitted::Closed)?;
        if entry.stage != Stage::Connected {
            return Err(NotAdmitted::SecondSession);
        }
        let identity = entry.identity.clone();
        let has_session = |entry: &Entry| entry.stage.has_session();
        let n_sessions = self.by_number.values().filter(|entry| has_session(entry)).count();
        if n_sessions >= limits.n_sessions_max {
            // Whoever has more places than the newcomer would have gives one up: first one that has not become ready.
            let n_own = self.n_of(&identity);
            let has_more = |entry: &Entry| self.n_of(&entry.identity) > n_own;
            let unready = self.victim(|entry| entry.stage == Stage::Joined && has_more(entry));
            let victim = unready.or_else(|| self.victim(|entry| has_session(entry) && has_more(entry)));
            self.close(victim.ok_or(NotAdmitted::All { n_max: limits.n_sessions_max })?);
        }
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.stage = Stage::Joined;
        }
        Ok(())
    }
}

/// A connection's place, which is free again when this is dropped.
#[derive(Debug)]
pub struct Lease(ConnectionHandle);

impl Lease {
    /// What others may know of it and do to it.
    pub fn handle(&self) -> &ConnectionHandle {
        &self.0
    }

    /// Notes that its peer has proved itself with a certificate of this name, and counts as that from now on.
    ///
    /// # Errors
    /// If there are too many connections of that certificate, and all of them are of use, or this one has given way.
    pub fn prove(&mut self, certificate: String, now: Instant) -> Result<(), NotAdmitted> {
        let Self(handle) = self;
        handle.peer.certificate = Some(certificate);
        let Admission { limits, .. } = &*handle.admission;
        handle.admission.entries().set_identity(handle.number, &handle.peer.identity(), limits, now)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.closing.cancel();
        self.0.admission.entries().remove(self.0.number);
    }
}

/// A connection, as its calls see it.
#[derive(Clone, Debug)]
pub struct ConnectionHandle {
    admission: Arc<Admission>,
    number: u64,
    /// Who is at its other end.
    pub peer: Peer,
    closing: CancellationToken,
    is_admitted: Arc<AtomicBool>,
    has_fetched: Arc<AtomicBool>,
}

impl ConnectionHandle {
    /// Notes that a worker has joined over it.
    ///
    /// # Errors
    /// If another one has, or there are too many workers.
    pub fn join(&self) -> Result<(), NotAdmitted> {
        self.admission.entries().join(self.number, &self.admission.limits)?;
        self.is_admitted.store(true, Ordering::Release);
        Ok(())
    }

    /// Notes that its worker takes part.
    pub fn set_ready(&self) {
        self.set_stage(Stage::Ready);
    }

    /// Notes that its session is over.
    pub fn set_over(&self) {
        self.set_stage(Stage::Over);
    }

    fn set_stage(&self, stage: Stage) {
        if let Some(entry) = self.admission.entries().by_number.get_mut(&self.number) {
            entry.stage = stage;
        }
    }

    /// Whether a worker has joined over it.
    pub fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Acquire)
    }

    /// Notes that its worker is sent the data set.
    ///
    /// # Errors
    /// If it was sent that already, or is no worker.
    pub fn begin_fetch(&self) -> Result<(), NotAdmitted> {
        let stage = self.admission.entries().by_number.get(&self.number).map(|entry| entry.stage);
        let has_session = stage.is_some_and(Stage::has_session);
        if !has_session || self.has_fetched.swap(true, Ordering::AcqRel) {
            return Err(NotAdmitted::Fetch);
        }
        Ok(())
    }

    /// Closes it, whatever is on its way.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Ends when it is to be closed.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::peer::PeerAddress;

    const LIMITS: Limits = Limits { n_connections_max: 6, n_per_identity_max: 3, n_sessions_max: 4 };

    /// A peer of the machine of this number.
    fn peer(machine: u8) -> Peer {
        Peer::at(PeerAddress::Tcp(([10, 0, 0, machine], 1).into()))
    }

    fn is_open(lease: &Lease) -> bool {
        !lease.handle().closing().is_cancelled()
    }

    #[test]
    fn new_connection_replaces_oldest_unjoined_of_same_identity() {
        let admission = Admission::new(LIMITS);
        let connect = || admission.connect(peer(1), Instant::now()).expect("room");
        let [first, second, third] = [connect(), connect(), connect()];
        first.handle().join().expect("a place");
        let fourth = connect();
        assert_eq!([&first, &second, &third, &fourth].map(is_open), [true, false, true, true]);
        for lease in [&third, &fourth] {
            lease.handle().join().expect("a place");
        }
        let refused = admission.connect(peer(1), Instant::now()).expect_err("all of its connections are of use");
        assert_eq!(refused, NotAdmitted::Identity { identity: Identity::new("10.0.0.1"), n_max: 3 });
        drop(third);
        assert!(admission.connect(peer(1), Instant::now()).is_ok(), "a place is free again");
    }

    #[test]
    fn certificate_is_one_identity_across_addresses() {
        let (admission, now) = (Admission::new(LIMITS), Instant::now());
        let connect = |machine| admission.connect(peer(machine), now).expect("room");
        let mut leases = [1, 1, 1, 2, 3].map(connect);
        for lease in &mut leases {
            lease.prove("worker-1".to_owned(), now).expect("room, or an old one gives way");
        }
        // The two oldest gave way, and no address has anything left.
        assert_eq!(leases.each_ref().map(is_open), [false, false, true, true, true]);
        assert_eq!(leases[4].handle().peer.identity(), Identity::new("certificate worker-1"));
        assert_eq!([1, 1, 1].map(connect).each_ref().map(is_open), [true; 3]);
        assert!(is_open(&leases[2]), "it gave way to another identity");
        leases[2..].iter().for_each(|lease| lease.handle().join().expect("a place"));
        let mut late = connect(4);
        let refused = late.prove("worker-1".to_owned(), now).expect_err("all of its connections are of use");
        assert_eq!(refused, NotAdmitted::Identity { identity: Identity::new("certificate worker-1"), n_max: 3 });
        assert_eq!(leases[0].prove("worker-1".to_owned(), now), Err(NotAdmitted::Closed));
    }

    #[test]
    fn full_server_closes_connection_of_largest_identity() {
        let admission = Admission::new(LIMITS);
        let leases: Vec<Lease> =
            [1, 2, 2, 2, 3, 3].map(|machine| admission.connect(peer(machine), Instant::now()).expect("room")).into();
        let newcomer = admission.connect(peer(4), Instant::now()).expect("somebody gives way");
        assert_eq!(leases.iter().map(is_open).collect::<Vec<_>>(), [true, false, true, true, true, true]);
        assert!(is_open(&newcomer));
    }

    #[test]
    fn unready_session_is_replaced_by_other_identity() {
        let admission = Admission::new(LIMITS);
        let connect = |machine| admission.connect(peer(machine), Instant::now()).expect("room");
        let sessions = [connect(1), connect(1), connect(1), connect(2)];
        for session in &sessions {
            session.handle().join().expect("a place");
        }
        sessions[0].handle().set_ready();
        let newcomer = connect(3);
        newcomer.handle().join().expect("somebody gives way");
        assert_eq!(sessions.each_ref().map(is_open), [true, false, true, true]);
        // Now no identity has more sessions than a newcomer of the first machine would have.
        let second = connect(1);
        assert_eq!(second.handle().join(), Err(NotAdmitted::All { n_max: 4 }));
    }

    #[test]
    fn frequent_connects_of_one_identity_are_rate_limited() {
        let (admission, now) = (Admission::new(LIMITS), Instant::now());
        for _ in 0..CONNECTS.n_max {
            admission.connect(peer(1), now).expect("room");
        }
        let often = NotAdmitted::Often { identity: Identity::new("10.0.0.1") };
        assert_eq!(admission.connect(peer(1), now).expect_err("too often"), often);
        assert!(admission.connect(peer(2), now).is_ok());
        assert!(admission.connect(peer(1), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn second_session_on_connection_is_refused() {
        let admission = Admission::new(LIMITS);
        let lease = admission.connect(peer(1), Instant::now()).expect("room");
        let handle = lease.handle().clone();
        assert!(!handle.is_admitted());
        assert_eq!([handle.join(), handle.join()], [Ok(()), Err(NotAdmitted::SecondSession)]);
        assert!(handle.is_admitted());
        drop(lease);
        assert_eq!(handle.join(), Err(NotAdmitted::Closed));
    }

    #[test]
    fn dataset_fetch_needs_open_session_and_is_allowed_once() {
        let admission = Admission::new(LIMITS);
        let connect = || admission.connect(peer(1), Instant::now()).expect("room");
        let lease = connect();
        let handle = lease.handle();
        assert_eq!(handle.begin_fetch(), Err(NotAdmitted::Fetch), "no worker");
        handle.join().expect("a place");
        assert_eq!([handle.begin_fetch(), handle.begin_fetch()], [Ok(()), Err(NotAdmitted::Fetch)]);
        let over = connect();
        over.handle().join().expect("a place");
        over.handle().set_over();
        assert_eq!(over.handle().begin_fetch(), Err(NotAdmitted::Fetch));
    }

    #[test]
    fn descriptor_limit_bounds_connections() {
        let check = |n_descriptors, n_connections_max, n_per_identity_max, n_sessions_max| {
            let expected = Limits { n_connections_max, n_per_identity_max, n_sessions_max };
            assert_eq!(Limits::of_descriptors(n_descriptors), expected);
        };
        check(None, 1088, 256, 1024);
        check(Some(1 << 20), 1088, 256, 1024);
        check(Some(1024), 448, 224, 384); // (1024 - 128) / 2 and 448 - 64
        check(Some(64), 2, 1, 2);
    }
}
