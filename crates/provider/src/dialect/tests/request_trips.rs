//! Requests: what is written for an upstream that speaks a caller's dialect and read back as that caller's is equal, and
//! what one caller says arrives through any of the others' dialects as it was meant.

use proptest::prelude::*;

use super::*;

/// Text with characters that need care, never blank.
fn words() -> impl Strategy<Value = String> {
    "[a-z\"\\\\日🦀é{} ]{0,12}x"
}

fn schema() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map("[a-z]{1,4}", prop_oneof![Just("string"), Just("integer")], 0..3)
        .prop_map(|map| {
            let properties: serde_json::Map<String, Value> =
                map.into_iter().map(|(name, kind)| (name, json!({"type": kind}))).collect();
            json!({"type": "object", "properties": properties, "additionalProperties": false})
        })
}

fn picture() -> impl Strategy<Value = ContentBlock> {
    let source = prop_oneof![
        "[A-Za-z0-9+/]{8}".prop_map(|data| MediaSource::Inline { media_type: "image/png".to_owned(), data }),
        "https://[a-z]{1,8}\\.example/a\\.png".prop_map(MediaSource::Url),
    ];
    source.prop_map(|source| ContentBlock::Image { source, detail: None, cache: None })
}

/// One exchange: what the user says, what the model answers, and how many tools it calls.
type Exchange = (String, Option<ContentBlock>, Option<String>, Vec<(String, String)>);

fn exchange() -> impl Strategy<Value = Exchange> {
    let call =
        ("[a-z]{1,4}", words()).prop_map(|(key, value)| (json!({key: value}).to_string(), "r".to_owned()));
    (
        words(),
        proptest::option::of(picture()),
        proptest::option::of(words()),
        proptest::collection::vec(call, 0..3),
    )
}

/// A conversation that every provider takes: turns alternate, all calls have their results next.
fn turns(exchanges: Vec<Exchange>, last: String) -> Vec<DialogTurn> {
    let mut request = InnerRequest::default();
    let mut number = 0;
    for (said, picture, answer, calls) in exchanges {
        let mut blocks = vec![ContentBlock::text(said)];
        blocks.extend(picture);
        request.push(Side::User, blocks);
        let mut answered: Vec<ContentBlock> = answer.map(ContentBlock::text).into_iter().collect();
        let mut results = Vec::new();
        for (input, result) in calls {
            number += 1;
            let id = format!("call_{number}");
            results.push(ContentBlock::ToolResult {
                id: id.clone(),
                content: vec![ContentBlock::text(result)],
                is_error: false,
                cache: None,
            });
            answered.push(ContentBlock::ToolUse {
                id,
                name: "find".to_owned(),
                input,
                signature: None,
                cache: None,
            });
        }
        if answered.is_empty() {
            answered.push(ContentBlock::text("so"));
        }
        request.push(Side::Assistant, answered);
        request.push(Side::User, results);
    }
    request.push(Side::User, vec![ContentBlock::text(last)]);
    request.results_first();
    request.turns
}

fn request() -> impl Strategy<Value = InnerRequest> {
    let tool = (proptest::option::of(words()), schema(), prop_oneof![Just(None), Just(Some(true))]);
    let rule = prop_oneof![
        Just(None),
        Just(Some(ToolRule::Auto)),
        Just(Some(ToolRule::Never)),
        Just(Some(ToolRule::Any)),
        Just(Some(ToolRule::Named("find".to_owned()))),
    ];
    let form = proptest::option::of(schema());
    (
        proptest::option::of(words()),
        (proptest::collection::vec(exchange(), 0..4), words()),
        (tool, rule, any::<bool>()),
        form,
        (16_u64..9999, proptest::option::of(0_u8..=10), any::<bool>(), proptest::option::of("[a-z]{1,9}")),
    )
        .prop_map(
            |(system, (exchanges, last), ((description, tool, strict), rule, serial), form, rest)| {
                let (limit, heat, stream, user) = rest;
                let parallel = (serial && rule == Some(ToolRule::Auto)).then_some(false);
                InnerRequest {
                    model: "m".to_owned(),
                    system: system.map(ContentBlock::text).into_iter().collect(),
                    turns: turns(exchanges, last),
                    tools: vec![ToolDecl {
                        name: "find".to_owned(),
                        description,
                        schema: tool,
                        strict,
                        cache: None,
                        free_text: false,
                    }],
                    tool_rule: rule,
                    parallel_tools: parallel,
                    form: form.map(|schema| AnswerForm::Schema {
                        name: "structured_output".to_owned(),
                        description: None,
                        schema,
                        strict: None,
                    }),
                    max_tokens: Some(limit),
                    temperature: heat.map(|tenths| f64::from(tenths) / 10.0),
                    stream,
                    user,
                    ..InnerRequest::default()
                }
            },
        )
}

/// Everything is taken, so that nothing is dropped on the way.
fn taking_all() -> TranslateOptions {
    let capabilities =
        ModelCapabilities { openai_extras: true, max_completion_tokens: true, ..Default::default() };
    TranslateOptions {
        model: "m".to_owned(),
        capabilities,
        id: "1".to_owned(),
        ..TranslateOptions::default()
    }
}

/// Members that say the same in other words, and those that are no part of the meaning.
fn normal(mut request: InnerRequest) -> InnerRequest {
    request.echo = Value::Null;
    request.dropped.clear();
    request.include_usage = false;
    for tool in &mut request.tools {
        tool.strict = tool.strict.filter(|strict| *strict);
    }
    for block in request.turns.iter_mut().flat_map(|turn| &mut turn.blocks) {
        if let ContentBlock::Image { detail, .. } = block {
            *detail = None;
        }
    }
    request
}

/// The request as a body of this caller's dialect.
fn body(caller: CallerDialect, request: &InnerRequest) -> Value {
    upstream::write_request(&mut request.clone(), native(caller), &taking_all()).unwrap().body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_request_written_and_read_back_is_equal(request in request()) {
        for caller in CallerDialect::ALL {
            let body = body(caller, &request);
            let read = caller::read_request(caller, body.to_string().as_bytes(), &taking_all());
            prop_assert_eq!(read.map(normal), Ok(normal(request.clone())), "{:?}: {}", caller, body);
        }
    }

    #[test]
    fn a_request_through_another_dialect_means_the_same(request in request()) {
        for from in CallerDialect::ALL {
            for to in CallerDialect::ALL {
                let sent = translate_request(from, native(to), body(from, &request).to_string().as_bytes(), &taking_all());
                let sent = sent.map(|sent| caller::read_request(to, &sent.body, &taking_all()));
                prop_assert_eq!(sent.map(|read| read.map(normal)), Ok(Ok(normal(request.clone()))), "{:?} → {:?}", from, to);
            }
        }
    }
}
