//! TLS for everything in this crate that uses rustls directly: the REST server, the REST client and
//! connections to PostgreSQL.
//!
//! rustls' own verifier refuses a certificate that is marked as a CA when it is presented as a leaf.
//! People do run whole set-ups on one self-signed certificate that is CA, server and client at once,
//! and OpenSSL accepts that. So the verifiers here accept, beside what rustls accepts, a leaf that is
//! byte for byte one of the trust anchors, within its validity ([`verify`]).

pub(crate) mod der;
mod verify;

use crate::config::secret::Secret;
use crate::config::{CtlConfig, ServerTls, VerifyClient};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Why a TLS configuration could not be made. Messages name the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file could not be read or holds nothing of the kind.
    #[error("read {what} from {path}: {problem}")]
    Pem {
        /// `certificates` or `private key`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What was wrong.
        problem: String,
    },
    /// An encrypted key, and no way to decrypt it.
    #[error("decrypt private key {path} with the openssl program: {problem}")]
    EncryptedKey {
        /// Which file.
        path: PathBuf,
        /// What was wrong.
        problem: String,
    },
    /// rustls refused the parts.
    #[error("set up TLS")]
    Rustls(#[from] rustls::Error),
}

/// Whom a client trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Everybody: encryption without authentication.
    Anybody,
    /// The system's CAs.
    #[default]
    System,
    /// The CAs of a PEM file, or of all files of a directory.
    Ca(PathBuf),
}

/// TLS of a client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientTls {
    /// Whose certificates are accepted.
    pub trust: Trust,
    /// Accept a trusted certificate for any host name (`sslmode=verify-ca`; calls between agents).
    pub any_host_name: bool,
    /// Client certificate file and key file; without the latter the key is in the former.
    pub certificate: Option<(PathBuf, Option<PathBuf>)>,
    /// Password of the key.
    pub key_password: Option<Secret>,
}

impl ClientTls {
    /// What one agent uses for another (`rest-api.md` 19): nothing is verified, unless a client
    /// certificate is configured: then the chain is, but not the host name.
    pub fn between_agents(ctl: &CtlConfig) -> Self {
        let verified = ctl.certfile.is_some() && !ctl.insecure;
        Self {
            any_host_name: true,
            ..Self::of(ctl, verified)
        }
    }

    /// What an operator's tool uses.
    pub fn for_operator(ctl: &CtlConfig) -> Self {
        Self::of(ctl, !ctl.insecure)
    }

    fn of(ctl: &CtlConfig, verified: bool) -> Self {
        let trust = match &ctl.cacert {
            _ if !verified => Trust::Anybody,
            Some(path) => Trust::Ca(path.clone()),
            None => Trust::System,
        };
        Self {
            trust,
            any_host_name: false,
            certificate: ctl.certfile.clone().map(|cert| (cert, ctl.keyfile.clone())),
            key_password: ctl.keyfile_password.clone(),
        }
    }
}

/// The rustls configuration of a client. Reads the files; blocks for as long as that takes.
pub fn client_config(tls: &ClientTls) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let verifier = match &tls.trust {
        Trust::Anybody => verify::Server::anybody(&provider),
        Trust::System => {
            let anchors = rustls_native_certs::load_native_certs().certs;
            verify::Server::trusting(&provider, anchors, tls.any_host_name)?
        }
        Trust::Ca(path) => verify::Server::trusting(&provider, anchors(path)?, tls.any_host_name)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &tls.certificate {
        Some((cert, key)) => {
            let key_file = key.as_deref().unwrap_or(cert);
            let key = private_key(key_file, tls.key_password.as_ref())?;
            builder.with_client_auth_cert(certificates(cert)?, key)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The rustls configuration of the REST server. Reads the files; blocks for as long as that takes.
pub fn server_config(tls: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match tls.verify_client {
        VerifyClient::None => builder.with_no_client_auth(),
        VerifyClient::Optional | VerifyClient::Required => {
            let anchors = match &tls.cafile {
                Some(path) => anchors(path)?,
                None => rustls_native_certs::load_native_certs().certs,
            };
            let mandatory = tls.verify_client == VerifyClient::Required;
            let verifier = verify::Client::trusting(&provider, anchors, mandatory)?;
            builder.with_client_cert_verifier(Arc::new(verifier))
        }
    };
    let key_file = tls.keyfile.as_deref().unwrap_or(&tls.certfile);
    let key = private_key(key_file, tls.keyfile_password.as_ref())?;
    let mut config = builder.with_single_cert(certificates(&tls.certfile)?, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn pem_error(what: &'static str, path: &Path, problem: impl ToString) -> TlsError {
    TlsError::Pem {
        what,
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "certificates";
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|err| pem_error(what, path, err))?;
    if found.is_empty() {
        Err(pem_error(what, path, "none found"))
    } else {
        Ok(found)
    }
}

/// The certificates of a file, or of those files of a directory that hold some.
fn anchors(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    if !path.is_dir() {
        return certificates(path);
    }
    let what = "certificates";
    let entries = std::fs::read_dir(path).map_err(|err| pem_error(what, path, err))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        found.extend(certificates(&entry.path()).unwrap_or_default());
    }
    if found.is_empty() {
        Err(pem_error(what, path, "none found"))
    } else {
        Ok(found)
    }
}

fn root_store(anchors: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    let (_, refused) = store.add_parsable_certificates(anchors.iter().cloned());
    if store.is_empty() {
        let text = format!("none of {refused} CA certificates can be used");
        return Err(TlsError::Rustls(rustls::Error::General(text)));
    }
    Ok(Arc::new(store))
}

fn private_key(path: &Path, password: Option<&Secret>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "private key";
    let pem = std::fs::read(path).map_err(|err| pem_error(what, path, err))?;
    let encrypted = String::from_utf8_lossy(&pem).lines().any(|line| {
        line.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY")
            || line.starts_with("Proc-Type: 4,ENCRYPTED")
    });
    let pem = match password {
        Some(password) if encrypted => decrypt(path, password)?,
        _ => pem,
    };
    PrivateKeyDer::from_pem_slice(&pem).map_err(|err| pem_error(what, path, err))
}

/// The crates of this program cannot decrypt keys; the openssl program, which every host with
/// PostgreSQL has, can. The password goes through a pipe, so that it shows in no process list.
fn decrypt(path: &Path, password: &Secret) -> Result<Vec<u8>, TlsError> {
    let failed = |problem: String| TlsError::EncryptedKey {
        path: path.to_owned(),
        problem,
    };
    let mut child = Command::new("openssl")
        .args(["pkey", "-passin", "stdin", "-in"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|err| failed(err.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that does not want the password says so by its exit status.
        let _ = writeln!(stdin, "{}", password.reveal());
    }
    let output = child
        .wait_with_output()
        .map_err(|err| failed(err.to_string()))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(failed(
            text.lines().next().unwrap_or("no message").to_owned(),
        ))
    }
}
