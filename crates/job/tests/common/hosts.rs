//! Two hosts: network namespaces with a wire between them.

use std::process::Command;

/// Two namespaces, `10.77.N.1` and `10.77.N.2`, with a wire between them. They go with the value.
pub struct Hosts {
    names: [String; 2],
    net: u8,
}

impl Hosts {
    /// `None` where this process may not make any. Tests that run at once take different numbers.
    pub fn new(net: u8) -> Option<Hosts> {
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

    /// A host's address.
    pub fn address(&self, host: usize) -> String {
        format!("10.77.{}.{}", self.net, host + 1)
    }

    /// Runs on one of the hosts what is given as arguments.
    pub fn command(&self, host: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host]]);
        command
    }

    /// Cuts the wire.
    pub fn cut(&self) {
        assert!(ip(&["-n", &self.names[0], "link", "set", "wire", "down"]));
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
