//! TLS towards etcd, by rustls: `etcd3.cacert`, `etcd3.cert`, `etcd3.key` (`dcs-layout.md` 10).

use super::error::EtcdError;
use crate::config::EtcdConfig;
use base64::Engine;
use etcd_client::{Certificate, Identity, TlsOptions};
use std::path::Path;
use std::time::Duration;

/// Longest TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);

/// What `https` endpoints are talked to with. Read once, at the start: a file that is missing should
/// be found then, not at the first failover.
///
/// Without `cacert` the system's roots count. A `cert` without `key` holds both.
pub(crate) fn options(config: &EtcdConfig) -> Result<TlsOptions, EtcdError> {
    let mut tls = TlsOptions::new()
        .timeout(HANDSHAKE_LIMIT)
        .assume_http2(true);
    tls = match &config.cacert {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read("cacert", path)?)),
        None => tls.ca_certificates(system_roots()),
    };
    match (&config.cert, &config.key) {
        (Some(cert), key) => {
            let chain = read("cert", cert)?;
            let key = key
                .as_ref()
                .map_or(Ok(chain.clone()), |path| read("key", path))?;
            Ok(tls.identity(Identity::from_pem(chain, key)))
        }
        (None, Some(_)) => Err(EtcdError::KeyWithoutCert),
        (None, None) => Ok(tls),
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path).map_err(|source| EtcdError::TlsFile {
        setting,
        path: path.to_owned(),
        source,
    })
}

/// The system's certificate authorities. The client library takes PEM only.
fn system_roots() -> Vec<Certificate> {
    let loaded = rustls_native_certs::load_native_certs();
    loaded
        .certs
        .iter()
        .map(|der| {
            let body = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
            let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
            for line in body.as_bytes().chunks(64) {
                pem.push_str(&String::from_utf8_lossy(line));
                pem.push('\n');
            }
            pem.push_str("-----END CERTIFICATE-----\n");
            Certificate::from_pem(pem)
        })
        .collect()
}
