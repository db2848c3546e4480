//! Requests: where each thing goes, what is refused by name, what is dropped by name.

use super::*;
use std::collections::BTreeSet;

const CHAT: CallerDialect = CallerDialect::Chat;
const MESSAGES: CallerDialect = CallerDialect::Messages;
const RESPONSES: CallerDialect = CallerDialect::Responses;

fn chat_body() -> Value {
    json!({
        "model": "m", "max_tokens": 9000, "temperature": 0.5, "stop": "END", "seed": 7, "stream": true,
        "user": "u1", "logit_bias": {"5": 1},
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{\"q\":1}"}},
                {"id": "c2", "type": "function", "function": {"name": "now", "arguments": ""}}]},
            {"role": "tool", "tool_call_id": "c2", "content": "noon"},
            {"role": "tool", "tool_call_id": "c1", "content": "{\"hits\":2}"},
            {"role": "user", "content": "go on"}],
        "tools": [
            {"type": "function", "function": {"name": "find", "description": "finds", "parameters": {"type": "object", "properties": {"q": {"type": "integer"}}}}},
            {"type": "function", "function": {"name": "now"}}],
        "tool_choice": "auto"
    })
}

#[test]
fn chat_to_anthropic() {
    let (request, body) = sent(CHAT, UpstreamDialect::Anthropic, &chat_body());
    assert_eq!((request.path.as_str(), request.root, request.stream), ("/messages", PathRoot::Base, true));
    assert_eq!(request.headers, [("anthropic-version", "2023-06-01".to_owned())]);
    assert_eq!(request.dropped, ["logit_bias", "seed"]);
    assert_eq!(
        body,
        json!({
            "model": "claude-sonnet-4-5", "max_tokens": 9000, "temperature": 0.5, "stop_sequences": ["END"],
            "stream": true, "metadata": {"user_id": "u1"},
            "system": [{"type": "text", "text": "be brief"}],
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "what is this?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]},
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": 1}},
                    {"type": "tool_use", "id": "c2", "name": "now", "input": {}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "noon"}]},
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "{\"hits\":2}"}]},
                    {"type": "text", "text": "go on"}]}],
            "tools": [
                {"name": "find", "description": "finds", "input_schema": {"type": "object", "properties": {"q": {"type": "integer"}}}},
                {"name": "now", "input_schema": {"type": "object", "properties": {}}}],
            "tool_choice": {"type": "auto"}
        })
    );
}

