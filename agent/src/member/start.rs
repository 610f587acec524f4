//! From a configuration to a running member, step by step (`ha-behaviour.md` 2.1, `dcs-layout.md` 11).

use super::settings::{Meaning, meaning};
use super::{DONE_MAX, Inputs, Member, signals};
use crate::clock;
use crate::config::{AgentConfig, Loader, LocalConfig};
use crate::etcd::{Etcd, EtcdError, EtcdEvent};
use crate::guardian::GuardianError;
use crate::guardian::client::{AttachOptions, GuardianClient, Hello};
use crate::journal::Journal;
use crate::peers::Peers;
use crate::postgres::{Copied, PgContext, Postgres, pgdata};
use crate::rest::{RestError, RestState};
use crate::telemetry::TelemetryGuard;
use crate::tls::TlsError;
use proto::core::observation::HeldRecord;
use proto::core::{Memory, Observation};
use proto::dcs::{ClusterView, Keyspace, Snapshot};
use proto::ids::{Epoch, MemberName, STRICT_PLACEHOLDER};
use proto::rest::Published;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Requests of operators that may wait for the loop.
const REQUESTS_MAX: usize = 256;

/// How long etcd is asked why it does not answer.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Between two lines about an etcd that does not answer at the start.
const WAITING_EVERY: Duration = Duration::from_secs(5);

