//! What a worker's messages mean, after every bound and every number was checked. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use engine::numerics::REVISION;
use engine::shard::ShardResult;
use engine::sums::{COUNTS_MAX, Sums};
use proto::buffers::Buffers;
use proto::limits::TEXT_BYTES_MAX;
use proto::shared::{RegionHandle, Results, SlotError};
use proto::v1::{self, worker_message::Kind};
use proto::values::{self, ValuesError};
use tonic::Status;

use crate::facts::Facts;
use crate::outbox::GradientPath;
use crate::training::{BatchDone, Computed, Event, Identity, Profile, ShardDone, WorkerId};

/// Reads the messages of one worker.
#[derive(Debug)]
pub struct Inbox {
    facts: Arc<Facts>,
    buffers: Arc<Buffers>,
    memory: Memory,
}

/// The memory that a session shares with its worker.
#[derive(Debug)]
enum Memory {
    /// The worker was sent the handle, and may open it.
    Offered(Results, RegionHandle),
    /// The worker has it open, and no other process can open it any more.
    Open(Results),
    None,
}

/// What a worker is that joins with this message.
///
/// # Errors
/// If it is of another version, or would compute other bits.
pub fn profile(identity: Identity, join: v1::Join) -> Result<Profile, Status> {
    let v1::Join { version, host, process, backend, compute_class, threads, numerics } = join;
    if version != proto::VERSION {
        return Err(Status::failed_precondition(format!(
            "expected a worker of version {}, found {}; start the version of the coordinator",
            proto::VERSION,
            short(version),
        )));
    }
    if numerics != REVISION {
        return Err(Status::failed_precondition(format!(
            "expected a worker of numerics revision {REVISION}, found {numerics}, which computes other bits; start the version \
             of the coordinator",
        )));
    }
    let [host, backend, compute_class] = [host, backend, compute_class].map(short);
    Ok(Profile { identity, host, process, backend, compute_class, n_threads: threads })
}

impl Inbox {
    /// One for a worker whose results can lie in the memory offered, if any is.
    pub fn new(facts: Arc<Facts>, buffers: Arc<Buffers>, offered: Option<(Results, RegionHandle)>) -> Self {
        let memory = offered.map_or(Memory::None, |(results, handle)| Memory::Offered(results, handle));
        Self { facts, buffers, memory }
    }

    /// Where the worker's results can lie, for its welcome.
    pub fn offered(&self) -> Option<v1::Region> {
        match &self.memory {
            Memory::Offered(_, handle) => Some(handle.message()),
            Memory::Open(_) | Memory::None => None,
        }
    }

    /// How the gradients of a worker travel that is ready; memory that it does not use is given back.
    ///
    /// # Errors
    /// If it is ready for another run, or has opened memory that it was not offered.
    pub fn ready(&mut self, ready: &v1::Ready) -> Result<GradientPath, Status> {
        self.check_ready(ready)?;
        match (std::mem::replace(&mut self.memory, Memory::None), ready.shared_memory) {
            (Memory::Offered(results, _) | Memory::Open(results), true) => {
                self.memory = Memory::Open(results);
                Ok(GradientPath::SharedMemory)
            }
            (Memory::None, true) => {
                Err(Status::invalid_argument("expected a worker without shared memory, found one that has opened it"))
            }
            (_, false) => Ok(GradientPath::Bytes),
        }
    }

    fn check_ready(&self, ready: &v1::Ready) -> Result<(), Status> {
        self.check_fence(ready.fence.as_ref())?;
        let (expected, found) = (self.facts.layout_fingerprint, ready.layout_fingerprint);
        if expected != found {
            return Err(Status::failed_precondition(format!(
                "expected the layout {expected:016x}, found {found:016x}"
            )));
        }
        let (expected, found) = (&self.facts.data_fingerprint, &ready.data_fingerprint);
        if expected != found {
            let found = short(found.clone());
            return Err(Status::failed_precondition(format!("expected the data set {expected}, found {found}")));
        }
        Ok(())
    }

