//! Recorded answers, cut everywhere, against what they hold.

use super::*;
use proptest::prelude::*;

/// Feeds pieces and returns what was passed on, and the sums.
fn fed(shape: TapShape, withhold: bool, pieces: &[&[u8]]) -> (Vec<u8>, TapSums) {
    let mut tap = Tap::stream(shape, withhold);
    let mut out = Vec::new();
    for piece in pieces {
        tap.feed(&Bytes::copy_from_slice(piece), |part| out.extend_from_slice(&part));
    }
    tap.end(|part| out.extend_from_slice(&part));
    (out, tap.sums().clone())
}

/// The same at every cut, byte by byte, and with each kind of line end. Returns the sums.
fn check(name: &str, shape: TapShape, text: &str, withheld: Option<&str>) -> TapSums {
    let mut sums = None;
    for ends in ["\n", "\r\n", "\r"] {
        let text = text.replace('\n', ends);
        let rest = withheld.map(|extra| text.replacen(&extra.replace('\n', ends), "", 1));
        if let Some(rest) = &rest {
            assert!(rest.len() < text.len(), "{name}: the extra event is in the text");
        }
        let bytes = text.as_bytes();
        for withhold in [false, true] {
            let expected = if withhold { rest.as_deref().unwrap_or(&text) } else { &text };
            let (out, whole) = fed(shape, withhold, &[bytes]);
            assert_eq!(String::from_utf8_lossy(&out), expected, "{name}, {ends:?}");
            for cut in 0..bytes.len() {
                let (a, b) = bytes.split_at(cut);
                let (out, seen) = fed(shape, withhold, &[a, b]);
                assert_eq!(seen, whole, "{name}, {ends:?}, cut at {cut}: {}", String::from_utf8_lossy(a));
                assert_eq!(String::from_utf8_lossy(&out), expected, "{name}, {ends:?}, cut at {cut}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            let (out, seen) = fed(shape, withhold, &single);
            assert_eq!(
                (String::from_utf8_lossy(&out).as_ref(), &seen),
                (expected, &whole),
                "{name}, {ends:?}"
            );
            assert_eq!(*sums.get_or_insert_with(|| whole.clone()), whole, "{name}, {ends:?}");
        }
    }
    sums.expect("checked")
}

fn usage(input: u64, output: u64) -> TapUsage {
    TapUsage { input: Some(input), output: Some(output), total: Some(input + output), ..TapUsage::default() }
}

const CHAT_HEAD: &str =
    r#"data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":"#;

/// Events of a chat stream: each of the texts stands after `"choices":`.
fn chat(events: &[&str]) -> String {
    events.iter().map(|event| format!("{CHAT_HEAD}{event}\n\n")).collect()
}

#[test]
fn a_chat_stream_with_the_extra_event() {
    let extra = format!(
        "{CHAT_HEAD}[],\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":3,\"total_tokens\":12,\"prompt_tokens_details\":{{\"cached_tokens\":4,\"audio_tokens\":0}},\"completion_tokens_details\":{{\"reasoning_tokens\":1}}}}}}\n\n"
    );
    let text = format!(
        "{}{extra}data: [DONE]\n\n",
        chat(&[
            r#"[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
            r#"[{"index":0,"delta":{"content":"He"},"finish_reason":null}],"usage":null}"#,
            r#"[{"index":0,"delta":{"content":"llo \"\u00e4\" }{ \"usage\": "},"finish_reason":null}],"usage":null}"#,
            r#"[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#,
        ])
    );
    let sums = check("chat", TapShape::Chat, &text, Some(&extra));
    assert_eq!(sums.usage, TapUsage { cached: Some(4), reasoning: Some(1), ..usage(9, 3) });
    assert_eq!((sums.content, sums.ended, sums.error, sums.garbage), (true, true, false, 0));
    assert_eq!((sums.finish, sums.events), (Some(TapFinish::Stop), 6));
    assert_eq!(sums.output_bytes, 2 + r#"llo \"\u00e4\" }{ \"usage\": "#.len() as u64);
}

#[test]
fn what_is_no_content_is_not_taken_for_it() {
    let check = |events: &[&str], content: bool| {
        let (_, sums) = fed(TapShape::Chat, false, &[chat(events).as_bytes()]);
        assert_eq!(sums.content, content, "{events:?}");
        assert!(!sums.error && sums.garbage == 0, "{events:?}");
    };
    check(&[r#"[{"index":0,"delta":{"role":"assistant"}}]}"#], false);
    check(
        &[r#"[{"index":0,"delta":{"role":"assistant","content":"","refusal":null,"tool_calls":[]}}]}"#],
        false,
    );
    check(&[r#"[{"index":0,"delta":{"content":null},"finish_reason":""}]}"#], false);
    check(&[r#"[{"index":0,"delta":{"content":[{"type":"text","text":""}]}}]}"#], false);
    check(&[r#"[],"prompt_filter_results":[{"prompt_index":0,"content":"x"}]}"#], false);
    check(&[r#"[{"index":0,"content_filter_results":{"hate":{"severity":"safe"}}}]}"#], false);
    check(&[r#"[],"cost":"0"}"#], false);
    check(&[r#"[{"index":0,"delta":{"content":"x"}}]}"#], true);
    check(&[r#"[{"index":0,"delta":{"content":[{"type":"text","text":"x"}]}}]}"#], true);
    check(&[r#"[{"index":0,"delta":{"reasoning_content":"x"}}]}"#], true);
    check(&[r#"[{"index":0,"delta":{"reasoning":"x"}}]}"#], true);
    check(&[r#"[{"index":0,"delta":{"refusal":"x"}}]}"#], true);
    check(
        &[
            r#"[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":""}}]}}]}"#,
        ],
        true,
    );
    check(&[r#"[{"index":0,"text":"x"}]}"#], true);
    check(&[r#"[{"index":0,"delta":{},"finish_reason":"length"}]}"#], true);
}

#[test]
fn comments_are_passed_and_are_no_content() {
    let text = ": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n";
    let sums = check("comments", TapShape::Chat, text, None);
    assert_eq!(sums, TapSums::default());
}

#[test]
fn errors_within_a_stream() {
    for (shape, text) in [
        (TapShape::Chat, "data: {\"error\":{\"message\":\"no\",\"code\":502}}\n\n"),
        (TapShape::Chat, "data: {\"error\":\"no\"}\n\n"),
        (TapShape::Chat, "data: [{\"error\":{\"code\":400}}]\n\n"),
        (
            TapShape::Chat,
            "data:{\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}]}\n\n",
        ),
        (
            TapShape::Messages,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
        ),
        (TapShape::Responses, "event: error\ndata: {\"code\":\"x\",\"message\":\"no\"}\n\n"),
        (
            TapShape::Responses,
            "data: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{}}}\n\n",
        ),
    ] {
        let sums = check("error", shape, text, None);
        assert!(sums.error && !sums.ended, "{text}");
    }
    let sums = check("null", TapShape::Chat, "data: {\"error\":null,\"choices\":[]}\n\n", None);
    assert!(!sums.error);
}

#[test]
fn odd_but_legal_events() {
    let text = "\u{feff}data:{\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\nid: 7\nretry\n\ndata: {\"choices\":\ndata:[{\"delta\":{\"content\":\"b\"}}]}\n\n\n\ndata:  [DONE]\n\n";
    let sums = check("odd", TapShape::Chat, text, None);
    assert_eq!((sums.output_bytes, sums.garbage, sums.ended, sums.events), (2, 0, true, 3));
}

#[test]
fn garbage_is_counted_and_passed_on() {
    for (text, garbage) in [
        ("data: nonsense\n\ndata: {\"choices\":[}\n\n", 2),
        ("data: {\"choices\":[{\"delta\":{\"content\":\"never ends\n\n", 1),
        ("data: [DON]\n\n", 1),
        ("data: [1,2]\n\n", 0),
        ("data: \n\n", 0),
        ("data: {} {}\n\n", 1),
    ] {
        let sums = check("garbage", TapShape::Chat, text, None);
        assert_eq!(sums.garbage, garbage, "{text}");
        assert!(!sums.ended);
    }
    let deep = format!("data: {}\n\n", "[".repeat(100_000));
    let (out, sums) = fed(TapShape::Chat, true, &[deep.as_bytes()]);
    assert_eq!((out.len(), sums.garbage), (deep.len(), 1));
}

#[test]
fn an_unfinished_last_event_counts_if_it_is_whole() {
    let (_, sums) = fed(TapShape::Chat, false, &[b"data: [DONE]"]);
    assert!(sums.ended);
    let (_, sums) =
        fed(TapShape::Messages, false, &[b"event: message_stop\ndata: {\"type\":\"message_stop\"}"]);
    assert!(sums.ended);
    let (out, sums) = fed(TapShape::Chat, true, &[b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4"]);
    assert_eq!(out, b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4");
    assert_eq!((sums.ended, sums.garbage), (false, 0));
}

#[test]
fn a_messages_stream() {
    let text = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"m","stop_reason":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":7,"cache_read_input_tokens":3,"cache_creation":{"ephemeral_5m_input_tokens":5,"ephemeral_1h_input_tokens":2},"output_tokens":1}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"max_tokens","stop_sequence":null},"usage":{"output_tokens":15,"output_tokens_details":{"thinking_tokens":4}}}

event: message_stop
data: {"type":"message_stop"}

"#;
    let sums = check("messages", TapShape::Messages, text, None);
    assert_eq!(
        sums.usage,
        TapUsage {
            input: Some(25),
            output: Some(15),
            cached: Some(3),
            cache_write: Some(7),
            cache_write_5m: Some(5),
            cache_write_1h: Some(2),
            reasoning: Some(4),
            ..TapUsage::default()
        }
    );
    assert_eq!(
        (sums.output_bytes, sums.finish, sums.ended, sums.error),
        (5, Some(TapFinish::Length), true, false)
    );
    let upto = text.find("event: content_block_delta").expect("in the text");
    let (_, sums) = fed(TapShape::Messages, false, &[&text.as_bytes()[..upto]]);
    assert!(!sums.content, "beginnings and pings are no content");
    let tool = "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"f\",\"input\":{}}}\n\n";
    assert!(fed(TapShape::Messages, false, &[tool.as_bytes()]).1.content);
}

#[test]
fn a_responses_stream() {
    let text = r#"event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress","error":null,"output":[],"usage":null}}

event: response.output_item.added
data: {"type":"response.output_item.added","sequence_number":1,"output_index":0,"item":{"id":"m","type":"message","status":"in_progress","content":[],"role":"assistant"}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":2,"item_id":"m","output_index":0,"content_index":0,"delta":"Hi"}

event: response.completed
data: {"type":"response.completed","sequence_number":3,"response":{"id":"resp_1","status":"completed","error":null,"output":[{"type":"message","content":[{"type":"output_text","text":"Hi \"usage\":{\"input_tokens\":999}"}]}],"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":6},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":64},"total_tokens":123}}}

"#;
    let sums = check("responses", TapShape::Responses, text, None);
    assert_eq!(sums.usage, TapUsage { cached: Some(6), reasoning: Some(64), ..usage(36, 87) });
    assert_eq!((sums.output_bytes, sums.finish, sums.ended), (2, Some(TapFinish::Stop), true));
    assert_eq!((sums.sequence, sums.response_id.as_deref()), (Some(3), Some("resp_1")));
    let upto = text.find("event: response.output_text.delta").expect("in the text");
    let (_, sums) = fed(TapShape::Responses, false, &[&text.as_bytes()[..upto]]);
    assert!(!sums.content && !sums.ended);
}

#[test]
fn the_usage_of_a_final_event_of_megabytes_is_read() {
    let long = "word ".repeat(800_000);
    let text = format!(
        "data: {{\"type\":\"response.completed\",\"response\":{{\"output\":[{{\"text\":\"{long}\"}}],\"usage\":{{\"input_tokens\":5,\"output_tokens\":7,\"total_tokens\":12}}}}}}\n\n"
    );
    let pieces: Vec<&[u8]> = text.as_bytes().chunks(16_384).collect();
    let (out, sums) = fed(TapShape::Responses, true, &pieces);
    assert_eq!((out.len(), sums.usage, sums.ended), (text.len(), usage(5, 7), true));
    assert!(size_of::<Tap>() < 1024, "{}", size_of::<Tap>());
}

#[test]
fn usage_comes_in_many_forms() {
    let check = |text: &str, expected: TapUsage| {
        let text = format!("data: {{\"choices\":[],\"usage\":{text}}}\n\n");
        assert_eq!(fed(TapShape::Chat, false, &[text.as_bytes()]).1.usage, expected, "{text}");
    };
    check("null", TapUsage::default());
    check("{}", TapUsage::default());
    check(
        r#"{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":null}"#,
        usage(1, 2),
    );
    check(
        r#"{"prompt_tokens":5,"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":1}"#,
        TapUsage { input: Some(5), cached: Some(4), ..TapUsage::default() },
    );
    check(
        r#"{"cost":0.00012,"is_byok":false}"#,
        TapUsage { cost_units: Some(1_200_000), ..TapUsage::default() },
    );
    check(
        r#"{"cost":{"total_cost":0.5,"input_tokens_cost":1}}"#,
        TapUsage { cost_units: Some(5_000_000_000), ..TapUsage::default() },
    );
    check(
        r#"{"cost_in_usd_ticks":37756000}"#,
        TapUsage { cost_units: Some(37_756_000), ..TapUsage::default() },
    );
    check(
        r#"{"prompt_tokens":-1,"completion_tokens":2.0,"total_tokens":1e3}"#,
        TapUsage { output: Some(2), ..TapUsage::default() },
    );
    check(r#"{"x":{"prompt_tokens":9}}"#, TapUsage::default());
    let twice = chat(&[
        r#"[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#,
        r#"[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}"#,
        r#"[{"delta":{"content":"b"}}],"usage":null}"#,
    ]);
    assert_eq!(
        fed(TapShape::Chat, false, &[twice.as_bytes()]).1.usage,
        usage(9, 3),
        "the last counts, nothing is added"
    );
}

#[test]
fn bodies() {
    let check = |shape, text: &str| {
        let mut whole = None;
        for cut in 0..=text.len() {
            let mut tap = Tap::body(shape);
            let mut out = Vec::new();
            for part in [&text.as_bytes()[..cut], &text.as_bytes()[cut..]] {
                tap.feed(&Bytes::copy_from_slice(part), |part| out.extend_from_slice(&part));
            }
            tap.end(|part| out.extend_from_slice(&part));
            assert_eq!(out, text.as_bytes());
            assert_eq!(whole.get_or_insert_with(|| tap.sums().clone()), tap.sums(), "{text}, cut at {cut}");
        }
        whole.expect("checked")
    };
    let sums = check(
        TapShape::Chat,
        r#"{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","tool_calls":[{"id":"x","type":"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#,
    );
    assert_eq!(
        (sums.usage, sums.finish, sums.ended, sums.output_bytes),
        (usage(1, 2), Some(TapFinish::Tools), true, 5 + 1 + 2)
    );
    let sums = check(
        TapShape::Chat,
        r#"{"object":"list","data":[{"embedding":[0.1,-2e-5]}],"usage":{"prompt_tokens":8,"total_tokens":8}} "#,
    );
    assert_eq!((sums.usage.input, sums.ended, sums.garbage), (Some(8), true, 0));
    let sums = check(
        TapShape::Messages,
        r#"{"type":"message","content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn","usage":{"input_tokens":4,"output_tokens":1}}"#,
    );
    assert_eq!(
        (sums.usage.input, sums.content, sums.finish, sums.output_bytes),
        (Some(4), true, Some(TapFinish::Stop), 2)
    );
    let sums = check(
        TapShape::Responses,
        r#"{"object":"response","status":"incomplete","error":null,"output":[{"type":"message","content":[{"type":"output_text","text":"Hi"}]}],"usage":{"input_tokens":4,"output_tokens":1}}"#,
    );
    assert_eq!((sums.content, sums.finish, sums.error), (true, Some(TapFinish::Length), false));
    assert!(check(TapShape::Chat, r#"{"error":{"message":"x"}}"#).error);
    assert!(check(TapShape::Messages, r#"{"type":"error","error":{"type":"api_error"}}"#).error);
    let sums = check(TapShape::Chat, r#"{"choices":["#);
    assert_eq!((sums.ended, sums.garbage), (false, 1));
    assert_eq!(check(TapShape::Chat, "").garbage, 1);
    assert_eq!(check(TapShape::Chat, "<html>busy</html>").garbage, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Events that begin and end alike are looked up; byte by byte, each is read.
    #[test]
    fn what_is_looked_up_is_as_if_read(
        events in prop::collection::vec(
            (
                prop::sample::select(vec![
                    r#"{"choices":[{"index":0,"delta":{"content":""#,
                    r#"{"usage":{"prompt_tokens":3},"choices":[{"index":0,"delta":{"content":""#,
                    r#"{"choices":[{"index":0,"finish_reason":"stop","delta":{"reasoning_content":""#,
                    r#"{"type":"response.output_text.delta","sequence_number":7,"delta":""#,
                    r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""#,
                    r#"{"error":{"message":""#,
                ]),
                prop::sample::select(vec!["", "a", "Hello", r#"a\"b"#, r"\u00e9", "long text, long text, long text, long text"]),
                prop::sample::select(vec![
                    r#""}}]}"#,
                    r#""},"finish_reason":"stop"}]}"#,
                    r#""},"finish_reason":null}],"usage":{"completion_tokens":5}}"#,
                    r#""},"finish_reason":null}],"usage":null}"#,
                    r#""}}"#,
                    r#""}"#,
                    r#""},"x":[1,{"content":"more"}]}]}"#,
                    "\"",
                ]),
            ),
            1..12,
        ),
    ) {
        let text: String = events.iter().map(|(a, b, c)| format!("data: {a}{b}{c}\n\n")).collect();
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        let lines: Vec<&[u8]> = text.as_bytes().split_inclusive(|byte| *byte == b'\n').collect();
        for shape in [TapShape::Chat, TapShape::Responses, TapShape::Messages] {
            for withhold in [false, true] {
                let read = fed(shape, withhold, &bytes);
                prop_assert_eq!(&fed(shape, withhold, &lines), &read);
                prop_assert_eq!(&fed(shape, withhold, &[text.as_bytes()]), &read);
            }
        }
    }

    #[test]
    fn cuts_change_nothing(
        text in "(data: ?|event: |: |\\{|\\}|\\[|\\]|\"choices\":|\"usage\":|\"a\\\\\"|\"|,|:|\\[DONE\\]|[0-9]|null|\n|\r|\r\n|\n\n){0,60}",
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        for shape in [TapShape::Chat, TapShape::Responses, TapShape::Messages] {
            let whole = fed(shape, true, &[text.as_bytes()]);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            at.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in at {
                pieces.push(&text.as_bytes()[from..cut]);
                from = cut;
            }
            pieces.push(&text.as_bytes()[from..]);
            prop_assert_eq!(fed(shape, true, &pieces), whole);
            let (out, _) = fed(shape, false, &pieces);
            prop_assert_eq!(out, text.as_bytes());
        }
    }
}