/// Why the agent could not start. Each is one line for the log, and nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A name that rules need for themselves.
    #[error("Node 'name' can't be set to '{STRICT_PLACEHOLDER}', it is reserved")]
    ReservedName,
    /// etcd refuses for good, for example the credentials.
    #[error("etcd: {0}")]
    Etcd(#[from] EtcdError),
    /// Somebody with our name is alive.
    #[error("Can't start; there is already a node named '{0}' running")]
    NameTaken(MemberName),
    /// The guardian could not be had.
    #[error("guardian: {0}")]
    Guardian(#[from] GuardianError),
    /// REST could not be served.
    #[error("restapi: {0}")]
    Rest(#[from] RestError),
    /// TLS for requests between members.
    #[error("ctl: {0}")]
    Tls(#[from] TlsError),
    /// PostgreSQL's programs are not there, or the data directory cannot be used.
    #[error("postgresql: {0}")]
    Postgres(String),
    /// Signals.
    #[error("signal handlers: {0}")]
    Signals(#[from] std::io::Error),
}

/// Runs the member until it ends; the exit status.
///
/// # Errors
/// See [`StartError`]; nothing was changed then.
pub async fn run(
    loader: Loader,
    local: LocalConfig,
    telemetry: Arc<TelemetryGuard>,
) -> Result<u8, StartError> {
    let first = first_meaning(&local)?;
    let me = first.settings.me.clone();
    if me.as_str() == STRICT_PLACEHOLDER {
        return Err(StartError::ReservedName);
    }
    let config = Arc::new(first.config.clone());
    check_postgres(&config).await?;
    let (terminate, interrupt, hangup) = signals()?;
    let peers = Peers::new(&config.ctl)?;
    let keyspace = Keyspace::new(&config.namespace, &config.scope);
    let (etcd, mut etcd_events) =
        Etcd::connect(&config.etcd, keyspace, first.settings.cluster.timing)?;
    etcd.keeper()
        .set(proto::core::decision::LeaseGoal::Session {
            ttl: first.settings.cluster.timing.ttl(),
        });
    let Some(snapshot) = first_snapshot(&etcd, &mut etcd_events).await? else {
        return Ok(0);
    };
    name_is_free(&snapshot, &me, &peers).await?;

    let options = AttachOptions {
        fence_bound: Duration::from_millis(first.settings.cluster.native.fence_ms),
        namespace: config.guardian.pid_namespace,
        ..AttachOptions::default()
    };
    let (guardian, guardian_events, hello) =
        GuardianClient::attach(&config.postgresql.data_dir, options)?;
    adopt_postmaster(&guardian, &config).await?;
    let mut member = assemble(Parts {
        loader,
        local,
        telemetry,
        etcd,
        guardian,
        peers,
        first,
    });
    member.member.inherited = inherited(&hello);
    // It takes no lower one, also when its deadline is over and the record was deleted.
    member.member.observation.guardian.epoch =
        kept(&hello).map_or(Epoch(0), |kept| Epoch(kept.epoch));
    // Known before the first view: a record of this session is ours to go on with, and an agent crash
    // no reason to stop PostgreSQL.
    member.member.observation.guardian.session = hello.session;
    member.member.etcd_event(EtcdEvent::Snapshot(snapshot));
    let state = RestState {
        published: member.member.published.subscribe(),
        requests: member.requests,
        etcd: Arc::new(member.member.etcd.clone()),
        peers: member.member.peers.clone(),
        config: member.member.config.subscribe(),
        journal: member.member.journal.reader(),
        copied: member.copied,
    };
    member.member.rest = Some(crate::rest::serve(state).await?);
    crate::systemd::ready();
    let inputs = Inputs {
        etcd: etcd_events,
        guardian: guardian_events,
        postgres: member.postgres_events,
        rest: member.rest_events,
        done: member.done_events,
        terminate,
        interrupt,
        hangup,
    };
    tracing::info!("garden-agent {} is running as {me}", crate::cli::VERSION);
    Ok(member.member.run(inputs).await)
}

/// The local configuration with the best dynamic document that is at hand before etcd answers: the
/// copy in the data directory, else the one to bootstrap with.
fn first_meaning(local: &LocalConfig) -> Result<Meaning, crate::config::ConfigError> {
    let cached = local.data_dir().and_then(|dir| pgdata::read_dynamic(&dir));
    let dynamic: Map<String, Value> = cached.or_else(|| local.bootstrap_dcs()).unwrap_or_default();
    match meaning(local, &dynamic, 1) {
        Ok(meaning) => {
            for note in &meaning.notes {
                tracing::warn!("{note}");
            }
            Ok(meaning)
        }
        Err(crate::config::ConfigError::Dynamic { .. }) => meaning(local, &Map::new(), 1),
        Err(err) => Err(err),
    }
}

/// A missing program or an unusable directory is said before anything is touched.
async fn check_postgres(config: &Arc<AgentConfig>) -> Result<(), StartError> {
    let (_keep, receiver) = watch::channel(Arc::clone(config));
    let (_keep_too, cluster) = watch::channel(Arc::default());
    let ctx = PgContext::new(receiver, cluster);
    let version = ctx.major_version().await.map_err(|err| {
        let dir = config.postgresql.bin_dir.as_ref();
        let place = dir.map_or_else(|| String::from("PATH"), |d| d.display().to_string());
        StartError::Postgres(format!(
            "bin_dir: expected the PostgreSQL programs in {place}: {}",
            crate::guardian::note::chain(&err)
        ))
    })?;
    let dir = &config.postgresql.data_dir;
    if let proto::core::observation::DataDir::Unreadable(why) = pgdata::look(dir) {
        return Err(StartError::Postgres(format!(
            "data_dir: {}: {why}",
            dir.display()
        )));
    }
    match pgdata::pg_version(dir) {
        Some(found) if found != version => Err(StartError::Postgres(format!(
            "data_dir: {} was made by PostgreSQL {found}, the programs are version {version}",
            dir.display()
        ))),
        _ => Ok(()),
    }
}

/// Waits for etcd as long as it takes; a signal to end is obeyed meanwhile (`None`). Credentials that
/// are refused do not get better by waiting.
async fn first_snapshot(
    etcd: &Etcd,
    events: &mut mpsc::Receiver<EtcdEvent>,
) -> Result<Option<Arc<Snapshot>>, StartError> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        etcd.keeper().progress();
        tokio::select! {
            event = events.recv() => match event {
                Some(EtcdEvent::Snapshot(snapshot)) => return Ok(Some(snapshot)),
                Some(EtcdEvent::Unreachable(why)) => {
                    if let Err(refused @ EtcdError::Credentials(_)) = etcd.read(ASK_LIMIT).await {
                        return Err(refused.into());
                    }
                    tracing::warn!("waiting on etcd: {why}");
                }
                Some(_) => {}
                None => return Ok(None),
            },
            _ = terminate.recv() => return Ok(None),
            () = tokio::time::sleep(WAITING_EVERY) => tracing::info!("waiting on etcd"),
        }
    }
}

/// `dcs-layout.md` 11, step 4: any HTTP answer from the address in our own member key means that we
/// are running already.
async fn name_is_free(
    snapshot: &Snapshot,
    me: &MemberName,
    peers: &Peers,
) -> Result<(), StartError> {
    let view = ClusterView::read(snapshot);
    let url = view.member(me).and_then(|member| member.api_url.clone());
    match url {
        Some(url) if peers.answers(&url).await => Err(StartError::NameTaken(me.clone())),
        _ => Ok(()),
    }
}

/// A PostgreSQL that runs already, because Patroni or an operator started it, gets the same guardian.
async fn adopt_postmaster(
    guardian: &GuardianClient,
    config: &AgentConfig,
) -> Result<(), StartError> {
    if guardian.postmaster().is_some() {
        return Ok(());
    }
    let dir = config.postgresql.data_dir.clone();
    let running = pgdata::on_disk(move || pgdata::running_postmaster(&dir))
        .await
        .flatten();
    if let Some(pid) = running {
        tracing::info!("adopting the running postmaster {pid}");
        guardian.adopt(pid).await?;
    }
    Ok(())
}

fn kept(hello: &Hello) -> Option<super::Kept> {
    serde_json::from_slice(&hello.kept.as_ref()?.blob).ok()
}

/// The tenure of the agent before us, from what the guardian kept of it.
fn inherited(hello: &Hello) -> Option<HeldRecord> {
    let armed = hello.armed?;
    let kept = kept(hello)?;
    (kept.epoch == armed.epoch.0).then(|| HeldRecord {
        epoch: armed.epoch,
        sent_at: armed.deadline - Duration::from_millis(kept.length_ms),
        length: Duration::from_millis(kept.length_ms),
        modified: proto::ids::Revision(0),
        seq: 0,
    })
}

struct Parts {
    loader: Loader,
    local: LocalConfig,
    telemetry: Arc<TelemetryGuard>,
    etcd: Etcd,
    guardian: GuardianClient,
    peers: Peers,
    first: Meaning,
}

struct Assembled {
    member: Member,
    requests: mpsc::Sender<crate::rest::RestRequest>,
    rest_events: mpsc::Receiver<crate::rest::RestRequest>,
    postgres_events: mpsc::Receiver<crate::postgres::PgEvent>,
    done_events: mpsc::Receiver<super::Done>,
    copied: Copied,
}

fn assemble(parts: Parts) -> Assembled {
    let Parts {
        loader,
        local,
        telemetry,
        etcd,
        guardian,
        peers,
        first,
    } = parts;
    let Meaning {
        config,
        settings,
        notes,
    } = first;
    let journal = Journal::open(&config.postgresql.data_dir, settings.me.as_str());
    let watchdog = crate::watchdog::Watchdog::new(config.watchdog.clone());
    let (cluster, cluster_reader) = watch::channel(Arc::new(settings.cluster.clone()));
    let (config, config_reader) = watch::channel(Arc::new(config));
    let context = PgContext::new(config_reader, cluster_reader);
    let copied = context.copied.clone();
    let (postgres, postgres_events) = Postgres::spawn(context, guardian.clone());
    let settings = Arc::new(settings);
    let (published, _) = watch::channel(Arc::new(Published::starting(
        Arc::clone(&settings),
        clock::now(),
    )));
    let (requests, rest_events) = mpsc::channel(REQUESTS_MAX);
    let (done, done_events) = mpsc::channel(DONE_MAX);
    // A tenure that the agent before us armed goes on under its epoch.
    let armed = guardian.armed().map_or(0, |armed| armed.epoch.0);
    let tenure_epoch = Arc::new(AtomicU64::new(armed));
    arm_on_renewal(&etcd, &guardian, &tenure_epoch, &cluster);
    let member = Member {
        observation: Observation::default(),
        memory: Memory::default(),
        settings,
        loader,
        local,
        config,
        cluster,
        telemetry,
        etcd,
        guardian,
        tenure_epoch,
        postgres,
        peers,
        watchdog,
        rest: None,
        journal,
        published,
        done,
        alive_at: None,
        gap: true,
        last_seen: proto::time::WallTime::default(),
        next_job: 0,
        next_wish: 0,
        claimed: None,
        inherited: None,
        record_first_seen: proto::fence::Moment::default(),
        restart_replies: BTreeMap::new(),
        refused_dynamic: None,
        noted: notes.into_iter().collect::<BTreeSet<_>>(),
        logged: String::new(),
        exit: None,
    };
    Assembled {
        member,
        requests,
        rest_events,
        postgres_events,
        done_events,
        copied,
    }
}

/// Each renewal moves the guardian's deadline on directly from the keeper's thread: the loop may be
/// busy, the lease path waits for nothing.
fn arm_on_renewal(
    etcd: &Etcd,
    guardian: &GuardianClient,
    tenure_epoch: &Arc<AtomicU64>,
    cluster: &watch::Sender<Arc<proto::config::ClusterConfig>>,
) {
    let guardian = guardian.clone();
    let tenure_epoch = Arc::clone(tenure_epoch);
    let cluster = cluster.subscribe();
    etcd.keeper().on_renewed(Box::new(move |epoch, deadline| {
        // The keeper does not know the epoch of a compatible tenure; the loop does. And only what the
        // loop has armed is moved on: in pause, and while we are not the primary, nothing is.
        let Some(armed) = guardian.armed() else {
            return;
        };
        let paused = cluster.borrow().pause;
        let current = tenure_epoch.load(Ordering::Acquire);
        let epoch = if epoch.0 == 0 {
            proto::ids::Epoch(current)
        } else {
            epoch
        };
        if !paused
            && armed.epoch == epoch
            && deadline > armed.deadline
            && let Err(err) = guardian.arm(epoch, deadline)
        {
            tracing::warn!("the guardian was not told of a renewal: {err}");
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardian::Armed;
    use proto::time::MonoTime;

    #[test]
    fn a_tenure_is_inherited_only_with_its_epoch() {
        let kept = |epoch: u64| proto::fence::wire::Kept {
            session: String::from("s"),
            blob: serde_json::to_vec(&super::super::Kept {
                epoch,
                length_ms: 8000,
            })
            .expect("plain data"),
        };
        let deadline = MonoTime(20_000_000_000);
        let mut hello = Hello {
            armed: Some(Armed {
                epoch: Epoch(3),
                deadline,
            }),
            ..Hello::default()
        };
        hello.kept = Some(kept(3));
        let held = inherited(&hello).expect("same epoch");
        assert_eq!(held.sent_at, MonoTime(12_000_000_000));
        hello.kept = Some(kept(2));
        assert_eq!(inherited(&hello), None);
        hello.kept = None;
        assert_eq!(inherited(&hello), None);
    }
}
