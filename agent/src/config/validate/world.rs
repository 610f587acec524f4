//! What the checks look at outside the configuration: ports, programs, addresses. Every look is
//! bounded.

use super::ValidateOptions;
use serde_json::{Map, Value};
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Limit of one connection attempt.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Limit of `postgres --version`.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// See the module.
pub(in crate::config) struct World<'a> {
    pub(super) options: ValidateOptions,
    bin_dir: Option<&'a str>,
    bin_name: Option<&'a Map<String, Value>>,
}

impl<'a> World<'a> {
    /// The world as the `postgresql` section says where to look.
    pub(in crate::config) fn new(options: ValidateOptions, doc: &'a Map<String, Value>) -> Self {
        let section = doc.get("postgresql").and_then(Value::as_object);
        let bin_dir = section
            .and_then(|s| s.get("bin_dir"))
            .and_then(Value::as_str);
        Self {
            options,
            bin_dir: bin_dir.filter(|dir| !dir.is_empty()),
            bin_name: section
                .and_then(|s| s.get("bin_name"))
                .and_then(Value::as_object),
        }
    }

    /// Whether something accepts connections at an address; an error when its name has none.
    pub(super) fn connects(&self, host: &str, port: u16) -> Result<bool, String> {
        let host = if matches!(host, "" | "*" | "0.0.0.0") {
            "localhost"
        } else {
            host
        };
        let addresses = (host, port)
            .to_socket_addrs()
            .map_err(|_| String::from("[Errno -2] Name or service not known"))?;
        Ok(addresses
            .into_iter()
            .any(|a| TcpStream::connect_timeout(&a, CONNECT_LIMIT).is_ok()))
    }

    /// The configured directory as messages show it.
    pub(super) fn bin_dir(&self) -> Option<&'a str> {
        self.bin_dir
    }

    /// The name under which a program is looked for.
    pub(super) fn name_of<'n>(&self, program: &'n str) -> &'n str
    where
        'a: 'n,
    {
        self.bin_name
            .and_then(|names| names.get(program)?.as_str())
            .unwrap_or(program)
    }

    /// The message about a program that is not there.
    pub(super) fn missing_program(&self, name: &str) -> Option<String> {
        let place = self.bin_dir.unwrap_or("$PATH");
        self.find(name)
            .is_none()
            .then(|| format!("does not contain '{name}' in '{place}'"))
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        if name.is_empty() {
            return None;
        }
        match self.bin_dir {
            Some(dir) => Some(Path::new(dir).join(name)).filter(|path| is_executable(path)),
            None => {
                let path = std::env::var_os("PATH")?;
                std::env::split_paths(&path)
                    .map(|dir| dir.join(name))
                    .find(|p| is_executable(p))
            }
        }
    }

    /// The major version of the installed server, as `PG_VERSION` has it.
    pub(super) fn postgres_version(&self) -> Option<String> {
        let output = self.postgres_version_line()?;
        let number = output
            .split_whitespace()
            .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
        let major = number.split(|c: char| !c.is_ascii_digit()).next()?;
        Some(major.to_owned())
    }

    fn postgres_version_line(&self) -> Option<String> {
        let mut child = Command::new(self.find(self.name_of("postgres"))?)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let started = Instant::now();
        // One line fits into the pipe, so the program cannot wait for us.
        while child.try_wait().ok()?.is_none() {
            if started.elapsed() > VERSION_LIMIT {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut output = String::new();
        child
            .stdout
            .take()?
            .take(4096)
            .read_to_string(&mut output)
            .ok()?;
        Some(output)
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Lines on stderr; a closed stderr has nobody to tell.
pub(super) fn complain(lines: &[String]) {
    let mut stderr = std::io::stderr().lock();
    for line in lines {
        let _ = writeln!(stderr, "{line}");
    }
}
