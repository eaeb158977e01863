//! Peers that mean harm: each opens what it can, and begins anew when it is closed. All of them end when the [`Attack`] is
//! dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prost::bytes::Bytes;
use proto::limits::STREAMS_PER_CONNECTION_MAX;
use proto::v1::coordinator_message::Kind as ToWorker;
use proto::v1::training_client::TrainingClient;
use proto::v1::worker_message::Kind;
use proto::v1::{FetchDatasetRequest, Heartbeat, ShardDone, WorkerMessage};
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use crate::worker::{Route, Worker, params_fingerprint_of};

/// Between two attempts of an attacker that was closed.
const PAUSE: Duration = Duration::from_millis(5);

/// What an attacker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Connects, and says nothing.
    SilentTcp,
    /// Speaks HTTP/2, and opens no stream.
    IdleHttp2,
    /// Joins with each stream that its connection may have, and says nothing more than that it is there.
    JoinedSilent,
    /// Gets ready, sends heartbeats, and reads nothing.
    Unread,
    /// Gets ready, and sends heartbeats as fast as it can.
    Heartbeats,
    /// Gets ready, and sends results that it was not dealt, all zeros, for every shard.
    Results,
    /// Gets ready, and says of each shard that it is dealt that its gradient is all zeros.
    Liar,
    /// Gets ready, and asks for the state again and again, without reading it.
    States,
    /// Fetches the data set without having joined.
    FetchUnjoined,
    /// Joins, fetches the data set, and reads nothing of it.
    FetchUnread,
}

/// Attackers at work.
pub struct Attack {
    _runtime: Runtime,
    n_attempts: Arc<AtomicUsize>,
}

impl Attack {
    /// Lets so many attackers loose on a coordinator, each with a connection of its own.
    ///
    /// # Panics
    /// If there are no threads to be had.
    pub fn begin(route: &Route, harms: &[(Harm, usize)]) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let n_attempts = Arc::new(AtomicUsize::new(0));
        for &(harm, n_attackers) in harms {
            for _ in 0..n_attackers {
                let (route, n_attempts) = (route.clone(), Arc::clone(&n_attempts));
                runtime.spawn(async move {
                    loop {
                        n_attempts.fetch_add(1, Ordering::Relaxed);
                        // Whatever it comes to, it begins anew.
                        let _ = attack(harm, &route).await;
                        sleep(PAUSE).await;
                    }
                });
            }
        }
        Self { _runtime: runtime, n_attempts }
    }

    /// How often an attacker has begun.
    pub fn n_attempts(&self) -> usize {
        self.n_attempts.load(Ordering::Relaxed)
    }
}

/// One connection of an attacker, to its end; none if it did not come that far.
async fn attack(harm: Harm, route: &Route) -> Option<()> {
    match harm {
        Harm::SilentTcp => silent_tcp(route).await,
        Harm::IdleHttp2 => {
            let _channel = route.try_channel().await.ok()?;
            // The channel does not tell that it was closed; one that is closed is replaced by and by.
            sleep(Duration::from_secs(15)).await;
            Some(())
        }
        Harm::JoinedSilent => {
            let (worker, channel) = Worker::try_join_over(route, 1).await?;
            let mut workers = vec![worker];
            for process in 2..=STREAMS_PER_CONNECTION_MAX {
                workers.extend(Worker::try_join_on(channel.clone(), process).await);
            }
            keep_alive(&workers).await
        }
        Harm::Unread => {
            let worker = ready(route).await?;
            keep_alive(&[worker]).await
        }
        Harm::Heartbeats => {
            let worker = ready(route).await?;
            loop {
                send(&worker, Kind::Heartbeat(Heartbeat { step: 0 })).await?;
            }
        }
        Harm::Results => {
            let (worker, state) = Worker::try_enter(route, 1).await?;
            let zeros = Bytes::from(vec![0; state.params.len()]);
            let params_fingerprint = params_fingerprint_of(&state);
            let mut step = state.step;
            loop {
                for shard in 0..4 {
                    let done = ShardDone {
                        fence: worker.welcome.fence.clone(),
                        step,
                        shard,
                        n_samples: 4,
                        gradient_sum: zeros.clone(),
                        params_fingerprint,
                        compute_nanoseconds: 1,
                        ..ShardDone::default()
                    };
                    send(&worker, Kind::ShardDone(done)).await?;
                }
                step += 1;
            }
        }
        Harm::Liar => lie(route).await,
        Harm::States => {
            let worker = ready(route).await?;
            loop {
                let reason = "I lost it".to_owned();
                send(&worker, Kind::Lagging(proto::v1::Lagging { reason })).await?;
                sleep(Duration::from_millis(100)).await;
            }
        }
        Harm::FetchUnjoined => {
            let mut client = TrainingClient::new(route.try_channel().await.ok()?);
            let request = FetchDatasetRequest { data_fingerprint: String::new() };
            let _pieces = client.fetch_dataset(request).await.ok()?;
            sleep(Duration::from_secs(1)).await;
            Some(())
        }
        Harm::FetchUnread => {
            // All that waits for it waits at the coordinator.
            let (worker, channel) = Worker::try_join_over(&route.clone().without_buffer(), 1).await?;
            let request = FetchDatasetRequest { data_fingerprint: worker.welcome.data_fingerprint.clone() };
            let _pieces = TrainingClient::new(channel).fetch_dataset(request).await.ok()?;
            keep_alive(&[worker]).await
        }
    }
}

