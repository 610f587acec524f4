//! What an operator does to a cluster and looks at: requests, SQL, node files, keys in etcd, and
//! PostgreSQL's own programs.

use crate::binaries::server_account;
use crate::cluster::Cluster;
use crate::http::{self, Answer};
use crate::member::Member;
use crate::process::{self, Launch};
use crate::session;
use crate::template::{self, SCOPE};
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::Duration;
use tokio_postgres::SimpleQueryMessage;

/// A request that the agent carries out before it answers: a restart, a switchover.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// SQL that a story runs itself.
const SQL_LIMIT: Duration = Duration::from_secs(10);
/// What was ordered is seen within this time: a cycle or two, on a busy machine.
pub const NOTICED: Duration = Duration::from_secs(40);
/// One of PostgreSQL's programs ends within this time.
const PROGRAM_LIMIT: Duration = Duration::from_secs(60);

impl Member {
    /// Sends a request to its REST.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let body = body.map(Value::to_string);
        http::request(self.rest_port, method, path, body.as_deref(), REQUEST_LIMIT).await
    }

    /// A document of its REST.
    ///
    /// # Errors
    /// When it is none.
    pub async fn document(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None).await?.json()
    }

    /// The first column of the first row, empty when there is none.
    ///
    /// # Errors
    /// When the server does not take or answer the statement.
    pub async fn sql(&self, sql: &str) -> Result<String> {
        let work = async {
            let client = session::client(self.postgres_port).await?;
            anyhow::Ok(client.simple_query(sql).await?)
        };
        let rows = tokio::time::timeout(SQL_LIMIT, work).await;
        let rows = rows.with_context(|| format!("{}: no answer to {sql}", self.name))?;
        let rows = rows.with_context(|| format!("{}: {sql}", self.name))?;
        let first = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(first.unwrap_or_default())
    }

    /// Waits until SQL gives this.
    ///
    /// # Errors
    /// When it does not.
    pub async fn sql_until(&self, sql: &str, wanted: &str) -> Result<()> {
        let what = format!("{}: {sql} = {wanted:?}", self.name);
        wait::until(&what, NOTICED, || async {
            match self.sql(sql).await {
                Ok(found) if found == wanted => Ok(()),
                Ok(found) => Err(format!("it is {found:?}")),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await
    }

    /// Waits until a health check has this status.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_until(&self, path: &str, wanted: u16) -> Result<()> {
        let what = format!("{wanted} on {path} of {}", self.name);
        wait::until(&what, NOTICED, || async {
            match self.check(path).await {
                Some(found) if found == wanted => Ok(()),
                found => Err(format!("it is {found:?}")),
            }
        })
        .await
    }

    /// Waits until a document of its REST fits.
    ///
    /// # Errors
    /// When it does not; the last one is in the message.
    pub async fn shows(
        &self,
        path: &str,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let what = format!("{path} of {}: {what}", self.name);
        wait::until(&what, NOTICED, || async {
            let found = self.document(path).await;
            let found = found.map_err(|error| format!("{error:#}"))?;
            if fits(&found) {
                Ok(found)
            } else {
                Err(found.to_string())
            }
        })
        .await
    }

    /// Waits until it streams from the member on this port of PostgreSQL.
    ///
    /// # Errors
    /// When it does not.
    pub async fn streams_from(&self, port: u16) -> Result<()> {
        let sender = "SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        self.sql_until(sender, &port.to_string()).await
    }

    /// Lays a change over its file; null changes nothing, mappings are merged.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn edit(&self, change: &Value) -> Result<()> {
        let text = std::fs::read_to_string(&self.config).context("read the node's file")?;
        let mut node: Value = serde_norway::from_str(&text).context("parse the node's file")?;
        template::overlay(&mut node, change);
        let text = serde_norway::to_string(&node).context("write the YAML of a node")?;
        std::fs::write(&self.config, text).context("write the node's file")
    }

    /// The same, and has the agent read it.
    ///
    /// # Errors
    /// When the agent does not take the request.
    pub async fn reconfigure(&self, change: &Value) -> Result<()> {
        self.edit(change)?;
        let answer = self.ask("POST", "/reload", None).await?;
        ensure!(answer.status == 202, "reload of {}: {answer:?}", self.name);
        Ok(())
    }

    /// Ends its agent in order and waits for that.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_agent(&self) -> Result<()> {
        self.signal_agent(nix::sys::signal::Signal::SIGTERM)?;
        ensure!(self.wait_agent(REQUEST_LIMIT), "{} stops", self.name);
        Ok(())
    }
}

