//! Inputs that the fuzz targets take for what they should be.

use std::io::Write;
use std::sync::Arc;

use super::targets::idx;
use super::targets::messages::{COORDINATOR, DATA_FINGERPRINT, DATA_SET, LAYOUT_FINGERPRINT, N_PARAMS, WORKERS, fence};
use coordinator::checkpoint::{Checkpoint, RunFacts};
use coordinator::training::{AuditSecret, Rounding, State};
use engine::params::params_fingerprint;
use engine::recipe::{Recipe, RecipeArgs};
use engine::weights::Weights;
use flate2::{Compression, write::GzEncoder};
use model::arch::Architecture;
use model::task::book_task;
use prost::Message;
use proto::framing::encode;
use proto::v1::coordinator_message::Kind as ToWorker;
use proto::v1::worker_message::Kind;
use proto::v1::{
    self, BatchDone, CoordinatorMessage, DatasetPiece, Encoding, Heartbeat, Join, Leaving, Ready, ShardDone, Update,
    Welcome, WorkerMessage,
};

/// Gives each to `write`, with the name of its target, and its own.
pub fn write_all(write: impl Fn(&str, &str, &[u8])) {
    for architecture in Architecture::ALL {
        let task = book_task(architecture);
        let weights = Weights::new(task.spec(), vec![0.0; task.spec().layout.n_params()]);
        write("weights", architecture.name(), &shortened(&weights.to_bytes()));
        write("checkpoints", architecture.name(), &shortened(&checkpoint(architecture)));
    }
    for which in 0..4_u8 {
        let content = idx::whole(which.into());
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&content).expect("memory");
        let packed = packed.finish().expect("memory");
        for (is_compressed, content) in [(false, content), (true, packed)] {
            let kind = which | if is_compressed { idx::COMPRESSED } else { 0 };
            let input = [&[kind][..], &shortened(&content)].concat();
            write("idx", &format!("file-{which}{}", if is_compressed { "-gz" } else { "" }), &input);
        }
    }
    write("frames", "session", &[&[6][..], &session()].concat());
    let speak = |speaker: u8, stream: Vec<u8>| [vec![speaker], stream].concat();
    write("messages", "session", &speak(WORKERS, session()));
    write("messages", "welcome", &speak(COORDINATOR, orders()));
    write("messages", "data-set", &speak(DATA_SET, pieces()));
    write("shared_memory", "update", &memory(1, 5, 5));
    write("shared_memory", "result", &memory(1, 0, 2));
}

/// A file as an input: the number of zeros at its end, then what is before them.
fn shortened(file: &[u8]) -> Vec<u8> {
    let n_kept = file.iter().rposition(|&byte| byte != 0).map_or(0, |place| place + 1);
    let n_zeros = u32::try_from(file.len() - n_kept).expect("a small file");
    [&n_zeros.to_le_bytes(), &file[..n_kept]].concat()
}

fn checkpoint(architecture: Architecture) -> Vec<u8> {
    let args = RecipeArgs { momentum: (architecture == Architecture::Conv).then_some(0.9), ..RecipeArgs::default() };
    let task = book_task(architecture);
    let recipe = Recipe::new(args, task.spec(), 4).expect("the book's recipe");
    let rounding = if architecture == Architecture::Recurrent { Rounding::Bf16 } else { Rounding::None };
    let layout = Arc::clone(&task.spec().layout);
    let params = vec![0.0; layout.n_params()];
    let state = State::new(&recipe, rounding, params);
    let facts = RunFacts {
        run_id: fence().run_id,
        recipe,
        layout,
        data_fingerprint: DATA_FINGERPRINT.to_owned(),
        numerics: vec![1, 2],
        audit_secret: Some(AuditSecret::new([1; 32])),
    };
    Checkpoint { facts, state }.to_parts().slices().concat()
}

fn stream(messages: &[impl Message]) -> Vec<u8> {
    messages.iter().flat_map(encode).flatten().collect()
}

/// A worker that joins, computes a step, and leaves, and one that joins and fails.
fn session() -> Vec<u8> {
    let join = |process| Join {
        version: proto::VERSION.to_owned(),
        host: "seed".to_owned(),
        process,
        backend: "flex on cpu".to_owned(),
        compute_class: "own".to_owned(),
        threads: 1,
        numerics: engine::numerics::REVISION,
    };
    let ready = Ready {
        fence: Some(fence()),
        layout_fingerprint: LAYOUT_FINGERPRINT,
        data_fingerprint: DATA_FINGERPRINT.to_owned(),
        shared_memory: false,
    };
    let done = |shard| ShardDone {
        fence: Some(fence()),
        shard,
        n_samples: 4,
        loss_sum: 0.5,
        gradient_sum: vec![0; 4 * N_PARAMS].into(),
        params_fingerprint: params_fingerprint(&[0.0; N_PARAMS]),
        compute_nanoseconds: 1_000_000,
        ..ShardDone::default()
    };
    let kinds = [
        Kind::Join(join(1)),
        Kind::Ready(ready.clone()),
        Kind::ShardDone(done(0)),
        Kind::Heartbeat(Heartbeat { step: 0 }),
        Kind::ShardDone(done(1)),
        Kind::BatchDone(BatchDone { fence: Some(fence()), step: 1, ..BatchDone::default() }),
        Kind::Leaving(Leaving { reason: "it was asked to end".to_owned() }),
        Kind::Join(join(2)),
        Kind::Ready(ready),
        Kind::ShardDone(ShardDone { gradient_sum: f32::NAN.to_le_bytes().repeat(N_PARAMS).into(), ..done(0) }),
    ];
    stream(&kinds.map(|kind| WorkerMessage { kind: Some(kind) }))
}

fn orders() -> Vec<u8> {
    let task = book_task(Architecture::Conv);
    let recipe = Recipe::new(RecipeArgs::default(), task.spec(), 4).expect("the book's recipe");
    let welcome = Welcome {
        worker_id: 1,
        fence: Some(fence()),
        recipe: recipe.to_json().into(),
        data_fingerprint: DATA_FINGERPRINT.to_owned(),
        layout_fingerprint: task.spec().layout.fingerprint().0,
        encoding: Encoding::F32.into(),
        shared_memory: None,
    };
    let numbers = vec![0; 4 * N_PARAMS];
    let state = v1::State { params: numbers.clone().into(), ..v1::State::default() };
    let update = Update { step: 1, gradient: numbers.into(), ..Update::default() };
    let kinds = [ToWorker::Welcome(welcome), ToWorker::State(state), ToWorker::Update(update)];
    stream(&kinds.map(|kind| CoordinatorMessage { kind: Some(kind) }))
}

fn pieces() -> Vec<u8> {
    let pieces = model::data::PLAIN_NAMES.iter().flat_map(|name| {
        [0, 4].map(|offset| DatasetPiece {
            name: (*name).to_owned(),
            file_bytes: 8,
            offset,
            content: vec![1; 4].into(),
        })
    });
    stream(&pieces.collect::<Vec<_>>())
}

/// Memory with its token and the mark of a slot.
fn memory(slot: u8, step: u8, mark: u64) -> Vec<u8> {
    const MARK_BYTES: usize = 64;
    let token = [9; 16];
    let mut content = vec![0; MARK_BYTES * (2 + usize::from(slot))];
    content[..token.len()].copy_from_slice(&token);
    let place = MARK_BYTES * (1 + usize::from(slot));
    content[place..place + 8].copy_from_slice(&mark.to_le_bytes());
    [&token[..], &[slot, step], &content].concat()
}
