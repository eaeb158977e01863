//! Machines that are none: network namespaces of this one, joined by a switch whose cables can be pulled. Whatever an
//! earlier run that was killed has left of them goes with the next one.

use std::io::Write;
use std::process::Command;

use super::{is_alive, signal};

/// What the names of all namespaces of these tests begin with; then come the test's process and what it is for.
const PREFIX: &str = "telar-";
/// The namespace in which the switch is.
const SWITCH: &str = "switch";
/// The host of the coordinator; workers are counted from 1.
pub const COORDINATOR: usize = 0;
/// Where a coordinator listens.
const PORT: u16 = 7187;

/// Hosts at a switch, gone with it. Their processes have to end before.
pub struct Network {
    namespaces: Vec<String>,
}

impl Network {
    /// A switch with a coordinator's host and those of so many workers. None, with a message, where namespaces cannot be made.
    pub fn if_any(n_workers: usize) -> Option<Self> {
        let made = sweep().and_then(|()| Self::new(n_workers));
        // Said also where the test passes: the test runner keeps back only what goes through the print macros.
        made.inspect_err(|reason| {
            let _ = writeln!(std::io::stderr(), "skipped: no network namespaces here: {reason}");
        })
        .ok()
    }

    fn new(n_workers: usize) -> Result<Self, String> {
        // Grows as they are made, so that what was made goes also when a step fails.
        let mut network = Self { namespaces: Vec::new() };
        network.add_namespace(SWITCH)?;
        ip(&["-n", network.switch(), "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", network.switch(), "link", "set", "bridge", "up"])?;
        for host in COORDINATOR..=n_workers {
            network.add_host(host)?;
        }
        Ok(network)
    }

    fn add_namespace(&mut self, what: &str) -> Result<(), String> {
        let name = format!("{PREFIX}{}-{what}", std::process::id());
        ip(&["netns", "add", &name])?;
        self.namespaces.push(name);
        Ok(())
    }

    fn add_host(&mut self, host: usize) -> Result<(), String> {
        self.add_namespace(&format!("host-{host}"))?;
        let (switch, namespace, port) = (self.switch(), self.host(host), port(host));
        ip(&["-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "cable", "netns", namespace])?;
        ip(&["-n", switch, "link", "set", &port, "master", "bridge", "up"])?;
        ip(&["-n", namespace, "address", "add", &format!("{}/24", address(host)), "dev", "cable"])?;
        ip(&["-n", namespace, "link", "set", "cable", "up"])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])
    }

    fn switch(&self) -> &str {
        &self.namespaces[0]
    }

    fn host(&self, host: usize) -> &str {
        &self.namespaces[1 + host]
    }

    /// Where workers find the coordinator, and it listens.
    pub fn coordinator() -> String {
        format!("{}:{PORT}", address(COORDINATOR))
    }

    /// The same program on a host.
    pub fn on_host(&self, host: usize, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", self.host(host)]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.current_dir(command.get_current_dir().expect("programs are started in a test's folder"));
        inside
    }

    /// Pulls a host's cable: nothing comes or goes any more, and no process is notified.
    pub fn unplug(&self, host: usize) {
        self.set_port(host, "down");
    }

    /// Plugs it in again.
    pub fn plug(&self, host: usize) {
        self.set_port(host, "up");
    }

    fn set_port(&self, host: usize, state: &str) {
        ip(&["-n", self.switch(), "link", "set", &port(host), state]).expect("the port is there");
    }

    /// Makes a host's cable slow and lossy both ways: 20 ms, and one packet in twenty. A kernel that cannot hold packets up
    /// for a time lets so few of them pass in a second instead that a gradient takes as long.
    pub fn wear_out(&self, host: usize) {
        for (namespace, device) in [(self.switch(), port(host)), (self.host(host), "cable".to_owned())] {
            let queue = ["-n", namespace, "qdisc", "add", "dev", &device, "root"];
            let late_and_lossy = [&queue[..], &["netem", "delay", "20ms", "loss", "5%"]].concat();
            if run("tc", &late_and_lossy).is_ok() {
                continue;
            }
            let slow = [&queue[..], &["tbf", "rate", "250mbit", "burst", "128kb", "latency", "20ms"]].concat();
            let lossy = format!(
                "add table netdev worn; \
                 add chain netdev worn cable {{ type filter hook ingress device {device} priority 0; }}; \
                 add rule netdev worn cable numgen random mod 100 < 5 drop"
            );
            let worn = run("tc", &slow).and_then(|()| run("ip", &["netns", "exec", namespace, "nft", &lossy]));
            worn.unwrap_or_else(|reason| panic!("the cable of host {host} stays as it is: {reason}"));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.namespaces.iter().for_each(|name| remove(name));
    }
}

fn port(host: usize) -> String {
    format!("port-{host}")
}

fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

/// Removes what processes left behind that are no more, and ends what still runs in it.
fn sweep() -> Result<(), String> {
    for name in words_of_lines(&ip_output(&["netns", "list"])?) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| process != std::process::id() && !is_alive(process)) {
            for left in words_of_lines(&ip_output(&["netns", "pids", &name])?) {
                signal("KILL", left.parse().map_err(|_| format!("{left} is no process"))?);
            }
            remove(&name);
        }
    }
    Ok(())
}

/// What is gone already is gone.
fn remove(name: &str) {
    let _ = ip(&["netns", "delete", name]);
}

fn words_of_lines(lines: &str) -> Vec<String> {
    lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run("ip", arguments)
}

fn ip_output(arguments: &[&str]) -> Result<String, String> {
    output("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    output(program, arguments).map(drop)
}

/// What a program prints; what it says instead if it fails.
fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", arguments.join(" "), words.trim().lines().next().unwrap_or_default()))
}
