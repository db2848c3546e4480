//! No secret is ever seen: known fake ones are used everywhere a user can put one, and then searched for in everything
//! that the program prints, logs, serves and stores.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::OpenOptionsExt as _,
    process::{Command, Stdio},
    time::Instant,
};

use base64::{Engine as _, engine::general_purpose as alphabet};
use sqlx::Row as _;

use crate::support::lab::{BYOK, Lab, PATIENCE};

/// Each has characters that URLs, JSON and HTML escape, and a middle that survives being cut in two.
const ENV_KEY: &str = "fake-env-4711/plus+and=\"quote\"&amp";
const FILE_KEY: &str = "fake-file-4712/plus+and=\"quote\"&amp";
const CREDENTIAL_KEY: &str = "fake-credential-4713/plus+and=\"quote\"&amp";
const SEALED_KEY: &str = "fake-sealed-4714/plus+and=\"quote\"&amp";
const FOREIGN_KEY: &str = "fake-foreign-4715/plus+and=\"quote\"&amp";
/// A literal in a manifest, of the shape that real ones have.
const LITERAL_KEY: &str = "sk-fake0fake1fake2fake3fake4fake5fake6fake7";
const WRONG_BYOK: &str = "d3Jvbmctd3JvbmctYnlvay1rZXktdGVzdC0wMDAwMDI=";
const PASSWORD: &str = "fake-pass-4716+word=\"quote\"";

/// Every form in which a secret could slip out.
fn forms(secret: &str) -> Vec<String> {
    let json = serde_json::to_string(secret).unwrap();
    let json = json.trim_matches('"').to_owned();
    let escaped = |keep: &dyn Fn(u8) -> bool, upper: bool| -> String {
        let one = |byte: u8| match byte {
            byte if keep(byte) => char::from(byte).to_string(),
            byte if upper => format!("%{byte:02X}"),
            byte => format!("%{byte:02x}"),
        };
        secret.bytes().map(one).collect()
    };
    let strict = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let mut all = vec![
        secret.to_owned(),
        serde_json::to_string(&json).unwrap().trim_matches('"').to_owned(),
        secret.replace('/', "\\/"),
        escaped(&strict, true),
        escaped(&strict, false),
        escaped(&|byte| byte != b'"' && byte != b'%', true),
        secret.replace('&', "&amp;").replace('"', "&quot;"),
        secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
        secret.bytes().map(|byte| format!("{byte:02X}")).collect(),
        json,
    ];
    // Base64 at each of the three places a group of bytes can begin; the ends depend on the neighbours.
    for engine in [alphabet::STANDARD_NO_PAD, alphabet::URL_SAFE_NO_PAD] {
        for skip in 0..3 {
            let whole = (secret.len() - skip) / 3 * 3;
            all.push(engine.encode(&secret.as_bytes()[skip..skip + whole]));
        }
    }
    // A part that is long enough to be recognised is a leak as well.
    all.push(secret.chars().take(16).collect());
    all
}

struct Watch {
    forms: Vec<(String, String)>,
}

impl Watch {
    fn new(secrets: &[&str]) -> Self {
        let forms = secrets
            .iter()
            .flat_map(|secret| forms(secret).into_iter().map(|form| ((*secret).to_owned(), form)));
        Self { forms: forms.collect() }
    }

    #[track_caller]
    fn check(&self, place: &str, text: &str) {
        for (secret, form) in &self.forms {
            assert!(!text.contains(form.as_str()), "{place} shows {secret:?} as {form:?}:\n{text}");
        }
    }
}

fn manifest(literal: bool, sealed: &str) -> String {
    let mut text = String::new();
    let mut provider = |name: &str, key: &str| {
        text += &format!(
            "[providers.{name}]\ntype = \"openai-compatible\"\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key = {key}\n\
             [[providers.{name}.models]]\nname = \"{name}-small\"\n\n"
        );
    };
    provider("by-env", "{ env = \"LAB_KEY\" }");
    provider("by-file", "{ file = \"by-file.key\" }");
    provider("by-credential", "{ credential = \"by-credential\" }");
    provider("by-seal", &format!("{{ sealed = \"{sealed}\" }}"));
    if literal {
        provider("literal", &format!("\"{LITERAL_KEY}\""));
        text += &format!(
            "[providers.other]\ntype = \"openai\"\nconfig = {{ token = \"{LITERAL_KEY}\" }}\ndescription = \"{LITERAL_KEY}\"\n"
        );
    }
    text
}

