//! What a candidate is asked: the caller's own bytes with a few edits, or their translation into its dialect.
//!
//! Not its job: sending it (`upstream`), translating (`provider::dialect`). Invariants: each candidate's payload is
//! made from the caller's original bytes; where the dialects are the same, no byte changes but those of the edits.

use bytes::Bytes;
use provider::dialect::{
    CallerDialect, TranslateError, TranslateOptions, TranslatedRequest, UpstreamDialect, defaults,
    must_translate, scrub, translate_request,
};
use uuid::Uuid;

use crate::ask::Ask;
use crate::decide::RouteCandidate;
use crate::picture::{LevelDefaults, Picture, Upstream};
use crate::skim::{BodyField, OWN_FIELDS, Skim};
use crate::splice::{BodyEdit, splice, usage_wanted};
use crate::upstream::Endpoint;

/// The body for one candidate.
pub(crate) enum Payload {
    /// In the caller's dialect, as slices.
    Own {
        parts: Vec<Bytes>,
        /// Usage was asked for by us alone.
        withhold: bool,
    },
    /// In the provider's dialect.
    Translated(Box<TranslatedRequest>),
}

/// What a payload is made of.
pub(crate) struct PayloadFacts<'a> {
    pub(crate) picture: &'a Picture,
    pub(crate) upstream: &'a Upstream,
    pub(crate) candidate: &'a RouteCandidate,
    pub(crate) endpoint: Endpoint,
    pub(crate) ask: &'a Ask,
    pub(crate) body: &'a Bytes,
    pub(crate) skim: &'a Skim,
    /// The request's.
    pub(crate) id: Uuid,
    /// Unix seconds.
    pub(crate) unix: i64,
}