#[test]
fn chat_to_google() {
    let (request, body) = sent(CHAT, UpstreamDialect::Google, &chat_body());
    assert_eq!(request.path, "/models/gemini-3-flash:streamGenerateContent?alt=sse");
    assert_eq!(request.dropped, ["logit_bias", "user"]);
    // Results in the order of the calls, after a call that carries the documented word for a lost signature.
    assert_eq!(
        body["contents"],
        json!([
            {"role": "user", "parts": [{"text": "what is this?"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
            {"role": "model", "parts": [
                {"functionCall": {"name": "find", "args": {"q": 1}}, "thoughtSignature": "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I="},
                {"functionCall": {"name": "now", "args": {}}}]},
            {"role": "user", "parts": [
                {"functionResponse": {"name": "find", "response": {"hits": 2}}},
                {"functionResponse": {"name": "now", "response": {"output": "noon"}}},
                {"text": "go on"}]}
        ])
    );
    assert_eq!(body["systemInstruction"], json!({"parts": [{"text": "be brief"}]}));
    assert_eq!(body["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"]["type"], "object");
    assert_eq!(body["toolConfig"], json!({"functionCallingConfig": {"mode": "AUTO"}}));
    assert_eq!(
        body["generationConfig"],
        json!({"maxOutputTokens": 9000, "temperature": 0.5, "seed": 7, "stopSequences": ["END"]})
    );
}

#[test]
fn chat_to_bedrock() {
    let (request, body) = sent(CHAT, UpstreamDialect::Bedrock, &chat_body());
    assert_eq!(request.path, "/model/us.anthropic.claude-sonnet-4-5-v1%3A0/converse-stream");
    assert_eq!(
        body["messages"][0]["content"][1],
        json!({"image": {"format": "png", "source": {"bytes": "AAAA"}}})
    );
    assert_eq!(
        body["messages"][2]["content"],
        json!([
            {"toolResult": {"toolUseId": "c2", "content": [{"text": "noon"}]}},
            {"toolResult": {"toolUseId": "c1", "content": [{"text": "{\"hits\":2}"}]}},
            {"text": "go on"}])
    );
    assert_eq!(
        body["inferenceConfig"],
        json!({"maxTokens": 9000, "temperature": 0.5, "stopSequences": ["END"]})
    );
    assert_eq!(
        body["toolConfig"]["tools"][1]["toolSpec"]["description"], "now",
        "a description is never empty"
    );
    assert_eq!(body["toolConfig"]["toolChoice"], json!({"auto": {}}));
}

#[test]
fn chat_to_cohere_and_ollama() {
    let (request, body) = sent(CHAT, UpstreamDialect::Cohere, &chat_body());
    assert_eq!((request.path.as_str(), request.root), ("/v2/chat", PathRoot::Origin));
    assert_eq!(body["messages"][3]["role"], "tool");
    assert_eq!(body["messages"][3]["content"], json!([{"type": "document", "document": {"data": "noon"}}]));
    assert!(body.get("tool_choice").is_none(), "auto is the absence of a choice");
    let (request, body) = sent(CHAT, UpstreamDialect::Ollama, &chat_body());
    assert_eq!(request.path, "/api/chat");
    assert_eq!(body["messages"][1], json!({"role": "user", "content": "what is this?", "images": ["AAAA"]}));
    assert_eq!(body["messages"][2]["tool_calls"][0]["function"]["arguments"], json!({"q": 1}));
    assert_eq!(body["messages"][3], json!({"role": "tool", "content": "noon", "tool_name": "now"}));
    assert_eq!(body["options"]["num_predict"], 9000);
    assert_eq!(body["stream"], true);
}

#[test]
fn messages_to_chat() {
    let body = json!({
        "model": "m", "max_tokens": 100, "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        "top_k": 5, "stop_sequences": ["END"], "metadata": {"user_id": "x".repeat(90)}, "stream": true,
        "thinking": {"type": "enabled", "budget_tokens": 2000}, "container": "c",
        "tools": [{"name": "find", "input_schema": {"type": "object"}}, {"name": "mcp__a_very_long_server_name__and_a_very_long_tool_name_that_goes_on", "input_schema": {}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "text", "text": "looking"},
                {"type": "tool_use", "id": "t1", "name": "find", "input": {"q": 1}}]},
            {"role": "user", "content": [
                {"type": "text", "text": "and this"},
                {"type": "tool_result", "tool_use_id": "t1", "is_error": true, "content": [
                    {"type": "text", "text": "no hits"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]}]}]
    });
    let (request, sent) = sent(MESSAGES, UpstreamDialect::Chat, &body);
    assert_eq!(request.path, "/chat/completions");
    assert_eq!(request.dropped, ["cache_control", "container", "thinking", "top_k"]);
    assert_eq!(
        sent["messages"],
        json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "looking", "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "find", "arguments": "{\"q\":1}"}}]},
            {"role": "tool", "tool_call_id": "t1", "content": "Error: no hits"},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "and this"}]}])
    );
    assert_eq!((&sent["tool_choice"], &sent["parallel_tool_calls"]), (&json!("required"), &json!(false)));
    assert_eq!(
        (&sent["max_completion_tokens"], &sent["stream_options"]),
        (&json!(100), &json!({"include_usage": true}))
    );
    assert!(sent["user"].as_str().unwrap().len() <= 64);
    // A name that is too long is made short, and given back.
    let long = sent["tools"][1]["function"]["name"].as_str().unwrap();
    assert!(long.len() <= 64);
    assert!(request.session.tool_name(long).starts_with("mcp__a_very_long"));
}

