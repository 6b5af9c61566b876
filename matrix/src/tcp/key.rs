//! Who is one of us: TLS 1.3 with a secret that all members of an array share, and nobody else has.
//!
//! The secret becomes the seed of an Ed25519 key (HMAC-SHA-256 with [`CONTEXT`]); every member shows its public half as a raw public
//! key (RFC 7250) and accepts exactly that one from its peer, whichever of the two called. So there are no certificates to make,
//! to renew, or to expire. A peer with another key, or none, is refused before it can say anything.
//!
//! The cryptography is `rustls` on `graviola`: Rust and assembly that the Rust compiler assembles, so that the build needs no C
//! compiler; it wants a processor with AES, AVX2 and ADX (or aarch64 with AES).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use graviola::hashing::{Sha256, hmac::Hmac};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName, Error,
    ServerConfig, ServerConnection, SignatureScheme,
};

/// Makes the derived key one of this protocol and no other.
const CONTEXT: &[u8] = b"dyad matrix tcp 1, ed25519";

/// The fewest bytes of a secret.
pub const SECRET_BYTES_MIN: usize = 32;

/// PKCS #8 (RFC 8410, section 7): what stands before the 32 bytes of an Ed25519 seed.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Why a secret is none.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It could be guessed.
    #[error("the secret has {0} bytes; at least {SECRET_BYTES_MIN} random ones are needed (head -c 32 /dev/urandom)")]
    Short(usize),
    /// The cryptography refused it.
    #[error("the secret makes no key")]
    Unusable,
}

/// What a provider shows its peers and wants to see of them. Clones are the same key.
#[derive(Clone)]
pub struct Key {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Key {
    /// The key that everybody has who has `secret`.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError::Short(secret.len()));
        }
        let mut hmac = Hmac::<Sha256>::new(secret);
        hmac.update(CONTEXT);
        let der = [&PKCS8[..], hmac.finish().as_ref()].concat();
        Self::from_pkcs8(der).map_err(|_| KeyError::Unusable)
    }

    fn from_pkcs8(der: Vec<u8>) -> Result<Self, Error> {
        let provider = Arc::new(rustls_graviola::default_provider());
        let private = provider.key_provider.load_private_key(PrivatePkcs8KeyDer::from(der).into())?;
        let public = private.public_key().ok_or_else(|| Error::General("a key without its public half".to_owned()))?;
        let shown = CertificateDer::from(public.to_vec());
        let verifier = Arc::new(OneOfUs { key: shown.clone(), provider: Arc::clone(&provider) });
        let certified = Arc::new(CertifiedKey::new(vec![shown], private));
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<OneOfUs>::clone(&verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&certified))));
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
        server.send_tls13_tickets = 0;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    /// Our end of a connection that we made.
    pub(super) fn call(&self, to: IpAddr) -> Option<Connection> {
        ClientConnection::new(Arc::clone(&self.client), ServerName::from(to)).ok().map(Connection::from)
    }

    /// Our end of a connection that somebody else made.
    pub(super) fn take(&self) -> Option<Connection> {
        ServerConnection::new(Arc::clone(&self.server)).ok().map(Connection::from)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

/// Knows one key.
#[derive(Debug)]
struct OneOfUs {
    key: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl OneOfUs {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if *shown == self.key {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let public = SubjectPublicKeyInfoDer::from(shown.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &public, signed, algorithms)
    }
}

impl ServerCertVerifier for OneOfUs {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for OneOfUs {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_enough_or_refused() {
        assert_eq!(Key::from_secret(&[7; 31]).unwrap_err(), KeyError::Short(31));
        Key::from_secret(&[7; 32]).unwrap();
    }
}
