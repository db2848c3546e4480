//! Fits a request to what one model takes: cuts, drops by name, or refuses by name.
//!
//! Not its job: any wire. Invariant: what is left is honoured by the adapter, and what is gone is in `dropped`
//! unless its absence changes nothing.

use std::collections::BTreeMap;

use super::{
    capability::{ModelCapabilities, ReasoningForm, ReasoningReplay, StructuredForm},
    inner::{AnswerForm, ContentBlock, DialogTurn, EffortLevel, InnerRequest, MediaSource, Side, ToolRule},
    signature::Maker,
    target::{CallerDialect, TranslateError, TranslateOptions, UpstreamDialect},
};

/// What the caller calls the things that can be refused.
struct FieldNames {
    form: &'static str,
    reasoning: &'static str,
    stop: &'static str,
    parallel: &'static str,
    messages: &'static str,
}

fn names_of(caller: CallerDialect) -> FieldNames {
    match caller {
        CallerDialect::Chat => FieldNames {
            form: "response_format",
            reasoning: "reasoning_effort",
            stop: "stop",
            parallel: "parallel_tool_calls",
            messages: "messages",
        },
        CallerDialect::Responses => FieldNames {
            form: "text.format",
            reasoning: "reasoning",
            stop: "stop",
            parallel: "parallel_tool_calls",
            messages: "input",
        },
        CallerDialect::Messages => FieldNames {
            form: "output_config.format",
            reasoning: "thinking",
            stop: "stop_sequences",
            parallel: "tool_choice.disable_parallel_tool_use",
            messages: "messages",
        },
    }
}

/// Fits the request; gives the tool names that changed, as sent → as declared.
pub(crate) fn fit(
    request: &mut InnerRequest,
    caller: CallerDialect,
    upstream: UpstreamDialect,
    options: &TranslateOptions,
) -> Result<BTreeMap<String, String>, TranslateError> {
    let caps = &options.capabilities;
    let fields = names_of(caller);
    fit_reasoning(request, caps, &fields);
    fit_tools(request, caps, &fields, options)?;
    fit_form(request, caps, &fields, options)?;
    fit_sampling(request, caps, &fields);
    if let (Some(wanted), Some(cap)) = (request.max_tokens, caps.output_cap) {
        request.max_tokens = Some(wanted.min(cap));
    }
    let maker = upstream.maker(&options.model);
    let mut dropped_marks = false;
    for turn in &mut request.turns {
        turn.blocks.retain_mut(|block| keep(block, caps.replay, maker));
        for block in &mut turn.blocks {
            check_media(block, caps, &fields, options)?;
            dropped_marks |= !caps.cache_marks && unmark(block);
        }
    }
    request.system.retain(|block| !is_blank(block));
    for block in &mut request.system {
        dropped_marks |= !caps.cache_marks && unmark(block);
    }
    for tool in &mut request.tools {
        dropped_marks |= !caps.cache_marks && tool.cache.take().is_some();
    }
    if dropped_marks {
        request.dropped.push("cache_control".to_owned());
    }
    join(request);
    if request.turns.is_empty() {
        return Err(TranslateError::invalid(fields.messages, "there is nothing to answer"));
    }
    let names = rename(request, upstream);
    request.dropped.sort();
    request.dropped.dedup();
    Ok(names)
}