#[test]
fn responses_to_anthropic_and_chat() {
    let body = json!({
        "model": "m", "instructions": "be brief", "max_output_tokens": 5000, "store": true, "truncation": "auto",
        "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "high", "summary": "auto"},
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": "https://h.example/a.png"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "looking"}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "find", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "a\nb"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c1", "output": "again"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"}],
        "tools": [{"type": "function", "name": "find", "parameters": {"type": "object"}}, {"type": "custom", "name": "patch", "format": {"type": "grammar", "definition": "start: x"}}],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}}}}
    });
    let (request, sent) = sent(RESPONSES, UpstreamDialect::Anthropic, &body);
    assert_eq!(
        request.dropped,
        ["reasoning", "truncation"],
        "older reasoning is lost, and with it this wish"
    );
    assert_eq!(
        sent["messages"][1]["content"][2],
        json!({"type": "tool_use", "id": "c2", "name": "patch", "input": {"input": "a\nb"}})
    );
    assert_eq!(sent["messages"][2]["content"].as_array().unwrap().len(), 2, "a repeated output counts once");
    assert_eq!(sent["tools"][1]["input_schema"]["required"], json!(["input"]));
    let format = &sent["output_config"]["format"]["schema"];
    assert_eq!(format["additionalProperties"], false);
    assert_eq!(format["properties"]["a"], json!({"type": "integer", "description": "(minimum: 1)"}));
    let (_, chat) = super::sent(RESPONSES, UpstreamDialect::Chat, &body);
    assert_eq!(
        chat["messages"][2]["tool_calls"].as_array().unwrap().len(),
        2,
        "calls of one turn are one message"
    );
    assert_eq!(chat["response_format"]["json_schema"]["name"], "n");
    assert_eq!(chat["messages"][0], json!({"role": "system", "content": "be brief"}));
}

