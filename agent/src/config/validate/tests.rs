use super::*;
use crate::config::Loader;

const GOOD: &str = "
scope: a
name: b
restapi: {listen: '127.0.0.1:24908', connect_address: '10.0.0.1:8008'}
etcd3: {srv: foo}
postgresql:
  listen: 127.0.0.1:24932
  connect_address: 10.0.0.1
  authentication: {replication: {username: a}, superuser: {username: b}}
  data_dir: /nonexistent/data
";

/// The messages for the file above with a patch over it, without those about missing programs.
fn lines(more: &str) -> Vec<String> {
    let mut doc = yaml::from_str(GOOD).expect("valid");
    if let (Value::Object(doc), Ok(Value::Object(more))) = (&mut doc, yaml::from_str(more)) {
        crate::config::merge::patch(doc, &more);
    }
    let env = [(String::from("PATRONI_CONFIGURATION"), doc.to_string())]
        .into_iter()
        .collect();
    let local = Loader::new(None, env)
        .and_then(|l| l.load_any())
        .expect("loads");
    let options = ValidateOptions {
        ignore_listen_port: true,
        print: false,
    };
    let about_programs = |line: &String| line.starts_with("postgresql.bin_dir  does not contain");
    problems(&local, options)
        .into_iter()
        .filter(|line| !about_programs(line))
        .collect()
}

/// Lines that the released Patroni 4.1 prints for the same values.
#[test]
fn messages_are_patronis() {
    for (more, expected) in [
        ("{}", vec![]),
        (
            "thread_pool_size: 3",
            vec!["thread_pool_size 3 didn't pass validation: Wrong value"],
        ),
        (
            "thread_pool_size: '6'",
            vec!["thread_pool_size 6 is not an integer"],
        ),
        (
            "log: {level: debug}",
            vec!["log.level debug didn't pass validation: Wrong value"],
        ),
        (
            "log: {format: []}",
            vec!["log.format [] didn't pass validation: should contain at least one item"],
        ),
        (
            "log: {mode: 600}",
            vec!["log.mode 600 didn't pass validation: Wrong value"],
        ),
        ("log: []", vec!["log [] is not a dictionary"]),
        (
            "restapi: {connect_address: '127.0.0.1:8008'}",
            vec![
                "restapi.connect_address 127.0.0.1:8008 didn't pass validation: must not contain \"127.0.0.1\", \"0.0.0.0\", \"*\", \"::1\", \"localhost\"",
            ],
        ),
        (
            "restapi: {authentication: {username: a}}",
            vec!["restapi.authentication.password  is not defined."],
        ),
        (
            "restapi: {allowlist: [1]}",
            vec!["restapi.allowlist.0 1 is not a string"],
        ),
        (
            "restapi: {allowlist: []}",
            vec!["restapi.allowlist [] is an empty list"],
        ),
        ("bootstrap: {}", vec!["bootstrap.dcs  is not defined."]),
        (
            "bootstrap: {dcs: {ttl: 10}}",
            vec!["bootstrap.dcs.ttl 10 didn't pass validation: Wrong value"],
        ),
        (
            "bootstrap: {dcs: {ttl: '30', loop_wait: 1.5, synchronous_mode: Quorum, member_slots_ttl: 1h}}",
            vec![],
        ),
        (
            "bootstrap: {dcs: {standby_cluster: {}}}",
            vec![
                "bootstrap.dcs.standby_cluster.host  is not defined.",
                "bootstrap.dcs.standby_cluster.port  is not defined.",
                "bootstrap.dcs.standby_cluster.restore_command  is not defined.",
            ],
        ),
        (
            "etcd3: {srv: null, host: '127.0.0.1:1'}",
            vec!["etcd3.host 127.0.0.1:1 didn't pass validation: 127.0.0.1:1 is not reachable"],
        ),
        (
            "etcd3: {hosts: ['x:y']}",
            vec!["etcd3.hosts.0 x:y didn't pass validation: contains a wrong value"],
        ),
        (
            "etcd3: {srv: null}",
            vec![
                "etcd3.host  is not defined.",
                "etcd3.hosts  is not defined.",
                "etcd3.srv  is not defined.",
                "etcd3.srv_suffix  is not defined.",
                "etcd3.url  is not defined.",
                "etcd3.proxy  is not defined.",
            ],
        ),
        (
            "postgresql: {listen: '*,1.2.3.4:5432'}",
            vec!["postgresql.listen *,1.2.3.4:5432 didn't pass validation: expecting '*' alone"],
        ),
        (
            "postgresql: {data_dir: ''}",
            vec!["postgresql.data_dir  didn't pass validation: is an empty string"],
        ),
        (
            "postgresql: {bin_dir: /nonexistent}",
            vec!["postgresql.bin_dir  Directory '/nonexistent' does not exist."],
        ),
        (
            "watchdog: {mode: auto}",
            vec!["watchdog.mode auto didn't pass validation: Wrong value"],
        ),
        ("watchdog: {mode: off}", vec![]),
        (
            "tags: {nofailover: true, failover_priority: 1, clonefrom: 1}",
            vec![
                "tags  Multiple of ('nofailover', 'failover_priority') provided",
                "tags.clonefrom 1 is not a boolean",
            ],
        ),
    ] {
        assert_eq!(lines(more), expected, "{more}");
    }
}

#[test]
fn what_would_not_start_does_not_pass() {
    for (more, word) in [
        ("restapi: {listen: '127.0.0.1'}", "restapi.listen"),
        ("etcd: {host: a}", "v2"),
        ("name: ''", "name"),
    ] {
        let lines = lines(more);
        assert!(
            lines.len() == 1 && lines.concat().contains(word),
            "{more}: {lines:?}"
        );
    }
}

#[test]
fn a_password_of_the_wrong_type_is_not_shown() {
    let lines = lines("postgresql: {authentication: {superuser: {password: 123456}}}");
    assert_eq!(
        lines,
        ["postgresql.authentication.superuser.password *** is not a string"]
    );
}

#[test]
fn the_printed_document_has_a_bin_dir() {
    let doc = yaml::from_str("postgresql: {listen: x}").expect("valid");
    let text = yaml::to_string(&Value::Object(printed(doc.as_object().expect("mapping"))));
    assert_eq!(text, "postgresql:\n  bin_dir: ''\n  listen: x\n");
}

#[test]
fn secrets_are_hidden_in_what_is_printed() {
    let doc = yaml::from_str(
        "restapi: {auth: 'a:s1', authentication: {username: b, password: s2}, keyfile_password: s3}\n\
         etcd3: {url: 'http://c:s4@s7@d:2379', hosts: ['http://e:2379']}\n\
         postgresql: {authentication: {superuser: {username: f, password: s5, sslpassword: s6}}}",
    );
    let Ok(Value::Object(doc)) = doc else {
        panic!("{doc:?}")
    };
    let text = yaml::to_string(&Value::Object(printed(&doc)));
    for secret in ["s1", "s2", "s3", "s4", "s5", "s6", "s7"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    for shown in [
        "username: b",
        "http://c:***@d:2379",
        "http://e:2379",
        "username: f",
    ] {
        assert!(text.contains(shown), "{shown} in {text}");
    }
}
