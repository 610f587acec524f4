//! The certificate verifiers of both sides.

use super::{TlsError, der, root_store};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// A leaf that is itself a trust anchor is trusted as one, while it is valid. OpenSSL does the same.
fn check_anchor(
    anchors: &[CertificateDer<'static>],
    leaf: &CertificateDer<'_>,
    now: UnixTime,
) -> Option<Result<(), Error>> {
    anchors
        .iter()
        .find(|anchor| anchor.as_ref() == leaf.as_ref())?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let problem = match der::validity(leaf) {
        None => CertificateError::BadEncoding,
        Some((begin, _)) if now < begin => CertificateError::NotValidYet,
        Some((_, end)) if now > end => CertificateError::Expired,
        Some(_) => return Some(Ok(())),
    };
    Some(Err(Error::InvalidCertificate(problem)))
}

macro_rules! check_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, cert, dss, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

/// Judges a server's certificate.
#[derive(Debug)]
pub(super) struct Server {
    provider: Arc<CryptoProvider>,
    anchors: Vec<CertificateDer<'static>>,
    /// `None`: everybody is trusted.
    chain: Option<Arc<WebPkiServerVerifier>>,
    any_host_name: bool,
}

impl Server {
    /// Accepts every certificate whose key the server holds.
    pub(super) fn anybody(provider: &Arc<CryptoProvider>) -> Self {
        Self {
            provider: provider.clone(),
            anchors: Vec::new(),
            chain: None,
            any_host_name: true,
        }
    }

    /// Accepts what leads to one of the anchors.
    pub(super) fn trusting(
        provider: &Arc<CryptoProvider>,
        anchors: Vec<CertificateDer<'static>>,
        any_host_name: bool,
    ) -> Result<Self, TlsError> {
        let roots = root_store(&anchors)?;
        let chain = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|err| Error::General(err.to_string()))?;
        Ok(Self {
            provider: provider.clone(),
            anchors,
            chain: Some(chain),
            any_host_name,
        })
    }
}

/// rustls looks at the name last, so whatever else was wrong has been reported instead.
fn only_the_name(err: &Error) -> bool {
    matches!(
        err,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        if let Some(verdict) = check_anchor(&self.anchors, leaf, now) {
            verdict?;
            if !self.any_host_name {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chain.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            Err(err) if self.any_host_name && only_the_name(&err) => {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    check_signatures!();
}

/// Judges a client's certificate.
#[derive(Debug)]
pub(super) struct Client {
    provider: Arc<CryptoProvider>,
    anchors: Vec<CertificateDer<'static>>,
    chain: Arc<dyn ClientCertVerifier>,
    mandatory: bool,
}

impl Client {
    /// Accepts what leads to one of the anchors; without `mandatory` also no certificate at all.
    pub(super) fn trusting(
        provider: &Arc<CryptoProvider>,
        anchors: Vec<CertificateDer<'static>>,
        mandatory: bool,
    ) -> Result<Self, TlsError> {
        let roots = root_store(&anchors)?;
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|err| Error::General(err.to_string()))?;
        Ok(Self {
            provider: provider.clone(),
            anchors,
            chain,
            mandatory,
        })
    }
}

impl ClientCertVerifier for Client {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match check_anchor(&self.anchors, leaf, now) {
            Some(verdict) => verdict.map(|()| ClientCertVerified::assertion()),
            None => self.chain.verify_client_cert(leaf, intermediates, now),
        }
    }

    check_signatures!();
}