/// Answers what it is dealt with a state. To what it is dealt with an update it gives the fingerprint of the state before, and
/// is sent the state anew.
async fn lie(route: &Route) -> Option<()> {
    let (mut worker, mut state) = Worker::try_enter(route, 1).await?;
    let mut work = state.work.clone().unwrap_or_default();
    loop {
        for &shard in &work.shards {
            let done = ShardDone {
                fence: worker.welcome.fence.clone(),
                step: work.step,
                shard,
                n_samples: u64::from(n_samples_of_shard(&worker)),
                loss_sum: 1.0,
                gradient_sum: vec![0; state.params.len()].into(),
                params_fingerprint: params_fingerprint_of(&state),
                compute_nanoseconds: 1,
                ..ShardDone::default()
            };
            send(&worker, Kind::ShardDone(done)).await?;
        }
        work = match worker.inbound.message().await.ok()??.kind? {
            ToWorker::State(newer) => {
                state = newer;
                state.work.clone().unwrap_or_default()
            }
            ToWorker::Update(update) => update.work.unwrap_or_default(),
            ToWorker::Work(work) => work,
            ToWorker::Welcome(_) | ToWorker::Refusal(_) => continue,
            ToWorker::Close(_) => return None,
        };
    }
}

/// Images of each shard, where the batch is cut evenly.
fn n_samples_of_shard(worker: &Worker) -> u32 {
    let recipe = engine::recipe::Recipe::from_json(&worker.welcome.recipe).expect("a recipe");
    recipe.batch_size.get() / recipe.shards.get()
}

async fn silent_tcp(route: &Route) -> Option<()> {
    let address: SocketAddr = route.address.strip_prefix("http://")?.parse().ok()?;
    let socket = TcpSocket::new_v4().ok()?;
    if let Some(from) = route.from {
        socket.bind((from, 0).into()).ok()?;
    }
    let mut stream = socket.connect(address).await.ok()?;
    // Until the other end has enough of it.
    stream.read_u8().await.ok()?;
    Some(())
}

async fn ready(route: &Route) -> Option<Worker> {
    let worker = Worker::try_join(route, 1).await?;
    send(&worker, Kind::Ready(worker.ready())).await?;
    Some(worker)
}

async fn send(worker: &Worker, kind: Kind) -> Option<()> {
    worker.outbound.send(WorkerMessage { kind: Some(kind) }).await.ok()
}

/// Sends heartbeats until a session ends.
async fn keep_alive(workers: &[Worker]) -> Option<()> {
    loop {
        for worker in workers {
            send(worker, Kind::Heartbeat(Heartbeat { step: 0 })).await?;
        }
        sleep(Duration::from_millis(400)).await;
    }
}
