//! Discovery: lists over real sockets, rows in a real PostgreSQL, the real daemon.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use catalog::{manifest, model::Provider};
use providerd::{
    backend,
    config::Settings,
    discover::run::{DiscoverError, Discoverer},
    secret::{Byok, Resolver},
    store::{self, Lease, Store},
};

use crate::support::{
    lab::{BYOK, Lab, PATIENCE},
    offering::Offering,
};

/// A provider with one declared, routed model, looked at every second.
fn manifest(offering: &Offering, discover: &str) -> String {
    format!(
        "[providers.x]\ntype = \"openai-compatible\"\nbase_url = \"{}\"\n{discover}\n[[providers.x.models]]\nname = \"old\"\n\n\
         [[routes]]\nmodels = \"x/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n",
        offering.url("/v1")
    )
}

const EVERY_SECOND: &str = "[providers.x.discover]\nexclude = [\"*-preview\"]\ncron = \"* * * * * *\"\n";

const NAMES: &str =
    "SELECT string_agg(name || CASE WHEN enabled THEN '' ELSE '!' END, ' ' ORDER BY name) FROM llm_models";
const MARKED: &str =
    "SELECT string_agg(name, ' ' ORDER BY name) FROM providerd.discovered WHERE vanished_at IS NOT NULL";

