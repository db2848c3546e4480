//! What a demo declares: settings, providers, routes, consumers.

use std::fs;

use super::{DemoScene, hash, providers::FakeProviders};

/// Writes settings and manifests into the demo's directory.
///
/// # Errors
/// They cannot be written.
pub fn write(scene: &DemoScene, fakes: &FakeProviders) -> anyhow::Result<()> {
    fs::write(scene.dir.join("providerd.toml"), settings(scene))?;
    let manifests = scene.manifests();
    fs::write(manifests.join("providers.toml"), providers(fakes))?;
    fs::write(manifests.join("routes.toml"), ROUTES)?;
    fs::write(manifests.join("consumers.toml"), consumers(scene))?;
    Ok(())
}

fn settings(scene: &DemoScene) -> String {
    format!(
        "[manifests]\npath = \"{}\"\nsettle = \"300ms\"\n\n[server]\nlisten = \"{}\"\ntoken_sha256 = [\"{}\"]\n\n\
         [gateway]\nlisten = \"{}\"\n\n[health]\ninterval = \"2s\"\nslow_after = \"500ms\"\n\n[log]\nformat = \"human\"\n",
        scene.manifests().display(),
        scene.dashboard,
        hash(&scene.token),
        scene.gateway,
    )
}

fn providers(fakes: &FakeProviders) -> String {
    let mut text = String::from("# Made-up providers of the demo, in the program itself.\n");
    for fake in fakes.all() {
        text += &format!(
            "\n[providers.{name}]\ntype = \"openai-compatible\"\nbase_url = \"http://{address}/v1\"\n\
             description = \"{description}\"\napi_key = {{ env = \"{variable}\" }}\n\n\
             [[providers.{name}.models]]\nname = \"{model}\"\ndisplay_name = \"{shown}\"\ncontext_length = 32_768\n\
             cost_per_1m_input_tokens = {input}\ncost_per_1m_output_tokens = {output}\n",
            name = fake.facts.name,
            address = fake.address,
            description = fake.facts.description,
            variable = fake.facts.variable,
            model = fake.facts.model,
            shown = fake.facts.shown,
            input = fake.facts.input_price,
            output = fake.facts.output_price,
        );
    }
    text
}

const ROUTES: &str = r#"# Which models serve a power level; the highest priority is asked first.
[[routes]]
models = "demo-fast/*"
power_level = "eco"
user_tier = "all"
priority = 200

[[routes]]
models = "demo-slow/*"
power_level = "eco"
user_tier = "all"
priority = 100

# The first choice refuses its key: the second one answers.
[[routes]]
models = "demo-locked/*"
power_level = "balanced"
user_tier = "all"
priority = 300

[[routes]]
models = "demo-fast/*"
power_level = "balanced"
user_tier = "all"
priority = 200

[[routes]]
models = "demo-slow/*"
power_level = "precision"
user_tier = "all"
priority = 200

[[routes]]
models = "demo-fast/*"
power_level = "precision"
user_tier = "all"
priority = 100
"#;

fn consumers(scene: &DemoScene) -> String {
    format!(
        "# Who may ask the gateway. Only hashes of keys stand in a manifest.\n[aliases]\nfast = \"eco\"\n\n\
         [consumers.demo-app]\nkeys = [{{ sha256 = \"{}\" }}]\ntrusted = true\n\n\
         [consumers.demo-batch]\nkeys = [{{ sha256 = \"{}\" }}]\nuser_tier = \"free\"\n\
         limits = {{ requests_per_minute = 60, concurrency = 2 }}\nbudgets = [{{ usd = 0.10, per = \"day\" }}]\n\n\
         [tiers.free]\nlimits = {{ requests_per_minute = 120 }}\n",
        hash(&scene.app_key),
        hash(&scene.batch_key),
    )
}
