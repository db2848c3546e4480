//! A decision in words.
//!
//! Its job: one value that `routes explain`, the API and the dashboard show, as JSON and as lines of text. Not its
//! job: deciding. Invariants: it says nothing that the decision does not hold; no key is in it. For operators only: it
//! names what a caller may not know.

use serde::{Deserialize, Serialize};

use crate::{
    ask::{Ask, AskedFor},
    decide::{Decision, RouteCandidate, SkipWord},
    picture::{HealthStatus, Picture, PowerLevel},
    tick::Tick,
};

/// Who would answer a request, in which order, and why not the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which picture decided.
    pub revision: String,
    /// The model as asked for.
    pub asked: Option<String>,
    /// `alias:NAME`, `pin`, `name` or `cell`.
    pub route: String,
    /// What is asked for, in order: `provider/model`, a model, a level.
    pub targets: Vec<String>,
    pub power_level: PowerLevel,
    pub user_tier: Option<String>,
    pub task_type: Option<String>,
    pub privacy_required: bool,
    /// 16 hexadecimal digits.
    pub seed: String,
    pub cells: Vec<ExplainedCell>,
    /// The first is asked first.
    pub candidates: Vec<ExplainedCandidate>,
    pub skipped: Vec<ExplainedSkip>,
    /// What the caller would be answered, where there is no candidate.
    pub error: Option<ExplainedError>,
}

/// A cell that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedCell {
    pub power_level: PowerLevel,
    pub user_tier: String,
    pub task_type: Option<String>,
    pub models: usize,
    /// It decides.
    pub usable: bool,
    /// `file:line` of its first rule.
    pub origin: Option<String>,
}

/// A model that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedCandidate {
    pub provider: String,
    pub model: String,
    /// What the provider calls it.
    pub upstream_model: String,
    pub priority: i32,
    pub weight: u32,
    pub health: HealthStatus,
    /// Asked in the caller's dialect; else through a translation.
    pub native: bool,
    pub context_length: Option<u64>,
    pub origin: Option<String>,
}

/// A model that is not asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedSkip {
    pub provider: String,
    pub model: String,
    pub reason: SkipWord,
    /// Why, where more is known.
    pub note: Option<String>,
    /// Until it may be asked again, in milliseconds.
    pub wait_ms: Option<u64>,
    pub origin: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedError {
    pub status: u16,
    pub code: String,
    pub message: String,
}

/// Puts a decision into words.
pub fn explain(picture: &Picture, ask: &Ask, decision: &Decision, now: Tick) -> Explanation {
    let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    let provider = |candidate: &RouteCandidate| {
        picture.upstream(candidate.upstream).map_or_else(String::new, |upstream| upstream.name.to_string())
    };
    let targets = ask.targets.iter().map(|target| match &target.wanted {
        AskedFor::Pin { upstream, rest, .. } => {
            let provider = picture.upstream(*upstream).map_or("", |upstream| &upstream.name);
            format!("{provider}/{rest}")
        }
        AskedFor::Name(name) => name.to_string(),
        AskedFor::Cell(level) => level.to_string(),
    });
    let cells = decision.cells.iter().map(|cell| ExplainedCell {
        power_level: cell.level,
        user_tier: cell.tier.to_string(),
        task_type: text(&cell.task),
        models: cell.models,
        usable: cell.usable,
        origin: text(&cell.origin),
    });
    let candidates = decision.candidates.iter().map(|candidate| ExplainedCandidate {
        provider: provider(candidate),
        model: candidate.model(picture).to_owned(),
        upstream_model: candidate.upstream_model(picture).to_owned(),
        priority: candidate.priority,
        weight: candidate.weight,
        health: candidate.health,
        native: candidate.native,
        context_length: candidate.window,
        origin: text(&candidate.origin),
    });
    let skipped = decision.skipped.iter().map(|skipped| ExplainedSkip {
        provider: provider(&skipped.candidate),
        model: skipped.candidate.model(picture).to_owned(),
        reason: skipped.word,
        note: note(picture, ask, &skipped.candidate, skipped.word),
        wait_ms: skipped.until.map(|until| until.0.saturating_sub(now.0)),
        origin: text(&skipped.candidate.origin),
    });
    Explanation {
        revision: picture.revision.to_string(),
        asked: text(&ask.asked),
        route: ask.route.to_string(),
        targets: targets.collect(),
        power_level: ask.level,
        user_tier: text(&ask.tier),
        task_type: text(&ask.task),
        privacy_required: ask.private,
        seed: format!("{:016x}", decision.seed),
        cells: cells.collect(),
        candidates: candidates.collect(),
        skipped: skipped.collect(),
        error: decision.refusal(picture, ask, now).map(|error| ExplainedError {
            status: error.status,
            code: error.code_word().to_owned(),
            message: error.message.to_string(),
        }),
    }
}