#[test]
fn free_text_tools_come_back_as_free_text() {
    let body =
        json!({"model": "m", "input": "hi", "stream": true, "tools": [{"type": "custom", "name": "patch"}]});
    let (request, _) = sent(RESPONSES, UpstreamDialect::Chat, &body);
    let bytes = chat_sse(
        &[
            json!({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "patch", "arguments": "{\"input\":\"a\\nb\"}"}}]}),
        ],
        "tool_calls",
    );
    let got = streamed_in(request.session.clone(), &bytes, 37);
    let events = events_of(got.text.as_bytes());
    let done = events.iter().find(|(name, _)| name == "response.output_item.done").unwrap();
    assert_eq!(
        (&done.1["item"]["type"], &done.1["item"]["input"]),
        (&json!("custom_tool_call"), &json!("a\nb"))
    );
    assert!(got.text.contains("response.custom_tool_call_input.done"));
    let whole = json!({"choices": [{"message": {"tool_calls": [{"id": "c1", "function": {"name": "patch", "arguments": "{\"input\":\"a\"}"}}]}, "finish_reason": "tool_calls"}]});
    let whole = translate_response(&request.session, whole.to_string().as_bytes()).unwrap();
    let whole: Value = serde_json::from_slice(&whole.body).unwrap();
    assert_eq!(whole["output"][0]["input"], "a");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let hi = json!([{"role": "user", "content": "hi"}]);
    let chat = |members: Value| {
        let mut body = json!({"model": "m", "messages": hi});
        body.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        body
    };
    let user = |part: Value| json!({"model": "m", "messages": [{"role": "user", "content": [part]}]});
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let cases: Vec<(&str, CallerDialect, UpstreamDialect, Value, &str, &str)> = vec![
        ("n", CHAT, UpstreamDialect::Anthropic, chat(json!({"n": 2})), "n", "unsupported_parameter"),
        (
            "logprobs",
            CHAT,
            UpstreamDialect::Google,
            chat(json!({"logprobs": true})),
            "logprobs",
            "unsupported_parameter",
        ),
        (
            "modalities",
            CHAT,
            UpstreamDialect::Anthropic,
            chat(json!({"modalities": ["text", "audio"]})),
            "modalities",
            "unsupported_parameter",
        ),
        (
            "functions",
            CHAT,
            UpstreamDialect::Anthropic,
            chat(json!({"functions": [{"name": "f"}]})),
            "functions",
            "unsupported_parameter",
        ),
        (
            "custom tool",
            CHAT,
            UpstreamDialect::Anthropic,
            chat(json!({"tools": [{"type": "custom"}]})),
            "tools[0].type",
            "unsupported_parameter",
        ),
        (
            "forced while reasoning",
            CHAT,
            UpstreamDialect::Anthropic,
            chat(
                json!({"tools": tool, "tool_choice": "required", "reasoning_effort": "high", "max_tokens": 9999}),
            ),
            "tool_choice",
            "unsupported_parameter",
        ),
        (
            "forced on ollama",
            CHAT,
            UpstreamDialect::Ollama,
            chat(json!({"tools": tool, "tool_choice": "required"})),
            "tool_choice",
            "unsupported_parameter",
        ),
        (
            "unknown tool",
            CHAT,
            UpstreamDialect::Anthropic,
            chat(json!({"tools": tool, "tool_choice": {"type": "function", "function": {"name": "g"}}})),
            "tool_choice",
            "invalid_request",
        ),
        (
            "stored file",
            CHAT,
            UpstreamDialect::Anthropic,
            user(json!({"type": "file", "file": {"file_id": "f"}})),
            "messages[0].content[0].file.file_id",
            "unsupported_parameter",
        ),
        (
            "sound",
            CHAT,
            UpstreamDialect::Anthropic,
            user(json!({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}})),
            "messages.audio",
            "unsupported_parameter",
        ),
        (
            "address on bedrock",
            CHAT,
            UpstreamDialect::Bedrock,
            user(json!({"type": "image_url", "image_url": {"url": "https://h.example/a.png"}})),
            "messages.url",
            "unsupported_parameter",
        ),
        (
            "image type",
            CHAT,
            UpstreamDialect::Anthropic,
            user(json!({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AA"}})),
            "messages.image",
            "unsupported_parameter",
        ),
        (
            "unknown part",
            CHAT,
            UpstreamDialect::Anthropic,
            user(json!({"type": "hologram"})),
            "messages[0].content[0].type",
            "invalid_request",
        ),
        (
            "unknown role",
            CHAT,
            UpstreamDialect::Anthropic,
            json!({"messages": [{"role": "narrator", "content": "x"}]}),
            "messages[0].role",
            "invalid_request",
        ),
        (
            "no messages",
            CHAT,
            UpstreamDialect::Anthropic,
            json!({"model": "m"}),
            "messages",
            "invalid_request",
        ),
        (
            "nothing said",
            CHAT,
            UpstreamDialect::Anthropic,
            json!({"messages": [{"role": "user", "content": " "}]}),
            "messages",
            "invalid_request",
        ),
        (
            "arguments",
            CHAT,
            UpstreamDialect::Anthropic,
            json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}]}),
            "messages[0].tool_calls[0].function.arguments",
            "invalid_request",
        ),
        (
            "lost result",
            CHAT,
            UpstreamDialect::Anthropic,
            json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "user", "content": "x"}]}),
            "messages[1]",
            "invalid_request",
        ),
        (
            "lost call",
            CHAT,
            UpstreamDialect::Anthropic,
            json!({"messages": [{"role": "tool", "tool_call_id": "a", "content": "x"}]}),
            "messages[0]",
            "invalid_request",
        ),
        (
            "stored response",
            RESPONSES,
            UpstreamDialect::Anthropic,
            json!({"input": "x", "previous_response_id": "r"}),
            "previous_response_id",
            "unsupported_parameter",
        ),
        (
            "conversation",
            RESPONSES,
            UpstreamDialect::Anthropic,
            json!({"input": "x", "conversation": "r"}),
            "conversation",
            "unsupported_parameter",
        ),
        (
            "background",
            RESPONSES,
            UpstreamDialect::Anthropic,
            json!({"input": "x", "background": true}),
            "background",
            "unsupported_parameter",
        ),
        (
            "reference",
            RESPONSES,
            UpstreamDialect::Anthropic,
            json!({"input": [{"type": "item_reference", "id": "r"}]}),
            "input[0]",
            "unsupported_parameter",
        ),
        (
            "hosted tool",
            RESPONSES,
            UpstreamDialect::Anthropic,
            json!({"input": "x", "tools": [{"type": "web_search"}]}),
            "tools[0].type",
            "unsupported_parameter",
        ),
        (
            "server tool",
            MESSAGES,
            UpstreamDialect::Chat,
            json!({"messages": hi, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "tools[0].type",
            "unsupported_parameter",
        ),
        (
            "file source",
            MESSAGES,
            UpstreamDialect::Chat,
            user(json!({"type": "image", "source": {"type": "file", "file_id": "f"}})),
            "messages[0].content[0].source.file_id",
            "unsupported_parameter",
        ),
        (
            "no number",
            CHAT,
            UpstreamDialect::Anthropic,
            chat(json!({"temperature": "hot"})),
            "temperature",
            "invalid_request",
        ),
        (
            "result with image",
            CHAT,
            UpstreamDialect::Cohere,
            json!({"messages": [
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]}),
            "messages.tool.image",
            "unsupported_parameter",
        ),
    ];
    for (name, caller, upstream, body, param, code) in cases {
        let error = refused(caller, upstream, &body);
        assert_eq!((error.param(), error.code()), (param, code), "{name}: {error}");
    }
    for body in ["", "[]", "{", "nonsense"] {
        let options = options(UpstreamDialect::Anthropic, "anthropic", "claude-x");
        let error =
            translate_request(CHAT, UpstreamDialect::Anthropic, body.as_bytes(), &options).unwrap_err();
        assert_eq!(error.param(), "body");
    }
}

