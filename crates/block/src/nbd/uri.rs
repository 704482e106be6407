//! NBD URIs: where an export is, and how it is reached (`doc/uri.md` of the NBD project; RFC 3986).
//!
//! ```text
//!   nbd://host[:port]/export                nbds://host[:port]/export?tls-certificates=DIR
//!   nbd+unix:///export?socket=PATH          nbds+unix:///export?socket=PATH&tls-hostname=NAME
//! ```
//!
//! Everything that is not understood is refused. Not here: vsock, and servers that are not authenticated by certificates
//! (pre-shared keys, anonymous TLS, `tls-verify-peer=0`).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// The port that IANA has given to NBD.
const DEFAULT_PORT: u16 = 10809;
/// The longest string of the protocol, in bytes ("Values").
const MAX_STRING: usize = 4096;

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    text: String,
    pub(super) server: Server,
    pub(super) export: String,
    pub(super) tls: Option<Tls>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// In the abstract namespace, without the byte 0 before it.
    Abstract(Vec<u8>),
}

/// How a server is authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tls {
    /// The name in the server's certificate.
    pub(super) hostname: String,
    /// Where certificates are; else the system's authorities are trusted.
    pub(super) certificates: Option<PathBuf>,
}

/// Why a text is not a [`Uri`] that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Another scheme, or none.
    #[error("{0:?} is not an NBD URI: they begin with nbd://, nbds://, nbd+unix:// or nbds+unix://")]
    Scheme(String),
    /// TCP without a host.
    #[error("the NBD URI names no host: nbd://HOST/EXPORT")]
    NoHost,
    /// A user's name.
    #[error("the NBD URI names a user, {0:?}, which serves for nothing here")]
    User(String),
    /// An IPv6 address that has no end, or something behind it.
    #[error("{0:?} is not a host and port: an IPv6 address stands in brackets, [::1]:10809")]
    Host(String),
    /// Not a number of a port.
    #[error("{0:?} is not a port")]
    Port(String),
    /// A host, for a Unix socket.
    #[error("the NBD URI names a host, {0:?}, but is for a Unix socket: nbd+unix:///EXPORT?socket=PATH")]
    HostOfSocket(String),
    /// No path of the socket.
    #[error("the NBD URI names no socket: nbd+unix:///EXPORT?socket=PATH")]
    NoSocket,
    /// Nothing to verify the server's certificate by.
    #[error("the NBD URI does not say which name is in the server's certificate: add tls-hostname=NAME")]
    NoHostname,
    /// A parameter that means nothing, or nothing with this scheme.
    #[error("the NBD URI has an unknown parameter, {0:?}")]
    Parameter(String),
    /// A parameter for the second time.
    #[error("the NBD URI has {0} twice")]
    Twice(String),
    /// A parameter's value that cannot be served.
    #[error("{value:?} is not supported for the NBD URI's {name}: {only}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What it was.
        value: String,
        /// What is.
        only: &'static str,
    },
    /// What the protocol has no place for.
    #[error("the NBD URI's {0} is not text of at most 4096 bytes without the byte 0")]
    Text(&'static str),
    /// A part that means nothing.
    #[error("the NBD URI has a fragment, {0:?}: write %23 for the character #")]
    Fragment(String),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::Scheme(text.to_owned()))?;
        let (with_tls, is_unix) = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(UriError::Scheme(text.to_owned())),
        };
        if let Some((_, fragment)) = rest.split_once('#') {
            return Err(UriError::Fragment(fragment.to_owned()));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(export, "export")?;
        let parameters = Parameters::parse(query)?;
        let server = if is_unix { socket(authority, &parameters)? } else { tcp(authority)? };
        parameters.check(with_tls, is_unix)?;
        let tls = if with_tls { Some(parameters.tls(&server)?) } else { None };
        Ok(Self { text: text.to_owned(), server, export, tls })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Text with what is percent-encoded decoded; `what` it is stands in the error.
fn decode(text: &str, what: &'static str) -> Result<String, UriError> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| UriError::Text(what))?;
    let fits = text.len() <= MAX_STRING && !text.contains('\0');
    if fits { Ok(text.into_owned()) } else { Err(UriError::Text(what)) }
}

fn tcp(authority: &str) -> Result<Server, UriError> {
    if let Some((user, _)) = authority.rsplit_once('@') {
        return Err(UriError::User(user.to_owned()));
    }
    let bad_host = || UriError::Host(authority.to_owned());
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(bad_host)?;
        (host, if rest.is_empty() { "" } else { rest.strip_prefix(':').ok_or_else(bad_host)? })
    } else {
        authority.split_once(':').unwrap_or((authority, ""))
    };
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    if port.contains(':') {
        return Err(bad_host());
    }
    // "host:" is "host" (RFC 3986, section 3.2.3).
    let port = match port {
        "" => DEFAULT_PORT,
        _ => port.parse().ok().filter(|&port| port != 0).ok_or_else(|| UriError::Port(port.to_owned()))?,
    };
    Ok(Server::Tcp { host: decode(host, "host")?, port })
}

