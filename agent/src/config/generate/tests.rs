use super::*;
use crate::config::{Loader, validate};

#[test]
fn the_sample_is_complete_and_readable() {
    let environment = [
        ("PATRONI_ETCD3_HOSTS", "a:1"),
        ("PATRONI_NAMESPACE", "ns"),
        ("PATRONI_NAME", "n"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into_iter()
    .collect();
    let text = render(template(&environment));
    let read = yaml::from_str(&text).expect("YAML");
    assert_eq!(read, Value::Object(template(&environment)));
    let tops: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with([' ', '#', '-']) && !l.is_empty())
        .filter_map(|l| l.split(':').next())
        .collect();
    assert_eq!(
        tops,
        [
            "scope",
            "namespace",
            "name",
            "log",
            "restapi",
            "etcd3",
            "bootstrap",
            "postgresql",
            "tags"
        ]
    );
}

#[test]
fn the_sample_starts_and_passes_its_own_checks_once_filled_in() {
    let text = render(template(&Captured::new())).replace("127.0.0.1", "10.0.0.1");
    let text = text.replace("'#FIXME'", "/nonexistent/x");
    let env: Captured = [(String::from("PATRONI_CONFIGURATION"), text)]
        .into_iter()
        .collect();
    let local = Loader::new(None, env)
        .and_then(|l| l.load())
        .expect("loads");
    assert_eq!(local.notes(), Vec::<String>::new());
    local
        .effective(&local.bootstrap_dcs().expect("bootstrap"))
        .expect("effective");
    let options = validate::ValidateOptions {
        ignore_listen_port: true,
        print: false,
    };
    let about_this_host = |l: &String| {
        l.starts_with("postgresql.bin_dir")
            || l.contains("restapi.")
            || l.starts_with("etcd3.hosts")
    };
    let lines: Vec<String> = validate::problems(&local, options)
        .into_iter()
        .filter(|l| !about_this_host(l))
        .collect();
    assert_eq!(lines, Vec::<String>::new());
}
