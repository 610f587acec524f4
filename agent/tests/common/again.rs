//! PostgreSQL refuses to run as root, and files that it reads must be its own.

use std::process::Command;

/// Under root the test of this name runs itself again as the user `postgres`; `true` means that this has
/// been done, and it passed.
pub fn done_as_postgres(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        return false;
    }
    let status = Command::new("setpriv")
        .args([
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            "--",
        ])
        .arg(std::env::current_exe().expect("the path of this program"))
        .args([test, "--exact", "--nocapture"])
        .current_dir("/")
        .env("HOME", "/tmp")
        .status()
        .expect("setpriv");
    assert!(status.success(), "{test} failed as user postgres");
    true
}