/// More about a reason.
fn note(picture: &Picture, ask: &Ask, candidate: &RouteCandidate, word: SkipWord) -> Option<String> {
    let upstream = picture.upstream(candidate.upstream)?;
    match word {
        SkipWord::Disabled if !upstream.enabled => Some("the provider is disabled".into()),
        SkipWord::Disabled if candidate.offer_in(picture).is_some_and(|offer| !offer.enabled) => {
            Some("the model is disabled".into())
        }
        SkipWord::Disabled => Some("the rule is disabled".into()),
        SkipWord::KeyFailed if upstream.key_missing => Some("no key is there".into()),
        SkipWord::KeyFailed if upstream.key_unusable => Some("the stored key cannot be used".into()),
        SkipWord::KeyFailed => upstream.key_note.as_deref().map(str::to_owned),
        SkipWord::Dialect => Some(format!("cannot be asked by {}", ask.api)),
        SkipWord::ContextTooLong => {
            let window = candidate.window?;
            Some(format!("at least {} tokens, and {window} fit", ask.input_at_least))
        }
        SkipWord::Limit => upstream.max_in_flight.map(|most| format!("{most} requests at once")),
        _ => None,
    }
}

impl Explanation {
    /// Lines for a terminal.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.head()];
        let names: Vec<String> = (self.candidates.iter().map(|it| format!("{}/{}", it.provider, it.model)))
            .chain(self.skipped.iter().map(|it| format!("{}/{}", it.provider, it.model)))
            .collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let mut names = names.into_iter();
        for (at, candidate) in self.candidates.iter().enumerate() {
            let name = names.next().unwrap_or_default();
            let ExplainedCandidate { priority, weight, health, .. } = candidate;
            let mut line =
                format!("{:>3}  {name:width$}  priority {priority}, weight {weight}, {health}", at + 1);
            if !candidate.native {
                line.push_str(", translated");
            }
            if at == 0 {
                line.push_str(&format!("  asked first (seed {})", self.seed));
            }
            push_origin(&mut line, candidate.origin.as_deref());
            lines.push(line);
        }
        for skipped in &self.skipped {
            let name = names.next().unwrap_or_default();
            let mut line = format!("  –  {name:width$}  skipped: {}", skipped.reason);
            if let Some(wait) = skipped.wait_ms {
                line.push_str(&format!(" for {}.{} s", wait / 1_000, wait % 1_000 / 100));
            }
            if let Some(note) = &skipped.note {
                line.push_str(&format!(" ({note})"));
            }
            push_origin(&mut line, skipped.origin.as_deref());
            lines.push(line);
        }
        if let Some(error) = &self.error {
            lines.push(format!("answer: {} {}: {}", error.status, error.code, error.message));
        }
        lines
    }

    /// By which words and cells.
    fn head(&self) -> String {
        let asked = self.asked.as_deref().unwrap_or("auto");
        let targets = self.targets.join(", then ");
        let mut head = match self.route.as_str() {
            "pin" => format!("`{asked}` is pinned: {targets}"),
            "name" => format!("`{asked}` by name, of any provider"),
            "cell" => String::new(),
            _ => format!("`{asked}` is an alias: {targets}"),
        };
        let mut cells = Vec::new();
        for cell in &self.cells {
            let task = cell.task_type.as_deref().map(|task| format!(" ({task})")).unwrap_or_default();
            let place = format!("{} × {}{task}", cell.power_level, cell.user_tier);
            cells.push(match (cell.models, cell.usable) {
                (0, _) => format!("{place} is empty"),
                (1, true) => format!("{place}: 1 model"),
                (models, true) => format!("{place}: {models} models"),
                (_, false) => format!("{place} has no usable model"),
            });
        }
        if !cells.is_empty() {
            let between = if head.is_empty() { "" } else { "; " };
            head.push_str(&format!("{between}cell {}", cells.join(" → ")));
        }
        head
    }
}

