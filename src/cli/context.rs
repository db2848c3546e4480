//! What every command that needs the database stands on: settings, database, keys.

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use anyhow::Context as _;

use catalog::{
    manifest::{self, Build, Severity},
    model::HealthPolicy,
};

use provider::shown;

use super::{Global, OutputFormat, output::Exit};
use crate::{
    backend::{self, Access, Backend},
    checks::{
        key_trial::Trials,
        once::{self, Candidate},
    },
    config::Settings,
    loader::Loader,
    process::memory,
    reconcile::Reconciler,
    source,
    store::StoreError,
};

/// A command's surroundings.
pub struct Context {
    pub settings: Settings,
    pub format: OutputFormat,
    pub backend: Backend,
    /// Manifests that are being read while the database is opened.
    reading: Mutex<Option<JoinHandle<(Loader, Build)>>>,
}

/// Settings with what the command line overrides.
pub fn settings(global: &Global) -> anyhow::Result<Settings> {
    backend::settings(global.config.as_deref(), global.manifests.as_deref(), global.database_url.as_deref())
}

/// Runs a command that needs the database, and stops what it started.
pub fn block_on<F>(global: &Global, access: Access, command: F) -> anyhow::Result<Exit>
where
    F: for<'a> FnOnce(&'a Context) -> Pin<Box<dyn Future<Output = anyhow::Result<Exit>> + 'a>>,
{
    run(global, access, false, command)
}

/// As [`block_on`], for a command that needs all manifests: they are read while the database is opened.
pub fn block_on_reading<F>(global: &Global, access: Access, command: F) -> anyhow::Result<Exit>
where
    F: for<'a> FnOnce(&'a Context) -> Pin<Box<dyn Future<Output = anyhow::Result<Exit>> + 'a>>,
{
    memory::expect_to_end();
    run(global, access, true, command)
}

fn read(root: PathBuf) -> (Loader, Build) {
    let mut loader = Loader::new(root);
    let build = loader.load(true);
    (loader, build)
}

fn run<F>(global: &Global, access: Access, reads: bool, command: F) -> anyhow::Result<Exit>
where
    F: for<'a> FnOnce(&'a Context) -> Pin<Box<dyn Future<Output = anyhow::Result<Exit>> + 'a>>,
{
    let settings = settings(global)?;
    let byok = backend::byok_env();
    let root = settings.manifests.path.clone();
    // Should the database turn out to be closed, the thread ends with the process.
    let reading = Mutex::new(reads.then(|| std::thread::spawn(move || read(root))));
    crate::process::runtime()?.block_on(async {
        let backend = Backend::open(&settings, byok, access).await?;
        if backend.store.is_blank() {
            anstream::eprintln!(
                "note: the database has no tables of providerd yet; \
                 `providerd apply` or `providerd run` will add what is missing"
            );
        }
        let context = Context { settings, format: global.output, backend, reading };
        let result = command(&context).await;
        let closed = context.backend.close().await;
        let exit = result?;
        closed.context("the embedded PostgreSQL did not stop cleanly")?;
        Ok(exit)
    })
}

impl Context {
    pub fn reconciler(&self) -> Reconciler {
        self.reconciler_with(self.settings.health.enabled.then(Arc::default))
    }

    /// With `trials`, declared keys wait for their provider's word before they replace one that works.
    pub fn reconciler_with(&self, trials: Option<Arc<Trials>>) -> Reconciler {
        let (settings, backend) = (&self.settings, &self.backend);
        Reconciler::new(
            backend.store.clone(),
            backend.keyring.clone(),
            backend.resolver.clone(),
            &settings.reconcile,
            settings.keys.require_valid,
            trials,
        )
    }

    /// What there is to check, of rows and of manifests.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn candidates(
        &self,
        build: &Build,
        outer: &HealthPolicy,
    ) -> Result<Vec<Candidate>, StoreError> {
        let backend = &self.backend;
        once::candidates(&backend.store, &backend.keyring, &backend.resolver, build, outer).await
    }

    pub fn root(&self) -> PathBuf {
        self.settings.manifests.path.clone()
    }

    /// What was read while the database was opened is out of date.
    pub fn read_again(&self) {
        drop(self.reading.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Reads the manifests and says on standard error what is wrong with them.
    pub fn load(&self) -> (Loader, Arc<Build>) {
        let (loader, build) = self.load_quietly();
        report(&loader, &build);
        (loader, build)
    }

    /// Reads the manifests; what is wrong with them is the caller's to show.
    pub fn load_quietly(&self) -> (Loader, Arc<Build>) {
        let reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner).take();
        let read = reading.and_then(|thread| thread.join().ok()).unwrap_or_else(|| read(self.root()));
        (read.0, Arc::new(read.1))
    }

    pub fn revision(&self) -> Option<catalog::model::Revision> {
        source::revision(&self.settings.manifests.path)
    }
}

/// Every diagnostic on standard error.
pub fn report(loader: &Loader, build: &Build) {
    if let Some(problem) = loader.problem() {
        anstream::eprintln!("warning: {}", shown::lines(problem));
    }
    let text = manifest::render::human(&build.diagnostics, &|path| loader.text(path), true);
    if !build.diagnostics.is_empty() {
        anstream::eprint!("{}", shown::coloured(&text));
    }
}

/// Whether the manifests are free of errors.
pub fn is_valid(build: &Build) -> bool {
    build.diagnostics.iter().all(|diagnostic| diagnostic.severity != Severity::Error)
}
