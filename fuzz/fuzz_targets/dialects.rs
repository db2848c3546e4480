//! Fuzzes the readers of streams, bodies and requests of every dialect: no panic, and no cut changes what comes out.
//!
//! The first byte chooses the two dialects, the second where the bytes are cut; the rest is what the upstream, or the
//! caller, sent.
#![no_main]

use provider::dialect::{
    CallerDialect, StreamTranslator, TranslateOptions, TranslateSession, UpstreamDialect, defaults, estimate_tokens,
    read_failure, scrub, translate_request, translate_response,
};

fn options(upstream: UpstreamDialect) -> TranslateOptions {
    let model = "claude-sonnet-4-5";
    TranslateOptions {
        model: model.to_owned(),
        shown_model: model.to_owned(),
        capabilities: defaults(upstream, "", model),
        id: "1".to_owned(),
        ..TranslateOptions::default()
    }
}

fn session(caller: CallerDialect, upstream: UpstreamDialect) -> TranslateSession {
    let body: &[u8] = match caller {
        CallerDialect::Responses => br#"{"input":"a","tools":[{"type":"custom","name":"f"}]}"#,
        _ => br#"{"messages":[{"role":"user","content":"a"}]}"#,
    };
    translate_request(caller, upstream, body, &options(upstream)).expect("a smallest request is translated").session
}

fn stream(session: TranslateSession, parts: [&[u8]; 2]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut translator = StreamTranslator::new(session);
    for part in parts {
        translator.feed(part, &mut out);
    }
    translator.finish(&mut out);
    assert!(translator.is_over());
    out
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [which, cut, rest @ ..] = bytes else { return };
    let which = usize::from(*which);
    let caller = CallerDialect::ALL[which % 3];
    let upstream = UpstreamDialect::ALL[which / 3 % 10];
    let session = session(caller, upstream);
    let (head, tail) = rest.split_at(usize::from(*cut).min(rest.len()));
    let whole = stream(session.clone(), [rest, b""]);
    assert_eq!(whole, stream(session.clone(), [head, tail]), "a cut changes the stream");
    let _ = translate_response(&session, rest);
    let _ = translate_request(caller, upstream, rest, &options(upstream));
    let _ = estimate_tokens(caller, rest);
    let _ = scrub(upstream, "m", rest);
    let _ = read_failure(400, "", rest);
});
