//! A headless Chromium, driven through chromedriver: as much of WebDriver as these tests need.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long anything may take before a test gives up; generous, because two cores run many tests.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Name of the field that holds an element's id, fixed by the WebDriver standard.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One request over HTTP; its status and body.
///
/// # Panics
/// When nobody answers, or not in HTTP.
pub fn http(method: &str, base: &str, path: &str, body: Option<&Value>) -> (u16, String) {
    exchange(method, base, path, body).unwrap_or_else(|error| panic!("{method} {base}{path}: {error}"))
}

fn exchange(method: &str, base: &str, path: &str, body: Option<&Value>) -> std::io::Result<(u16, String)> {
    let host = base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(PATIENCE * 2))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    let body = body.map(Value::to_string).unwrap_or_default();
    let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    // Not read to the end of the connection: chromedriver keeps some open whatever is asked for.
    let mut length = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut text = vec![0; length];
    reader.read_exact(&mut text)?;
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// A program that says where it listens, in the first line that has `mark` in it; killed with its group.
pub struct Listening {
    child: Child,
    pub line: String,
}

impl Listening {
    pub fn start(command: &mut Command, mark: &str) -> Self {
        let name = format!("{:?}", command.get_program());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{name}: {error}\nhint: scripts/setup test installs what is missing")
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains(mark));
        let line = line.unwrap_or_else(|| panic!("{name} ended without saying {mark:?}"));
        // Whoever writes into a pipe that nobody reads may stop there.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, line }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            let _ = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(group),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let _ = self.child.wait();
    }
}

/// One window, with a profile of its own that disappears with it.
pub struct Browser {
    base: String,
    session: String,
    _driver: Listening,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub fn new() -> Self {
        let driver =
            Listening::start(Command::new("chromedriver").arg("--port=0"), "started successfully on port");
        let port: String = driver
            .line
            .chars()
            .rev()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        let base = format!("http://127.0.0.1:{}", port.chars().rev().collect::<String>());
        let profile = tempfile::Builder::new().prefix("pdpage").tempdir_in("/tmp").unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1440,900",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
            "timeouts": { "script": 60_000 },
        } } });
        let (status, text) = http("POST", &base, "/session", Some(&wanted));
        assert_eq!(status, 200, "no browser: {text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        let session = answer["value"]["sessionId"].as_str().unwrap().to_owned();
        let browser = Self { base, session, _driver: driver, _profile: profile };
        browser.viewport(1440, 900);
        browser
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, text) = http(method, &self.base, &format!("/session/{}/{path}", self.session), body);
        let mut answer: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(status, 200, "{path}: {}", answer["value"]["message"]);
        answer["value"].take()
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.call("POST", "goog/cdp/execute", Some(&json!({ "cmd": command, "params": parameters })))
    }

    pub fn open(&self, url: &str) {
        self.call("POST", "url", Some(&json!({ "url": url })));
    }

    pub fn viewport(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// `light` or `dark`, as the system's setting would have it; with or without motion.
    pub fn prefers(&self, scheme: &str, motion: &str) {
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": motion },
        ]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// What a function body returns in the page.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.call("POST", "execute/sync", Some(&json!({ "script": script, "args": [] })))
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub fn wait(&self, expression: &str) {
        let started = Instant::now();
        let script = format!("try {{ return Boolean({expression}) }} catch {{ return false }}");
        while self.run(&script) != json!(true) {
            assert!(
                started.elapsed() < PATIENCE,
                "never true: {expression}\non a page that reads:\n{}",
                self.run("return document.body.innerText").as_str().unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until what a selector finds first is there to be seen and contains a text.
    #[track_caller]
    pub fn wait_text(&self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        // As it is read: without the line breaks of the layout and with plain spaces.
        self.wait(&format!(
            "[...document.querySelectorAll({selector})].some(e => e.checkVisibility() && \
             e.innerText.replace(/\\s+/g, ' ').includes({text}))"
        ));
    }

    /// Clicks what a selector finds first; once more if the page drew it anew in between.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let started = Instant::now();
        let query = json!({ "using": "css selector", "value": selector });
        let session = format!("/session/{}", self.session);
        loop {
            let (_, found) = http("POST", &self.base, &format!("{session}/element"), Some(&query));
            let found: Value = serde_json::from_str(&found).unwrap_or_default();
            let mut answer = found.to_string();
            if let Some(id) = found["value"][ELEMENT].as_str() {
                let path = format!("{session}/element/{id}/click");
                let (status, text) = http("POST", &self.base, &path, Some(&json!({})));
                if status == 200 {
                    return;
                }
                answer = text;
            }
            assert!(started.elapsed() < PATIENCE, "{selector} cannot be clicked: {answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses keys one after the other; `Tab`, `Enter`, `ArrowDown` and the like by name, the rest as typed.
    #[track_caller]
    pub fn keys(&self, keys: &[&str]) {
        let mut actions = Vec::new();
        for key in keys {
            let special = match *key {
                "Tab" => Some('\u{E004}'),
                "Enter" => Some('\u{E007}'),
                "Escape" => Some('\u{E00C}'),
                "PageDown" => Some('\u{E00F}'),
                "End" => Some('\u{E010}'),
                "Home" => Some('\u{E011}'),
                "ArrowUp" => Some('\u{E013}'),
                "ArrowDown" => Some('\u{E015}'),
                "ArrowLeft" => Some('\u{E012}'),
                _ => None,
            };
            for press in special.map_or_else(|| key.chars().collect(), |key| vec![key]) {
                actions.push(json!({ "type": "keyDown", "value": press }));
                actions.push(json!({ "type": "keyUp", "value": press }));
            }
        }
        let actions = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] });
        self.call("POST", "actions", Some(&actions));
    }

    /// Errors of scripts, refusals by the policy and failed loads since the last time.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.call("POST", "se/log", Some(&json!({ "type": "browser" })));
        let entries = log.as_array().cloned().unwrap_or_default();
        let severe = entries.into_iter().filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Writes what is to be seen into the directory that `PAGE_SHOTS` names, if it names one.
    pub fn shot(&self, name: &str) {
        let Some(directory) = std::env::var_os("PAGE_SHOTS") else { return };
        let picture = self.call("GET", "screenshot", None);
        let bytes = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            picture.as_str().unwrap_or_default(),
        );
        let directory = std::path::PathBuf::from(directory);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(format!("{name}.png")), bytes.unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Otherwise the browser would outlive its driver.
        let _ = exchange("DELETE", &self.base, &format!("/session/{}", self.session), None);
    }
}
