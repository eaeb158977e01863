//! Machines between which the network fails, each with the programs as they are: cables that are pulled and plugged in
//! again, and bad ones.

use std::time::Instant;

use serde_json::Value;

use crate::harness::{COORDINATOR, LONG_RUN, Network, Process, Run, Stream, TestDir, field};

/// What a step takes as a rule with a worker behind a slow cable, in milliseconds: an update and a result, 20 each.
const SLOW_MIN: f64 = 30.0;

/// A run whose coordinator and workers are on hosts of their own.
struct Machines<'a> {
    dir: &'a TestDir,
    coordinator: Process,
    /// The nth is on the nth host, counted from 1.
    workers: Vec<Process>,
}

impl<'a> Machines<'a> {
    fn start(dir: &'a TestDir, network: &Network, flags: &str, n_workers: usize) -> Self {
        let address = Network::coordinator();
        // Simulated hosts share this machine's memory, unless a flag forbids it.
        let others = "--wire grpc --hash-steps --json --run-dir run";
        let flags = format!("{flags} --launch external --listen {address} --insecure {others}");
        let command = network.on_host(COORDINATOR, &dir.command("coordinator", &flags));
        let coordinator = dir.start("coordinator", command);
        let mut machines = Self { dir, coordinator, workers: Vec::new() };
        machines.coordinator.begin();
        for host in 1..=n_workers {
            let command = network.on_host(host, &dir.worker_command(&address));
            machines.workers.push(dir.start(&format!("worker {host}"), command));
            machines.coordinator.wait_for_nth_line(Stream::Err, "worker joined", host);
        }
        machines
    }

    /// Waits until a worker is given up. In every step it has tasks that others then get, unless they computed them already.
    fn wait_until_missed(&self, unplugged: Instant) {
        let left = self.coordinator.wait_for_line(Stream::Err, "worker left");
        let missed = unplugged.elapsed();
        let is_helped = !self.coordinator.lines(Stream::Err, "worker is late").is_empty();
        assert!(left.contains("silent for 1000 ms") || left.contains("does not take its messages"), "{left}");
        assert!(field(&left, "n_reassigned") != "0" || is_helped, "{left}");
        eprintln!("missed after {} ms", missed.as_millis());
    }

    fn check_end(&self, flags: &str) -> Run {
        let end = self.coordinator.end();
        assert_eq!(end["outcome"], "completed");
        let run = self.dir.run("run", &end);
        run.assert_same_bits(&self.dir.reference(flags));
        run
    }
}

fn n_joined(worker: &Process) -> usize {
    worker.lines(Stream::Err, "joined the run").len()
}

/// What these machines train, and how often that is kept and who is missed when.
fn long_flags() -> [String; 2] {
    let recipe = format!("--arch conv {LONG_RUN}");
    let flags = format!("{recipe} --checkpoint-every 20 --heartbeat-timeout 1");
    [recipe, flags]
}

#[test]
fn disconnected_machine_is_detected_and_rejoins() {
    let dir = TestDir::new();
    let Some(network) = Network::if_any(3) else { return };
    let [recipe, flags] = long_flags();
    dir.reference(&recipe);
    let machines = Machines::start(&dir, &network, &flags, 3);
    machines.coordinator.wait_for_checkpoint(40);
    network.unplug(1);
    machines.wait_until_missed(Instant::now());
    network.plug(1);
    machines.coordinator.wait_for_nth_line(Stream::Err, "worker joined", 4);
    machines.check_end(&recipe);
    machines.workers.iter().for_each(Process::succeed);
    assert_eq!(machines.workers.iter().map(n_joined).collect::<Vec<_>>(), [2, 1, 1]);
}

/// No FIN and no RST ever signals its end.
#[test]
fn machine_lost_without_fin_or_rst_is_detected_in_time() {
    let dir = TestDir::new();
    let Some(network) = Network::if_any(3) else { return };
    let [recipe, flags] = long_flags();
    dir.reference(&recipe);
    let machines = Machines::start(&dir, &network, &flags, 3);
    machines.coordinator.wait_for_checkpoint(40);
    network.unplug(1);
    let unplugged = Instant::now();
    machines.workers[0].kill();
    machines.wait_until_missed(unplugged);
    machines.check_end(&recipe);
    machines.workers[1..].iter().for_each(Process::succeed);
    assert_eq!(machines.coordinator.lines(Stream::Err, "worker left").len(), 1, "nobody else was lost");
}

#[test]
fn isolated_coordinator_waits_and_continues() {
    let dir = TestDir::new();
    let Some(network) = Network::if_any(3) else { return };
    let [recipe, flags] = long_flags();
    dir.reference(&recipe);
    let machines = Machines::start(&dir, &network, &flags, 3);
    machines.coordinator.wait_for_checkpoint(40);
    network.unplug(COORDINATOR);
    machines.wait_until_missed(Instant::now());
    machines.coordinator.wait_for_nth_line(Stream::Err, "worker left", 3);
    machines.coordinator.wait_for_line(Stream::Out, r#""event":"waiting""#);
    network.plug(COORDINATOR);
    machines.coordinator.wait_for_line(Stream::Out, r#""event":"going on""#);
    machines.check_end(&recipe);
    machines.workers.iter().for_each(Process::succeed);
}

#[test]
fn slow_lossy_link_changes_no_bits() {
    let dir = TestDir::new();
    let Some(network) = Network::if_any(3) else { return };
    let flags = "--arch denoising --shards 4 --batch-size 16 --epochs 2 --data small --max-steps 60";
    dir.reference(flags);
    network.wear_out(1);
    let machines = Machines::start(&dir, &network, flags, 3);
    let run = machines.check_end(flags);
    machines.workers[1..].iter().for_each(Process::succeed);
    // It may be let go on the way, when too much waits for it, and come back under another number, or when the run is over.
    let numbers = machines.coordinator.numbers_of(&machines.workers[0]);
    let numbers: Vec<u64> = numbers.iter().map(|number| number.parse().expect("a number")).collect();
    let is_its = |(_, workers): &(&Value, Vec<u64>)| workers.iter().any(|worker| numbers.contains(worker));
    let its_steps = run.steps.iter().zip(run.workers()).filter(is_its);
    let mut times: Vec<f64> = its_steps.map(|(step, _)| step["milliseconds"].as_f64().expect("a time")).collect();
    times.sort_unstable_by(f64::total_cmp);
    assert!(!times.is_empty(), "no result of the worker on the slow cable counted");
    assert!(times[times.len() / 2] >= SLOW_MIN, "the cable was not slow: {times:?}");
}
