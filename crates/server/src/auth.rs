//! API keys. Every route needs one but those of [`OPEN`], also routes that do not exist.

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::wire::errors::ApiError;

/// What a load balancer asks, which has no key.
pub const OPEN: [&str; 2] = ["/health", "/ready"];

/// The keys, as codes under a secret of this process: comparing codes takes the same time whatever a guess looks like.
pub struct Keys {
    hasher: Hmac<Sha256>,
    codes: Vec<Vec<u8>>,
}

impl Keys {
    /// # Errors
    /// If the system has no random bytes.
    pub fn new(keys: &[String]) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let hasher = Hmac::<Sha256>::new_from_slice(&secret).expect("any length is a key");
        let code = |key: &String| hasher.clone().chain_update(key).finalize().into_bytes().to_vec();
        Ok(Keys { codes: keys.iter().map(code).collect(), hasher })
    }

    /// Whether a request may go on.
    ///
    /// # Errors
    /// 401, which says what is missing and nothing of the keys.
    pub fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.codes.is_empty() || OPEN.contains(&path) {
            return Ok(());
        }
        let refuse =
            |message: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key"));
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            return refuse("this server needs an API key: send one header `Authorization: Bearer KEY`");
        };
        let Some(key) = bearer(value.as_bytes()).or_else(|| basic(value.as_bytes())) else {
            return refuse("the header Authorization has no key: send `Authorization: Bearer KEY`");
        };
        let given = self.hasher.clone().chain_update(key);
        // All are compared, whichever it is.
        let found =
            self.codes.iter().fold(false, |found, code| given.clone().verify_slice(code).is_ok() | found);
        if found { Ok(()) } else { refuse("the API key is not one of this server's") }
    }
}

fn bearer(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.to_vec())
}

/// What browsers send once they have asked for a name and a password: the password is the key, whatever the name.
fn basic(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, pair) = value.split_at_checked(6)?;
    let pair = BASE64_STANDARD.decode(pair).ok().filter(|_| scheme.eq_ignore_ascii_case(b"basic "))?;
    let colon = pair.iter().position(|&byte| byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_whole_keys_in_one_header_pass() {
        let keys = Keys::new(&["secret".into(), "other".into()]).unwrap();
        let check = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            });
            keys.check("/v1/models", &headers).is_ok()
        };
        assert!(check(&["Bearer secret"]) && check(&["bearer other"]));
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        assert!(check(&[&basic("anyone:secret")]) && check(&[&basic(":other")]));
        for wrong in ["secret", "secret:", ":SECRET", "a:b:secret"] {
            assert!(!check(&[&basic(wrong)]), "{wrong:?}");
        }
        for wrong in [
            &[][..],
            &["Bearer secre"],
            &["Bearer SECRET"],
            &["Bearer "],
            &["Basic secret"],
            &["secret"],
            &["é"],
        ] {
            assert!(!check(wrong), "{wrong:?}");
        }
        assert!(!check(&["Bearer secret", "Bearer secret"]));
        assert!(keys.check("/health", &HeaderMap::new()).is_ok());
        assert!(keys.check("/health/", &HeaderMap::new()).is_err());
    }
}
