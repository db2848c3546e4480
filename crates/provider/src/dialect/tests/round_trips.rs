//! What is written in a dialect and read back is equal, whole and streamed, however the bytes are cut.

use proptest::prelude::*;

use super::*;

fn signature() -> impl Strategy<Value = Signature> {
    let maker = prop_oneof![
        Just(Maker::Anthropic),
        Just(Maker::Google),
        Just(Maker::Vertex),
        Just(Maker::OpenAi),
        Just(Maker::Bedrock),
    ];
    (maker, "[A-Za-z0-9+/=]{4,12}").prop_map(|(maker, data)| Signature::new(maker, data))
}

/// Text with every kind of character that needs care, never blank.
fn words() -> impl Strategy<Value = String> {
    "[a-z\"\\\\\n日🦀é{}]{0,12}x"
}

fn input() -> impl Strategy<Value = String> {
    proptest::collection::btree_map("[a-z]{1,4}", words(), 0..3)
        .prop_map(|map| serde_json::to_value(map).unwrap().to_string())
}

fn block() -> impl Strategy<Value = ContentBlock> {
    prop_oneof![
        words().prop_map(ContentBlock::text),
        words().prop_map(ContentBlock::Refusal),
        (words(), proptest::option::of(signature()))
            .prop_map(|(text, signature)| ContentBlock::Thinking { text, signature }),
        signature().prop_map(ContentBlock::Redacted),
        ("[a-zA-Z0-9_-]{1,12}", "[a-z_]{1,8}", input(), proptest::option::of(signature())).prop_map(
            |(id, name, input, signature)| ContentBlock::ToolUse { id, name, input, signature, cache: None }
        ),
    ]
}

fn answer() -> impl Strategy<Value = InnerResponse> {
    let reason = prop_oneof![
        Just(FinishReason::Stop),
        Just(FinishReason::StopSequence),
        Just(FinishReason::Length),
        Just(FinishReason::Filtered)
    ];
    let usage = (0_u64..9999, 0_u64..999, 0_u64..999, 0_u64..999, 0_u64..99, 0_u64..99);
    (proptest::collection::vec(block(), 1..7), reason, usage).prop_map(|(mut blocks, reason, usage)| {
        let mut number = 0;
        for block in &mut blocks {
            if let ContentBlock::ToolUse { id, .. } = block {
                number += 1;
                *id = format!("{id}-{number}");
            }
        }
        // Chat cannot say where one block of a kind ends and the next begins.
        blocks.dedup_by_key(|block| match block {
            ContentBlock::ToolUse { id, .. } => id.clone(),
            ContentBlock::Redacted(_) => "redacted".to_owned(),
            block => format!("{:?}", std::mem::discriminant(block)),
        });
        let finish = if number > 0 && reason == FinishReason::Stop { FinishReason::ToolUse } else { reason };
        let (input, cache_read, cache_write, output, reasoning, long) = usage;
        InnerResponse {
            id: "answer-1".to_owned(),
            model: "shown".to_owned(),
            blocks,
            finish,
            stop_sequence: (finish == FinishReason::StopSequence).then(|| "END".to_owned()),
            usage: TokenParts {
                input,
                output: output + reasoning,
                cache_read,
                cache_write: cache_write + long,
                reasoning,
                cache_write_long: long,
                reported_cost: None,
                source: TokenSource::Reported,
            },
        }
    })
}

/// What a dialect cannot say is taken out of both sides.
fn normal(caller: CallerDialect, mut answer: InnerResponse) -> InnerResponse {
    match caller {
        CallerDialect::Messages => {
            for block in &mut answer.blocks {
                if let ContentBlock::Refusal(text) = block {
                    *block = ContentBlock::text(text.as_str());
                }
            }
        }
        CallerDialect::Chat | CallerDialect::Responses => {
            answer.usage.cache_write_long = 0;
            answer.stop_sequence = None;
            if answer.finish == FinishReason::StopSequence {
                let called = answer.blocks.iter().any(|block| matches!(block, ContentBlock::ToolUse { .. }));
                answer.finish = if called { FinishReason::ToolUse } else { FinishReason::Stop };
            }
        }
    }
    answer
}

