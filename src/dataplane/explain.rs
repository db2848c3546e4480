//! Who would answer a request: the question of an operator, put to the same functions that requests go through.
//!
//! Not its job: deciding (`gateway::decide`). Invariant: command and endpoint call this one function.

use gateway::{
    ask::{Ask, AskBody, AskHead},
    decide::{CalmPulse, decide},
    error::GatewayError,
    explain::{Explanation, explain},
    picture::{Api, Picture},
    serve::asked_by_body,
    tick::Tick,
};
use serde::Deserialize;
use utoipa::ToSchema;

/// What an operator asks.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteQuestion {
    /// As a caller names it: `provider/model`, a model, an alias, a power level.
    pub model: Option<String>,
    /// `eco`, `balanced` or `precision`.
    pub power_level: Option<String>,
    pub user_tier: Option<String>,
    pub task_type: Option<String>,
    /// Only what this consumer may ask for.
    pub consumer: Option<String>,
    /// `chat`, `completions`, `embeddings`, `responses` or `messages`; `chat` unless said.
    pub api: Option<String>,
    pub privacy_required: bool,
    /// A whole request as a caller of `api` would send it: its model, size and wishes are asked. What else is said here is
    /// stronger than what stands in it.
    #[schema(value_type = Option<Object>)]
    pub request: Option<serde_json::Value>,
    /// Chooses among equals; 16 hexadecimal digits. Requests of one session have the same one.
    pub seed: Option<String>,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    #[error("there is no consumer `{0}`\nhint: `providerd plan` lists what manifests declare")]
    Consumer(String),
    #[error("`{0}` is not a dialect\nhint: chat, completions, embeddings, responses or messages")]
    Api(String),
    #[error("`{0}` is not a seed\nhint: 16 hexadecimal digits, as an explanation shows them")]
    Seed(String),
    #[error("the request is not a JSON object")]
    Request,
    #[error("{0}")]
    Gateway(String),
}

impl From<GatewayError> for QuestionError {
    fn from(error: GatewayError) -> Self {
        Self::Gateway(error.message.to_string())
    }
}

/// Who would answer, by what is declared and proven; cooldowns of a running gateway are not known here.
///
/// # Errors
/// [`QuestionError`]: the question names something that does not exist.
pub fn answer(picture: &Picture, question: &RouteQuestion) -> Result<Explanation, QuestionError> {
    let consumer = match &question.consumer {
        None => None,
        Some(name) => {
            let found = picture.consumers().iter().find(|consumer| *consumer.name == **name);
            Some(found.ok_or_else(|| QuestionError::Consumer(name.clone()))?)
        }
    };
    let api = match &question.api {
        None => Api::Chat,
        Some(word) => Api::parse(word).ok_or_else(|| QuestionError::Api(word.clone()))?,
    };
    let seed = match &question.seed {
        None => 0,
        Some(text) => u64::from_str_radix(text, 16).map_err(|_| QuestionError::Seed(text.clone()))?,
    };
    let mut ask = match &question.request {
        None => {
            let body = AskBody {
                model: question.model.as_deref(),
                power_level: question.power_level.as_deref(),
                task_type: question.task_type.as_deref(),
                privacy_required: question.privacy_required,
                ..AskBody::default()
            };
            let head = AskHead { user_tier: question.user_tier.as_deref(), ..AskHead::default() };
            Ask::new(picture, consumer, api, &body, &head, seed)?
        }
        Some(request) => {
            let mut body = request.as_object().ok_or(QuestionError::Request)?.clone();
            if let Some(model) = &question.model {
                body.insert("model".to_owned(), model.as_str().into());
            }
            if question.privacy_required {
                body.insert("privacy_required".to_owned(), true.into());
            }
            let head = AskHead {
                power_level: question.power_level.as_deref(),
                task_type: question.task_type.as_deref(),
                user_tier: question.user_tier.as_deref(),
                ..AskHead::default()
            };
            let body = serde_json::to_vec(&body).map_err(|_| QuestionError::Request)?;
            asked_by_body(picture, consumer, api, &body, &head, seed)?
        }
    };
    // An operator may ask for any tier, whichever consumer is named.
    if let Some(tier) = question.user_tier.as_deref().filter(|tier| *tier != "all") {
        ask.tier = Some(tier.into());
    }
    let now = Tick::default();
    let decision = decide(picture, &ask, &CalmPulse, now);
    Ok(explain(picture, &ask, &decision, now))
}
