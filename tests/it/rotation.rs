//! Storing all keys anew under another BYOK key, while everything goes on and whatever is killed.
#![allow(clippy::disallowed_methods, reason = "tests spawn tasks of their own")]

use std::{
    collections::BTreeMap,
    process::Child,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fernet::{Fernet, MultiFernet};
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::support::{
    lab::{BYOK, Lab, PATIENCE, value},
    python::python,
};

const KEY: &str = "fake-key-that-is-not-real-4711";

/// Fernet key that nobody uses: 32 times `B`.
const NEW: &str = "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_is_killed_again_and_again_comes_to_its_end() {
    const COUNT: usize = 40;
    let lab = Lab::new().await;
    let text: String = (0..COUNT)
        .map(|index| {
            format!("[providers.p{index}]\ntype = \"openai\"\napi_key = {{ env = \"LAB_KEY_{index}\" }}\n")
        })
        .collect();
    lab.write("a.toml", &text);
    let command = |args: &[&str], byok: &str| {
        let mut command = lab.command(args);
        command.env("BYOK_ENCRYPTION_KEY", byok);
        command.envs((0..COUNT).map(|index| (format!("LAB_KEY_{index}"), format!("{KEY}-{index}"))));
        command
    };
    let both = format!("{NEW},{BYOK}");
    let code = |args: &[&str], byok: &str| command(args, byok).output().unwrap().status.code().unwrap();
    assert_eq!(code(&["apply"], BYOK), 0);
    let stamps = "SELECT string_agg(name || updated_at || coalesce(api_key_updated_at::text, ''), ',' ORDER BY name) FROM llm_providers";
    let before = lab.value(stamps).await;
    // A row that no manifest names, whose two columns hold tokens of their own.
    let token = || Fernet::new(BYOK).unwrap().encrypt(format!("{KEY}-x").as_bytes());
    let insert = format!(
        "INSERT INTO llm_providers (name, type, api_key_encrypted) VALUES ('px', 'openai', '{}');
         SET providerd.applying TO 'on';
         UPDATE llm_providers SET encrypted_api_key = '{}' WHERE name = 'px'",
        token(),
        token()
    );
    lab.execute(&insert).await;
    let before = format!(
        "{before},{}",
        lab.value(&stamps.replace("llm_providers", "llm_providers WHERE name = 'px'")).await
    );

    let rotated = "SELECT count(*) FROM providerd.events WHERE detail ->> 'action' = 'rotate'";
    for wanted in [1, 10, 25] {
        let mut child = command(&["key", "rotate"], &both).spawn().unwrap();
        while lab.value(rotated).await.parse::<usize>().unwrap() < wanted
            && child.try_wait().unwrap().is_none()
        {}
        let _ = child.kill();
        child.wait().unwrap();
        // Half-way, both keys are needed, and with both everything opens.
        assert_eq!(code(&["key", "verify"], &both), 0);
        assert_eq!(code(&["plan"], &both), 0);
    }
    assert_eq!(code(&["key", "rotate"], &both), 0);
    assert_eq!(lab.value(rotated).await, (COUNT + 1).to_string(), "each key once");
    assert_eq!(code(&["key", "verify"], NEW), 0, "the new key alone is enough");
    assert_eq!(code(&["plan"], NEW), 0);
    assert_eq!(code(&["plan"], BYOK), 1, "the former key is out");
    assert_eq!(lab.value(stamps).await, before);
    let fernet = Fernet::new(NEW).unwrap();
    let mut connection = lab.connect().await;
    for row in sqlx::query("SELECT name, api_key_encrypted, encrypted_api_key FROM llm_providers")
        .fetch_all(&mut connection)
        .await
        .unwrap()
    {
        let (name, first, second): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        assert!(first == second || name == "px", "{name}");
        assert_eq!(fernet.decrypt(&first).unwrap(), fernet.decrypt(&second).unwrap(), "{name}");
        let key = format!("{KEY}-{}", name.trim_start_matches('p'));
        assert_eq!(fernet.decrypt(&first).unwrap(), key.as_bytes(), "{name}");
    }
}

