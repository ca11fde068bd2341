//! Checks of the network, the ports and the names.

use std::collections::HashSet;
use std::net::IpAddr;

use super::{Quoted, check_word};
use crate::spec::{InvalidSpec, Settings};

impl Settings {
    pub(super) fn validate_network(&self) -> Result<(), InvalidSpec> {
        let mode = self.network.as_deref().unwrap_or_default();
        let shared = mode == "host" || mode.starts_with("container:");
        for alias in &self.network_aliases {
            check_word("network_aliases", alias)?;
        }
        if !self.network_aliases.is_empty()
            && (shared || matches!(mode, "" | "default" | "bridge" | "none"))
        {
            refuse!(
                "network_aliases",
                "aliases need a user-defined network, not {}",
                Quoted(if mode.is_empty() { "the default" } else { mode })
            );
        }
        if !self.ports.is_empty() && (shared || mode == "none") {
            let mode = Quoted(mode);
            refuse!("ports", "no port can be published with network {mode}");
        }
        self.validate_ports()?;
        self.validate_names()
    }

    fn validate_ports(&self) -> Result<(), InvalidSpec> {
        let mut taken = HashSet::new();
        for port in &self.ports {
            if let Some(host) = port.host.filter(|host| *host != 0)
                && !taken.insert((host, port.protocol, &port.address))
            {
                refuse!("ports", "port {host} of the host is used twice");
            }
            if port.container == 0 {
                refuse!(
                    "ports",
                    "the container's port is 0; give the port on which the container listens (the port on \
                     the host is a free one by default)"
                );
            }
            if let Some(address) = &port.address
                && address.parse::<IpAddr>().is_err()
            {
                refuse!("ports", "{} is not an IP address", Quoted(address));
            }
        }
        Ok(())
    }

    fn validate_names(&self) -> Result<(), InvalidSpec> {
        for (name, address) in &self.extra_hosts {
            check_word("extra_hosts", name)?;
            if name.contains(':') {
                refuse!("extra_hosts", "{} contains ':'", Quoted(name));
            }
            if address != "host-gateway" && address.parse::<IpAddr>().is_err() {
                refuse!(
                    "extra_hosts",
                    "{}, for {}, is neither an IP address nor \"host-gateway\"",
                    Quoted(address),
                    Quoted(name)
                );
            }
        }
        for address in &self.dns {
            if address.parse::<IpAddr>().is_err() {
                refuse!("dns", "{} is not an IP address", Quoted(address));
            }
        }
        Ok(())
    }
}