#[test]
fn hosted_tools_and_forced_calls_can_be_let_go() {
    let mut options = options(UpstreamDialect::Ollama, "ollama", "qwen3");
    options.drop_hosted_tools = true;
    options.relax_tool_choice = true;
    let body = json!({"input": "x", "tool_choice": {"type": "function", "name": "f"}, "tools": [
        {"type": "web_search"}, {"type": "function", "name": "f"}, {"type": "function", "name": "g"}]});
    let sent =
        translate_request(RESPONSES, UpstreamDialect::Ollama, body.to_string().as_bytes(), &options).unwrap();
    assert_eq!(sent.dropped, ["tool_choice", "tools[0]"]);
    let body: Value = serde_json::from_slice(&sent.body).unwrap();
    assert_eq!(body["tools"].as_array().unwrap().len(), 1, "only the tool that was to be called");
}

#[test]
fn capabilities_follow_family_and_name() {
    let caps = |upstream, provider: &str, model: &str| defaults(upstream, provider, model);
    let o = caps(UpstreamDialect::Chat, "openai", "gpt-5.4-mini");
    assert!(o.tools_need_responses && !o.temperature && o.max_completion_tokens && o.stop == 0);
    assert!(!caps(UpstreamDialect::Chat, "openai", "gpt-4.1").tools_need_responses);
    assert!(!caps(UpstreamDialect::Chat, "openai", "gpt-5-chat-latest").sampling_without_reasoning);
    assert!(caps(UpstreamDialect::Chat, "openai", "o3-mini").sampling_without_reasoning);
    for (model, form, temperature) in [
        ("claude-3-5-sonnet-20241022", ReasoningForm::None, true),
        ("claude-3-7-sonnet-20250219", ReasoningForm::Budget, true),
        ("claude-sonnet-4-20250514", ReasoningForm::Budget, true),
        ("claude-opus-4-6", ReasoningForm::Adaptive, true),
        ("claude-opus-4-7", ReasoningForm::Adaptive, false),
        ("claude-sonnet-5", ReasoningForm::Adaptive, false),
        ("claude-fable-5-1", ReasoningForm::Adaptive, false),
    ] {
        for (upstream, name) in [
            (UpstreamDialect::Anthropic, model.to_owned()),
            (UpstreamDialect::Bedrock, format!("us.anthropic.{model}-v1:0")),
        ] {
            let caps = caps(upstream, "", &name);
            assert_eq!((caps.reasoning, caps.temperature), (form, temperature), "{name}");
        }
    }
    assert_eq!(caps(UpstreamDialect::Google, "google", "gemini-2.5-pro").reasoning, ReasoningForm::Budget);
    assert_eq!(caps(UpstreamDialect::Google, "google", "gemini-3-pro").reasoning, ReasoningForm::Level);
    assert_eq!(caps(UpstreamDialect::Google, "google", "gemini-2.0-flash").reasoning, ReasoningForm::None);
    assert_eq!(caps(UpstreamDialect::Chat, "deepseek", "deepseek-chat").replay, ReasoningReplay::Text);
    // A manifest overrides single fields and may not misspell one.
    let own: ModelCapabilities =
        serde_json::from_value(json!({"temperature": false, "efforts": ["low"]})).unwrap();
    assert!(!own.temperature && own.top_p);
    assert!(serde_json::from_value::<ModelCapabilities>(json!({"temprature": false})).is_err());
}