impl PayloadFacts<'_> {
    /// The payload.
    ///
    /// # Errors
    /// What the request asks for cannot be said to this candidate.
    pub(crate) fn payload(&self) -> Result<Payload, TranslateError> {
        // The estimate of tokens that other providers get is none of theirs: see `trip`.
        let caller = self.endpoint.api().dialect().filter(|_| self.endpoint != Endpoint::CountTokens);
        let kind = &*self.upstream.kind;
        let model = self.candidate.upstream_model(self.picture);
        let Some(caller) = caller else {
            return if self.candidate.native {
                Ok(self.own(self.body, self.skim))
            } else {
                Err(self.unfit())
            };
        };
        if !self.candidate.native {
            let dialect = match UpstreamDialect::of_provider(kind, model) {
                // What is not native goes to its own API, which says more than the one that is shaped like OpenAI's.
                Some(UpstreamDialect::Chat) if kind == "ollama" => UpstreamDialect::Ollama,
                Some(dialect) => dialect,
                None => return Err(self.unfit()),
            };
            return self.translated(caller, dialect);
        }
        let dialect = match caller {
            CallerDialect::Chat if kind == "azure-openai" => UpstreamDialect::Azure,
            CallerDialect::Chat => UpstreamDialect::Chat,
            CallerDialect::Responses => UpstreamDialect::Responses,
            CallerDialect::Messages => UpstreamDialect::Anthropic,
        };
        // Only tools can make it so; what a model takes is looked up for those alone.
        if dialect == UpstreamDialect::Chat
            && memchr::memmem::find(self.body, b"\"tools\"").is_some()
            && must_translate(caller, dialect, &defaults(dialect, kind, model), self.body)
        {
            return self.translated(caller, dialect);
        }
        match scrub(dialect, model, self.body) {
            None => Ok(self.own(self.body, self.skim)),
            Some(clean) => {
                let clean = Bytes::from(clean);
                let skim = Skim::of(&clean).map_err(|error| TranslateError::Invalid {
                    param: "messages".to_owned(),
                    message: error.to_string(),
                })?;
                Ok(self.own(&clean, &skim))
            }
        }
    }

    fn unfit(&self) -> TranslateError {
        TranslateError::Unsupported {
            param: "model".to_owned(),
            by: self.upstream.kind.to_string(),
            why: "it has no protocol for this".to_owned(),
        }
    }

    fn translated(&self, caller: CallerDialect, dialect: UpstreamDialect) -> Result<Payload, TranslateError> {
        let model = self.candidate.upstream_model(self.picture);
        let shown =
            self.ask.asked.as_deref().map_or_else(|| self.candidate.full(self.picture), str::to_owned);
        let url = &self.upstream.base_url;
        // Vertex: the place of a project stands in the declared URL.
        let behind = |word: &str| {
            let mut segments = url.path_segments()?;
            segments.find(|segment| *segment == word)?;
            segments.next().map(str::to_owned)
        };
        let version = url.query_pairs().find(|(name, _)| name == "api-version");
        let options = TranslateOptions {
            model: model.to_owned(),
            shown_model: shown,
            capabilities: defaults(dialect, &self.upstream.kind, model),
            id: self.id.simple().to_string(),
            now: u64::try_from(self.unix).unwrap_or(0),
            api_version: version.map(|(_, version)| version.into_owned()),
            project: behind("projects"),
            location: behind("locations"),
            ..TranslateOptions::default()
        };
        let edits = self.edits(self.skim);
        let translated = match edits.is_empty() {
            true => translate_request(caller, dialect, self.body, &options),
            false => {
                translate_request(caller, dialect, &splice(self.body, self.skim, &edits).concat(), &options)
            }
        };
        translated.map(Box::new).map(Payload::Translated)
    }

    /// The caller's body for a provider that speaks the same.
    fn own(&self, body: &Bytes, skim: &Skim) -> Payload {
        let mut edits = self.edits(skim);
        let model = self.candidate.upstream_model(self.picture);
        // A plain name is written without escapes.
        let plain = |text: &str| !text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\');
        let written = match plain(model) {
            true => format!("\"{model}\""),
            false => serde_json::Value::from(model).to_string(),
        };
        if skim.value(body, BodyField::Model) != Some(written.as_bytes()) {
            edits.push(BodyEdit::Set(BodyField::Model, written.into()));
        }
        let mut withhold = false;
        if self.ask.stream
            && matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions)
            && let Some(edit) = usage_wanted(body, skim)
        {
            edits.push(edit);
            withhold = true;
        }
        if edits.is_empty() {
            return Payload::Own { parts: vec![body.clone()], withhold };
        }
        Payload::Own { parts: splice(body, skim, &edits), withhold }
    }

    /// What changes in every dialect: our own fields go, defaults of the level come.
    fn edits(&self, skim: &Skim) -> Vec<BodyEdit> {
        let mut edits: Vec<BodyEdit> = Vec::with_capacity(4);
        let own = OWN_FIELDS.iter().filter(|field| skim.member(**field).is_some());
        edits.extend(own.map(|field| BodyEdit::Remove(*field)));
        if self.ask.of_level {
            self.level_defaults(self.picture.level_defaults(self.ask.level), &mut edits);
        }
        edits
    }

    fn level_defaults(&self, defaults: &LevelDefaults, edits: &mut Vec<BodyEdit>) {
        let absent = |field| self.skim.value(self.body, field).is_none();
        if let Some(most) = defaults.max_tokens
            && absent(BodyField::MaxTokens)
            && absent(BodyField::MaxCompletionTokens)
            && absent(BodyField::MaxOutputTokens)
        {
            let field = match self.endpoint {
                Endpoint::Responses => Some(BodyField::MaxOutputTokens),
                Endpoint::Chat | Endpoint::Completions | Endpoint::Messages => Some(BodyField::MaxTokens),
                Endpoint::Embeddings | Endpoint::CountTokens => None,
            };
            edits.extend(field.map(|field| BodyEdit::Set(field, most.to_string().into())));
        }
        if let Some(temperature) = defaults.temperature
            && absent(BodyField::Temperature)
            && !matches!(self.endpoint, Endpoint::Embeddings | Endpoint::CountTokens)
            && let Some(number) = serde_json::Number::from_f64(temperature)
        {
            edits.push(BodyEdit::Set(BodyField::Temperature, number.to_string().into()));
        }
    }
}