/// What `key rotate` waits at, in the database itself, once it has stored `allowed` keys anew: before the row is changed,
/// before the audit row, or in the middle of COMMIT.
const GATE: &str = "
    CREATE TABLE public.gate (place text, allowed int);
    INSERT INTO public.gate VALUES ('none', 0);
    CREATE FUNCTION public.gate() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE rotated int; BEGIN
        SELECT count(*) INTO rotated FROM providerd.events WHERE detail->>'action' = 'rotate';
        IF EXISTS (SELECT FROM public.gate WHERE place = TG_ARGV[0] AND rotated >= allowed + (place = 'commit')::int) THEN
            PERFORM pg_advisory_xact_lock(4711);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER gate BEFORE UPDATE ON llm_providers FOR EACH ROW
        WHEN (current_setting('providerd.applying', true) = 'on') EXECUTE FUNCTION public.gate('update');
    CREATE TRIGGER gate BEFORE INSERT ON providerd.events FOR EACH ROW
        WHEN (NEW.detail->>'action' = 'rotate') EXECUTE FUNCTION public.gate('audit');
    CREATE CONSTRAINT TRIGGER late_gate AFTER UPDATE ON llm_providers DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        WHEN (current_setting('providerd.applying', true) = 'on') EXECUTE FUNCTION public.gate('commit')";

/// The backend that stands at the gate.
const WAITING: &str = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted";

/// Every stored token by provider, both columns.
async fn tokens(connection: &mut PgConnection) -> BTreeMap<String, [String; 2]> {
    let rows = sqlx::query("SELECT name, api_key_encrypted, encrypted_api_key FROM llm_providers")
        .fetch_all(connection)
        .await
        .unwrap();
    rows.iter().map(|row| (row.get(0), [row.get(1), row.get(2)])).collect()
}

/// What an independent reader with these keys finds; `None` where it cannot open a token.
fn opened(keys: &str, stored: &BTreeMap<String, [String; 2]>) -> BTreeMap<String, Option<String>> {
    let all: Vec<String> = stored.values().flatten().cloned().collect();
    let texts = python(keys, &all, &[]).texts;
    let both = texts.chunks(2).map(|both| if both[0] == both[1] { both[0].clone() } else { None });
    stored.keys().cloned().zip(both).collect()
}