fn fit_reasoning(request: &mut InnerRequest, caps: &ModelCapabilities, fields: &FieldNames) {
    let Some(mut wish) = request.reasoning else { return };
    if wish.is_off() {
        match caps.reasoning {
            // Nothing to switch off.
            ReasoningForm::None => request.reasoning = None,
            ReasoningForm::Switch | ReasoningForm::Flag => {}
            _ if caps.effort(EffortLevel::None).is_some() => wish.effort = Some(EffortLevel::None),
            // Of a compatible server it is not known whether the model reasons at all.
            ReasoningForm::Effort if !caps.openai_extras => {
                request.dropped.push(fields.reasoning.to_owned());
                request.reasoning = None;
                return;
            }
            _ => {
                // It cannot be switched off: as little as possible.
                request.dropped.push(fields.reasoning.to_owned());
                wish.budget = None;
                wish.effort = caps.effort(EffortLevel::Minimal);
                request.reasoning = wish.effort.map(|_| wish);
                return;
            }
        }
        if request.reasoning.is_some() {
            request.reasoning = Some(wish);
        }
        return;
    }
    match caps.reasoning {
        ReasoningForm::None => {
            request.dropped.push(fields.reasoning.to_owned());
            request.reasoning = None;
        }
        ReasoningForm::Effort | ReasoningForm::Adaptive | ReasoningForm::Level => {
            wish.effort = caps.effort(wish.level());
            if wish.effort.is_none() {
                request.dropped.push(fields.reasoning.to_owned());
                request.reasoning = None;
            } else {
                request.reasoning = Some(wish);
            }
        }
        ReasoningForm::Budget | ReasoningForm::Switch | ReasoningForm::Object | ReasoningForm::Flag => {}
    }
}

/// Whether the model will reason because it was asked to.
pub(crate) fn reasons(request: &InnerRequest) -> bool {
    request.reasoning.is_some_and(|wish| !wish.is_off())
}

fn fit_tools(
    request: &mut InnerRequest,
    caps: &ModelCapabilities,
    fields: &FieldNames,
    options: &TranslateOptions,
) -> Result<(), TranslateError> {
    if !caps.tools && !request.tools.is_empty() {
        return Err(TranslateError::unsupported("tools", &options.model, "the model takes no tools"));
    }
    if request.tools.is_empty() {
        if matches!(request.tool_rule, Some(ToolRule::Any | ToolRule::Named(_))) {
            return Err(TranslateError::invalid("tool_choice", "a call is required and there are no tools"));
        }
        request.tool_rule = None;
        request.parallel_tools = None;
    }
    if matches!(request.tool_rule, Some(ToolRule::Any | ToolRule::Named(_))) {
        let able = caps.forced_tools && (caps.forced_tools_with_reasoning || !reasons(request));
        if !able && options.relax_tool_choice {
            // A choice among one tool comes close to the wish.
            if let Some(ToolRule::Named(name)) = &request.tool_rule {
                request.tools.retain(|tool| tool.name == *name);
            }
            request.tool_rule = Some(ToolRule::Auto);
            request.dropped.push("tool_choice".to_owned());
        } else if !able {
            let why = if caps.forced_tools {
                "not while it reasons"
            } else {
                "a call cannot be forced; use `auto`"
            };
            return Err(TranslateError::unsupported("tool_choice", &options.model, why));
        }
    }
    if !caps.parallel_tools && request.parallel_tools.take() == Some(false) {
        request.dropped.push(fields.parallel.to_owned());
    }
    if !caps.strict_tools {
        let mut strict = false;
        for tool in &mut request.tools {
            strict |= tool.strict.take() == Some(true);
        }
        if strict {
            request.dropped.push("tools.strict".to_owned());
        }
    }
    Ok(())
}