use super::super::capability::{ReasoningForm, ReasoningReplay};

/// Upstreams that a caller speaks like.
const CALLERS_PATHS: [UpstreamDialect; 4] =
    [UpstreamDialect::Chat, UpstreamDialect::Azure, UpstreamDialect::Responses, UpstreamDialect::Anthropic];

#[test]
fn paths_follow_the_upstream() {
    let body = json!({"messages": [{"role": "user", "content": "x"}]}).to_string();
    let path = |upstream, model: &str, change: &dyn Fn(&mut TranslateOptions)| {
        let mut options = options(upstream, "", model);
        change(&mut options);
        translate_request(CHAT, upstream, body.as_bytes(), &options).unwrap().path
    };
    let same = |_: &mut TranslateOptions| {};
    assert_eq!(
        path(UpstreamDialect::Azure, "my dep", &|options| options.api_version =
            Some("2024-10-21".to_owned())),
        "/openai/deployments/my%20dep/chat/completions?api-version=2024-10-21"
    );
    assert_eq!(path(UpstreamDialect::Azure, "dep", &same), "/openai/v1/chat/completions");
    for upstream in UpstreamDialect::ALL {
        let native = native_path(upstream, &options(upstream, "", "m"));
        assert_eq!(
            native.map(|native| native.1),
            CALLERS_PATHS.contains(&upstream).then(|| path(upstream, "m", &same))
        );
    }
    assert_eq!(
        path(UpstreamDialect::Vertex, "gemini-3-pro", &|options| {
            options.project = Some("p".to_owned());
            options.location = Some("europe-west1".to_owned());
        }),
        "/v1/projects/p/locations/europe-west1/publishers/google/models/gemini-3-pro:generateContent"
    );
    assert_eq!(
        path(UpstreamDialect::VertexClaude, "claude-sonnet-4-5@20250929", &|options| options.project =
            Some("p".to_owned())),
        "/v1/projects/p/locations/global/publishers/anthropic/models/claude-sonnet-4-5%4020250929:rawPredict"
    );
    assert_eq!(
        path(UpstreamDialect::Bedrock, "arn:aws:bedrock:us-east-1:1:inference-profile/x", &same),
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fx/converse"
    );
    let (_, vertex) = sent(CHAT, UpstreamDialect::VertexClaude, &serde_json::from_str(&body).unwrap());
    assert!(vertex.get("model").is_none());
    assert_eq!(vertex["anthropic_version"], "vertex-2023-10-16");
}

