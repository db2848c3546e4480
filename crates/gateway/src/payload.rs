//! What a candidate is asked: the caller's own bytes with a few edits, or their translation into its dialect.
//!
//! Not its job: sending it (`upstream`), translating (`provider::dialect`). Invariants: each candidate's payload is
//! made from the caller's original bytes; where the dialects are the same, no byte changes but those of the edits; no
//! translation of a large body keeps a thread of the runtime from its other requests.

use bytes::Bytes;
use provider::dialect::{
    CallerDialect, FailureClass, ModelCapabilities, TranslateError, TranslateOptions, TranslateSession,
    TranslatedRequest, TranslatedResponse, UpstreamDialect, UpstreamFailure, defaults, must_translate, scrub,
    translate_request, translate_response,
};
use uuid::Uuid;

use crate::ask::Ask;
use crate::blocking::off_thread;
use crate::decide::RouteCandidate;
use crate::picture::{LevelDefaults, Picture, Upstream};
use crate::skim::{BodyField, OWN_FIELDS, Skim, plain_run};
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

/// Bytes from which a body is translated on a thread for blocking work. The time grows with the bytes, and most with the
/// number of turns: `translation-cost`, an example of `provider`, measures it.
const OFF_THREAD: usize = 256 * 1024;

/// How a candidate's payload comes about.
pub(crate) enum PayloadPlan {
    /// It is there.
    Made(Payload),
    /// By a translation.
    Translate(Box<Translation>),
}

/// A translation that was not made yet.
pub(crate) struct Translation {
    caller: CallerDialect,
    upstream: UpstreamDialect,
    body: Bytes,
    options: TranslateOptions,
}

impl Translation {
    fn run(&self) -> Result<Payload, TranslateError> {
        translate_request(self.caller, self.upstream, &self.body, &self.options)
            .map(Box::new)
            .map(Payload::Translated)
    }
}

impl PayloadPlan {
    /// The payload. A large body is translated on a thread for blocking work.
    ///
    /// # Errors
    /// What the request asks for cannot be said to this candidate.
    pub(crate) async fn make(self) -> Result<Payload, TranslateError> {
        match self {
            Self::Made(payload) => Ok(payload),
            Self::Translate(translation) if translation.body.len() < OFF_THREAD => translation.run(),
            Self::Translate(translation) => {
                off_thread(move || translation.run()).await.unwrap_or_else(|| {
                    Err(TranslateError::Invalid {
                        param: "body".to_owned(),
                        message: "it could not be translated".to_owned(),
                    })
                })
            }
        }
    }
}

/// A provider's whole answer in the caller's dialect, a large one on a thread for blocking work.
///
/// # Errors
/// It is an error, or no answer.
pub(crate) async fn translated_answer(
    session: &TranslateSession,
    body: Bytes,
) -> Result<TranslatedResponse, UpstreamFailure> {
    if body.len() < OFF_THREAD {
        return translate_response(session, &body);
    }
    let session = session.clone();
    off_thread(move || translate_response(&session, &body))
        .await
        .unwrap_or_else(|| Err(UpstreamFailure::new(FailureClass::Malformed, "it could not be translated")))
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
    /// How the payload comes about.
    ///
    /// # Errors
    /// What the request asks for cannot be said to this candidate.
    pub(crate) fn plan(&self) -> Result<PayloadPlan, TranslateError> {
        // The estimate of tokens that other providers get is none of theirs: see `trip`.
        let caller = self.endpoint.api().dialect().filter(|_| self.endpoint != Endpoint::CountTokens);
        let kind = &*self.upstream.kind;
        let model = self.candidate.upstream_model(self.picture);
        let Some(caller) = caller else {
            return if self.candidate.native {
                Ok(PayloadPlan::Made(self.own(self.body, self.skim)))
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
            return Ok(self.translation(caller, dialect));
        }
        let dialect = match caller {
            CallerDialect::Chat if kind == "azure-openai" => UpstreamDialect::Azure,
            CallerDialect::Chat => UpstreamDialect::Chat,
            CallerDialect::Responses => UpstreamDialect::Responses,
            CallerDialect::Messages => UpstreamDialect::Anthropic,
        };
        // Only tools can make it so; what a model takes is looked up for those alone.
        if dialect == UpstreamDialect::Chat
            && self.skim.member(BodyField::Tools).is_some()
            && must_translate(caller, dialect, &self.capabilities(dialect), self.body)
        {
            return Ok(self.translation(caller, dialect));
        }
        match scrub(dialect, model, self.body) {
            None => Ok(PayloadPlan::Made(self.own(self.body, self.skim))),
            Some(clean) => {
                let clean = Bytes::from(clean);
                let skim = Skim::of(&clean).map_err(|error| TranslateError::Invalid {
                    param: "messages".to_owned(),
                    message: error.to_string(),
                })?;
                Ok(PayloadPlan::Made(self.own(&clean, &skim)))
            }
        }
    }

    /// What the model takes: what is known of it, and what its manifest says otherwise.
    fn capabilities(&self, upstream: UpstreamDialect) -> ModelCapabilities {
        let known = defaults(upstream, &self.upstream.kind, self.candidate.upstream_model(self.picture));
        match self.candidate.offer_in(self.picture) {
            Some(offer) if !offer.takes.is_empty() => known.with(&offer.takes),
            _ => known,
        }
    }

    fn unfit(&self) -> TranslateError {
        TranslateError::Unsupported {
            param: "model".to_owned(),
            by: self.upstream.kind.to_string(),
            why: "it has no protocol for this".to_owned(),
        }
    }

    fn translation(&self, caller: CallerDialect, upstream: UpstreamDialect) -> PayloadPlan {
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
            capabilities: self.capabilities(upstream),
            id: self.id.simple().to_string(),
            now: u64::try_from(self.unix).unwrap_or(0),
            api_version: version.map(|(_, version)| version.into_owned()),
            project: behind("projects"),
            location: behind("locations"),
            ..TranslateOptions::default()
        };
        let edits = self.edits(self.skim);
        let body = match edits.is_empty() {
            true => self.body.clone(),
            false => splice(self.body, self.skim, &edits).concat().into(),
        };
        PayloadPlan::Translate(Box::new(Translation { caller, upstream, body, options }))
    }

    /// The caller's body for a provider that speaks the same.
    fn own(&self, body: &Bytes, skim: &Skim) -> Payload {
        let mut edits = self.edits(skim);
        let model = self.candidate.upstream_model(self.picture);
        // A plain name is written without escapes: then it stands there as it is, between quotes.
        let said = skim.value(body, BodyField::Model).and_then(|said| said.strip_prefix(b"\""));
        let is_plain = plain_run(model.as_bytes()) == model.len();
        if !is_plain || said.and_then(|said| said.strip_suffix(b"\"")) != Some(model.as_bytes()) {
            let written = match is_plain {
                true => format!("\"{model}\""),
                false => serde_json::Value::from(model).to_string(),
            };
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
        let mut edits: Vec<BodyEdit> = Vec::new();
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
