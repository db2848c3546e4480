//! Tokens are what Python's `cryptography.fernet.Fernet` reads and writes: both ways, with the real one.

use providerd::secret::{Byok, Secret};

use crate::support::python::python;

fn texts() -> Vec<String> {
    // Every length around the cipher's and base64's blocks.
    let mut texts: Vec<_> = (0..=129).map(|length| "k".repeat(length)).collect();
    texts.extend(["schlüssel", "ключ", "鍵🔑", "e\u{301}", "\u{0}\n\t", "a\u{10ffff}"].map(str::to_owned));
    texts
}

#[test]
fn python_reads_ours_and_we_read_pythons() {
    let key = Byok::generate();
    let byok = Byok::parse(key.expose()).unwrap();
    let texts = texts();
    let ours: Vec<_> = texts.iter().map(|text| byok.encrypt(&Secret::copy_of(text))).collect();
    let answer = python(key.expose(), &ours, &texts);
    let read: Vec<_> = answer.texts.into_iter().map(Option::unwrap).collect();
    assert_eq!(read, texts);
    for (token, text) in answer.tokens.iter().zip(&texts) {
        assert_eq!(byok.decrypt(token).unwrap().expose(), text);
    }
    // Same shape: same length, and so the same padding.
    let lengths = |tokens: &[String]| tokens.iter().map(String::len).collect::<Vec<_>>();
    assert_eq!(lengths(&ours), lengths(&answer.tokens));
    assert_eq!(ours[57].len(), 164);
}

/// As `openssl rand -base64 32` prints one.
#[test]
fn keys_and_tokens_in_the_standard_alphabet_are_the_same() {
    let standard = |text: &str| text.replace('-', "+").replace('_', "/");
    // All bits set: nothing but letters that the two alphabets write differently.
    let key = format!("{}8=", "_".repeat(42));
    let ours = Byok::parse(&key).unwrap();
    let theirs = Byok::parse(&standard(&key)).unwrap();
    let texts: Vec<String> = (0..64).map(|length| "k".repeat(length)).collect();
    let tokens: Vec<_> = texts.iter().map(|text| standard(&ours.encrypt(&Secret::copy_of(text)))).collect();
    assert!(tokens.iter().any(|token| token.contains(['+', '/'])), "or the test shows nothing");
    let answer = python(&standard(&key), &tokens, &texts);
    for ((token, text), read) in tokens.iter().zip(&texts).zip(answer.texts) {
        assert_eq!(read.as_ref(), Some(text), "Python opens {token}");
        for byok in [&ours, &theirs] {
            assert_eq!(byok.decrypt(token).unwrap().expose(), text);
        }
    }
    for (token, text) in answer.tokens.iter().zip(&texts) {
        assert_eq!(theirs.decrypt(token).unwrap().expose(), text);
    }
}

#[test]
fn we_open_exactly_what_python_opens() {
    let key = Byok::generate();
    let byok = Byok::parse(key.expose()).unwrap();
    let token = byok.encrypt(&Secret::copy_of("sk-not-a-real-key"));
    assert!(token.ends_with('='), "this text needs padding, or the test shows nothing");
    let other = Byok::parse(Byok::generate().expose()).unwrap();
    let tokens = [
        token.clone(),
        format!("{token}\n"),
        token.trim_end_matches('=').to_owned(),
        token[..token.len() - 4].to_owned(),
        token.replacen('g', "h", 1),
        other.encrypt(&Secret::copy_of("sk-not-a-real-key")),
        "gAAAAA==".to_owned(),
        "not a token".to_owned(),
        String::new(),
    ];
    let answer = python(key.expose(), &tokens, &[]);
    for (token, theirs) in tokens.iter().zip(answer.texts) {
        let ours = byok.decrypt(token).ok().map(|secret| secret.expose().to_owned());
        assert_eq!(ours, theirs, "{token:?}");
    }
}