async fn until(connection: &mut PgConnection, sql: &str, fits: impl Fn(&str) -> bool, child: &mut Child) {
    let started = Instant::now();
    while !fits(&value(connection, sql).await) {
        let ended = child.try_wait().unwrap();
        assert!(started.elapsed() < PATIENCE, "never: {sql} ({ended:?})");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_under_load_it_loses_no_key() {
    const COUNT: usize = 10;
    let lab = Lab::new().await;
    lab.write("z.toml", "[providers.z]\ntype = \"openai\"\napi_key = { env = \"LAB_KEY\" }\n");
    let command = |args: &[&str], byok: &str| {
        let mut command = lab.command(args);
        command.env("BYOK_ENCRYPTION_KEY", byok).env("LAB_KEY", format!("{KEY}-z"));
        command
    };
    let both = format!("{NEW},{BYOK}");
    let code = |args: &[&str], byok: &str| command(args, byok).output().unwrap().status.code().unwrap();
    assert_eq!(code(&["apply"], BYOK), 0);
    let (old, new) = (Fernet::new(BYOK).unwrap(), Fernet::new(NEW).unwrap());
    for name in (0..COUNT).map(|index| format!("s{index:02}")).chain(["w0".into(), "w1".into()]) {
        let token = old.encrypt(format!("{KEY}-{name}").as_bytes());
        lab.execute(&format!(
            "INSERT INTO llm_providers (name, type, api_key_encrypted) VALUES ('{name}', 'openai', '{token}')"
        ))
        .await;
    }
    lab.execute(GATE).await;
    let mut daemon = lab.daemon_with(|daemon| {
        daemon.env("BYOK_ENCRYPTION_KEY", &both).env("LAB_KEY", format!("{KEY}-z"));
    });
    daemon.wait_ready().await;

    // Before: what a program in Python with the former key reads.
    let mut connection = lab.connect().await;
    let before = opened(BYOK, &tokens(&mut connection).await);
    assert!(before.values().all(Option::is_some) && before.len() == COUNT + 3, "{before:?}");

    // Meanwhile a program that knows the former key alone goes on storing keys, and others read all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let last: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let (reads, writes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut writer = lab.connect().await;
    let storing = tokio::spawn({
        let (stop, last, writes) = (stop.clone(), last.clone(), writes.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let turn = writes.fetch_add(1, Ordering::Relaxed);
                let (name, key) = (format!("w{}", turn % 2), format!("{KEY}-turn-{turn}"));
                let token = Fernet::new(BYOK).unwrap().encrypt(key.as_bytes());
                sqlx::query("UPDATE llm_providers SET api_key_encrypted = $1 WHERE name = $2")
                    .bind(token)
                    .bind(&name)
                    .execute(&mut writer)
                    .await
                    .unwrap();
                last.lock().unwrap().insert(name, key);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let reading: Vec<_> = [[NEW, BYOK], [BYOK, NEW]]
        .into_iter()
        .map(|keys| {
            let (stop, reads, url, before) = (stop.clone(), reads.clone(), lab.url.clone(), before.clone());
            tokio::spawn(async move {
                let fernet = MultiFernet::new(keys.iter().map(|key| Fernet::new(key).unwrap()).collect());
                let mut connection = PgConnection::connect(&url).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    for (name, stored) in tokens(&mut connection).await {
                        for token in stored {
                            let key = String::from_utf8(fernet.decrypt(&token).unwrap()).unwrap();
                            assert!(name.starts_with('w') || before[&name] == Some(key), "{name}");
                        }
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();

    let mut keeper = lab.connect().await;
    value(&mut keeper, "SELECT pg_advisory_lock(4711)").await;
    let rotated = async |connection: &mut PgConnection| {
        let stored = tokens(connection).await;
        let fixed = stored.iter().filter(|(name, _)| name.starts_with('s'));
        let anew = fixed.filter(|(name, both)| {
            let [first, second] = both.each_ref().map(|token| new.decrypt(token).is_ok());
            assert_eq!(first, second, "half of {name}");
            first
        });
        anew.count()
    };
    for step in 0..COUNT {
        for place in ["update", "audit", "commit"] {
            lab.execute(&format!("UPDATE public.gate SET place = '{place}', allowed = {step}")).await;
            let mut child = command(&["key", "rotate"], &both).spawn().unwrap();
            until(&mut connection, WAITING, |pid| !pid.is_empty(), &mut child).await;
            let pid = value(&mut connection, WAITING).await;
            child.kill().unwrap();
            child.wait().unwrap();
            if place == "commit" {
                // The server ends what it has begun, though nobody waits for the answer.
                value(&mut keeper, "SELECT pg_advisory_unlock(4711)").await;
            } else {
                value(&mut connection, &format!("SELECT pg_terminate_backend({pid})")).await;
            }
            let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
            until(&mut connection, &gone, |count| count == "0", &mut child).await;
            if place == "commit" {
                value(&mut keeper, "SELECT pg_advisory_lock(4711)").await;
            }
            assert_eq!(rotated(&mut connection).await, step + usize::from(place == "commit"), "{place}");
        }
    }
    lab.execute("UPDATE public.gate SET place = 'none'").await;
    let started = Instant::now();
    while reads.load(Ordering::Relaxed) < 100 || writes.load(Ordering::Relaxed) < 100 {
        assert!(started.elapsed() < PATIENCE, "there was no load");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, Ordering::Relaxed);
    storing.await.unwrap();
    for reader in reading {
        reader.await.unwrap();
    }
    assert_eq!(code(&["key", "rotate"], &both), 0);

    // After: the same keys, for who has the new key alone, and for nobody who has the former one.
    let stored = tokens(&mut connection).await;
    let mut expected = before;
    for (name, key) in last.lock().unwrap().iter() {
        expected.insert(name.clone(), Some(key.clone()));
    }
    assert_eq!(opened(NEW, &stored), expected);
    assert!(
        python(BYOK, &stored.into_values().flatten().collect::<Vec<_>>(), &[])
            .texts
            .iter()
            .all(Option::is_none)
    );
    assert_eq!(code(&["key", "verify"], NEW), 0);
    let metrics = daemon.fetch("/metrics").await;
    assert!(metrics.contains("providerd_undecryptable_keys 0"), "{metrics}");
}
