//! Each trap that users of other gateways reported, by its number there, as a case with a name in the files beside this one:
//!
//! - 1 to 22: requests (results of tools, blank texts, fields that an upstream refuses, models that moved their tools)
//! - 23 to 28: reasoning over turns (proofs, placeholders, fallbacks)
//! - 29 to 52: streams (arguments, names and numbers of calls, blocks, cut characters, ends of lines, early ends)
//! - 53 to 59: errors and fallbacks (errors inside a good status, context overflow, stalls)
//! - 60 to 73: figures (caches counted once, cumulative figures, broken streams, estimates)
//! - 74: embeddings
//!
//! What concerns sockets and clocks alone is shown by the gateway's tests, over sockets: [`ELSEWHERE`] names them.

mod figures;
mod proofs;
mod requests;
mod streams;

use super::*;

/// Its number, what holds, and the case.
type NamedTrap = (u8, &'static str, fn());

const CHAT: CallerDialect = CallerDialect::Chat;
const MESSAGES: CallerDialect = CallerDialect::Messages;
const RESPONSES: CallerDialect = CallerDialect::Responses;

/// Traps that no translation can fall into: the gateway's test that shows each, and the text of its file.
const ELSEWHERE: &[(u8, &str, &str)] = &[
    (59, "before_content_another_provider_answers_a_stream", LIAR),
    (72, "a_caller_who_leaves_takes_the_request_along", LIAR),
    (74, "embeddings_pass_as_they_are_in_both_directions", DIALECTS),
];

const DIALECTS: &str = include_str!("../../../../../gateway/tests/dialects.rs");
const LIAR: &str = include_str!("../../../../../gateway/tests/liar.rs");

/// A conversation with two calls at once and their results, as chat.
fn two_calls() -> Value {
    json!({"model": "m", "messages": [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "b", "content": "B"},
        {"role": "tool", "tool_call_id": "a", "content": ""}],
        "tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]})
}

fn with(mut body: Value, members: Value) -> Value {
    body.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    body
}

fn hi(members: Value) -> Value {
    with(json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}), members)
}

fn call(index: Value, id: &str, name: &str, arguments: &str) -> Value {
    json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]})
}

fn more(index: u64, arguments: &str) -> Value {
    json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
}

/// The answer of one upstream stream for every caller: all must say the same.
fn for_all(upstream: UpstreamDialect, bytes: &[u8], check: &dyn Fn(&InnerResponse, &Streamed)) {
    for caller in CallerDialect::ALL {
        let got = streamed(caller, upstream, bytes);
        let answer = got.answer.clone().unwrap_or_else(|error| panic!("{caller:?}: {error}\n{}", got.text));
        check(&answer, &got);
    }
}

/// The failure of one upstream stream, the same for every caller.
fn fails(upstream: UpstreamDialect, bytes: &[u8], class: FailureClass, content: bool) {
    for caller in CallerDialect::ALL {
        let got = streamed(caller, upstream, bytes);
        let failure =
            got.translator.failure().unwrap_or_else(|| panic!("{caller:?} succeeded: {}", got.text));
        assert_eq!((failure.class, got.translator.has_content()), (class, content), "{caller:?}: {failure}");
    }
}

fn two(answer: &InnerResponse, first: (&str, Value), second: (&str, Value)) {
    let got: Vec<_> = calls(answer).into_iter().map(|(_, name, input)| (name, input)).collect();
    assert_eq!(got, [(first.0.to_owned(), first.1), (second.0.to_owned(), second.1)]);
}

fn anthropic(events: &[Value]) -> Vec<u8> {
    let mut all = vec![
        json!({"type": "message_start", "message": {"id": "c1", "usage": {"input_tokens": 10, "output_tokens": 1}}}),
    ];
    all.extend_from_slice(events);
    all.push(
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}),
    );
    all.push(json!({"type": "message_stop"}));
    sse(&all)
}

fn all() -> impl Iterator<Item = &'static NamedTrap> {
    [requests::TRAPS, streams::TRAPS, figures::TRAPS].into_iter().flatten()
}

#[test]
fn no_trap_is_fallen_into() {
    let mut fallen = Vec::new();
    for (number, name, case) in all() {
        if std::panic::catch_unwind(case).is_err() {
            fallen.push(format!("{number}: {name}"));
        }
    }
    assert!(fallen.is_empty(), "{fallen:#?}");
}

#[test]
fn every_trap_has_its_case() {
    let mut numbers: Vec<u8> = all().map(|trap| trap.0).chain(ELSEWHERE.iter().map(|trap| trap.0)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=74).collect::<Vec<u8>>());
    for (number, test, file) in ELSEWHERE {
        assert!(file.contains(&format!("async fn {test}()")), "{number}: there is no test {test}");
    }
}
