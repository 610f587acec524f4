//! The settings that rules read, made from the local configuration and the dynamic document, and made
//! anew when either has changed.

use super::Member;
use crate::cli::PATRONI_VERSION;
use crate::config::{AgentConfig, ConfigError, LocalConfig, WatchdogMode};
use proto::config::{ClusterConfig, Settings};
use proto::ids::MemberName;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Both meanings of one pair of documents, and sentences for the log.
pub(super) struct Meaning {
    pub config: AgentConfig,
    pub settings: Settings,
    pub notes: Vec<String>,
}

/// Reads the pair.
pub(super) fn meaning(
    local: &LocalConfig,
    dynamic: &Map<String, Value>,
    generation: u64,
) -> Result<Meaning, ConfigError> {
    let (config, mut notes) = local.effective(dynamic)?;
    let cluster = ClusterConfig::parse(dynamic);
    notes.extend(cluster.notes.iter().cloned());
    let postgresql = &config.postgresql;
    let scheme = if config.restapi.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let database = &postgresql.database;
    let url = |address: &str| format!("postgres://{address}/{database}");
    let settings = Settings {
        me: MemberName::new(config.name.clone()),
        scope: config.scope.clone(),
        version: PATRONI_VERSION.to_owned(),
        conn_url: url(&postgresql.connect_address),
        api_url: format!("{scheme}://{}/patroni", config.restapi.connect_address),
        proxy_url: postgresql.proxy_address.as_deref().map(url),
        tags: config.tags.clone(),
        dynamic: dynamic.clone(),
        can_bootstrap: config.bootstrap.is_some(),
        can_clone_without_leader: postgresql.create_replica_methods.iter().any(|method| {
            matches!(method, crate::config::ReplicaMethod::Custom(custom) if custom.no_leader)
        }),
        use_pg_rewind: postgresql.use_pg_rewind,
        wipe_on_rewind_failure: postgresql.wipe_on_rewind_failure,
        wipe_on_divergence: postgresql.wipe_on_divergence,
        has_pre_promote: postgresql.pre_promote.is_some(),
        watchdog_required: config.watchdog.mode == WatchdogMode::Required,
        conf_generation: generation,
        cluster,
    };
    Ok(Meaning {
        config,
        settings,
        notes,
    })
}

impl Member {
    /// `/config` in etcd has changed, perhaps. A document that cannot be applied leaves the last good
    /// one in force as a whole (S12, `configuration.md` 2.4).
    pub(super) fn dynamic_may_have_changed(&mut self) {
        let Some(document) = self
            .observation
            .dcs
            .view
            .as_ref()
            .and_then(|v| v.config.document())
        else {
            return;
        };
        if *document == self.settings.dynamic {
            return;
        }
        let document = document.clone();
        match meaning(&self.local, &document, self.settings.conf_generation + 1) {
            Ok(meaning) => self.apply(meaning, false),
            Err(err) => {
                if self.refused_dynamic.as_ref() != Some(&document) {
                    tracing::error!("Exception when setting dynamic_configuration: {err}");
                    self.refused_dynamic = Some(document);
                }
            }
        }
    }

    /// SIGHUP or `POST /reload`: the files are read again. An unreadable one changes nothing.
    pub(super) fn reload(&mut self) {
        crate::systemd::reloading();
        match self.loader.load() {
            Ok(local) => {
                if local.same(&self.local) {
                    tracing::info!("No local configuration items changed.");
                }
                match meaning(
                    &local,
                    &self.settings.dynamic,
                    self.settings.conf_generation + 1,
                ) {
                    Ok(meaning) => {
                        self.local = local;
                        self.apply(meaning, true);
                    }
                    Err(err) => tracing::error!("the configuration was not reloaded: {err}"),
                }
            }
            Err(err) => tracing::error!("the configuration was not reloaded: {err}"),
        }
        crate::systemd::ready();
    }

    fn apply(&mut self, meaning: Meaning, reload: bool) {
        let Meaning {
            config,
            settings,
            notes,
        } = meaning;
        for note in notes {
            if self.noted.insert(note.clone()) {
                tracing::warn!("{note}");
            }
        }
        if reload {
            if let Err(err) = self.telemetry.reload(&config.log) {
                tracing::error!("logging keeps its old configuration: {err}");
            }
            if let Err(err) = self.peers.reload(&config.ctl) {
                tracing::error!("requests to members keep their old configuration: {err}");
            }
        }
        self.watchdog.reconfigure(config.watchdog.clone());
        self.cluster
            .send_replace(Arc::new(settings.cluster.clone()));
        // A new value, also an equal one, makes the REST server look at its certificates.
        self.config.send_replace(Arc::new(config));
        if settings.dynamic != self.settings.dynamic {
            self.postgres.save_dynamic(settings.dynamic.clone());
        }
        self.settings = Arc::new(settings);
    }
}
