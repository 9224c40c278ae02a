//! A base URL whose host may be a link-local address with its link (RFC 6874):
//! `http://[fe80::1%25eth0]:8080`.
//!
//! URLs proper have no zones (WHATWG), nor has the `Host` header. So the link stands beside the
//! URL, and whoever connects leaves by that link.

use std::fmt;

use serde::{Deserialize, Deserializer};
use url::Url;

use crate::control::http::shown;

/// `IFNAMSIZ` without the terminating zero, linux/if.h.
const MAX_LINK_NAME: usize = 15;

/// An http or https URL, and the link that its host is on where that has to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    pub url: Url,
    pub zone: Option<String>,
}

impl BaseUrl {
    /// Reads a URL with or without a zone.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (text, zone) = split_zone(text)?;
        let url = Url::parse(&text).map_err(|error| error.to_string())?;
        let local = matches!(url.host(), Some(url::Host::Ipv6(ip)) if ip.is_unicast_link_local());
        match (local, zone) {
            (false, Some(_)) => Err("only a link-local address has a zone".into()),
            (_, zone) => Ok(Self { url, zone }),
        }
    }
}

/// Takes `%25eth0` out of `http://[fe80::1%25eth0]:8080`.
fn split_zone(text: &str) -> Result<(String, Option<String>), String> {
    let none = || Ok((text.to_owned(), None));
    let Some((before, rest)) = text.split_once("://[") else {
        return none();
    };
    let Some((host, after)) = rest.split_once(']') else {
        return none();
    };
    let Some((address, zone)) = host.split_once('%') else {
        return none();
    };
    let zone = zone
        .strip_prefix("25")
        .ok_or("the zone of an address begins with %25, as in http://[fe80::1%25eth0]:8080")?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if zone.is_empty() || zone.len() > MAX_LINK_NAME || !zone.bytes().all(legal) {
        return Err(format!("the zone {zone:?} cannot be the name of a link"));
    }
    Ok((
        format!("{before}://[{address}]{after}"),
        Some(zone.to_owned()),
    ))
}

impl fmt::Display for BaseUrl {
    /// Without user info and query: both may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.url))?;
        match &self.zone {
            Some(zone) => write!(f, " on {zone}"),
            None => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for BaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_stands_beside_a_legal_url() {
        for (text, url, zone) in [
            (
                "http://[2001:db8::1]:4242",
                "http://[2001:db8::1]:4242/",
                None,
            ),
            ("https://helper.example/x", "https://helper.example/x", None),
            (
                "http://[fe80::1%25eth0]:8080",
                "http://[fe80::1]:8080/",
                Some("eth0"),
            ),
            (
                "http://[FE80::1%25enp1s0f0np0]/a",
                "http://[fe80::1]/a",
                Some("enp1s0f0np0"),
            ),
            // Refused later, where the link is asked for.
            ("http://[fe80::1]:8080", "http://[fe80::1]:8080/", None),
        ] {
            let base = BaseUrl::parse(text).unwrap();
            assert_eq!(
                (base.url.as_str(), base.zone.as_deref()),
                (url, zone),
                "{text}"
            );
        }
        let shown = BaseUrl::parse("http://u:p@[fe80::1%25eth0]:8080").unwrap();
        assert_eq!(shown.to_string(), "http://[fe80::1]:8080/ on eth0");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("http://[fe80::1%eth0]/", "begins with %25"),
            ("http://[fe80::1%25]/", "name of a link"),
            ("http://[fe80::1%25eth0/1]/", "name of a link"),
            ("http://[fe80::1%25a-very-long-name]/", "name of a link"),
            ("http://[2001:db8::1%25eth0]/", "only a link-local"),
            ("http://[fe80::zz%25eth0]/", "invalid IPv6"),
            ("nonsense", "relative URL"),
        ] {
            let why = BaseUrl::parse(text).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
    }
}
