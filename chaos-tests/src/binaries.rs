//! Which programs a cluster is made of, and which user may run them.

use crate::process::Launch;
use anyhow::{Context, Result, bail};
use nix::unistd::{User, geteuid};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// User that runs the servers when the harness is root; PostgreSQL refuses to be root.
pub const SERVER_USER: &str = "postgres";
/// Copying an installation of PostgreSQL, some 100 MB, ends within this time.
const COPY_LIMIT: Duration = Duration::from_secs(120);

/// Paths of everything that is run.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `garden-agent`, or `patroni` for comparison.
    pub agent: PathBuf,
    /// `gardenctl`, or `patronictl`.
    pub ctl: PathBuf,
    /// Directory of `postgres`, `initdb`, `pg_rewind`, …
    pub postgres: PathBuf,
    /// etcd server.
    pub etcd: PathBuf,
    /// HAProxy.
    pub haproxy: PathBuf,
    /// The released `patroni`, for members that run it beside ours; see [`patroni`].
    pub patroni: Option<PathBuf>,
}

impl Binaries {
    /// Looks at `GARDEN_AGENT_BIN`, `GARDEN_CTL_BIN`, `GARDEN_POSTGRES` (a directory),
    /// `GARDEN_ETCD_BIN` and `GARDEN_HAPROXY_BIN`; else beside the running executable for our own,
    /// and in Debian's places for the others.
    ///
    /// # Errors
    /// When one of them is not there; the message says which and how to get it.
    pub fn find() -> Result<Self> {
        let agent = chosen("GARDEN_AGENT_BIN").or_else(|| beside("garden-agent"));
        let agent = agent.context("garden-agent is not built: cargo build -p garden-agent")?;
        let ctl = chosen("GARDEN_CTL_BIN").or_else(|| {
            let patronictl = agent.with_file_name("patronictl");
            if is_patroni(&agent) {
                Some(patronictl)
            } else {
                beside("gardenctl")
            }
        });
        let ctl = ctl.context("gardenctl is not built: cargo build -p garden-agent")?;
        let postgres = chosen("GARDEN_POSTGRES").or_else(newest_debian_postgres);
        let postgres = postgres.context("no PostgreSQL found: install postgresql-15")?;
        let etcd = chosen("GARDEN_ETCD_BIN").or_else(|| on_path("etcd"));
        let haproxy = chosen("GARDEN_HAPROXY_BIN").or_else(|| on_path("haproxy"));
        let found = Self {
            agent,
            ctl,
            postgres,
            etcd: etcd.context("no etcd found: install etcd-server")?,
            haproxy: haproxy.context("no haproxy found: install haproxy")?,
            patroni: None,
        };
        found.checked()
    }

    /// The same with other PostgreSQL binaries.
    ///
    /// # Errors
    /// When there is no `postgres` in the directory.
    pub fn with_postgres(mut self, directory: &Path) -> Result<Self> {
        self.postgres = directory
            .canonicalize()
            .unwrap_or_else(|_| directory.to_path_buf());
        self.checked()
    }

    /// The same, with the released Patroni for members that shall run it.
    pub fn with_patroni(mut self, program: PathBuf) -> Self {
        self.patroni = Some(program);
        self
    }

    /// The same with the released Patroni in the place of our agents: see [`patroni`].
    ///
    /// # Errors
    /// When it is not there.
    pub fn all_patroni(mut self) -> Result<Self> {
        self.agent = patroni().context("there is no patroni; ./deploy/test installs it")?;
        self.ctl = self.agent.with_file_name("patronictl");
        self.checked()
    }

    /// Whether this is the released Patroni, which has no guardian and no timeline command.
    pub fn is_patroni(&self) -> bool {
        is_patroni(&self.agent)
    }

    /// Libraries that came with PostgreSQL. Binaries that are unpacked anywhere would otherwise load
    /// the system's libpq into the walreceiver, which may be older than they are.
    pub(crate) fn libraries(&self) -> Option<PathBuf> {
        let libraries = self.postgres.parent()?.join("lib");
        libraries.join("libpq.so.5").is_file().then_some(libraries)
    }

    fn checked(self) -> Result<Self> {
        let postgres = self.postgres.join("postgres");
        for program in [&self.agent, &self.ctl, &postgres, &self.etcd, &self.haproxy] {
            if !program.is_file() {
                bail!("{} is not there", program.display());
            }
        }
        Ok(self)
    }

