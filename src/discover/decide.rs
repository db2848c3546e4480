//! What a fetched list means for the rows of one provider: which are new, which vanished, which came back.
//!
//! PURE. Not its job: fetching, reading or writing anything. Invariants: no row that is there is changed or deleted; a
//! list that is empty, failed, cut short or suspect marks nothing; the same list a second time decides nothing.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use catalog::{
    model::{JsonMap, Model, Provider},
    plan::{
        DiscoveryDecision, DiscoveryMemory, GoneModel, ListEnd, ListState, LiveModel, LiveProvider,
        SeenModel, discovered_model,
    },
};
use provider::{ListedModel, Models};

use super::{cell, compare::Selection};

/// A list that would mark more than half of what is known is believed when it has not become better for so long: a
/// server of one model may really have got another one. Half of a day, so that the next night's look decides.
const SUSPECT_FOR: TimeDelta = TimeDelta::hours(12);
/// A reason is for people: one line, not a page.
const MAX_DETAIL: usize = 500;

/// Everything a decision follows from.
pub struct DecisionInput<'a> {
    pub provider: &'a Provider,
    /// Names what the manifest asks for.
    pub policy: &'a str,
    /// The list, or why there is none.
    pub list: Result<&'a Models, &'a str>,
    pub live: &'a LiveProvider,
    pub memory: &'a DiscoveryMemory,
    pub now: DateTime<Utc>,
    /// Where new ids come from.
    pub new_id: &'a dyn Fn() -> Uuid,
}

pub fn decide(input: &DecisionInput<'_>) -> DiscoveryDecision {
    let nothing = |ended, detail: String| DiscoveryDecision {
        at: input.now,
        ended,
        state: state(input, ended),
        detail: detail.chars().take(MAX_DETAIL).collect(),
        create: Vec::new(),
        seen: Vec::new(),
        gone: Vec::new(),
        back: Vec::new(),
        forget: Vec::new(),
        before: input.memory.state.as_ref().map(|state| state.ended),
    };
    let list = match input.list {
        Ok(list) if list.models.is_empty() => return nothing(ListEnd::Empty, "the list has no model".into()),
        Ok(list) => list,
        Err(why) => return nothing(ListEnd::Failed, why.to_owned()),
    };
    let offered: HashSet<&str> = list.models.iter().map(|model| model.id.as_str()).collect();
    let by_id: HashMap<Uuid, &LiveModel> = input.live.models.iter().map(|live| (live.id, live)).collect();

    let (present, lost): (Vec<&SeenModel>, Vec<&SeenModel>) =
        input.memory.seen.iter().partition(|seen| by_id.contains_key(&seen.model_id));
    let (known, marked): (Vec<&SeenModel>, Vec<&SeenModel>) =
        present.iter().copied().partition(|seen| seen.vanished_at.is_none());
    // What a shortened list does not name may be offered all the same.
    let gone: Vec<&SeenModel> = match list.truncated {
        true => Vec::new(),
        false => known.iter().copied().filter(|seen| !offered.contains(&*seen.name)).collect(),
    };
    if gone.len() * 2 > known.len() && !is_old(input) {
        let detail = format!(
            "the list lacks {} of the {} models that were offered before; nothing is changed\n\
             hint: `providerd models {}` shows it; a list that stays so is believed",
            gone.len(),
            known.len(),
            input.provider.name
        );
        return nothing(ListEnd::Suspect, detail);
    }

    let mut decision = nothing(ListEnd::Ok, String::new());
    decision.forget = lost.iter().map(|seen| seen.model_id).collect();
    decision.back = marked.into_iter().filter(|seen| offered.contains(&*seen.name)).cloned().collect();
    let serves = input.live.enabled != Some(false);
    decision.gone = gone
        .into_iter()
        .map(|seen| {
            let live = by_id.get(&seen.model_id).filter(|live| serves && live.enabled != Some(false));
            let active =
                live.into_iter().flat_map(|live| &live.rules).filter(|it| it.is_active != Some(false));
            let mut routes: Vec<String> = active.filter_map(cell).collect();
            routes.sort();
            routes.dedup();
            GoneModel { model_id: seen.model_id, name: seen.name.clone(), routes }
        })
        .collect();

    let remembered: HashSet<Uuid> = present.iter().map(|seen| seen.model_id).collect();
    let declared: HashSet<&str> = input.provider.models.iter().map(|model| &*model.name).collect();
    let mut live: BTreeMap<&str, &LiveModel> = BTreeMap::new();
    for model in &input.live.models {
        live.entry(&model.name).or_insert(model);
    }
    let selection = Selection::new(input.provider.discover.as_ref());
    for model in &list.models {
        match live.get(&*model.id) {
            Some(row) if declared.contains(&*model.id) && !remembered.contains(&row.id) => {
                decision.seen.push(seen(row.id, &model.id, false));
            }
            // A row of another writer, or one that is remembered.
            Some(_) => {}
            // A declared model without a row is the reconcile's to create.
            None if declared.contains(&*model.id) || !selection.takes(&model.id) => {}
            None => {
                let id = (input.new_id)();
                let change =
                    discovered_model(input.provider, input.live.id, id, &lowered(input.provider, model));
                decision.create.push(change);
                decision.seen.push(seen(id, &model.id, true));
            }
        }
    }
    decision
}

