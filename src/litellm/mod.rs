//! To and from LiteLLM's configuration: manifests beside a `config.yaml` that says the same.
//!
//! - `families`: how LiteLLM calls a type, where it expects a base URL to end, and which variable it reads for a key
//! - `export`: a catalog → a configuration; `keys`: the files of keys beside it
//! - `import`: a configuration → manifests
//!
//! Not its job: deciding when (`cli`, `daemon`). Invariants: no key stands in a configuration or a manifest; what cannot be
//! carried over is named, and its value is not repeated where it may be a secret; the same input gives the same bytes.

mod export;
mod families;
mod import;
mod keys;

pub use self::{
    export::{LiteLlmConfig, export},
    import::{ImportedConfig, LiteLlmError, import},
    keys::{KeyFiles, KeyVariables, found_keys, write_if_changed},
};
