//! Which names a server answers to. A page of a stranger can give its own name the loopback's address and have a browser
//! send requests there (DNS rebinding); they carry the stranger's name in `Host`.

use std::net::IpAddr;

use axum::http::request::Parts;
use axum::http::{StatusCode, header};

use crate::wire::errors::ApiError;

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The names; none is any.
pub struct Hosts(Vec<String>);

impl Hosts {
    /// On the loopback, its names and the given ones; elsewhere the given ones, or any.
    pub fn new(bound: IpAddr, allowed: &[String]) -> Self {
        let allowed = allowed.iter().map(|name| name.to_ascii_lowercase());
        if bound.is_loopback() {
            let own = match bound {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            };
            Hosts(LOOPBACK.map(String::from).into_iter().chain([own]).chain(allowed).collect())
        } else {
            Hosts(allowed.collect())
        }
    }

    /// Whether a request may go on.
    ///
    /// # Errors
    /// 400 without a name, 403 for one that is not ours.
    pub fn check(&self, request: &Parts) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let header = request.headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
        if header.is_none() && request.uri.host().is_none() {
            return Err(ApiError::bad("the request has no header Host"));
        }
        let authorities = [header, request.uri.authority().map(|authority| authority.as_str())];
        for host in authorities.into_iter().flatten() {
            let name = without_port(host).to_ascii_lowercase();
            if !self.0.contains(&name) {
                let name = crate::wire::fields::shortened(&name);
                let message =
                    format!("this server does not answer to the host {name:?}; --allowed-hosts adds names");
                return Err(ApiError::new(StatusCode::FORBIDDEN, message).code("host_not_allowed"));
            }
        }
        Ok(())
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // Colons inside brackets are an address's own.
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn check(hosts: &Hosts, host: &str) -> bool {
        let request = Request::builder().uri("/").header("Host", host).body(()).unwrap();
        hosts.check(&request.into_parts().0).is_ok()
    }

    #[test]
    fn the_loopback_answers_to_its_own_names_only() {
        let hosts = Hosts::new("127.0.0.1".parse().unwrap(), &["Box.lan".into()]);
        for good in ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]", "box.lan:80"] {
            assert!(check(&hosts, good), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil", "", "::1"] {
            assert!(!check(&hosts, bad), "{bad}");
        }
    }

    #[test]
    fn other_addresses_answer_to_any_name_unless_told() {
        assert!(check(&Hosts::new("0.0.0.0".parse().unwrap(), &[]), "any.example"));
        assert!(!check(&Hosts::new("0.0.0.0".parse().unwrap(), &["a.example".into()]), "b.example"));
    }
}
