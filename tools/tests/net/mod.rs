//! Machines of their own: network namespaces with real addresses on one bridge, all on this machine.
#![allow(dead_code, reason = "each test uses a part of it")]

use crate::site::program;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

/// Namespaces on a bridge; taken down when dropped. Needs root.
pub(crate) struct Net {
    name: String,
    octet: u8,
    machines: Vec<String>,
}

impl Net {
    /// A bridge with this machine on it, and `machines` around it.
    pub(crate) fn new(machines: &[&str]) -> Self {
        let pid = std::process::id();
        // Tests run side by side: the first free network is ours.
        for turn in 0..100 {
            let octet = u8::try_from((pid + turn * 7) % 250 + 1).unwrap();
            let name = format!("tg{octet}");
            let made = Command::new("ip")
                .args(["link", "add", &name, "type", "bridge"])
                .output()
                .expect("ip is there");
            if !made.status.success() {
                continue;
            }
            let mut net = Self {
                name,
                octet,
                machines: Vec::new(),
            };
            let own = format!("{}/24", net.own());
            ip(&["addr", "add", &own, "dev", &net.name]);
            ip(&["link", "set", &net.name, "up"]);
            for machine in machines {
                net.add(machine);
            }
            return net;
        }
        panic!("no bridge can be made: the tests of the link take root");
    }

    fn add(&mut self, machine: &str) {
        let space = self.space(machine);
        let (inside, outside) = (format!("{space}i"), format!("{space}o"));
        ip(&["netns", "add", &space]);
        self.machines.push(machine.to_owned());
        ip(&[
            "link", "add", &outside, "type", "veth", "peer", "name", &inside,
        ]);
        ip(&["link", "set", &outside, "master", &self.name, "up"]);
        ip(&["link", "set", &inside, "netns", &space]);
        let within = |args: &[&str]| {
            let all = [&["-n", &space], args].concat();
            ip(&all);
        };
        within(&["link", "set", &inside, "name", "eth0"]);
        let address = format!("{}/24", self.address(machine));
        within(&["addr", "add", &address, "dev", "eth0"]);
        within(&["link", "set", "lo", "up"]);
        within(&["link", "set", "eth0", "up"]);
    }

    /// This machine's address on the bridge.
    pub(crate) fn own(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, self.octet, 1)
    }

    /// A machine's address.
    pub(crate) fn address(&self, machine: &str) -> Ipv4Addr {
        let number = self.machines.iter().position(|name| name == machine);
        let number = u8::try_from(number.unwrap()).unwrap();
        Ipv4Addr::new(10, 99, self.octet, 10 + number)
    }

    fn space(&self, machine: &str) -> String {
        format!("{}{machine}", self.name)
    }

    /// `program`, on that machine; more arguments and variables may be added.
    pub(crate) fn command(&self, machine: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(machine)]);
        command.arg(program);
        command
    }

    /// Cuts a machine's cable, or plugs it in again.
    pub(crate) fn set_cable(&self, machine: &str, is_in: bool) {
        let outside = format!("{}o", self.space(machine));
        ip(&["link", "set", &outside, if is_in { "up" } else { "down" }]);
    }

    /// Lets a machine send no more than so many Mbit/s.
    pub(crate) fn limit(&self, machine: &str, mbit: u32) {
        let (space, rate) = (self.space(machine), format!("{mbit}mbit"));
        let args = [
            "-n", &space, "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate,
        ];
        let how = ["burst", "64kb", "latency", "50ms"];
        program("tc", &[&args[..], &how].concat());
    }

    /// Gives a machine another address, as when a host moves to another network.
    pub(crate) fn readdress(&self, machine: &str, last: u8) {
        let space = self.space(machine);
        let new = format!("{}/24", Ipv4Addr::new(10, 99, self.octet, last));
        let old = format!("{}/24", self.address(machine));
        ip(&["-n", &space, "addr", "add", &new, "dev", "eth0"]);
        ip(&["-n", &space, "addr", "del", &old, "dev", "eth0"]);
        // A secondary address goes with its primary one.
        let _ = Command::new("ip")
            .args(["-n", &space, "addr", "add", &new, "dev", "eth0"])
            .output();
    }

    /// Bytes that a machine has sent since it was made.
    pub(crate) fn sent_bytes(&self, machine: &str) -> u64 {
        let path = Path::new("cat");
        let output = self
            .command(machine, path)
            .arg("/sys/class/net/eth0/statistics/tx_bytes")
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for machine in &self.machines {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.space(machine)])
                .output();
        }
        let _ = Command::new("ip")
            .args(["link", "del", &self.name])
            .output();
    }
}

fn ip(args: &[&str]) {
    program("ip", args);
}
