//! TLS: verified against the system's roots and those that the operator adds.

use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime, Utc};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// A file of CA certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    #[error("the file holds no readable certificate\nhint: it must be PEM: -----BEGIN CERTIFICATE-----")]
    Unreadable,
    #[error("certificate {0} of the file is not a usable CA")]
    Unusable(usize),
}

/// The certificates of a PEM file.
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| PemError::Unreadable)?;
    if found.is_empty() {
        return Err(PemError::Unreadable);
    }
    for (index, certificate) in found.iter().enumerate() {
        RootCertStore::empty().add(certificate.clone()).map_err(|_| PemError::Unusable(index + 1))?;
    }
    Ok(found)
}

pub(super) fn config(extra: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    // A machine without roots can still reach plain servers; TLS then fails with a message of its own.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in extra {
        roots.add(certificate)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// When a certificate expires, read from its DER; `None` for anything unexpected.
pub(super) fn not_after(certificate: &[u8]) -> Option<DateTime<Utc>> {
    const SEQUENCE: u8 = 0x30;
    let (_, certificate, _) = element(certificate)?;
    let (tag, body, _) = element(certificate)?;
    let mut rest = (tag == SEQUENCE).then_some(body)?;
    // [0] version (may be absent), serial, algorithm, issuer: then validity.
    if rest.first() == Some(&0xa0) {
        rest = element(rest)?.2;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (tag, validity, _) = element(rest)?;
    (tag == SEQUENCE).then_some(())?;
    let (tag, time, _) = element(element(validity)?.2)?;
    let text = std::str::from_utf8(time).ok()?;
    let text = match tag {
        // UTCTime: years 50 to 99 are of the last century.
        0x17 => format!("{}{text}", if text.get(..2)?.parse::<u8>().ok()? >= 50 { "19" } else { "20" }),
        0x18 => text.to_owned(),
        _ => return None,
    };
    NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok().map(|time| time.and_utc())
}

/// One DER element: tag, content, what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}