impl Cluster {
    /// Changes the dynamic configuration through any member.
    ///
    /// # Errors
    /// When none takes it.
    pub async fn patch(&self, change: Value) -> Result<()> {
        let mut last = String::from("there is no member");
        for member in self.members() {
            match member.ask("PATCH", "/config", Some(&change)).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = format!("{answer:?}"),
                Err(error) => last = format!("{error:#}"),
            }
        }
        bail!("PATCH /config with {change}: {last}")
    }

    /// The value of a key of the cluster in etcd, as text.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn key(&self, name: &str) -> Result<Option<String>> {
        let etcd = self.etcds().first().context("there is no etcd")?;
        let key = BASE64.encode(format!("/service/{SCOPE}/{name}"));
        let body = json!({ "key": key }).to_string();
        let (port, limit) = (etcd.client_port, SQL_LIMIT);
        let answer = http::request(port, "POST", "/v3/kv/range", Some(&body), limit).await?;
        let answer = answer.json()?;
        let Some(value) = answer.pointer("/kvs/0/value").and_then(Value::as_str) else {
            return Ok(None);
        };
        let value = BASE64.decode(value).context("a value in base 64")?;
        Ok(Some(String::from_utf8_lossy(&value).into_owned()))
    }

    /// Waits until a key of the cluster fits; an absent one is null, one that is no JSON a text.
    ///
    /// # Errors
    /// When it does not.
    pub async fn key_until(
        &self,
        name: &str,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let what = format!("/{name}: {what}");
        wait::until(&what, NOTICED, || async {
            let text = self.key(name).await.map_err(|error| format!("{error:#}"))?;
            let value = text.map_or(Value::Null, |text| {
                serde_json::from_str(&text).unwrap_or(Value::String(text))
            });
            if fits(&value) {
                Ok(value)
            } else {
                Err(value.to_string())
            }
        })
        .await
    }

    /// Runs one of PostgreSQL's programs as the user of the servers.
    ///
    /// # Errors
    /// When it cannot be run or hangs.
    pub fn postgres_program(&self, name: &str, args: &[OsString]) -> Result<(ExitStatus, String)> {
        let number = self
            .commands
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let cwd = self.member(0)?.dir.as_path();
        let log = cwd.join(format!("{name}.{number}.out"));
        let user = server_account()?;
        let mut env = BTreeMap::from([("HOME".to_owned(), cwd.display().to_string())]);
        if let Some(libraries) = self.binaries().libraries() {
            env.insert(
                "LD_LIBRARY_PATH".to_owned(),
                libraries.display().to_string(),
            );
        }
        let program = self.binaries().postgres.join(name);
        let launch = Launch {
            program: &program,
            args: args.to_vec(),
            env,
            cwd,
            log: &log,
            user: user.as_ref(),
            network: None,
        };
        process::run(&launch, PROGRAM_LIMIT)
    }

    /// `pg_ctl` on a member, by hand.
    ///
    /// # Errors
    /// When it fails.
    pub fn pg_ctl(&self, member: &Member, words: &[&str]) -> Result<()> {
        let mut args: Vec<OsString> = words.iter().map(Into::into).collect();
        args.push("-D".into());
        args.push(member.data_dir().into_os_string());
        let (status, text) = self.postgres_program("pg_ctl", &args)?;
        ensure!(status.success(), "pg_ctl {}: {text}", words.join(" "));
        Ok(())
    }

    /// Waits until this member leads as the primary and all other running ones stream from its
    /// timeline.
    ///
    /// # Errors
    /// When it does not.
    pub async fn led_by(&self, leader: usize) -> Result<crate::Settled> {
        let what = format!("node{} to lead", leader + 1);
        wait::until(&what, crate::steps::SETTLE_LIMIT, || async {
            let settled = self.look().await?;
            if settled.leader == leader {
                Ok(settled)
            } else {
                Err(format!("node{} leads", settled.leader + 1))
            }
        })
        .await
    }
}
