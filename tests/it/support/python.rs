//! Python's `cryptography`, the other side that reads and writes our tokens.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

/// Decrypts the tokens of one list with any of the keys, encrypts the texts of the other with the first.
const PYTHON: &str = "
import json, sys
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
request = json.load(sys.stdin)
fernet = MultiFernet([Fernet(key.encode()) for key in request['keys'].split(',')])
def opened(token):
    try:
        return fernet.decrypt(token.encode()).decode()
    except InvalidToken:
        return None
json.dump({
    'texts': [opened(token) for token in request['tokens']],
    'tokens': [fernet.encrypt(text.encode()).decode() for text in request['texts']],
}, sys.stdout)
";

#[derive(serde::Deserialize)]
pub struct Answer {
    /// `None` where no key opens the token.
    pub texts: Vec<Option<String>>,
    pub tokens: Vec<String>,
}

/// The first Python that has `cryptography`.
fn interpreter() -> &'static str {
    let has = |python: &&str| {
        let mut command = Command::new(python);
        command.args(["-c", "import cryptography.fernet"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    ["python3", "/usr/bin/python3"]
        .iter()
        .find(|python| has(python))
        .expect("Python with `cryptography` is needed: `apt install python3-cryptography`")
}

/// `keys` are separated by commas.
pub fn python(keys: &str, tokens: &[String], texts: &[String]) -> Answer {
    let request = serde_json::json!({ "keys": keys, "tokens": tokens, "texts": texts }).to_string();
    let mut command = Command::new(interpreter());
    command.args(["-c", PYTHON]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}
