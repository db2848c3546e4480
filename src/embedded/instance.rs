//! placeholder
use std::path::{Path, PathBuf};

use super::EmbeddedError;

#[derive(Debug, Clone)]
pub struct Instance;

impl Instance {
    pub fn start(_state_dir: &Path) -> Result<Self, EmbeddedError> {
        Err(EmbeddedError::NoUnprivilegedUser)
    }
    pub fn revive(&self) -> Result<bool, EmbeddedError> {
        Ok(false)
    }
    pub fn stop(self) -> Result<bool, EmbeddedError> {
        Ok(false)
    }
    pub fn url(&self) -> String {
        String::new()
    }
    pub fn data_dir(&self) -> &Path {
        Path::new("")
    }
    pub fn base_dir(&self) -> &Path {
        Path::new("")
    }
    pub fn log_path(&self) -> PathBuf {
        PathBuf::new()
    }
    pub fn was_running(&self) -> bool {
        false
    }
    pub fn initialised(&self) -> bool {
        false
    }
}
