//! From the section `egress` to what connections obey.

use anyhow::Context as _;

use net::{NetConfig, certificates_from_pem, egress::EgressPolicy};

use super::Egress;

impl Egress {
    /// What may be reached, through what, and which certificates are trusted.
    ///
    /// # Errors
    /// A file with certificates cannot be read or used.
    pub fn net_config(&self) -> anyhow::Result<NetConfig> {
        let mut extra_ca = Vec::new();
        for path in &self.ca_files {
            let pem = std::fs::read(path)
                .with_context(|| format!("egress.ca_files: {} cannot be read", path.display()))?;
            let found = certificates_from_pem(&pem)
                .with_context(|| format!("egress.ca_files: {} cannot be used", path.display()))?;
            extra_ca.extend(found);
        }
        let policy = EgressPolicy { allow_private: self.allow_private, allow_loopback: self.allow_private };
        Ok(NetConfig { egress: policy, extra_ca, proxy: self.proxy.clone(), ..NetConfig::default() })
    }
}
