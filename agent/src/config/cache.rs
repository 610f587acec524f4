//! `patroni.dynamic.json`, the dynamic document kept in PGDATA for the time when etcd is away or was
//! wiped (`configuration.md` 12.8). It is written by `postgres`, read once at start.

use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// The file's name.
pub const FILE: &str = "patroni.dynamic.json";

/// Larger than any document that etcd takes (1.5 MB).
const SIZE_LIMIT: u64 = 4 << 20;

/// The cached document; `None` when there is no regular file. A broken one is a sentence for the log:
/// the agent goes on without it.
pub fn read(data_dir: &Path) -> Result<Option<Map<String, Value>>, String> {
    let path = data_dir.join(FILE);
    let Ok(found) = fs::symlink_metadata(&path) else {
        return Ok(None);
    };
    if !found.is_file() {
        return Ok(None);
    }
    let broken = |why: String| format!("{} is not used: {why}", path.display());
    if found.len() > SIZE_LIMIT {
        return Err(broken(format!("{} bytes are too many", found.len())));
    }
    let text = fs::read_to_string(&path).map_err(|error| broken(error.to_string()))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(document)) => Ok(Some(document)),
        Ok(_) => Err(broken(String::from("expected a JSON object"))),
        Err(error) => Err(broken(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_cache_is_told_and_a_missing_one_is_not() {
        let dir = std::env::temp_dir().join(format!("garden-cache-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("directory");
        assert_eq!(read(&dir), Ok(None));
        fs::write(dir.join(FILE), "{\"ttl\": 20}").expect("written");
        assert!(read(&dir).is_ok_and(|doc| doc.is_some_and(|d| d.contains_key("ttl"))));
        fs::write(dir.join(FILE), "[1]").expect("written");
        assert!(read(&dir).is_err_and(|why| why.contains("expected a JSON object")));
        fs::remove_dir_all(&dir).expect("removed");
    }
}
