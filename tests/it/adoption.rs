//! Taking over a database that lives already: import, apply, and nothing in the shared tables has changed.

use std::fs;

use sqlx::Row as _;

use crate::support::lab::{BYOK, Lab};

const KEY: &str = "fake-key-that-is-not-real-4711";

/// The shared tables as text, every column.
async fn dump(lab: &Lab) -> Vec<String> {
    let mut connection = lab.connect().await;
    let mut all = Vec::new();
    for table in ["llm_providers", "llm_models", "llm_routing_rules", "llm_usage_logs"] {
        let text = format!("SELECT t::text FROM {table} t ORDER BY id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text)).fetch_all(&mut connection).await.unwrap();
        all.extend(rows.iter().map(|row| format!("{table}: {}", row.get::<String, _>(0))));
    }
    all
}

async fn adopt(layout: &str) {
    let lab = Lab::new().await;
    lab.execute(layout).await;
    let token = fernet::Fernet::new(BYOK).unwrap().encrypt(KEY.as_bytes());
    lab.execute(&format!(
        "INSERT INTO llm_providers (name, type, api_key_encrypted, enabled, priority, config) VALUES
             ('with-key', 'groq', '{token}', false, -3, '{{\"a b\": [1, 2.5, \"x\\\"y\"], \"none\": null, \"description\": \"d\"}}'),
             ('Odd Name', 'openai', '', true, 1, '{{}}'), ('odd/name', 'openai', '', true, 1, '{{}}'), ('odd-type', 'homemade', '', true, 1, '{{}}'),
             ('nulls', 'openai', '', NULL, NULL, NULL)"
    ))
    .await;

    // The first command that may write migrates; what is compared is what comes after.
    lab.run(&["import", "--dir", "first"]).expect(2);
    lab.execute(
        "INSERT INTO llm_routing_rules (model_id, power_level, user_tier, priority, weight, is_active)
         SELECT id, 'eco', 'all', 7, 9, true FROM llm_models WHERE name LIKE 'm1%';
         INSERT INTO llm_routing_rules (model_id, power_level, user_tier)
         SELECT id, 'ludicrous', 'all' FROM llm_models WHERE name = 'm2'",
    )
    .await;
    let before = dump(&lab).await;
    let ran = lab.run(&["import", "--output", "json"]).expect(2);
    let report = ran.json();
    for skipped in ["odd/name", "odd-type"] {
        assert!(report["skipped"][skipped].is_string(), "{report}");
    }
    assert_eq!(report["written"].as_object().unwrap().len(), 5, "{report}");
    assert!(report["left_out"]["openai-main"][0].as_str().unwrap().starts_with("api_key"), "{report}");
    assert!(report["left_out"]["openai-main"].to_string().contains("a route to model"), "{report}");
    assert!(report["left_out"]["with-key"].to_string().contains("a key of config"), "{report}");
    let text = fs::read_to_string(lab.manifests().join("with-key.toml")).unwrap();
    assert!(text.contains("sealed = \"gAAAAA") && !text.contains(&token) && !text.contains(KEY), "{text}");

    lab.run(&["validate"]).expect(0);
    lab.run(&["apply"]).expect(0);
    assert_eq!(before, dump(&lab).await);
    lab.run(&["plan"]).expect(0);

    // Again: everything is declared, nothing is overwritten.
    lab.run(&["import"]).expect(2);
    let again = lab.run(&["import", "--dir", "first", "--manifests", "nowhere"]).expect(1);
    assert!(again.stderr.contains("exists already; nothing was written"), "{}", again.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_generation_is_taken_over_unchanged() {
    adopt(include_str!("../layouts/a.sql")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_generation_is_taken_over_unchanged() {
    adopt(include_str!("../layouts/b.sql")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_by_the_words_of_other_programs_are_taken_over_as_written() {
    let lab = Lab::new().await;
    lab.execute(include_str!("../layouts/a.sql")).await;
    let words = ["openai_compatible", "local", "unicorn-commander"];
    for word in words {
        lab.execute(&format!(
            "INSERT INTO llm_providers (name, type, api_key_encrypted, config)
             VALUES ('of-{word}', '{word}', '', '{{\"base_url\": \"http://127.0.0.1:9/v1\"}}')"
        ))
        .await;
    }
    lab.run(&["import"]).expect(2);
    for word in words {
        let text = fs::read_to_string(lab.manifests().join(format!("of-{word}.toml"))).unwrap();
        assert!(text.contains(&format!("type = \"{word}\"")), "{text}");
    }
    lab.run(&["apply"]).expect(0);
    lab.run(&["plan"]).expect(0);
    for word in words {
        let stored = lab.value(&format!("SELECT type FROM llm_providers WHERE name = 'of-{word}'")).await;
        assert_eq!(stored, word);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn display_names_are_taken_over_and_spelled_twins_are_called_out() {
    let lab = Lab::new().await;
    lab.execute(include_str!("../layouts/a.sql")).await;
    let names = [
        "OpenRouter",
        "OpenAI Direct",
        "Anthropic Direct",
        "Google AI",
        "Together AI",
        "Groq",
        "DeepInfra",
        "Fireworks AI",
        "Hugging Face",
        "Cohere",
        "Ollama Cloud",
        "Platform OpenAI",
    ];
    for name in names {
        lab.execute(&format!(
            "INSERT INTO llm_providers (name, type, api_key_encrypted, enabled) VALUES ('{name}', 'openai', '', true)"
        ))
        .await;
    }
    let report = lab.run(&["import", "--output", "json"]).expect(2).json();
    for name in names {
        assert!(report["written"][name].is_string(), "{name}: {report}");
    }
    lab.run(&["apply"]).expect(0);
    let before = dump(&lab).await;
    let plan = lab.run(&["plan"]).expect(0);
    assert!(!plan.stdout.contains("only in case"), "{}", plan.stdout);
    lab.run(&["apply"]).expect(0);
    assert_eq!(before, dump(&lab).await);

    // A name that a manifest spells otherwise makes a second row, which every command says.
    fs::write(lab.manifests().join("twin.toml"), "[providers.openrouter]\ntype = \"openrouter\"\n").unwrap();
    let validate = lab.run(&["validate"]);
    assert!(format!("{}{}", validate.stdout, validate.stderr).contains("case-twin"), "{}", validate.stdout);
    let plan = lab.run(&["plan"]).expect(2);
    assert!(plan.stdout.contains("differs from `OpenRouter` only in case"), "{}", plan.stdout);
    fs::remove_file(lab.manifests().join("openrouter.toml")).unwrap();
    let plan = lab.run(&["plan"]);
    assert!(
        plan.stdout.contains("differs from `OpenRouter` only in case"),
        "a row is enough: {}",
        plan.stdout
    );
}

/// What a plan does to which row, without what differs from one run to the next: new ids and fingerprints.
fn told(ran: &serde_json::Value) -> String {
    let mut changes = ran["changes"].clone();
    for change in changes.as_array_mut().unwrap() {
        if change["action"] == "create" {
            change["id"].take();
        }
    }
    format!("{changes:#} {:#} {:#}", ran["summary"], ran["held"])
}

/// `plan` may not write, so it reads the tables of an existing installation as they are, and says what `apply` does.
async fn planned_as_applied(layout: &[&str]) {
    let lab = Lab::new().await;
    for sql in layout {
        lab.execute(sql).await;
    }
    let route = |power: &str, models: &str| {
        format!("[[routes]]\nmodels = \"{models}\"\npower_level = \"{power}\"\nuser_tier = \"all\"\n")
    };
    fs::write(
        lab.manifests().join("all.toml"),
        format!(
            "[providers.openai-main]\ntype = \"openai\"\nenabled = false\npriority = 5\napi_key = {{ env = \"KEY\" }}\n\
             config = {{ region = \"eu\" }}\nmodels = [{{ name = \"m1\" }}, {{ name = \"m2\", context_length = 7 }}, \
             {{ name = \"new\", cost_per_1m_input_tokens = 1.5 }}]\n\
             [providers.local]\ntype = \"ollama\"\nbase_url = \"http://127.0.0.1:11434\"\ndescription = \"d\"\n\
             [providers.fresh]\ntype = \"groq\"\n{}{}",
            route("eco", "openai-main/m1"),
            route("precision", "openai-main/*")
        ),
    )
    .unwrap();
    let run = |args: &[&str], code: i32| {
        let mut command = lab.command(args);
        command.env("KEY", KEY);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let before = dump(&lab).await;
    let planned = run(&["plan", "--output", "json"], 2);
    assert_eq!(before, dump(&lab).await);
    assert_eq!(lab.value("SELECT to_regnamespace('providerd') IS NULL").await, "true", "plan writes nothing");
    let adopted = planned["changes"].as_array().unwrap().iter().filter(|it| it["action"] == "adopt");
    assert_eq!(adopted.count(), 4, "two providers and two of the models are there: {planned:#}");
    // Where the provider that goes out of service is the last of its cell, both hold that back.
    let held = if planned["held"].as_array().unwrap().is_empty() { 0 } else { 2 };
    assert_eq!(told(&planned), told(&run(&["apply", "--output", "json"], held)));
    run(&["plan", "--output", "json"], held);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_plan_shows_of_an_existing_installation_is_what_apply_does() {
    let (a, b) = (include_str!("../layouts/a.sql"), include_str!("../layouts/b.sql"));
    let keys = include_str!("../layouts/keys.sql");
    // The latest generation has cells of its own already, so that a route finds its row.
    let rules = "ALTER TABLE llm_routing_rules ADD COLUMN model_id uuid, ADD COLUMN power_level varchar(50),
                     ADD COLUMN user_tier varchar(50), ADD COLUMN is_active boolean;
                 INSERT INTO llm_routing_rules (model_id, power_level, user_tier, is_active)
                     SELECT id, 'balanced', 'all', true FROM llm_models WHERE name = 'm1'";
    for layout in [&[a][..], &[b], &[a, keys], &[b, keys], &[b, keys, rules]] {
        planned_as_applied(layout).await;
    }
    // A database of which only one of the tables is there.
    let lab = Lab::new().await;
    lab.execute("CREATE TABLE llm_providers (id uuid PRIMARY KEY, name text); INSERT INTO llm_providers VALUES (gen_random_uuid(), 'alpha')").await;
    fs::write(lab.manifests().join("alpha.toml"), crate::support::lab::provider("alpha", 1)).unwrap();
    let planned = lab.run(&["plan", "--output", "json"]).expect(2).json();
    assert_eq!(told(&planned), told(&lab.run(&["apply", "--output", "json"]).expect(0).json()));
}