fn socket(authority: &str, parameters: &Parameters<'_>) -> Result<Server, UriError> {
    if !authority.is_empty() {
        return Err(UriError::HostOfSocket(authority.to_owned()));
    }
    let path = parameters.socket.filter(|path| !path.is_empty()).ok_or(UriError::NoSocket)?;
    let abstract_name = path.strip_prefix("%00").map(|name| percent_decode_str(name).collect());
    Ok(match abstract_name {
        Some(name) => Server::Abstract(name),
        None => Server::Unix(decode(path, "socket")?.into()),
    })
}

/// What is behind the question mark, as it stands there.
#[derive(Default)]
struct Parameters<'a> {
    socket: Option<&'a str>,
    tls_type: Option<&'a str>,
    tls_certificates: Option<&'a str>,
    tls_hostname: Option<&'a str>,
    tls_verify_peer: Option<&'a str>,
}

impl<'a> Parameters<'a> {
    fn parse(query: &'a str) -> Result<Self, UriError> {
        let mut all = Self::default();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let place = match name {
                "socket" => &mut all.socket,
                "tls-type" => &mut all.tls_type,
                "tls-certificates" => &mut all.tls_certificates,
                "tls-hostname" => &mut all.tls_hostname,
                "tls-verify-peer" => &mut all.tls_verify_peer,
                _ => return Err(UriError::Parameter(name.to_owned())),
            };
            if place.replace(value).is_some() {
                return Err(UriError::Twice(name.to_owned()));
            }
        }
        Ok(all)
    }

    /// That each means something with this scheme.
    fn check(&self, with_tls: bool, is_unix: bool) -> Result<(), UriError> {
        let unknown = |name: &str| Err(UriError::Parameter(name.to_owned()));
        if !is_unix && self.socket.is_some() {
            return unknown("socket");
        }
        let of_tls = [
            ("tls-type", self.tls_type),
            ("tls-certificates", self.tls_certificates),
            ("tls-hostname", self.tls_hostname),
            ("tls-verify-peer", self.tls_verify_peer),
        ];
        match of_tls.iter().find(|(_, value)| value.is_some()) {
            Some((name, _)) if !with_tls => unknown(name),
            _ => Ok(()),
        }
    }

    fn tls(&self, server: &Server) -> Result<Tls, UriError> {
        only("tls-type", self.tls_type, "x509", "servers are authenticated by x509 certificates")?;
        only("tls-verify-peer", self.tls_verify_peer, "1", "every server's certificate is verified")?;
        let hostname = match (self.tls_hostname, server) {
            (Some(name), _) => decode(name, "tls-hostname")?,
            (None, Server::Tcp { host, .. }) => host.clone(),
            (None, _) => return Err(UriError::NoHostname),
        };
        let certificates = self.tls_certificates.map(|dir| decode(dir, "tls-certificates")).transpose()?;
        Ok(Tls { hostname, certificates: certificates.map(PathBuf::from) })
    }
}