fn fit_form(
    request: &mut InnerRequest,
    caps: &ModelCapabilities,
    fields: &FieldNames,
    options: &TranslateOptions,
) -> Result<(), TranslateError> {
    match (&request.form, caps.structured) {
        (Some(_), StructuredForm::None) => {
            Err(TranslateError::unsupported(fields.form, &options.model, "it gives no structured output"))
        }
        (Some(AnswerForm::Schema { .. }), StructuredForm::Schema)
            if request.stream && !caps.structured_streams =>
        {
            let why = "it streams no answer by a schema; ask without `stream`";
            Err(TranslateError::unsupported(fields.form, &options.model, why))
        }
        (Some(AnswerForm::Schema { schema, .. }), StructuredForm::Json) => {
            let text = format!(
                "Answer with one JSON object that follows this JSON Schema, and nothing else: {schema}"
            );
            request.system.push(ContentBlock::text(text));
            request.form = Some(AnswerForm::Json);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The instruction where a wire has no mode for any JSON.
pub(crate) fn instruct_json(request: &mut InnerRequest) {
    if request.form == Some(AnswerForm::Json) {
        request.form = None;
        request.system.push(ContentBlock::text("Answer with one valid JSON object and nothing else."));
    }
}

fn fit_sampling(request: &mut InnerRequest, caps: &ModelCapabilities, fields: &FieldNames) {
    let reasoning = caps.sampling_without_reasoning && reasons(request);
    let dropped = &mut request.dropped;
    let mut drop_unless = |able: bool, given: bool, name: &str| {
        if given && !able {
            dropped.push(name.to_owned());
        }
        able
    };
    // 1 is every family's neutral value: leaving it out changes nothing.
    let heat = request.temperature.is_some_and(|value| value != 1.0);
    if !drop_unless(caps.temperature && !(reasoning && heat), heat, "temperature") {
        request.temperature = None;
    }
    let nucleus = request.top_p.is_some_and(|value| value != 1.0);
    let narrow = request.top_p.is_some_and(|value| value < 0.95);
    if !drop_unless(caps.top_p && !(reasoning && narrow), nucleus, "top_p") {
        request.top_p = None;
    }
    if !drop_unless(caps.top_k && !reasoning, request.top_k.is_some(), "top_k") {
        request.top_k = None;
    }
    if !drop_unless(caps.seed, request.seed.is_some(), "seed") {
        request.seed = None;
    }
    for (value, name) in [
        (&mut request.presence_penalty, "presence_penalty"),
        (&mut request.frequency_penalty, "frequency_penalty"),
    ] {
        if !drop_unless(caps.penalties, value.is_some_and(|value| value != 0.0), name) {
            *value = None;
        }
    }
    if let Some(value) = &mut request.temperature
        && *value > caps.temperature_max
    {
        *value = caps.temperature_max;
        request.dropped.push("temperature".to_owned());
    }
    request.stop.retain(|word| !word.trim().is_empty());
    if request.stop.len() > caps.stop {
        request.stop.truncate(caps.stop);
        request.dropped.push(fields.stop.to_owned());
    }
}

fn is_blank(block: &ContentBlock) -> bool {
    match block {
        ContentBlock::Text { text, .. } | ContentBlock::Refusal(text) => text.trim().is_empty(),
        _ => false,
    }
}

/// Whether a block goes to this upstream; proofs of other makers are taken off those that do.
fn keep(block: &mut ContentBlock, replay: ReasoningReplay, maker: Option<Maker>) -> bool {
    match block {
        ContentBlock::Thinking { signature, text } => match replay {
            ReasoningReplay::Never => false,
            ReasoningReplay::Signed => signature.as_ref().is_some_and(|own| own.of(maker).is_some()),
            ReasoningReplay::Text => {
                *signature = None;
                !text.is_empty()
            }
        },
        ContentBlock::Redacted(signature) => {
            replay == ReasoningReplay::Signed && signature.of(maker).is_some()
        }
        ContentBlock::ToolUse { signature, .. } => {
            if signature.as_ref().is_some_and(|own| own.of(maker).is_none()) {
                *signature = None;
            }
            true
        }
        ContentBlock::ToolResult { content, .. } => {
            content.retain(|block| !is_blank(block));
            true
        }
        _ => !is_blank(block),
    }
}

fn check_media(
    block: &ContentBlock,
    caps: &ModelCapabilities,
    fields: &FieldNames,
    options: &TranslateOptions,
) -> Result<(), TranslateError> {
    let no = |what: &str, why: &str| {
        Err(TranslateError::unsupported(format!("{}.{what}", fields.messages), &options.model, why))
    };
    match block {
        ContentBlock::Image { .. } if !caps.images => no("image", "it takes no images"),
        ContentBlock::Document { .. } if !caps.documents => no("document", "it takes no documents"),
        ContentBlock::Audio { .. } if !caps.audio => no("audio", "it takes no sound"),
        ContentBlock::Image { source: MediaSource::Url(_), .. }
        | ContentBlock::Document { source: MediaSource::Url(_), .. }
            if !caps.image_urls =>
        {
            no("url", "it fetches no addresses; send the bytes as base64")
        }
        ContentBlock::ToolResult { content, .. } => {
            content.iter().try_for_each(|block| check_media(block, caps, fields, options))
        }
        _ => Ok(()),
    }
}

fn unmark(block: &mut ContentBlock) -> bool {
    match block {
        ContentBlock::Text { cache, .. }
        | ContentBlock::Image { cache, .. }
        | ContentBlock::Document { cache, .. }
        | ContentBlock::ToolUse { cache, .. } => cache.take().is_some(),
        ContentBlock::ToolResult { cache, content, .. } => {
            let mut any = cache.take().is_some();
            for block in content {
                any |= unmark(block);
            }
            any
        }
        _ => false,
    }
}

/// Removes turns without blocks and joins neighbours of one side.
fn join(request: &mut InnerRequest) {
    let mut turns: Vec<DialogTurn> = Vec::with_capacity(request.turns.len());
    for turn in request.turns.drain(..).filter(|turn| !turn.blocks.is_empty()) {
        match turns.last_mut() {
            Some(last) if last.side == turn.side => last.blocks.extend(turn.blocks),
            _ => turns.push(turn),
        }
    }
    request.turns = turns;
    request.results_first();
}

/// Puts a shortest turn of the user in front, for providers that want the user to begin.
pub(crate) fn begin_with_user(request: &mut InnerRequest) {
    if request.turns.first().is_some_and(|turn| turn.side == Side::Assistant) {
        request.turns.insert(0, DialogTurn { side: Side::User, blocks: vec![ContentBlock::text(".")] });
    }
}

/// 64-bit FNV-1a: short names for long ones, the same on every node and for every turn.
pub(crate) fn short_hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Longest tool name and the characters beside letters, digits, `_` and `-` that an upstream takes.
fn name_rule(upstream: UpstreamDialect) -> (usize, &'static str) {
    match upstream {
        UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => (128, ""),
        UpstreamDialect::Google | UpstreamDialect::Vertex => (64, "."),
        _ => (64, ""),
    }
}

/// Longest id of a call and the characters beside letters, digits, `_` and `-`.
fn id_rule(upstream: UpstreamDialect) -> (usize, &'static str) {
    match upstream {
        // OpenAI refuses ids of calls beyond 40 characters on chat, 64 on Responses.
        UpstreamDialect::Chat | UpstreamDialect::Azure => (40, ".:"),
        UpstreamDialect::Bedrock => (64, ".:"),
        _ => (64, ""),
    }
}

fn obeys(text: &str, (length, extra): (usize, &str)) -> bool {
    !text.is_empty()
        && text.len() <= length
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-' || extra.contains(c))
}

fn short_name(name: &str, rule: (usize, &str), letter_first: bool) -> String {
    let starts = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if obeys(name, rule) && (starts || !letter_first) {
        return name.to_owned();
    }
    let clean: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' })
        .take(rule.0.saturating_sub(19))
        .collect();
    format!("{}{clean}_{:016x}", if starts { "" } else { "t_" }, short_hash(name))
}

fn rename(request: &mut InnerRequest, upstream: UpstreamDialect) -> BTreeMap<String, String> {
    let (names, ids) = (name_rule(upstream), id_rule(upstream));
    let letter_first = matches!(upstream, UpstreamDialect::Google | UpstreamDialect::Vertex);
    let mut changed = BTreeMap::new();
    let mut give = |name: &mut String| {
        let sent = short_name(name, names, letter_first);
        if sent != *name {
            changed.insert(sent.clone(), std::mem::replace(name, sent));
        }
    };
    let new_id = |id: &mut String| {
        if !obeys(id, ids) {
            *id = format!("call_{:016x}", short_hash(id));
        }
    };
    for tool in &mut request.tools {
        give(&mut tool.name);
    }
    if let Some(ToolRule::Named(name)) = &mut request.tool_rule {
        give(name);
    }
    for block in request.turns.iter_mut().flat_map(|turn| &mut turn.blocks) {
        match block {
            ContentBlock::ToolUse { id, name, .. } => {
                give(name);
                new_id(id);
            }
            ContentBlock::ToolResult { id, .. } => new_id(id),
            _ => {}
        }
    }
    changed
}
