//! TLS of the REST server and client, with certificates made on the spot.

mod rest_support;

use garden_agent::config::{AgentConfig, ServerTls, VerifyClient};
use garden_agent::http::{HttpClient, HttpError, HttpOptions};
use garden_agent::tls::{ClientTls, Trust};
use hyper::Method;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rest_support::{Server, config, leader};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);
const RECORDS: &[(&str, &str)] = &[("leader", "gd-a"), ("config", "{}")];

/// A folder for one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("garden-rest-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("folder");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// One self-signed certificate that is marked as a CA: CA, server and client at once.
fn self_signed(
    folder: &Folder,
    name: &str,
    edit: impl FnOnce(&mut CertificateParams),
) -> (PathBuf, PathBuf) {
    let mut params = params("batman.patroni", &["127.0.0.1"]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    edit(&mut params);
    let key = KeyPair::generate().expect("key");
    let cert = params.self_signed(&key).expect("certificate");
    (
        folder.write(&format!("{name}.crt"), &cert.pem()),
        folder.write(&format!("{name}.key"), &key.serialize_pem()),
    )
}

fn tls(
    config: &mut AgentConfig,
    cert: &(PathBuf, PathBuf),
    ca: Option<&PathBuf>,
    verify: VerifyClient,
) {
    config.restapi.tls = Some(ServerTls {
        certfile: cert.0.clone(),
        keyfile: Some(cert.1.clone()),
        keyfile_password: None,
        cafile: ca.cloned(),
        ciphers: None,
        verify_client: verify,
    });
}

async fn ask(
    server: &Server,
    host: &str,
    method: Method,
    path: &str,
    tls: ClientTls,
) -> Result<u16, HttpError> {
    let client = HttpClient::new(&HttpOptions {
        authentication: None,
        tls,
    })
    .expect("client");
    let url = format!("https://{host}:{}{path}", server.address.port());
    Ok(client
        .request(method, &url, None, LIMIT)
        .await?
        .status
        .as_u16())
}

fn trusting(ca: &std::path::Path) -> ClientTls {
    ClientTls {
        trust: Trust::Ca(ca.to_path_buf()),
        ..ClientTls::default()
    }
}

fn presenting(cert: &(PathBuf, PathBuf), tls: ClientTls) -> ClientTls {
    ClientTls {
        certificate: Some((cert.0.clone(), Some(cert.1.clone()))),
        ..tls
    }
}

#[tokio::test]
async fn one_self_signed_ca_serves_as_server_and_client_certificate() {
    let folder = Folder::new("self");
    let cert = self_signed(&folder, "one", |_| ());
    let other = self_signed(&folder, "other", |_| ());
    let required = config(|c| tls(c, &cert, Some(&cert.0), VerifyClient::Required));
    let server = Server::start(required, RECORDS, leader).await;
    let mutual = || presenting(&cert, trusting(&cert.0));
    assert_eq!(
        ask(&server, "127.0.0.1", Method::GET, "/primary", mutual())
            .await
            .expect("answer"),
        200
    );
    assert_eq!(
        ask(&server, "127.0.0.1", Method::POST, "/sigterm", mutual())
            .await
            .expect("answer"),
        202
    );
    let without = ask(
        &server,
        "127.0.0.1",
        Method::GET,
        "/primary",
        trusting(&cert.0),
    )
    .await;
    assert!(without.is_err(), "a certificate is required: {without:?}");
    let foreign = presenting(&other, trusting(&cert.0));
    assert!(
        ask(&server, "127.0.0.1", Method::GET, "/primary", foreign)
            .await
            .is_err()
    );
    let wrong_ca = presenting(&cert, trusting(&other.0));
    assert!(
        ask(&server, "127.0.0.1", Method::GET, "/primary", wrong_ca)
            .await
            .is_err()
    );
    let wrong_name = ask(&server, "localhost", Method::GET, "/primary", mutual()).await;
    assert!(
        wrong_name.is_err(),
        "the certificate is for 127.0.0.1: {wrong_name:?}"
    );
    let any_name = ClientTls {
        any_host_name: true,
        ..mutual()
    };
    assert_eq!(
        ask(&server, "localhost", Method::GET, "/primary", any_name)
            .await
            .expect("answer"),
        200
    );
    let blind = presenting(
        &cert,
        ClientTls {
            trust: Trust::Anybody,
            ..ClientTls::default()
        },
    );
    assert_eq!(
        ask(&server, "127.0.0.1", Method::GET, "/primary", blind)
            .await
            .expect("answer"),
        200
    );
}

#[tokio::test]
async fn an_anchor_that_has_expired_is_refused_on_both_sides() {
    let folder = Folder::new("expired");
    let old = self_signed(&folder, "old", |p| {
        p.not_before = date_time_ymd(2020, 1, 1);
        p.not_after = date_time_ymd(2021, 1, 1);
    });
    let future = self_signed(&folder, "future", |p| {
        p.not_before = date_time_ymd(2060, 1, 1);
        p.not_after = date_time_ymd(2061, 1, 1);
    });
    for bad in [&old, &future] {
        let plain = config(|c| tls(c, bad, None, VerifyClient::None));
        let server = Server::start(plain, RECORDS, leader).await;
        assert!(
            ask(
                &server,
                "127.0.0.1",
                Method::GET,
                "/primary",
                trusting(&bad.0)
            )
            .await
            .is_err()
        );
    }
    let good = self_signed(&folder, "good", |_| ());
    let required = config(|c| tls(c, &good, Some(&old.0), VerifyClient::Required));
    let server = Server::start(required, RECORDS, leader).await;
    let client = presenting(&old, trusting(&good.0));
    assert!(
        ask(&server, "127.0.0.1", Method::GET, "/primary", client)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_ordinary_chain_works_and_optional_certificates_guard_unsafe_requests() {
    let folder = Folder::new("chain");
    let mut ca_params = params("ca", &[]);
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("key");
    let ca_cert = ca_params.self_signed(&ca_key).expect("certificate");
    let ca = folder.write("ca.crt", &ca_cert.pem());
    let issuer = Issuer::new(ca_params, ca_key);
    let leaf = |name: &str| {
        let key = KeyPair::generate().expect("key");
        let cert = params(name, &["127.0.0.1"])
            .signed_by(&key, &issuer)
            .expect("certificate");
        // Certificate and key in one file, as `certfile` without `keyfile` has it.
        let both = format!("{}{}", cert.pem(), key.serialize_pem());
        let path = folder.write(&format!("{name}.pem"), &both);
        (path.clone(), path)
    };
    let (server_cert, client_cert) = (leaf("server"), leaf("client"));
    let optional = config(|c| {
        tls(c, &server_cert, Some(&ca), VerifyClient::Optional);
        if let Some(tls) = &mut c.restapi.tls {
            tls.keyfile = None;
        }
        c.restapi
            .https_extra_headers
            .insert("Strict".into(), "yes".into());
    });
    let server = Server::start(optional, RECORDS, leader).await;
    let anonymous = || trusting(&ca);
    let known = || presenting(&client_cert, trusting(&ca));
    assert_eq!(
        ask(&server, "127.0.0.1", Method::GET, "/primary", anonymous())
            .await
            .expect("answer"),
        200
    );
    assert_eq!(
        ask(&server, "127.0.0.1", Method::POST, "/sigterm", anonymous())
            .await
            .expect("answer"),
        403
    );
    assert_eq!(
        ask(&server, "127.0.0.1", Method::POST, "/sigterm", known())
            .await
            .expect("answer"),
        202
    );
    let foreign = self_signed(&folder, "foreign", |_| ());
    assert!(
        ask(
            &server,
            "127.0.0.1",
            Method::GET,
            "/primary",
            presenting(&foreign, anonymous())
        )
        .await
        .is_err()
    );
    let system = ask(
        &server,
        "127.0.0.1",
        Method::GET,
        "/primary",
        ClientTls::default(),
    )
    .await;
    assert!(system.is_err(), "the system does not know this CA");
    let folder_of_cas = ClientTls {
        trust: Trust::Ca(folder.0.clone()),
        ..ClientTls::default()
    };
    assert_eq!(
        ask(&server, "127.0.0.1", Method::GET, "/primary", folder_of_cas)
            .await
            .expect("answer"),
        200
    );
}

#[tokio::test]
async fn a_new_certificate_is_used_after_a_reload_and_a_broken_one_is_not() {
    let folder = Folder::new("reload");
    let first = self_signed(&folder, "server", |_| ());
    let first_ca = folder.write(
        "first.crt",
        &std::fs::read_to_string(&first.0).expect("text"),
    );
    let plain = config(|c| tls(c, &first, None, VerifyClient::None));
    let server = Server::start(plain.clone(), RECORDS, leader).await;
    assert_eq!(
        ask(
            &server,
            "127.0.0.1",
            Method::GET,
            "/primary",
            trusting(&first_ca)
        )
        .await
        .expect("answer"),
        200
    );

    folder.write("server.crt", "no certificate");
    server
        .config
        .send_replace(Arc::new(AgentConfig::clone(&plain)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        ask(
            &server,
            "127.0.0.1",
            Method::GET,
            "/primary",
            trusting(&first_ca)
        )
        .await
        .expect("answer"),
        200
    );

    let second = self_signed(&folder, "server", |_| ());
    server.config.send_replace(plain);
    assert_eq!(asked_until_answered(&server, &second.0).await, Ok(200));
}

/// Asks until the answer is there, for what the server does in its own time.
async fn asked_until_answered(server: &Server, ca: &std::path::Path) -> Result<u16, String> {
    let mut result = Err(String::new());
    for _ in 0..150 {
        let answer = ask(server, "127.0.0.1", Method::GET, "/primary", trusting(ca)).await;
        result = answer.map_err(|err| err.to_string());
        if result.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    result
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_reload() {
    let folder = Folder::new("renewed");
    let first = self_signed(&folder, "server", |_| ());
    let first_ca = folder.write(
        "first.crt",
        &std::fs::read_to_string(&first.0).expect("text"),
    );
    let plain = config(|c| tls(c, &first, None, VerifyClient::None));
    let server = Server::start(plain, RECORDS, leader).await;
    assert_eq!(asked_until_answered(&server, &first_ca).await, Ok(200));
    let second = self_signed(&folder, "server", |_| ());
    assert_eq!(asked_until_answered(&server, &second.0).await, Ok(200));
}

/// The task that looks at the files has not run yet: nothing has been awaited since the start.
#[tokio::test]
async fn a_certificate_that_is_renewed_during_the_start_is_used() {
    let folder = Folder::new("early");
    let first = self_signed(&folder, "server", |_| ());
    let plain = config(|c| tls(c, &first, None, VerifyClient::None));
    let server = Server::start(plain, RECORDS, leader).await;
    let second = self_signed(&folder, "server", |_| ());
    assert_eq!(asked_until_answered(&server, &second.0).await, Ok(200));
}

#[tokio::test]
async fn an_encrypted_key_is_read_with_its_password() {
    let available = std::process::Command::new("openssl")
        .arg("version")
        .output();
    if !available.is_ok_and(|output| output.status.success()) {
        return;
    }
    let folder = Folder::new("encrypted");
    let (cert, key) = self_signed(&folder, "plain", |_| ());
    let encrypted = folder.0.join("encrypted.key");
    let made = std::process::Command::new("openssl")
        .args(["pkcs8", "-topk8", "-passout", "pass:secret", "-in"])
        .arg(&key)
        .arg("-out")
        .arg(&encrypted)
        .status()
        .expect("openssl runs");
    assert!(made.success());
    let tls = |password: &str| ServerTls {
        certfile: cert.clone(),
        keyfile: Some(encrypted.clone()),
        keyfile_password: Some(garden_agent::config::secret::Secret::new(password)),
        cafile: None,
        ciphers: None,
        verify_client: VerifyClient::None,
    };
    assert!(garden_agent::tls::server_config(&tls("secret")).is_ok());
    let wrong = garden_agent::tls::server_config(&tls("wrong")).expect_err("wrong password");
    assert!(
        wrong.to_string().starts_with("decrypt private key"),
        "{wrong}"
    );
}