#[test]
fn counting_always_answers() {
    let small = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let count = |body: &Value| -> u64 {
        let answer = count_tokens(MESSAGES, body.to_string().as_bytes()).unwrap();
        serde_json::from_slice::<Value>(&answer).unwrap()["input_tokens"].as_u64().unwrap()
    };
    let base = count(&small);
    assert!(base > 0);
    let mut tools = small.clone();
    tools["tools"] = json!([{"name": "find", "description": "x".repeat(3000), "input_schema": {}}, {"type": "web_search_20250305", "name": "w"}]);
    tools["system"] = json!("y".repeat(3000));
    assert!(count(&tools) > base + 2000, "instructions and tools count");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever a caller sends is translated or refused.
    #[test]
    fn requests_never_panic(at in 0_usize..80, kind in 0_usize..6) {
        for caller in CallerDialect::ALL {
            let mut body = match caller {
                CallerDialect::Chat => chat_body(),
                CallerDialect::Messages => json!({"model": "m", "system": "s", "max_tokens": 5, "thinking": {"type": "enabled", "budget_tokens": 2000},
                    "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "document", "source": {"type": "url", "url": "https://h.example/a.pdf"}}]},
                        {"role": "assistant", "content": [{"type": "thinking", "thinking": "a", "signature": "b"}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
                        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}],
                    "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"}}),
                CallerDialect::Responses => json!({"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}], "encrypted_content": "b"},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c", "output": "x"}],
                    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}, "tools": [{"type": "function", "name": "f"}]}),
            };
            let mut left = at;
            spoil(&mut body, &mut left, kind);
            for upstream in UpstreamDialect::ALL {
                let (provider, model) = sample_model(upstream);
                let _ = translate_request(caller, upstream, body.to_string().as_bytes(), &options(upstream, provider, model));
            }
        }
    }
}

fn spoil(value: &mut Value, left: &mut usize, kind: usize) {
    if *left == 0 {
        *value = [json!(null), json!(-1), json!("x"), json!([]), json!({}), json!(1e300)][kind].clone();
        *left = usize::MAX;
        return;
    }
    *left = left.saturating_sub(1);
    match value {
        Value::Array(list) => list.iter_mut().for_each(|item| spoil(item, left, kind)),
        Value::Object(object) => object.values_mut().for_each(|item| spoil(item, left, kind)),
        _ => {}
    }
}

#[test]
fn a_manifest_overrides_what_a_model_takes_field_by_field() {
    let fields = serde_json::to_value(ModelCapabilities::default()).unwrap();
    let names: BTreeSet<&str> = fields.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ModelCapabilities::FIELDS.iter().copied().collect());
    let base = defaults(UpstreamDialect::Anthropic, "anthropic", "claude-sonnet-4-5");
    let own = json!({"temperature": false, "efforts": ["low"], "output_cap": 9, "renames": {"a": "b"}});
    let with = base.clone().with(own.as_object().unwrap());
    let expected = ModelCapabilities {
        temperature: false,
        efforts: vec![EffortLevel::Low],
        output_cap: Some(9),
        renames: [("a".to_owned(), "b".to_owned())].into(),
        ..base.clone()
    };
    assert_eq!(with, expected);
    for (field, value) in [("temperature", json!("no")), ("efforts", json!(["much"])), ("warmth", json!(1))] {
        assert!(ModelCapabilities::check(field, &value).is_err(), "{field}");
        let spoilt = json!({field: value});
        assert_eq!(base.clone().with(spoilt.as_object().unwrap()), base);
    }
    assert_eq!(ModelCapabilities::check("reasoning", &json!("adaptive")), Ok(()));
}