    /// What a shard's result says, with its gradient in a vector of this process.
    ///
    /// # Errors
    /// If it belongs to another run, or its gradient lies where none is.
    pub fn shard_done(&self, done: v1::ShardDone) -> Result<ShardDone, Status> {
        self.check_fence(done.fence.as_ref())?;
        let sums = sums(done.loss_sum, &done.counts, done.n_samples)?;
        let v1::ShardDone { step, shard, gradient_sum, slot, .. } = done;
        if slot.is_some() && !gradient_sum.is_empty() {
            return Err(Status::invalid_argument("expected a gradient in a slot or in the message, found both"));
        }
        let mut values = self.buffers.take();
        let taken = match slot {
            None => values::decode(self.facts.encoding, &gradient_sum, &mut values).map_err(SlotError::from),
            Some(slot) => self.take_from_slot(slot, &mut values),
        };
        let (computed, gradient_norm) = match taken {
            Ok(square_sum) => (Computed::Finite(ShardResult { gradient_sum: values, sums }), square_sum.sqrt()),
            Err(error) => {
                self.buffers.give_back([values]);
                let computed = match error {
                    SlotError::Values(ValuesError::NotFinite { .. }) => Computed::NotFinite("gradient"),
                    SlotError::Values(ValuesError::Length { expected, found }) => {
                        Computed::WrongLength { expected, found }
                    }
                    SlotError::Unknown { .. } | SlotError::NotFull { .. } | SlotError::Overwritten { .. } => {
                        return Err(Status::invalid_argument(error.to_string()));
                    }
                };
                (computed, f64::INFINITY)
            }
        };
        let compute = Duration::from_nanos(done.compute_nanoseconds);
        Ok(ShardDone { step, shard, computed, gradient_norm, params_fingerprint: done.params_fingerprint, compute })
    }

    fn take_from_slot(&self, slot: u32, values: &mut [f32]) -> Result<f64, SlotError> {
        match &self.memory {
            Memory::Offered(results, _) | Memory::Open(results) => results.take(slot, values),
            Memory::None => Err(SlotError::Unknown { n_slots: 0, found: slot }),
        }
    }

    /// What any other message means.
    ///
    /// # Errors
    /// If it belongs to another run, or to another place of the session.
    ///
    /// # Panics
    /// If it is one that another method reads.
    pub fn event(&self, worker_id: WorkerId, kind: Kind) -> Result<Event, Status> {
        Ok(match kind {
            Kind::Join(_) => return Err(Status::invalid_argument("expected one join, found a second one")),
            Kind::Ready(_) | Kind::ShardDone(_) => unreachable!("read by another method"),
            Kind::BatchDone(done) => {
                self.check_fence(done.fence.as_ref())?;
                let sums = sums(done.loss_sum, &done.counts, done.n_samples)?;
                let v1::BatchDone { step, batch, params_fingerprint, .. } = done;
                Event::BatchDone(worker_id, BatchDone { step, batch, sums, params_fingerprint })
            }
            Kind::Leaving(leaving) => Event::Leaving(worker_id, short(leaving.reason)),
            Kind::Lagging(lagging) => Event::Lagging(worker_id, short(lagging.reason)),
            Kind::Heartbeat(heartbeat) => Event::Heartbeat(worker_id, heartbeat.step),
        })
    }

    fn check_fence(&self, found: Option<&v1::Fence>) -> Result<(), Status> {
        let expected = &self.facts.fence;
        if expected.is(found) {
            return Ok(());
        }
        let found = found.map_or("nothing of the kind".to_owned(), |found| {
            format!("run {}, coordinator {:016x}", short(found.run_id.clone()), found.coordinator_id)
        });
        let v1::Fence { run_id, coordinator_id } = expected;
        Err(Status::failed_precondition(format!(
            "expected run {run_id}, coordinator {coordinator_id:016x}, found {found}"
        )))
    }
}

/// The sums of a message, which leaves out counts that the task does not have.
fn sums(loss_sum: f64, found: &[u64], n_samples: u64) -> Result<Sums, Status> {
    let mut counts = [0; COUNTS_MAX];
    let target = counts.get_mut(..found.len()).ok_or_else(|| {
        Status::invalid_argument(format!("expected at most {COUNTS_MAX} counts, found {}", found.len()))
    })?;
    target.copy_from_slice(found);
    Ok(Sums { loss_sum, counts, n_samples })
}

/// A text of bounded length, without what could confuse a terminal.
fn short(text: String) -> String {
    let is_short_and_plain = text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control);
    if is_short_and_plain {
        return text;
    }
    text.chars().filter(|character| !character.is_control()).take(TEXT_BYTES_MAX / 4).collect()
}