/// Waits until the list was asked for so many times more.
async fn looked(offering: &Offering, times: usize) {
    let (before, started) = (offering.heard().len(), Instant::now());
    while offering.heard().len() < before + times {
        assert!(started.elapsed() < PATIENCE, "nobody asks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_found_marked_and_kept() {
    let (lab, offering) = (Lab::new().await, Offering::start().await);
    offering.offers(&["old", "new", "new-preview"]);
    lab.write("x.toml", &manifest(&offering, EVERY_SECOND));
    let mut daemon = lab.daemon();
    lab.wait_for(NAMES, "new! old").await;
    assert_eq!(
        lab.value(
            "SELECT detail::jsonb->'changes'->0->>'name' FROM providerd.events WHERE kind = 'discovery'"
        )
        .await,
        "x/new"
    );
    // A route serves declared models only.
    assert_eq!(lab.value("SELECT count(*) FROM llm_routing_rules WHERE model_id IS NOT NULL").await, "1");

    // What an operator does to a found model stays, through reconciles too.
    lab.execute("UPDATE llm_models SET enabled = true, display_name = 'Theirs' WHERE name = 'new'").await;
    lab.write("y.toml", "[providers.y]\ntype = \"ollama\"\n");
    lab.wait_for("SELECT count(*) FROM llm_providers", "2").await;
    lab.run(&["plan"]).expect(0);
    looked(&offering, 2).await;
    assert_eq!(lab.value(NAMES).await, "new old");

    // One of two is not more than half.
    offering.offers(&["new", "newer"]);
    lab.wait_for(MARKED, "old").await;
    assert_eq!(lab.value(NAMES).await, "new newer! old");
    daemon.wait_for_log("no longer offers a model that serves routes").await;
    assert_eq!(
        lab.value(
            "SELECT reason FROM providerd.events WHERE kind = 'discovery' AND detail::jsonb ? 'routes'"
        )
        .await,
        "x/old is no longer offered and still serves eco × all"
    );
    let status = lab.run(&["status"]).expect(0).stdout;
    assert!(status.contains("! x: old is no longer offered since "), "{status}");
    assert!(status.contains("and still serves eco × all"), "{status}");
    let ran = lab.run(&["models", "x"]).expect(2).stdout;
    assert!(ran.contains("the provider does not offer it since "), "{ran}");

    let table = lab.run(&["routes", "--offered"]).expect(2).stdout;
    assert!(table.contains("x/old  x.toml:11  NO LONGER, since "), "{table}");
    let rows = lab.run(&["routes", "--offered", "--output", "json"]).expect(2).json();
    assert!(rows["rows"][0]["vanished_at"].is_string() && rows["rows"][0]["model"] == "old", "{rows}");

    offering.offers(&["new", "newer", "old"]);
    lab.wait_for(MARKED, "").await;
    lab.run(&["routes", "--offered"]).expect(0);
    let status = lab.run(&["status"]).expect(0).stdout;
    assert!(!status.contains("offered"), "{status}");

    // Declared at last, it is the manifest's; no longer discovered, the others are nobody's.
    offering.offers(&["new"]);
    lab.wait_for("SELECT state FROM providerd.discovery", "suspect").await;
    let status = lab.run(&["status"]).expect(0).stdout;
    assert!(status.contains("! x: its list of models is not believed since "), "{status}");
    // A manifest that cannot be read asks for nothing, and takes nothing away.
    lab.write("x.toml", "[providers.x]\nnonsense = 1\n");
    daemon.wait_for_log("unknown-key").await;
    lab.write("y.toml", "[providers.y]\ntype = \"ollama\"\npriority = 3\n");
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'y'", "3").await;
    assert_eq!(lab.value("SELECT count(*) FROM providerd.discovered").await, "3");
    lab.write("x.toml", &manifest(&offering, ""));
    lab.wait_for("SELECT count(*) FROM providerd.discovered", "0").await;
    lab.wait_for("SELECT count(*) FROM providerd.discovery", "0").await;
    assert_eq!(lab.value(NAMES).await, "new newer! old");
    lab.run(&["plan"]).expect(0);
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_cannot_be_had_mark_nothing() {
    let (lab, offering) = (Lab::new().await, Offering::start().await);
    offering.offers(&["old", "a"]);
    lab.write("x.toml", &manifest(&offering, EVERY_SECOND));
    let _daemon = lab.daemon();
    lab.wait_for(NAMES, "a! old").await;
    let state = "SELECT state FROM providerd.discovery";
    lab.wait_for(state, "ok").await;
    offering.offers::<&str>(&[]);
    lab.wait_for(state, "empty").await;
    offering.anywhere(500, "", "{}");
    lab.wait_for(state, "failed").await;
    let status = lab.run(&["status"]).expect(0).stdout;
    assert!(status.contains("! x: its list of models cannot be read since "), "{status}");
    // One row of the trail each, however often it was tried.
    looked(&offering, 3).await;
    assert_eq!(
        lab.value(
            "SELECT count(*) FROM providerd.events WHERE kind = 'discovery' AND detail::jsonb ? 'state'"
        )
        .await,
        "2"
    );
    assert_eq!(lab.value(MARKED).await, "");
    offering.offers(&["old", "a"]);
    lab.wait_for(state, "ok").await;
    assert_eq!(lab.value(NAMES).await, "a! old");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_daemons_looks() {
    let (lab, offering) = (Lab::new().await, Offering::start().await);
    offering.offers(&["old", "a"]);
    lab.write("x.toml", &manifest(&offering, EVERY_SECOND));
    let mut first = lab.daemon();
    first.wait_ready().await;
    let mut second = lab.daemon();
    second.wait_ready().await;
    lab.wait_for(NAMES, "a! old").await;
    assert!(!second.log().contains("discovery changed"));
    // The successor goes on where the other was.
    first.kill();
    offering.offers(&["old", "a", "b"]);
    lab.wait_for(NAMES, "a! b! old").await;
    assert!(second.log().contains("discovery changed"));
}

// ---------------------------------------------------------------- one look

async fn discoverer(lab: &Lab) -> (Discoverer, Store) {
    let store = Store::connect(&store::StoreSettings::new(lab.url.clone().into())).await.unwrap();
    let byok = Byok::parse(BYOK).unwrap();
    let keyring = backend::prepare(&store, &byok).await.unwrap();
    let settings = Settings::load(Some(Path::new("/dev/null")), std::iter::empty()).unwrap();
    let resolver = Arc::new(Resolver::new(None, None, Some(byok)));
    (Discoverer::new(store.clone(), Arc::new(keyring), resolver, &settings.egress), store)
}

fn declared(text: &str) -> Arc<Provider> {
    manifest::parse(&"x.toml".into(), text).providers.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_list_again_writes_nothing() {
    let (lab, offering) = (Lab::new().await, Offering::start().await);
    offering.offers(&["old", "a", "b"]);
    let text = manifest(&offering, EVERY_SECOND);
    lab.write("x.toml", &text);
    lab.run(&["apply"]).expect(0);
    let (discoverer, store) = discoverer(&lab).await;
    let provider = declared(&text);
    let looked = discoverer.look(&provider, None, None).await.unwrap();
    assert_eq!((looked.decision.create.len(), looked.events), (2, 1));

    lab.execute("CHECKPOINT").await;
    let lsn = lab.value("SELECT pg_current_wal_insert_lsn()").await;
    let looked = discoverer.look(&provider, None, None).await.unwrap();
    assert!(looked.decision.is_empty() && looked.events == 0);
    assert_eq!(lab.value("SELECT pg_current_wal_insert_lsn()").await, lsn);

    // A lease that another one took writes nothing either.
    offering.offers(&["old", "a", "b", "c"]);
    let held = store.lease_acquire("reconcile", Uuid::new_v4(), Duration::from_secs(60)).await;
    let lost = Lease { holder: Uuid::new_v4(), ..held.unwrap().unwrap() };
    let refused = discoverer.look(&provider, Some(&lost), None).await;
    assert!(matches!(refused, Err(DiscoverError::NotLeader)), "{refused:?}");
    assert_eq!(lab.value(NAMES).await, "a! b! old");

    // Nor does anything where an operator suspended it.
    lab.run(&["suspend", "x"]).expect(0);
    assert!(matches!(discoverer.look(&provider, None, None).await, Err(DiscoverError::Suspended)));
    lab.run(&["resume", "x"]).expect(0);
    discoverer.look(&provider, None, None).await.unwrap();
    assert_eq!(lab.value(NAMES).await, "a! b! c! old");

    // A provider that is not applied yet has no rows to compare with.
    let other = declared(&text.replace("providers.x", "providers.other"));
    assert!(matches!(discoverer.look(&other, None, None).await, Err(DiscoverError::NotApplied)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manifest_declares_later_is_adopted_and_what_it_drops_is_found_again() {
    let (lab, offering) = (Lab::new().await, Offering::start().await);
    offering.offers(&["old", "a"]);
    let text = manifest(&offering, "[providers.x.discover]\n");
    lab.write("x.toml", &text);
    lab.run(&["apply"]).expect(0);
    let (discoverer, _) = discoverer(&lab).await;
    discoverer.look(&declared(&text), None, None).await.unwrap();
    let id = lab.value("SELECT id FROM llm_models WHERE name = 'a'").await;

    // `--write` declares it; the row stays, off as it is, and now a route serves it.
    lab.run(&["models", "x", "--write"]).expect(0);
    lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value("SELECT id FROM llm_models WHERE name = 'a'").await, id);
    assert_eq!(lab.value(NAMES).await, "a! old");
    assert_eq!(lab.value("SELECT count(*) FROM llm_routing_rules WHERE model_id IS NOT NULL").await, "2");
    // Only its bookkeeping changes hands.
    let written = std::fs::read_to_string(lab.manifests().join("x.toml")).unwrap();
    assert!(discoverer.look(&declared(&written), None, None).await.unwrap().decision.is_empty());

    lab.write("x.toml", &text);
    lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value(NAMES).await, "old");
    discoverer.look(&declared(&text), None, None).await.unwrap();
    assert_eq!(lab.value(NAMES).await, "a! old");
    assert_eq!(lab.value("SELECT count(*) FROM providerd.discovered").await, "2");
}
