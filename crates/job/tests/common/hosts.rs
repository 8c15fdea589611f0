//! Hosts on one machine: network namespaces with a wire between them.

use std::process::Command;

/// Two namespaces, `10.77.N.1` and `10.77.N.2`, with a wire between them. They go with the value.
pub struct Hosts {
    names: [String; 2],
    net: u8,
}

impl Hosts {
    /// `net` is a number of the test's own. `None`, with a line that says so, where this process may not make any.
    pub fn new(net: u8) -> Option<Hosts> {
        let hosts = Hosts::made(net);
        if hosts.is_none() {
            eprintln!("skipped: this process may not make network namespaces");
        }
        hosts
    }

    fn made(net: u8) -> Option<Hosts> {
        let id = std::process::id();
        let hosts = Hosts { names: ["a", "b"].map(|side| format!("anysplit-{id}-{net}-{side}")), net };
        let [a, b] = &hosts.names;
        let wires = [format!("as{id}x{net}a"), format!("as{id}x{net}b")];
        let made = hosts.names.iter().all(|name| ip(&["netns", "add", name]))
            && ip(&[
                "link", "add", &wires[0], "netns", a, "type", "veth", "peer", "name", &wires[1], "netns", b,
            ]);
        let up = |side: usize| {
            let (name, wire) = (&hosts.names[side], &wires[side]);
            let address = format!("{}/24", hosts.address(side));
            ip(&["-n", name, "link", "set", wire, "name", "wire"])
                && ip(&["-n", name, "address", "add", &address, "dev", "wire"])
                && ip(&["-n", name, "link", "set", "wire", "up"])
                && ip(&["-n", name, "link", "set", "lo", "up"])
        };
        (made && up(0) && up(1)).then_some(hosts)
    }

    /// One of the two hosts' address.
    pub fn address(&self, host: usize) -> String {
        format!("10.77.{}.{}", self.net, host + 1)
    }

    /// A command that runs its arguments on a host.
    pub fn on(&self, host: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host]]);
        command
    }

    /// Takes the wire away.
    pub fn cut(&self) {
        assert!(ip(&["-n", &self.names[0], "link", "set", "wire", "down"]));
    }

    /// Lets no more than a megabit pass per second, each way. Whether the machine can do that.
    pub fn slow(&self) -> bool {
        let limit = ["root", "tbf", "rate", "1mbit", "burst", "4kb", "latency", "5s"];
        self.names.iter().all(|name| {
            let mut tc = Command::new("tc");
            tc.args(["-n", name, "qdisc", "add", "dev", "wire"]).args(limit);
            tc.output().is_ok_and(|out| out.status.success())
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&["netns", "delete", name]);
        }
    }
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).output().is_ok_and(|out| out.status.success())
}

/// A file with a secret.
pub fn secret() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "a secret that only a test has").expect("written");
    file
}
