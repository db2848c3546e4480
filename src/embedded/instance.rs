//! One process's use of the embedded server: the locks, and the order of things.
//!
//! Two lock files, both released by the kernel when a process dies:
//! - `start.lock`, exclusive: held while starting or stopping, so that two processes never do so at once;
//! - `users.lock`, shared: held as long as a process uses the server; the process that can make it exclusive is the
//!   last user and may stop the server.

use std::{
    path::{Path, PathBuf},
    process::Child,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    EmbeddedError, binaries, cluster,
    lock::Lock,
    place::ClusterPlace,
    server::{self, Running},
    wire,
};

/// How often the log's size is looked at, and a dead server's process reaped.
const UPKEEP: Duration = Duration::from_secs(30);

/// A running server and this process's claim on it. Clones share both.
#[derive(Debug, Clone)]
pub struct Instance {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    place: ClusterPlace,
    data: PathBuf,
    sockets: PathBuf,
    was_running: bool,
    initialised: bool,
    users: Lock,
    child: Mutex<Option<Child>>,
    /// `stop` was called: it succeeded or its caller knows better.
    released: AtomicBool,
}

impl Inner {
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        // The value is a process's handle: no panic can leave it half changed.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the start lock.
    fn stop(&self) -> Result<bool, EmbeddedError> {
        if !self.users.try_upgrade() {
            return Ok(false);
        }
        let child = self.child().take();
        server::stop(&self.place, child)
    }
}

impl Drop for Inner {
    /// For the ways out that do not come past `stop`: an early return, a panic, a start that was not waited
    /// for.
    fn drop(&mut self) {
        if *self.released.get_mut() {
            return;
        }
        // The process that is starting or stopping at this moment takes care of it.
        if let Ok(Some(_stopping)) = Lock::try_exclusive(&self.place, &self.place.start_lock()) {
            let _ = self.stop();
        }
    }
}

impl Instance {
    pub fn start(state_dir: &Path) -> Result<Self, EmbeddedError> {
        let place = ClusterPlace::prepare(state_dir)?;
        let data = place.data();
        let _starting = Lock::exclusive(&place, &place.start_lock())?;
        let users = Lock::shared(&place, &place.users_lock())?;

        let version = cluster::version(&data)?;
        let binaries = binaries::choose(version.map(|major| (data.as_path(), major)))?;
        let initialised = version.is_none();
        if initialised {
            cluster::create(&place, &binaries)?;
        }
        let Running { child, sockets } = ensure(&place, &binaries, &users)?;
        let was_running = child.is_none();
        let inner = Inner {
            place,
            data,
            sockets,
            was_running,
            initialised,
            users,
            child: Mutex::new(child),
            released: AtomicBool::new(false),
        };
        let instance = Self { inner: Arc::new(inner) };
        keep_up(Arc::downgrade(&instance.inner));
        Ok(instance)
    }

    pub fn revive(&self) -> Result<bool, EmbeddedError> {
        let Inner { data, users, sockets, .. } = &*self.inner;
        // A server that was taken over may have had its socket elsewhere; the URL is out and must stay true.
        let place = &ClusterPlace { sockets: sockets.clone(), ..self.inner.place.clone() };
        let _starting = Lock::exclusive(place, &place.start_lock())?;
        server::reap(&mut self.inner.child());
        let version = cluster::version(data)?;
        let binaries = binaries::choose(version.map(|major| (data.as_path(), major)))?;
        let running = ensure(place, &binaries, users)?;
        let started = running.child.is_some();
        if started {
            *self.inner.child() = running.child;
        }
        Ok(started)
    }

    pub fn stop(self) -> Result<bool, EmbeddedError> {
        let place = &self.inner.place;
        self.inner.released.store(true, Ordering::Relaxed);
        let _stopping = Lock::exclusive(place, &place.start_lock())?;
        self.inner.stop()
    }

    pub fn url(&self) -> String {
        let host = self.inner.sockets.to_string_lossy();
        let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("host", &host).finish();
        format!("postgres://{role}@localhost/{role}?{query}", role = wire::ROLE)
    }

    pub fn data_dir(&self) -> &Path {
        &self.inner.data
    }

    pub fn base_dir(&self) -> &Path {
        &self.inner.place.base
    }

    pub fn log_path(&self) -> PathBuf {
        self.inner.place.log()
    }

    pub fn was_running(&self) -> bool {
        self.inner.was_running
    }

    pub fn initialised(&self) -> bool {
        self.inner.initialised
    }
}

/// Under the start lock. A server that is of no use is replaced only if this process is its one user.
fn ensure(
    place: &ClusterPlace,
    binaries: &binaries::Binaries,
    users: &Lock,
) -> Result<Running, EmbeddedError> {
    let running = server::ensure(place, binaries, || users.try_upgrade());
    // Trying to be alone may have changed or lost the claim; no other process can have one without the start
    // lock, so taking it back cannot fail for long.
    users.share()?;
    running
}

fn keep_up(inner: Weak<Inner>) {
    let upkeep = move || loop {
        thread::sleep(UPKEEP);
        let Some(inner) = inner.upgrade() else { return };
        server::reap(&mut inner.child());
        server::bound_log(&inner.place);
    };
    // Without it the log is still cut at every start, and the next start or stop reaps.
    let _ = thread::Builder::new().name("postgres-upkeep".to_owned()).spawn(upkeep);
}
