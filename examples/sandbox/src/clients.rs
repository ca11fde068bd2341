//! The clients of the server: their tokens and quotas.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;

/// The longest time of a quota: 10 years.
const MAX_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;

/// The digest of a token. The file of the clients has no token.
type TokenDigest = [u8; 32];

/// The file of the clients.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    client: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    token_sha256: String,
    #[serde(default)]
    quota: Quota,
}

/// The limits of a client.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Live sessions.
    pub sessions: usize,
    /// Commands and terminals that run at the same time, over all sessions.
    pub execs: usize,
    /// Uploads and downloads at the same time, over all sessions. Their content is in memory.
    pub transfers: usize,
    /// Memory of a session, in bytes.
    pub memory_bytes: u64,
    /// CPUs of a session.
    pub cpus: f64,
    /// Processes of a session.
    pub pids: u64,
    /// Lifetime of a session, in seconds.
    pub lifetime_seconds: u64,
    /// Time after which a session without a command or transfer ends, in seconds.
    pub idle_seconds: u64,
    /// Time limit of a command, in seconds.
    pub exec_seconds: u64,
    /// Output limit of a command, in bytes.
    pub output_bytes: u64,
    /// Size of an upload or download, in bytes.
    pub file_bytes: u64,
    /// True if a session may have a network.
    pub network: bool,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            sessions: 10,
            execs: 8,
            transfers: 2,
            memory_bytes: 512 << 20,
            cpus: 1.0,
            pids: 128,
            lifetime_seconds: 24 * 60 * 60,
            idle_seconds: 30 * 60,
            exec_seconds: 60 * 60,
            output_bytes: 64 << 20,
            file_bytes: 64 << 20,
            network: false,
        }
    }
}

impl Quota {
    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("memory_bytes", self.memory_bytes),
            ("pids", self.pids),
            ("output_bytes", self.output_bytes),
            ("file_bytes", self.file_bytes),
        ];
        let times = [
            ("lifetime_seconds", self.lifetime_seconds),
            ("idle_seconds", self.idle_seconds),
            ("exec_seconds", self.exec_seconds),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("{name} must be more than 0"));
        }
        if let Some((name, _)) = times
            .iter()
            .find(|(_, time)| !(1..=MAX_SECONDS).contains(time))
        {
            return Err(format!("{name} must be from 1 to {MAX_SECONDS}"));
        }
        match self.cpus.is_finite() && self.cpus > 0.0 {
            true => Ok(()),
            false => Err("cpus must be more than 0".into()),
        }
    }
}

/// A client, and its use of its quota.
#[derive(Debug)]
pub struct Client {
    /// The name, which is a label of the client's sessions.
    pub name: String,
    pub quota: Quota,
    token: TokenDigest,
    sessions: Arc<Semaphore>,
    execs: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
}

impl Client {
    fn new(entry: Entry) -> Result<Self, String> {
        let name = entry.name;
        if name.is_empty() {
            return Err("a client has an empty name".into());
        }
        let token = parse_digest(&entry.token_sha256)
            .ok_or_else(|| format!("client {name}: token_sha256 is not 64 hexadecimal digits"))?;
        let quota = entry.quota;
        quota
            .check()
            .map_err(|reason| format!("client {name}: {reason}"))?;
        let permits = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Ok(Self {
            name,
            token,
            sessions: permits(quota.sessions),
            execs: permits(quota.execs),
            transfers: permits(quota.transfers),
            quota,
        })
    }

    /// Takes a place for a session.
    pub fn take_session(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let limit = self.quota.sessions;
        take(&self.sessions, || {
            format!("the quota of {limit} sessions is used up: end one")
        })
    }

    /// Takes a place for a command.
    pub fn take_exec(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let limit = self.quota.execs;
        take(&self.execs, || {
            format!("the quota of {limit} commands at the same time is used up: wait for one")
        })
    }

    /// Takes a place for an upload or download.
    pub fn take_transfer(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let limit = self.quota.transfers;
        take(&self.transfers, || {
            format!("the quota of {limit} uploads and downloads is used up: wait for one")
        })
    }
}

fn take(
    places: &Arc<Semaphore>,
    full: impl Fn() -> String,
) -> Result<OwnedSemaphorePermit, Problem> {
    let place = Arc::clone(places).try_acquire_owned();
    place.map_err(|_| Problem::too_many(full()))
}

/// All clients.
#[derive(Debug)]
pub struct Clients(Vec<Arc<Client>>);

impl Clients {
    /// Reads the file of the clients.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut names = HashSet::new();
        let mut tokens = HashSet::new();
        let mut clients = Vec::new();
        for entry in file.client {
            let client = Client::new(entry)?;
            if !names.insert(client.name.clone()) || !tokens.insert(client.token) {
                let name = client.name;
                return Err(format!(
                    "client {name}: its name or token is that of another client"
                ));
            }
            clients.push(Arc::new(client));
        }
        match clients.is_empty() {
            true => Err("there is no [[client]]: create one with `moat-sandbox token NAME`".into()),
            false => Ok(Self(clients)),
        }
    }

    /// The client with a token.
    ///
    /// Digests are compared, so the time of the comparison tells nothing about a token.
    pub fn by_token(&self, token: &str) -> Option<&Arc<Client>> {
        let digest = digest(token);
        self.0.iter().find(|client| client.token == digest)
    }

    /// The client with a name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Client>> {
        self.0.iter().find(|client| client.name == name)
    }
}

fn digest(token: &str) -> TokenDigest {
    Sha256::digest(token).into()
}

fn parse_digest(text: &str) -> Option<TokenDigest> {
    let mut digest = TokenDigest::default();
    if !text.is_ascii() || text.len() != 2 * digest.len() {
        return None;
    }
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(digest)
}

/// Creates a random token, and its table in the file of the clients.
pub fn new_token(name: &str) -> Result<(String, String), String> {
    let mut random = [0; 32];
    let mut source = fs::File::open("/dev/urandom").map_err(|error| error.to_string())?;
    std::io::Read::read_exact(&mut source, &mut random).map_err(|error| error.to_string())?;
    let token = hex(&random);
    let digest = hex(&digest(&token));
    // A string of JSON is one of TOML.
    let name = serde_json::Value::from(name);
    Ok((
        token,
        format!("[[client]]\nname = {name}\ntoken_sha256 = \"{digest}\"\n"),
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_is_that_of_its_table() {
        let (token, table) = new_token("a \"quoted\" name").unwrap();
        let clients = Clients::parse(&table).unwrap();
        assert_eq!(clients.by_token(&token).unwrap().name, "a \"quoted\" name");
        assert!(clients.by_token(&table).is_none());
        assert!(clients.by_token("").is_none());
    }

    #[test]
    fn a_faulty_file_names_the_client() {
        let (_, table) = new_token("alice").unwrap();
        for (text, reason) in [
            (String::new(), "no [[client]]"),
            (format!("{table}{table}"), "client alice"),
            (
                table.replace("token_sha256 = \"", "token_sha256 = \"é"),
                "64 hexadecimal digits",
            ),
            (
                format!("{table}[client.quota]\ncpus = 0.0"),
                "client alice: cpus",
            ),
            (
                format!("{table}[client.quota]\nidle_seconds = 9223372036854775807"),
                "client alice: idle_seconds",
            ),
            (
                format!("{table}[client.quota]\npids = 0"),
                "client alice: pids",
            ),
            (format!("{table}[client.quota]\nsession = 1"), "session"),
        ] {
            let error = Clients::parse(&text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
