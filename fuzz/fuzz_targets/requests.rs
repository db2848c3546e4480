//! Fuzzes the three readers of callers' requests, each before every upstream: what is accepted is written as JSON with a
//! path and headers that can be sent, and the same request is written alike twice; what is refused names a parameter.
#![no_main]

use provider::dialect::{
    CallerDialect, TranslateOptions, UpstreamDialect, count_tokens, defaults, estimate_tokens, refuse, scrub, translate_request,
};

const MODELS: [&str; 6] =
    ["claude-sonnet-4-5", "claude-opus-4-8", "gpt-5.4", "gemini-3-flash", "anthropic.claude-sonnet-4-5-v1:0", "a-model"];

fn options(upstream: UpstreamDialect, model: &str, relaxed: bool) -> TranslateOptions {
    TranslateOptions {
        model: model.to_owned(),
        shown_model: model.to_owned(),
        capabilities: defaults(upstream, "openai", model),
        id: "1".to_owned(),
        drop_hosted_tools: relaxed,
        relax_tool_choice: relaxed,
        ..TranslateOptions::default()
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [which, body @ ..] = bytes else { return };
    let which = usize::from(*which);
    let caller = CallerDialect::ALL[which % 3];
    let model = MODELS[which / 3 % MODELS.len()];
    for upstream in UpstreamDialect::ALL {
        let options = options(upstream, model, which >= 128);
        match translate_request(caller, upstream, body, &options) {
            Ok(sent) => {
                assert!(serde_json::from_slice::<serde_json::Value>(&sent.body).expect("JSON").is_object());
                assert!(sent.path.starts_with('/') && sent.path.bytes().all(|byte| byte.is_ascii_graphic()));
                let again = translate_request(caller, upstream, body, &options).expect("as before");
                assert_eq!((sent.body, sent.dropped), (again.body, again.dropped));
            }
            Err(error) => {
                assert!(!error.param().is_empty() && !error.to_string().is_empty());
                assert_eq!(refuse(caller, &error).0, 400);
            }
        }
        if let Some(clean) = scrub(upstream, model, body) {
            assert!(serde_json::from_slice::<serde_json::Value>(&clean).is_ok());
        }
    }
    let _ = estimate_tokens(caller, body);
    let _ = count_tokens(caller, body);
});