fn push_origin(line: &mut String, origin: Option<&str>) {
    if let Some(origin) = origin {
        line.push_str("  ");
        line.push_str(origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ask::tests::ask,
        decide::{CalmPulse, PulseView, Standing, decide},
        picture::{
            AliasInput, Api, ApiSet, KeyStatus, PictureInput,
            tests::{picture, provider, route},
        },
    };

    fn town() -> Picture {
        let mut failed = provider("openai", &["gpt-5-nano"]);
        failed.key_status = Some(KeyStatus::Failed);
        failed.key_note = Some("two refusals, 31 s apart".into());
        let mut degraded = provider("groq", &["llama-3.1-8b"]);
        degraded.health = HealthStatus::Degraded;
        let mut first = provider("ollama-cloud", &["llama2-7b"]);
        first.health = HealthStatus::Healthy;
        let mut other = provider("claude", &["opus"]);
        other.apis = ApiSet::default().with(Api::Messages);
        other.translated = ApiSet::default().with(Api::Chat);
        let at = |line: u32, mut route: crate::picture::RouteInput| {
            route.origin = Some(format!("routes.toml:{line}"));
            route
        };
        picture(&PictureInput {
            revision: "abc".into(),
            providers: vec![first, degraded, failed, other],
            routes: vec![
                at(14, route("ollama-cloud/llama2-7b", "eco/free", 100, 100)),
                at(20, route("groq/llama-3.1-8b", "eco/free", 100, 50)),
                at(26, route("openai/gpt-5-nano", "eco/free", 100, 50)),
            ],
            aliases: vec![AliasInput {
                name: "best".into(),
                targets: vec!["claude/opus".into(), "eco".into()],
            }],
            ..PictureInput::default()
        })
    }

    fn of_cell(picture: &Picture) -> Ask {
        let mut ask = ask(picture, Some("eco"));
        (ask.tier, ask.task, ask.seed) = (Some("free".into()), Some("chat".into()), 0x7f3a);
        ask
    }

    fn check(picture: &Picture, ask: &Ask, pulse: &dyn PulseView, expected: &[&str]) {
        let decision = decide(picture, ask, pulse, Tick(1_000));
        let explanation = explain(picture, ask, &decision, Tick(1_000));
        assert_eq!(explanation.lines(), expected);
        let text = serde_json::to_string(&explanation).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), explanation);
    }

    #[test]
    fn a_cell_is_explained_line_by_line() {
        let picture = town();
        check(
            &picture,
            &of_cell(&picture),
            &CalmPulse,
            &[
                "cell eco × free (chat) is empty → eco × free: 3 models",
                "  1  ollama-cloud/llama2-7b  priority 100, weight 100, healthy  asked first (seed 0000000000007f3a)  routes.toml:14",
                "  2  groq/llama-3.1-8b       priority 100, weight 50, degraded  routes.toml:20",
                "  –  openai/gpt-5-nano       skipped: key_failed (two refusals, 31 s apart)  routes.toml:26",
            ],
        );
    }

    #[test]
    fn aliases_pins_and_refusals_are_explained() {
        let picture = town();
        check(
            &picture,
            &ask(&picture, Some("best")),
            &CalmPulse,
            &[
                "`best` is an alias: claude/opus, then eco; cell eco × all is empty",
                "  1  claude/opus  priority 0, weight 100, unknown, translated  asked first (seed 0000000000000001)",
            ],
        );
        check(
            &picture,
            &ask(&picture, Some("openai/gpt-5-nano")),
            &CalmPulse,
            &[
                "`openai/gpt-5-nano` is pinned: openai/gpt-5-nano",
                "  –  openai/gpt-5-nano  skipped: key_failed (two refusals, 31 s apart)",
                "answer: 503 no_upstream: all that could answer `openai/gpt-5-nano` are out of service; hint: ask the operator",
            ],
        );
        let mut precise = of_cell(&picture);
        precise.targets = ask(&picture, Some("precision")).targets;
        check(
            &picture,
            &precise,
            &CalmPulse,
            &[
                "cell precision × free (chat) is empty → precision × free is empty → precision × all (chat) is empty → precision × all is empty",
                "answer: 503 no_upstream: no model serves precision × free; hint: the operator can see why with `providerd routes explain`",
            ],
        );
    }

    #[test]
    fn what_cools_says_for_how_long() {
        struct Cold;
        impl PulseView for Cold {
            fn standing(&self, _: u32, _: Option<u32>, now: Tick) -> Standing {
                Standing::Cooling { until: Tick(now.0 + 2_350) }
            }
        }
        let picture = town();
        check(
            &picture,
            &ask(&picture, Some("llama2-7b")),
            &Cold,
            &[
                "`llama2-7b` by name, of any provider",
                "  –  ollama-cloud/llama2-7b  skipped: cooling for 2.3 s",
                "answer: 503 no_upstream: all that could answer `llama2-7b` failed or refused lately; hint: ask again later",
            ],
        );
    }

    #[test]
    fn the_json_has_stable_names() {
        let picture = town();
        let ask = of_cell(&picture);
        let decision = decide(&picture, &ask, &CalmPulse, Tick(0));
        let json = serde_json::to_value(explain(&picture, &ask, &decision, Tick(0))).unwrap();
        assert_eq!(json["seed"], "0000000000007f3a");
        assert_eq!(json["cells"][1]["usable"], true);
        assert_eq!(json["candidates"][0]["model"], "llama2-7b");
        assert_eq!(json["skipped"][0]["reason"], "key_failed");
        assert_eq!(json["error"], serde_json::Value::Null);
    }
}