fn native(caller: CallerDialect) -> TranslateSession {
    session(
        caller,
        match caller {
            CallerDialect::Chat => UpstreamDialect::Chat,
            CallerDialect::Responses => UpstreamDialect::Responses,
            CallerDialect::Messages => UpstreamDialect::Anthropic,
        },
    )
}

/// The same events with each delta in pieces of `size` characters.
fn pieces(events: Vec<InnerEvent>, size: usize) -> Vec<InnerEvent> {
    let mut out = Vec::new();
    for event in events {
        match event {
            InnerEvent::Delta(text) => {
                let chars: Vec<char> = text.chars().collect();
                out.extend(chars.chunks(size).map(|part| InnerEvent::Delta(part.iter().collect())));
            }
            event => out.push(event),
        }
    }
    out
}

fn stream(session: &TranslateSession, events: &[InnerEvent]) -> Vec<u8> {
    let mut writer = CallerWriter::new(session);
    let mut bytes = Vec::new();
    for event in events {
        writer.event(session, event, &mut bytes);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_stream_read_back_is_equal(answer in answer(), size in 1_usize..6) {
        for caller in CallerDialect::ALL {
            let session = native(caller);
            let bytes = stream(&session, &pieces(answer.clone().events(), size));
            let read = collect(&session, &bytes);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert_eq!(read.map(|read| normal(caller, read)), Ok(normal(caller, answer.clone())), "{:?}\n{}", caller, text);
        }
    }

    #[test]
    fn a_whole_answer_read_back_is_equal(answer in answer()) {
        for caller in [CallerDialect::Responses, CallerDialect::Messages] {
            let session = native(caller);
            let bytes = caller::write_response(&session, &answer);
            let read = upstream::read_response(&session, &bytes);
            prop_assert_eq!(read.map(|read| normal(caller, read)), Ok(normal(caller, answer.clone())));
        }
        // Chat has one place for each kind: what was said and called, and the figures.
        let session = native(CallerDialect::Chat);
        let read = upstream::read_response(&session, &caller::write_response(&session, &answer)).unwrap();
        let calls = |answer: &InnerResponse| -> Vec<ContentBlock> {
            answer.blocks.iter().filter(|block| matches!(block, ContentBlock::ToolUse { .. })).cloned().collect()
        };
        let said = |answer: &InnerResponse| -> String {
            answer.blocks.iter().filter_map(|block| match block {
                ContentBlock::Text { text, .. } => Some(text.as_str()),
                _ => None,
            }).collect()
        };
        let normal = normal(CallerDialect::Chat, answer.clone());
        prop_assert_eq!(calls(&read), calls(&answer));
        prop_assert_eq!(said(&read), said(&answer));
        prop_assert_eq!((read.finish, read.usage), (normal.finish, normal.usage));
    }

    #[test]
    fn a_cut_changes_nothing(answer in answer(), cut in 0_usize..4000, size in 1_usize..6) {
        for caller in CallerDialect::ALL {
            let bytes = stream(&native(caller), &pieces(answer.clone().events(), size));
            for to in CallerDialect::ALL {
                let session = session(to, native(caller).upstream);
                let mut whole = Vec::new();
                let mut one = StreamTranslator::new(session.clone());
                one.feed(&bytes, &mut whole);
                one.finish(&mut whole);
                let (head, tail) = bytes.split_at(cut.min(bytes.len()));
                let mut parts = Vec::new();
                let mut two = StreamTranslator::new(session);
                two.feed(head, &mut parts);
                two.feed(tail, &mut parts);
                two.finish(&mut parts);
                prop_assert_eq!(String::from_utf8_lossy(&whole), String::from_utf8_lossy(&parts));
                prop_assert!(one.failure().is_none());
            }
        }
    }

    #[test]
    fn proofs_keep_their_maker(signature in signature(), id in "[a-zA-Z0-9-]{1,20}") {
        let carried = signature::id_with(&id, Some(&signature));
        prop_assert!(carried.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'));
        prop_assert_eq!(signature::split_id(&carried), (id, Some(signature.clone())));
        for native in [Maker::Anthropic, Maker::OpenAi] {
            prop_assert_eq!(Signature::read(&signature.field(native), native), signature.clone());
        }
    }
}