fn seen(model_id: Uuid, name: &str, created: bool) -> SeenModel {
    SeenModel { model_id, name: name.to_owned(), created, vanished_at: None }
}

/// The state to remember, if it differs from the one that is.
fn state(input: &DecisionInput<'_>, ended: ListEnd) -> Option<ListState> {
    let before = input.memory.state.as_ref();
    let same = before.filter(|state| state.ended == ended);
    if same.is_some_and(|state| state.policy == input.policy) {
        return None;
    }
    let since = same.map_or(input.now, |state| state.since);
    Some(ListState { ended, since, policy: input.policy.to_owned() })
}

/// Whether lists have been suspect for so long that this one is believed.
fn is_old(input: &DecisionInput<'_>) -> bool {
    input
        .memory
        .state
        .as_ref()
        .is_some_and(|state| state.ended == ListEnd::Suspect && input.now - state.since >= SUSPECT_FOR)
}

fn lowered(provider: &Provider, model: &ListedModel) -> Model {
    Model {
        name: model.id.as_str().into(),
        line: provider.origin.line,
        display_name: model.display_name.as_deref().map(Into::into),
        context_length: model.context_length.and_then(|tokens| i32::try_from(tokens).ok()),
        cost_per_1m_input_tokens: model.cost_in,
        cost_per_1m_output_tokens: model.cost_out,
        enabled: Some(provider.discover.as_ref().is_some_and(|discover| discover.enabled)),
        metadata: JsonMap::new(),
        gateway: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use catalog::plan::{LiveKey, LiveRule};

    const POLICY: &str = "p";

    fn listed(id: &str) -> ListedModel {
        let id = id.into();
        ListedModel { id, display_name: None, context_length: None, cost_in: None, cost_out: None }
    }

    fn models(ids: &[&str]) -> Models {
        Models { models: ids.iter().map(|id| listed(id)).collect(), truncated: false, withheld: 0 }
    }

    fn provider(discover: &str, declared: &[&str]) -> Provider {
        let mut text = format!("[providers.x]\ntype = \"ollama\"\n[providers.x.discover]\n{discover}\n");
        for name in declared {
            text += &format!("[[providers.x.models]]\nname = \"{name}\"\n");
        }
        let parsed = catalog::manifest::parse(&"a.toml".into(), &text);
        assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
        Provider::clone(&parsed.providers[0])
    }

    /// A provider's rows and what is remembered of it, changed as decisions say.
    struct World {
        provider: Provider,
        live: LiveProvider,
        memory: DiscoveryMemory,
        now: DateTime<Utc>,
    }

    impl World {
        fn new(discover: &str, declared: &[&str]) -> Self {
            let live = LiveProvider {
                id: Uuid::from_u128(1),
                name: "x".into(),
                kind: Some("ollama".into()),
                enabled: Some(true),
                priority: Some(0),
                api_base_url: None,
                api_key_source: None,
                key: LiveKey::Absent,
                key_test_status: None,
                health_status: None,
                config: JsonMap::new(),
                models: Vec::new(),
            };
            let mut world = Self {
                provider: provider(discover, declared),
                live,
                memory: DiscoveryMemory::default(),
                now: DateTime::UNIX_EPOCH + TimeDelta::days(20_000),
            };
            declared.iter().for_each(|name| world.row(Uuid::new_v4(), name));
            world
        }

        fn row(&mut self, id: Uuid, name: &str) {
            self.live.models.push(LiveModel {
                id,
                name: name.into(),
                display_name: None,
                context_length: None,
                cost_per_1m_tokens: None,
                cost_per_1m_input_tokens: None,
                cost_per_1m_output_tokens: None,
                enabled: Some(true),
                metadata: JsonMap::new(),
                rules: vec![LiveRule {
                    id: Uuid::new_v4(),
                    power_level: Some("eco".into()),
                    user_tier: Some("all".into()),
                    task_type: None,
                    priority: None,
                    weight: None,
                    is_active: Some(true),
                }],
            });
        }

        fn hear(&mut self, list: Result<&Models, &str>) -> DiscoveryDecision {
            let decision = decide(&DecisionInput {
                provider: &self.provider,
                policy: POLICY,
                list,
                live: &self.live,
                memory: &self.memory,
                now: self.now,
                new_id: &Uuid::new_v4,
            });
            for change in &decision.create {
                self.row(change.id, change.name.strip_prefix("x/").unwrap());
            }
            if let Some(state) = &decision.state {
                self.memory.state = Some(state.clone());
            }
            self.memory.seen.extend(decision.seen.iter().cloned());
            self.memory.seen.retain(|seen| !decision.forget.contains(&seen.model_id));
            for seen in &mut self.memory.seen {
                if decision.gone.iter().any(|gone| gone.model_id == seen.model_id) {
                    seen.vanished_at = Some(self.now);
                }
                if decision.back.iter().any(|back| back.model_id == seen.model_id) {
                    seen.vanished_at = None;
                }
            }
            decision
        }

        /// `+created -gone ~back`, and how it ended.
        #[track_caller]
        fn check(&mut self, list: Result<&Models, &str>, expected: &str) -> DiscoveryDecision {
            let decision = self.hear(list);
            let mut said: Vec<String> = decision
                .create
                .iter()
                .map(|it| format!("+{}", it.name.strip_prefix("x/").unwrap()))
                .collect();
            said.extend(decision.gone.iter().map(|it| format!("-{}", it.name)));
            said.extend(decision.back.iter().map(|it| format!("~{}", it.name)));
            said.push(decision.ended.as_str().to_owned());
            assert_eq!(said.join(" "), expected);
            // Heard again, it says nothing.
            let again = self.hear(list);
            assert!(again.is_empty(), "{again:?}");
            decision
        }
    }

    #[test]
    fn models_come_go_and_come_back() {
        let mut world = World::new("exclude = [\"*-preview\"]\nenabled = true", &["a"]);
        world.row(Uuid::new_v4(), "theirs");
        let made = world.check(Ok(&models(&["a", "b", "c", "theirs", "d-preview"])), "+b +c ok");
        let fields: BTreeMap<_, _> = made.create[0].fields.iter().map(|it| (&*it.field, &it.new)).collect();
        assert_eq!(fields["enabled"], &json!(true));
        assert_eq!(fields["display_name"], &json!("b"));
        world.check(Ok(&models(&["b", "c"])), "-a ok");
        // A row of another writer is left alone, whether it is listed or not.
        world.check(Ok(&models(&["a", "b", "theirs"])), "-c ~a ok");
        world.check(Ok(&models(&["a", "b", "c"])), "~c ok");
        // A row that was deleted is created again while it is offered.
        world.live.models.retain(|model| model.name != "b");
        world.check(Ok(&models(&["a", "b", "c"])), "+b ok");
        world.live.models.retain(|model| model.name != "b");
        let forgot = world.hear(Ok(&models(&["a", "c"])));
        assert_eq!((forgot.forget.len(), forgot.gone.len()), (1, 0), "{forgot:?}");
    }

    #[test]
    fn what_cannot_be_believed_changes_nothing() {
        let mut world = World::new("", &["a", "b", "c"]);
        world.check(Ok(&models(&["a", "b", "c", "d"])), "+d ok");
        world.check(Ok(&models(&[])), "empty");
        world.check(Err("no answer"), "failed");
        world.check(Ok(&models(&["a", "x"])), "-b -c -d ok".replace("-b -c -d ok", "suspect").as_str());
        let cut = Models { truncated: true, ..models(&["a", "x"]) };
        world.check(Ok(&cut), "+x ok");
        assert!(world.memory.seen.iter().all(|seen| seen.vanished_at.is_none()));
        // Half of them is not more than half: two of the five stay.
        world.check(Ok(&models(&["a", "x"])), "suspect");
        world.check(Ok(&models(&["a", "x", "b"])), "-c -d ok");
    }

    #[test]
    fn a_suspect_list_that_stays_is_believed() {
        let mut world = World::new("", &[]);
        world.check(Ok(&models(&["a"])), "+a ok");
        world.check(Ok(&models(&["b"])), "suspect");
        world.now += SUSPECT_FOR - TimeDelta::seconds(1);
        world.check(Ok(&models(&["b"])), "suspect");
        // One good list, and the time begins again.
        world.check(Ok(&models(&["a"])), "ok");
        world.check(Ok(&models(&["b"])), "suspect");
        world.now += SUSPECT_FOR;
        let decision = world.hear(Ok(&models(&["b"])));
        assert_eq!((decision.create.len(), decision.gone.len()), (1, 1));
        assert_eq!(decision.gone[0].routes, ["eco × all"]);
    }

    #[test]
    fn the_trail_tells_what_changed_and_nothing_else() {
        let mut world = World::new("", &["a", "b", "c"]);
        let mut reasons = |list: Result<&Models, &str>| -> Vec<String> {
            let decision = world.hear(list);
            let entries = decision.audit(&world.provider, world.live.id);
            entries.into_iter().map(|entry| entry.reason).collect()
        };
        // Seeing what is declared is remembered, and no news.
        assert_eq!(reasons(Ok(&models(&["a", "b", "c"]))), Vec::<String>::new());
        assert_eq!(reasons(Err("DNS")), ["failed: DNS"]);
        assert_eq!(reasons(Err("another reason")), Vec::<String>::new());
        assert_eq!(
            reasons(Ok(&models(&["a", "b", "d"]))),
            [
                "the list is good again",
                "models: 1 found, 1 no longer offered",
                "x/c is no longer offered and still serves eco × all"
            ]
        );
        assert_eq!(reasons(Ok(&models(&["a", "b", "d"]))), Vec::<String>::new());
    }
}
