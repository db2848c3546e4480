//! Proofs of reasoning: what one maker made is shown to no other.

use super::*;

/// A conversation whose reasoning has a proof of every maker, in each caller's dialect.
fn proofs_of_all(caller: CallerDialect) -> (Value, Vec<(Maker, String)>) {
    let makers =
        [Maker::Anthropic, Maker::Google, Maker::Vertex, Maker::OpenAi, Maker::Azure, Maker::Bedrock];
    let proofs: Vec<(Maker, String)> =
        makers.into_iter().map(|maker| (maker, format!("PROOF{maker:?}").to_ascii_uppercase())).collect();
    let answer = InnerResponse {
        blocks: proofs
            .iter()
            .enumerate()
            .flat_map(|(number, (maker, data))| {
                let signature = Signature::new(*maker, data.as_str());
                [
                    ContentBlock::Thinking { text: "t".to_owned(), signature: Some(signature.clone()) },
                    ContentBlock::Redacted(signature.clone()),
                    ContentBlock::ToolUse {
                        id: format!("c{number}"),
                        name: "f".to_owned(),
                        input: "{}".to_owned(),
                        signature: Some(signature),
                        cache: None,
                    },
                ]
            })
            .collect(),
        ..InnerResponse::default()
    };
    let written: Value =
        serde_json::from_slice(&caller::write_response(&session(caller, native(caller)), &answer)).unwrap();
    let user = json!({"role": "user", "content": "x"});
    let body = match caller {
        CallerDialect::Chat => {
            let message = written["choices"][0]["message"].clone();
            let mut messages = vec![user, message.clone()];
            for call in message["tool_calls"].as_array().unwrap() {
                messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "r"}));
            }
            json!({"messages": messages})
        }
        CallerDialect::Messages => {
            let results: Vec<Value> = written["content"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|block| block["type"] == "tool_use")
                .map(|block| json!({"type": "tool_result", "tool_use_id": block["id"], "content": "r"}))
                .collect();
            json!({"messages": [user, {"role": "assistant", "content": written["content"]}, {"role": "user", "content": results}]})
        }
        CallerDialect::Responses => {
            let mut input = vec![user];
            input.extend(written["output"].as_array().unwrap().iter().cloned());
            for item in written["output"].as_array().unwrap() {
                if item["type"] == "function_call" {
                    input.push(
                        json!({"type": "function_call_output", "call_id": item["call_id"], "output": "r"}),
                    );
                }
            }
            json!({"input": input})
        }
    };
    (body, proofs)
}

#[test]
fn no_maker_sees_anothers_proof() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    for caller in CallerDialect::ALL {
        let (body, proofs) = proofs_of_all(caller);
        for upstream in UpstreamDialect::ALL {
            let (provider, model) = sample_model(upstream);
            let mut options = options(upstream, provider, model);
            options.capabilities.replay = ReasoningReplay::Signed;
            let own = upstream.maker(model);
            let sent = translate_request(caller, upstream, body.to_string().as_bytes(), &options).unwrap();
            let scrubbed = scrub(upstream, model, body.to_string().as_bytes()).unwrap();
            for (way, text) in [("translated", sent.body), ("scrubbed", scrubbed)] {
                let text = String::from_utf8(text).unwrap();
                if way == "scrubbed" && !caller.is_native(upstream) {
                    continue;
                }
                for (maker, data) in &proofs {
                    let seen = text.contains(data.as_str()) || text.contains(&URL_SAFE_NO_PAD.encode(data));
                    // What an untagged field of a dialect holds is its own maker's and passes as it came.
                    let natively = way == "scrubbed"
                        && matches!(
                            (caller, maker),
                            (CallerDialect::Chat | CallerDialect::Messages, Maker::Anthropic)
                                | (CallerDialect::Responses, Maker::OpenAi)
                        );
                    if Some(*maker) != own && !natively {
                        assert!(!seen, "{caller:?} → {upstream:?} ({way}) shows {maker:?}'s: {text}");
                    }
                    let takes = !matches!(upstream, UpstreamDialect::Azure | UpstreamDialect::Chat);
                    if Some(*maker) == own && takes {
                        assert!(seen, "{caller:?} → {upstream:?} ({way}) lost its own: {text}");
                    }
                }
            }
        }
    }
}