/// That a parameter has the one value that is supported, or is not there.
fn only(name: &'static str, value: Option<&str>, good: &str, why: &'static str) -> Result<(), UriError> {
    match value {
        Some(value) if value != good => Err(UriError::Value { name, value: value.to_owned(), only: why }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Uri {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn tcp(host: &str, port: u16) -> Server {
        Server::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn the_export_is_the_path_without_its_first_slash() {
        for (text, export) in [
            ("nbd://example.com/disk", "disk"),
            ("nbd+unix:///disk?socket=sock", "disk"),
            ("nbd://example.com/", ""),
            ("nbd://example.com", ""),
            ("nbd://example.com//disk", "/disk"),
            ("nbd://example.com/hello%20world", "hello world"),
            ("NBD://example.com/a%3Fb%23", "a?b#"),
        ] {
            let uri = parse(text);
            assert_eq!(uri.export, export, "{text}");
            assert_eq!(uri.to_string(), text);
        }
    }

    #[test]
    fn hosts_and_ports() {
        assert_eq!(parse("nbd://host").server, tcp("host", 10809));
        assert_eq!(parse("nbd://host:").server, tcp("host", 10809));
        assert_eq!(parse("nbd://192.0.2.1:7/x").server, tcp("192.0.2.1", 7));
        assert_eq!(parse("nbd://[2001:db8::1]").server, tcp("2001:db8::1", 10809));
        assert_eq!(parse("nbd://[fe80::1%25eth0]:99").server, tcp("fe80::1%eth0", 99));
    }

    #[test]
    fn sockets() {
        assert_eq!(parse("nbd+unix:///?socket=/run/a%20b").server, Server::Unix("/run/a b".into()));
        assert_eq!(parse("nbd+unix://?socket=x").server, Server::Unix("x".into()));
        assert_eq!(parse("nbd+unix:///?socket=%00/abstract").server, Server::Abstract(b"/abstract".to_vec()));
    }

    #[test]
    fn tls_has_a_name_to_verify() {
        let tls = |hostname: &str, dir: Option<&str>| Tls {
            hostname: hostname.to_owned(),
            certificates: dir.map(PathBuf::from),
        };
        assert_eq!(parse("nbd://host/x").tls, None);
        assert_eq!(parse("nbds://host/x").tls, Some(tls("host", None)));
        assert_eq!(
            parse("nbds://10.0.0.1/x?tls-certificates=/etc/pki/a&tls-hostname=store&tls-type=x509&tls-verify-peer=1").tls,
            Some(tls("store", Some("/etc/pki/a")))
        );
        assert_eq!(parse("nbds+unix:///x?socket=s&tls-hostname=h").tls, Some(tls("h", None)));
        assert_eq!("nbds+unix:///x?socket=s".parse::<Uri>(), Err(UriError::NoHostname));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let parameter = |name: &str| UriError::Parameter(name.to_owned());
        let long = format!("nbd://h/{}", "x".repeat(MAX_STRING + 1));
        for (text, error) in [
            ("/path/to/file", UriError::Scheme("/path/to/file".to_owned())),
            ("http://host/", UriError::Scheme("http://host/".to_owned())),
            ("nbd+vsock://2/x", UriError::Scheme("nbd+vsock://2/x".to_owned())),
            ("nbd:///x", UriError::NoHost),
            ("nbd://:10809/x", UriError::NoHost),
            ("nbd://me@host/", UriError::User("me".to_owned())),
            ("nbd://[::1/x", UriError::Host("[::1".to_owned())),
            ("nbd://[::1]9/x", UriError::Host("[::1]9".to_owned())),
            ("nbd://::1/x", UriError::NoHost),
            ("nbd://fe80::1/x", UriError::Host("fe80::1".to_owned())),
            ("nbd://host:port/", UriError::Port("port".to_owned())),
            ("nbd://host:0/", UriError::Port("0".to_owned())),
            ("nbd://host:65536/", UriError::Port("65536".to_owned())),
            ("nbd+unix://host/x?socket=s", UriError::HostOfSocket("host".to_owned())),
            ("nbd+unix:///x", UriError::NoSocket),
            ("nbd+unix:///x?socket=", UriError::NoSocket),
            ("nbd+unix:///x?socket=a&socket=b", UriError::Twice("socket".to_owned())),
            ("nbd://host/x?socket=s", parameter("socket")),
            ("nbd://host/x?tls-hostname=s", parameter("tls-hostname")),
            ("nbd://host/x?shrink=1", parameter("shrink")),
            ("nbd://host/%ff", UriError::Text("export")),
            ("nbd://host/a%00b", UriError::Text("export")),
            ("nbd://host/a#b", UriError::Fragment("b".to_owned())),
            (&long, UriError::Text("export")),
        ] {
            assert_eq!(text.parse::<Uri>(), Err(error), "{text}");
        }
        let psk = "nbds://host/x?tls-type=psk".parse::<Uri>().unwrap_err();
        assert!(matches!(psk, UriError::Value { name: "tls-type", .. }), "{psk}");
        let blind = "nbds://host/x?tls-verify-peer=0".parse::<Uri>().unwrap_err();
        assert!(matches!(blind, UriError::Value { name: "tls-verify-peer", .. }), "{blind}");
    }
}
