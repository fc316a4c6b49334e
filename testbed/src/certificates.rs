//! Certificates of private authorities. A service that speaks TLS here has one that no system trusts, as in a company's
//! own network.

use std::path::Path;

use anyhow::Result;

use crate::folder;

#[cfg(feature = "stack")]
mod authority;

#[cfg(feature = "stack")]
pub use authority::Authority;

/// A certificate, its key (PKCS#8) and the certificate of the authority that signed it, as PEM text.
#[derive(Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
    pub authority: String,
}

impl Pair {
    /// Writes certificate and key, each to a file that only this user may read.
    pub fn write(&self, certificate: &Path, key: &Path) -> Result<()> {
        folder::write_private(certificate, &self.certificate)?;
        folder::write_private(key, &self.key)
    }
}
