//! Connection strings as libpq reads them: `key=value` words or a URL, over the `PG*` environment.

use super::GenerateError;
use crate::config::Credentials;
use crate::config::effective::percent_decode;
use crate::config::secret::Secret;
use std::collections::BTreeMap;

/// Where to connect, and as whom.
#[derive(Debug)]
pub(crate) struct Target {
    /// Name, address or directory of a socket.
    pub(super) hosts: Vec<String>,
    pub(super) port: u16,
    pub(super) database: Option<String>,
    pub(super) credentials: Credentials,
}

/// Keys of libpq and the variables that set them.
const VARIABLES: [(&str, &str); 15] = [
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("sslmode", "PGSSLMODE"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslpassword", "PGSSLPASSWORD"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("gssencmode", "PGGSSENCMODE"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
];

impl Target {
    /// The connection string over the variables that `lookup` finds.
    pub(crate) fn parse(
        dsn: Option<&str>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, GenerateError> {
        let mut words = BTreeMap::new();
        for (key, variable) in VARIABLES {
            if let Some(value) = lookup(variable).filter(|value| !value.is_empty()) {
                words.insert(key.to_owned(), value);
            }
        }
        if let Some(dsn) = dsn {
            let given = match dsn.split_once("://") {
                Some(("postgres" | "postgresql", rest)) => url(rest),
                _ => keywords(dsn),
            };
            let expected = "expected key=value words or postgresql://user@host:port/database";
            words.extend(given.ok_or_else(|| GenerateError::Dsn(expected.to_owned()))?);
        }
        Self::from_words(words)
    }

    fn from_words(mut words: BTreeMap<String, String>) -> Result<Self, GenerateError> {
        let port = match words.remove("port") {
            // Several ports: the first is the one of the first host.
            Some(text) => text.split(',').next().and_then(|p| p.trim().parse().ok()),
            None => Some(5432),
        };
        let port =
            port.ok_or_else(|| GenerateError::Dsn(String::from("expected a port number")))?;
        let hosts = words.remove("hostaddr").or_else(|| words.remove("host"));
        let hosts = hosts.map(|list| list.split(',').map(|h| h.trim().to_owned()).collect());
        let credentials = Credentials {
            username: words.remove("user"),
            password: words.remove("password").map(Secret::new),
            options: VARIABLES
                .iter()
                .skip(5)
                .filter_map(|(key, _)| Some(((*key).to_owned(), words.remove(*key)?)))
                .collect(),
        };
        let database = words.remove("dbname");
        Ok(Self {
            hosts: hosts.unwrap_or_default(),
            port,
            database,
            credentials,
        })
    }
}

/// `key = value` words; a value may be quoted, a backslash keeps the next character.
pub(crate) fn keywords(text: &str) -> Option<BTreeMap<String, String>> {
    let mut words = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = keyword_value(after.trim_start())?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        words.insert(key.to_owned(), value);
        rest = after.trim_start();
    }
    Some(words)
}

fn keyword_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let mut value = String::new();
    let mut chars = quoted.unwrap_or(text).chars();
    loop {
        let before = chars.as_str();
        match chars.next() {
            Some('\\') => value.push(chars.next()?),
            Some('\'') if quoted.is_some() => return Some((value, chars.as_str())),
            Some(c) if quoted.is_none() && c.is_whitespace() => return Some((value, before)),
            Some(c) => value.push(c),
            None => return quoted.is_none().then_some((value, "")),
        }
    }
}

/// `[user[:password]@][host[:port],…][/database][?key=value&…]`.
fn url(rest: &str) -> Option<BTreeMap<String, String>> {
    let mut words = BTreeMap::new();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (user, address),
        None => ("", authority),
    };
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for part in address.split(',').filter(|part| !part.is_empty()) {
        let (host, port) = match part.rsplit_once(':') {
            Some((host, port)) if !part.ends_with(']') => (host, Some(port)),
            _ => (part, None),
        };
        hosts.push(percent_decode(
            host.trim_start_matches('[').trim_end_matches(']'),
        ));
        ports.extend(port.map(str::to_owned));
    }
    let mut put = |key: &str, value: String| {
        if !value.is_empty() {
            words.insert(key.to_owned(), value);
        }
    };
    put("user", percent_decode(user));
    put("password", percent_decode(password));
    put("host", hosts.join(","));
    put("port", ports.join(","));
    put("dbname", percent_decode(database));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        put(key, percent_decode(value));
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(dsn: &str) -> Result<String, String> {
        let environment = |name: &str| (name == "PGUSER").then(|| String::from("from_env"));
        let target = Target::parse(Some(dsn), environment).map_err(|e| e.to_string())?;
        let credentials = target.credentials;
        Ok(format!(
            "{} {} {} {} {} {}",
            target.hosts.join(","),
            target.port,
            target.database.unwrap_or_default(),
            credentials.username.unwrap_or_default(),
            credentials
                .password
                .map(|p| p.reveal().to_owned())
                .unwrap_or_default(),
            credentials
                .options
                .iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>()
                .join(" "),
        ))
    }

    #[test]
    fn both_forms_of_connection_strings() {
        for (dsn, expected) in [
            (
                "host=/tmp port = 5433 user='a b' password='it\\'s \\\\'",
                "/tmp 5433  a b it's \\ ",
            ),
            (
                "dbname=x sslmode=require connect_timeout=3",
                " 5432 x from_env  sslmode=require",
            ),
            (
                "postgresql://u:p%40@h:1/d?sslmode=verify-full",
                "h 1 d u p@ sslmode=verify-full",
            ),
            ("postgres://[::1]:2,h2", "::1,h2 2  from_env  "),
            ("", " 5432  from_env  "),
        ] {
            assert_eq!(shown(dsn).as_deref(), Ok(expected), "{dsn}");
        }
        for bad in ["host", "host='x", "port=x", "a b=c"] {
            let error = shown(bad).expect_err(bad);
            assert!(error.starts_with("--dsn: expected"), "{error}");
        }
    }
}
