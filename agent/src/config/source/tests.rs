use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path =
            std::env::temp_dir().join(format!("garden-source-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("directory");
        for (name, text) in files {
            fs::write(path.join(name), text).expect("file");
        }
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn env(variables: &[(&str, &str)]) -> Captured {
    variables
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn doc(path: Option<&Path>, variables: &[(&str, &str)]) -> Result<String, ConfigError> {
    let local = Loader::new(path, env(variables))?.load()?;
    Ok(Value::Object(local.doc().clone()).to_string())
}

/// Vectors 7 and 8 of `configuration.md` 18, and 1.2.
#[test]
fn files_of_a_directory_are_laid_over_each_other_by_name() {
    let dir = Dir::new(
        "layers",
        &[
            (
                "b.yml",
                "tags: null\npostgresql: {pg_hba: [c], listen: x}\n",
            ),
            (
                "a.yml",
                "tags: {x: 1}\npostgresql: {pg_hba: [a, b], data_dir: d}\n",
            ),
            ("c.yaml", "name: c\n"),
            ("ignored.txt", "name: no\n"),
        ],
    );
    assert_eq!(
        doc(Some(&dir.0), &[]).expect("loads"),
        r#"{"postgresql":{"pg_hba":["c"],"data_dir":"d","listen":"x"},"name":"c"}"#
    );
}

#[test]
fn the_environment_wins_over_the_file() {
    let dir = Dir::new("env", &[("a.yml", "name: file\nscope: s\n")]);
    let path = dir.0.join("a.yml");
    let with = doc(Some(&path), &[("PATRONI_NAME", "env")]).expect("loads");
    assert_eq!(with, r#"{"name":"env","scope":"s"}"#);
}

#[test]
fn a_whole_text_in_the_environment_stands_alone() {
    let variables = [("PATRONI_CONFIGURATION", "scope: s"), ("PATRONI_NAME", "n")];
    assert_eq!(doc(None, &variables).expect("loads"), r#"{"scope":"s"}"#);
    // Also when the file does not exist, and not when it does.
    let missing = Path::new("/nonexistent/patroni.yml");
    assert_eq!(
        doc(Some(missing), &variables).expect("loads"),
        r#"{"scope":"s"}"#
    );
    let empty = [
        ("PATRONI_CONFIGURATION", "# nothing\n"),
        ("PATRONI_NAME", "n"),
    ];
    assert_eq!(doc(None, &empty).expect("loads"), r#"{"name":"n"}"#);
}

#[test]
fn nothing_at_all_is_an_error_for_the_agent_only() {
    assert!(matches!(doc(None, &[]), Err(ConfigError::Empty)));
    let loader = Loader::new(None, env(&[])).expect("a source");
    assert!(loader.load_any().is_ok());
}

#[test]
fn what_is_no_configuration_is_refused_with_its_name() {
    for (text, expected) in [
        ("- a\n", "does not contain a mapping"),
        ("", "does not contain a mapping"),
        ("a: [\n", "line 2"),
        ("a: 1\n---\nb: 1\n", "single document"),
    ] {
        let dir = Dir::new("bad", &[("a.yml", text)]);
        let error = doc(Some(&dir.0), &[]).expect_err("refused").to_string();
        assert!(
            error.contains("a.yml") && error.contains(expected),
            "{text:?}: {error}"
        );
    }
    assert!(matches!(
        doc(Some(Path::new("/dev/null")), &[]),
        Err(ConfigError::InvalidPath(_))
    ));
}

#[test]
fn keys_know_where_they_came_from() {
    let dir = Dir::new(
        "origins",
        &[
            ("a.yml", "name: x\nlog: {level: a}\n"),
            ("b.yml", "log: {level: b}\n"),
        ],
    );
    let loader = Loader::new(Some(&dir.0), env(&[("PATRONI_LOG_DIR", "/x")])).expect("a source");
    let local = loader.load().expect("loads");
    for (key, place) in [
        ("name", "a.yml"),
        ("log.level", "b.yml"),
        ("log.dir", "PATRONI_LOG_DIR"),
        ("nowhere", "origins"),
    ] {
        assert!(
            local.origins().of(key).ends_with(place),
            "{key}: {}",
            local.origins().of(key)
        );
    }
}

#[test]
fn a_reload_reads_the_file_again() {
    let dir = Dir::new("reload", &[("a.yml", "scope: one\nttl: 1\n")]);
    let loader = Loader::new(Some(&dir.0.join("a.yml")), env(&[])).expect("a source");
    let before = loader.load().expect("loads");
    fs::write(dir.0.join("a.yml"), "ttl: '1'\nscope: one\n").expect("written");
    assert!(before.same(&loader.load().expect("loads")));
    fs::write(dir.0.join("a.yml"), "scope: two\n").expect("written");
    assert!(!before.same(&loader.load().expect("loads")));
}

#[test]
fn the_control_tools_file_must_exist_only_when_it_was_named() {
    let missing = Path::new("/nonexistent/ctl.yml");
    let error = Loader::for_control(Some(missing), env(&[])).expect_err("named");
    assert!(
        error.to_string().contains("not existing or no read rights"),
        "{error}"
    );
    assert!(Loader::for_control(None, env(&[])).is_ok());
}

#[test]
fn a_store_on_the_command_line_replaces_the_configured_ones() {
    let text = "etcd: {host: a}\nconsul: {host: b}\nscope: s\n";
    let loader = Loader::new(None, env(&[("PATRONI_CONFIGURATION", text)])).expect("a source");
    for (url, endpoint, namespace) in [
        ("host:2379", "http://host:2379", "service"),
        ("etcd3://host", "http://host:2379", "service"),
        ("etcd://host:4001/ns", "http://host:4001", "ns"),
        ("host:2379/a/b", "http://host:2379", "a/b"),
        (":2380", "http://localhost:2380", "service"),
    ] {
        let mut local = loader.load().expect("loads");
        local.use_store(url).expect("a store");
        let (control, _) = local.control().expect("control");
        assert_eq!(control.etcd.endpoints, [endpoint], "{url}");
        assert_eq!(control.namespace, namespace, "{url}");
        assert_eq!(control.scope.as_deref(), Some("s"));
    }
    let mut local = loader.load().expect("loads");
    let unknown = local.use_store("foo://x").expect_err("unknown").to_string();
    assert_eq!(unknown, "Unknown dcs scheme: foo");
    assert!(local.use_store("consul://x").is_err());
}
