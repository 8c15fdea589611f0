//! Where the server is.

use std::net::{SocketAddr, ToSocketAddrs};

use hyper::Uri;

use crate::error::CliError;

/// A base URL, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    pub is_https: bool,
    /// The host as TLS and the resolver want it: a name or an IP address, without brackets.
    pub host: String,
    pub port: u16,
    /// What the header `Host` says.
    pub authority: String,
    /// What stands before each path, without a slash at its end.
    prefix: String,
}

impl Address {
    /// # Errors
    /// It is no URL of http or https.
    pub fn parse(url: &str) -> Result<Self, CliError> {
        let refuse = |why: &str| {
            Err(CliError::Usage(format!("--base-url {url}: {why}; give one such as http://127.0.0.1:8000")))
        };
        let Ok(uri) = url.parse::<Uri>() else { return refuse("this is no URL") };
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return refuse("it begins with neither http:// nor https://"),
        };
        let Some(authority) = uri.authority() else { return refuse("it names no host") };
        if authority.as_str().contains('@') {
            return Err(CliError::Usage(
                "--base-url names a user; give a key with --api-key or ANYSPLIT_API_KEY".into(),
            ));
        }
        if uri.query().is_some() {
            return refuse("it has a query");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if has_port => return refuse("its port is no number up to 65535"),
            None if is_https => 443,
            None => 80,
        };
        if host.is_empty() {
            return refuse("it names no host");
        }
        Ok(Address {
            is_https,
            host: host.to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// That of a host and a port.
    ///
    /// # Errors
    /// The host is neither a name nor an IP address.
    pub fn of(host: &str, port: u16) -> Result<Self, CliError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let shown = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
        match Address::parse(&format!("http://{shown}:{port}")) {
            Ok(address) if address.prefix.is_empty() && address.host == bare && address.port == port => {
                Ok(address)
            }
            _ => Err(CliError::Usage(format!(
                "--host {host} is neither a name nor an IP address; give one such as 127.0.0.1, or a URL as --base-url"
            ))),
        }
    }

    /// The path of an endpoint such as `/v1/completions`. A base URL may end in the `/v1` that OpenAI's clients want there.
    pub fn path(&self, endpoint: &str) -> String {
        let prefix = match endpoint.starts_with("/v1/") {
            true => self.prefix.strip_suffix("/v1").unwrap_or(&self.prefix),
            false => &self.prefix,
        };
        format!("{prefix}{endpoint}")
    }

    /// The path of something that stands beside `/v1`.
    pub fn path_beside_v1(&self, endpoint: &str) -> String {
        format!("{}{endpoint}", self.prefix.strip_suffix("/v1").unwrap_or(&self.prefix))
    }

    /// The host's addresses.
    ///
    /// # Errors
    /// Nobody knows the host.
    pub fn resolve(&self) -> Result<Vec<SocketAddr>, CliError> {
        let unknown = |why: String| CliError::failed(format!("cannot find the host {}: {why}", self.host));
        let found: Vec<SocketAddr> =
            (&*self.host, self.port).to_socket_addrs().map_err(|e| unknown(e.to_string()))?.collect();
        match found.is_empty() {
            true => Err(unknown("it has no address".into())),
            false => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let cases = [
            ("http://127.0.0.1:8000", false, "127.0.0.1", 8000, "127.0.0.1:8000"),
            ("http://localhost/", false, "localhost", 80, "localhost"),
            ("https://api.example.org/v1", true, "api.example.org", 443, "api.example.org"),
            ("http://[::1]:9", false, "::1", 9, "[::1]:9"),
            ("HTTP://a", false, "a", 80, "a"),
        ];
        for (url, is_https, host, port, authority) in cases {
            let found = Address::parse(url).unwrap();
            assert_eq!(
                (found.is_https, &*found.host, found.port, &*found.authority),
                (is_https, host, port, authority)
            );
        }
    }

    #[test]
    fn a_host_and_a_port_are_an_address() {
        let address = |host: &str| Address::of(host, 9).unwrap();
        assert_eq!(address("localhost"), Address::parse("http://localhost:9").unwrap());
        assert_eq!(address("::1"), address("[::1]"));
        for host in ["", "http://a", "a/b", "me@a", "a b"] {
            assert!(Address::of(host, 9).unwrap_err().to_string().contains("--base-url"), "{host}");
        }
    }

    #[test]
    fn the_v1_of_a_base_url_is_not_said_twice() {
        let path = |url: &str, endpoint: &str| Address::parse(url).unwrap().path(endpoint);
        assert_eq!(path("http://a", "/v1/completions"), "/v1/completions");
        assert_eq!(path("http://a/v1/", "/v1/completions"), "/v1/completions");
        assert_eq!(path("http://a/x/v1", "/v1/models"), "/x/v1/models");
        assert_eq!(path("http://a/x", "/own"), "/x/own");
        assert_eq!(path("http://a/v1", "/chat/completions"), "/v1/chat/completions");
        let beside = |url: &str| Address::parse(url).unwrap().path_beside_v1("/tokenize");
        assert_eq!([beside("http://a/v1"), beside("http://a/x")], ["/tokenize", "/x/tokenize"]);
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        let cases = [
            "",
            "127.0.0.1:8000",
            "ftp://a",
            "http://",
            "http://a:b",
            "http://a:99999",
            "http://:80",
            "http://a?b=c",
            "http://a b",
            "/v1",
        ];
        for url in cases {
            let told = Address::parse(url).unwrap_err();
            assert_eq!(told.status(), 2);
            assert!(told.to_string().contains("http://127.0.0.1:8000"), "{told}");
        }
        let told = Address::parse("http://me:secret@a").unwrap_err().to_string();
        assert!(told.contains("--api-key") && !told.contains("secret"), "{told}");
    }
}