fn private(path: &std::path::Path, text: &str) {
    let mut file =
        fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn with_secrets(lab: &Lab, args: &[&str]) -> Command {
    let mut command = lab.command(args);
    command.env("LAB_KEY", ENV_KEY).env("PROVIDERD_KEYS__DIR", lab.dir.path().join("keys"));
    command.env("CREDENTIALS_DIRECTORY", lab.dir.path().join("credentials")).env("RUST_LOG", "trace");
    command
}

fn output(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

fn seal(lab: &Lab, key: &str) -> String {
    let mut child = lab
        .command(&["key", "seal", "--output", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(key.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["sealed"].as_str().unwrap().to_owned()
}

fn get(port: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Every row of every table of every schema, as text.
async fn dump(lab: &Lab) -> String {
    let mut connection = lab.connect().await;
    let tables = sqlx::query(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let mut text = String::new();
    for table in tables {
        let table: String = table.get(0);
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT t::text FROM {table} t")))
            .fetch_all(&mut connection)
            .await
            .unwrap();
        for row in rows {
            text += &format!("{table}: {}\n", row.get::<String, _>(0));
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_seen() {
    let lab = Lab::new().await;
    let watch = Watch::new(&[
        ENV_KEY,
        FILE_KEY,
        CREDENTIAL_KEY,
        SEALED_KEY,
        FOREIGN_KEY,
        LITERAL_KEY,
        BYOK,
        WRONG_BYOK,
        PASSWORD,
    ]);
    for directory in ["keys", "credentials"] {
        fs::create_dir(lab.dir.path().join(directory)).unwrap();
    }
    private(&lab.dir.path().join("keys/by-file.key"), FILE_KEY);
    private(&lab.dir.path().join("credentials/by-credential"), CREDENTIAL_KEY);
    let sealed = seal(&lab, SEALED_KEY);
    let run = |args: &[&str], wanted: i32| {
        let (code, text) = output(&mut with_secrets(&lab, args));
        assert_eq!(code, wanted, "{args:?}:\n{text}");
        watch.check(&format!("{args:?}"), &text);
        text
    };

    // Literal keys in a manifest: refused, never repeated, in any format.
    lab.write("a.toml", &manifest(true, &sealed));
    for format in ["table", "json", "github"] {
        run(&["validate", "--output", format], 2);
    }
    run(&["plan"], 2);
    lab.write("broken.toml", &format!("[providers.x]\napi_key = \"{LITERAL_KEY}\nq = {LITERAL_KEY}\n"));
    run(&["validate"], 2);
    run(&["apply"], 2);
    lab.remove("broken.toml");

    // The whole life of keys.
    lab.write("a.toml", &manifest(false, &sealed));
    run(&["plan"], 2);
    run(&["apply"], 0);
    for args in [&["status"][..], &["events"], &["key", "verify"], &["routes"], &["doctor"], &["plan"]] {
        for format in ["table", "json"] {
            let mut args = args.to_vec();
            args.extend(["--output", format]);
            let (_, text) = output(&mut with_secrets(&lab, &args));
            watch.check(&format!("{args:?}"), &text);
        }
    }

    // A daemon that logs everything, keys that change, a foreign hand in the database.
    let mut daemon = lab.daemon_with(|command| *command = with_secrets(&lab, &["run"]));
    daemon.wait_ready().await;
    private(&lab.dir.path().join("keys/by-file.key"), FOREIGN_KEY);
    lab.wait_for("SELECT count(*) > 1 FROM providerd.events WHERE provider = 'by-file'", "true").await;
    lab.write("literal.toml", &manifest(true, &sealed).replace("by-", "also-"));
    daemon.wait_for_log("literal").await;
    let log = daemon.log();
    let listen = log
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| {
            let fields = line.get("fields").unwrap_or(&line);
            Some(fields.get("listen")?.as_str()?.rsplit_once(':')?.1.to_owned())
        });
    let port = listen.unwrap_or_else(|| panic!("no `listen` in:\n{log}"));
    for path in
        ["/metrics", "/livez", "/readyz", "/api/v1/llm/providers/keys", "/api/v1/status", "/", "/nowhere"]
    {
        watch.check(path, &get(&port, path));
    }
    lab.remove("literal.toml");

    // What is stored is encrypted, and really is those keys.
    let tables = dump(&lab).await;
    watch.check("the database", &tables);
    let fernet = fernet::Fernet::new(BYOK).unwrap();
    for (name, key) in [
        ("by-env", ENV_KEY),
        ("by-file", FOREIGN_KEY),
        ("by-credential", CREDENTIAL_KEY),
        ("by-seal", SEALED_KEY),
    ] {
        for column in ["api_key_encrypted", "encrypted_api_key"] {
            let token = lab.value(&format!("SELECT {column} FROM llm_providers WHERE name = '{name}'")).await;
            assert_eq!(fernet.decrypt(&token).unwrap(), key.as_bytes(), "{name}");
        }
    }

    // A wrong BYOK key, none, one that is no key.
    for wrong in [WRONG_BYOK, "", PASSWORD] {
        for args in [&["plan"][..], &["apply"], &["key", "verify"], &["status"], &["doctor"], &["run"]] {
            let (code, text) = output(with_secrets(&lab, args).env("BYOK_ENCRYPTION_KEY", wrong));
            assert!(matches!(code, 1 | 2), "{args:?} with a wrong BYOK key ended with {code}:\n{text}");
            watch.check(&format!("{args:?} with a wrong BYOK key"), &text);
        }
    }

    // A database that cannot be reached, whose URL holds a password, plain and escaped.
    let quoted: String = PASSWORD.bytes().map(|byte| format!("%{byte:02X}")).collect();
    for url in [
        format!("postgres://user:{quoted}@127.0.0.1:9/db"),
        format!("postgres://user:{quoted}@127.0.0.1:notaport/db"),
        format!("postgres://user@127.0.0.1:9/db?password={quoted}&sslmode=nonsense"),
        format!("{PASSWORD} is no URL"),
    ] {
        for args in [&["plan"][..], &["status"], &["doctor"]] {
            let (code, text) = output(
                with_secrets(&lab, args)
                    .env("DATABASE_URL", &url)
                    .env("PROVIDERD_DATABASE__CONNECT_TIMEOUT", "1s"),
            );
            assert!(matches!(code, 1 | 2), "{args:?} without a database ended with {code}:\n{text}");
            watch.check(&format!("{args:?} without a database"), &text);
        }
        let mut lost = lab.daemon_with(|command| {
            *command = with_secrets(&lab, &["run"]);
            command.env("DATABASE_URL", &url).env("PROVIDERD_DATABASE__CONNECT_TIMEOUT", "1s");
        });
        let started = Instant::now();
        while lost.is_running() && !lost.log().contains("database") {
            assert!(started.elapsed() < PATIENCE, "{}", lost.log());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        watch.check("the log without a database", &lost.log());
    }
    watch.check("the log", &daemon.log());
    assert_eq!(daemon.stop(), 0);
}