    /// Copies into `dir` what the server user could not reach where it is (a checkout below
    /// `/root`, say), and our own binaries always, so that a rebuild does not pull them from under
    /// a cluster that was left running.
    pub(crate) fn staged_into(&self, dir: &Path) -> Result<Self> {
        let mut staged = self.clone();
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).context("create the directory of the binaries")?;
        if !self.is_patroni() {
            staged.agent = copy(&self.agent, &bin)?;
            staged.ctl = copy(&self.ctl, &bin)?;
        }
        if !geteuid().is_root() {
            return Ok(staged);
        }
        for program in [&mut staged.etcd, &mut staged.haproxy] {
            if !reachable_by_all(program) {
                *program = copy(program, &bin)?;
            }
        }
        if !reachable_by_all(&self.postgres.join("postgres")) {
            staged.postgres = copy_installation(&self.postgres, &dir.join("pgsql"))?;
        }
        Ok(staged)
    }
}

/// The account under which servers run: `postgres` when the harness is root, else nobody else.
///
/// # Errors
/// When the harness is root and there is no such user.
pub fn server_account() -> Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = User::from_name(SERVER_USER).context("look up the user postgres")?;
    let user = user.context("PostgreSQL refuses to run as root and there is no user postgres")?;
    Ok(Some(user))
}

/// The released `patronictl`, which `./deploy/test` installs from the Python package index: where
/// `GARDEN_PATRONICTL_BIN` says, else below `target/`. None, with a note, when it is not there.
pub fn patronictl() -> Option<PathBuf> {
    released("GARDEN_PATRONICTL_BIN", "patronictl")
}

/// The released `patroni`: where `GARDEN_PATRONI` says, else as [`patronictl`].
pub fn patroni() -> Option<PathBuf> {
    released("GARDEN_PATRONI", "patroni")
}

fn released(variable: &str, name: &str) -> Option<PathBuf> {
    let installed = || {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
        Some(workspace.join("target/cache/patroni/bin").join(name))
    };
    let found = chosen(variable).or_else(installed);
    let found = found.filter(|path| path.is_file());
    if found.is_none() {
        println!("skipped: there is no {name}; ./deploy/test installs it");
    }
    found
}

fn is_patroni(agent: &Path) -> bool {
    agent.file_name().is_some_and(|name| name == "patroni")
}

fn chosen(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Our own binaries lie beside this executable, or one level up when this is a test.
fn beside(name: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

fn newest_debian_postgres() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let versions = versions.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let bin = entry.path().join("bin");
        bin.join("postgres").is_file().then_some((number, bin))
    });
    versions.max().map(|(_, bin)| bin)
}

fn copy(program: &Path, into: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program without a name")?;
    let copied = into.join(name);
    std::fs::copy(program, &copied)
        .with_context(|| format!("copy {} to {}", program.display(), into.display()))?;
    std::fs::set_permissions(&copied, PermissionsExt::from_mode(0o755))
        .with_context(|| format!("make {} executable", copied.display()))?;
    Ok(copied)
}

/// `postgres` finds its `share` and `lib` relative to itself, so the whole installation moves.
fn copy_installation(bin: &Path, to: &Path) -> Result<PathBuf> {
    let prefix = bin
        .parent()
        .context("the PostgreSQL directory has no parent")?;
    let (from, dest) = (prefix.as_os_str().to_owned(), to.as_os_str().to_owned());
    tool("/bin/cp", vec!["-a".into(), from, dest.clone()], to)?;
    tool("/bin/chmod", vec!["-R".into(), "a+rX".into(), dest], to)?;
    Ok(to.join(bin.file_name().unwrap_or_default()))
}

fn tool(program: &str, args: Vec<OsString>, beside: &Path) -> Result<()> {
    let log = beside.with_extension("log");
    let (program, env, cwd) = (Path::new(program), BTreeMap::new(), Path::new("/"));
    let launch = Launch {
        program,
        args,
        env,
        cwd,
        log: &log,
        user: None,
        network: None,
    };
    let (status, output) = crate::process::run(&launch, COPY_LIMIT)?;
    if !status.success() {
        bail!("{} ended with {status}: {output}", program.display());
    }
    Ok(())
}

/// Every directory on the way may be entered, and the file read and executed, by anybody.
fn reachable_by_all(path: &Path) -> bool {
    let mode = |path: &Path| {
        path.metadata()
            .map(|meta| meta.permissions().mode())
            .unwrap_or(0)
    };
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    mode(&path) & 0o005 == 0o005 && path.ancestors().skip(1).all(|dir| mode(dir) & 0o001 != 0)
}
