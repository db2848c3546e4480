//! Configurations in the shapes of LiteLLM's examples, and what becomes of each.

use super::*;

fn imported(text: &str) -> ImportedConfig {
    import(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn manifest(text: &str) -> Value {
    let document: toml::Table = text.parse().unwrap();
    serde_json::to_value(document).unwrap()
}

#[test]
fn entries_of_one_key_and_place_are_one_provider() {
    let made = imported(
        r#"
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY, rpm: 480, timeout: 300}
    model_info: {max_input_tokens: 128000, input_cost_per_token: 2.5e-06, output_cost_per_token: 0.00001}
  - model_name: gpt-4
    litellm_params:
      model: azure/chat-eu
      api_base: https://endpoint-eu.openai.azure.com/
      api_version: "2024-10-21"
      api_key: os.environ/AZURE_EU_API_KEY
  - model_name: gpt-4
    litellm_params:
      model: azure/chat-us
      api_base: https://endpoint-us.openai.azure.com/
      api_key: os.environ/AZURE_US_API_KEY
    tpm: 80_000
  - model_name: gpt-4o-mini
    litellm_params: {model: gpt-4o-mini}
  - model_name: "anthropic/*"
    litellm_params: {model: "anthropic/*", api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: local
    litellm_params: {model: ollama/llama2, temperature: 0.1}
  - model_name: vision
    litellm_params: {model: openai/llava-hf/llava-7b, api_base: "http://localhost:8000/v1", api_key: none}
router_settings:
  routing_strategy: usage-based-routing-v2
  fallbacks: [{gpt-4: [gpt-4o]}, {vision: [missing]}]
  model_group_alias: {smart: gpt-4}
general_settings: {master_key: sk-fake-master-key-0123456789abcdef}
litellm_settings: {drop_params: true}
guardrails: [{guardrail_name: x}]
"#,
    );
    assert_eq!(
        made.providers,
        ["openai", "azure-openai", "azure-openai-endpoint-us", "anthropic", "ollama", "openai-compatible"]
    );
    let found = manifest(&made.text);
    let providers = &found["providers"];
    assert_eq!(providers["openai"]["api_key"]["env"], "OPENAI_API_KEY");
    let models = providers["openai"]["models"].as_array().unwrap();
    assert_eq!(models.len(), 2, "one key, given or by default: {}", made.text);
    assert_eq!(models[0]["cost_per_1m_input_tokens"], 2.5);
    assert_eq!(models[0]["cost_per_1m_output_tokens"], 10);
    assert_eq!(models[0]["context_length"], 128_000);
    assert_eq!(providers["azure-openai"]["config"]["api_version"], "2024-10-21");
    assert_eq!(providers["azure-openai"]["base_url"], "https://endpoint-eu.openai.azure.com");
    assert_eq!(providers["anthropic"]["gateway"]["unlisted_models"], true);
    assert!(
        providers["ollama"].get("api_key").is_none()
            && providers["openai-compatible"].get("api_key").is_none()
    );
    assert_eq!(providers["openai-compatible"]["models"][0]["name"], "llava-hf/llava-7b");
    let aliases = &found["aliases"];
    assert_eq!(
        aliases["gpt-4"],
        serde_json::json!(["azure-openai/chat-eu", "azure-openai-endpoint-us/chat-us", "openai/gpt-4o"])
    );
    assert_eq!(aliases["smart"], aliases["gpt-4"]);
    assert_eq!(aliases["local"], serde_json::json!(["ollama/llama2"]));
    assert!(aliases.get("gpt-4o").is_none(), "its own name needs no alias");
    let left = made.left_out.join("\n");
    for expected in [
        "model_list[1] `gpt-4o`: rpm, timeout",
        "model_list[3] `gpt-4`: tpm",
        "model_list[6] `local`: temperature",
        "the name `gpt-4`: LiteLLM shares",
        "router_settings: routing_strategy",
        "general_settings: master_key",
        "litellm_settings: drop_params",
        "guardrails",
    ] {
        assert!(left.contains(expected), "{expected}\n{left}");
    }
    assert!(!left.contains("sk-fake") && !made.text.contains("sk-fake"));
}

#[test]
fn keys_in_clear_stay_out_and_tell_providers_apart() {
    let made = imported(
        "model_list:\n\
         - {model_name: a, litellm_params: {model: openai/a, api_key: sk-fake-0123456789abcdefghij}}\n\
         - {model_name: a, litellm_params: {model: openai/a, api_key: sk-fake-9876543210abcdefghij}}\n",
    );
    assert_eq!(made.providers, ["openai", "openai-2"]);
    assert_eq!(manifest(&made.text)["aliases"].get("a"), None, "both have it by its own name: {}", made.text);
    assert_eq!(made.left_out.iter().filter(|it| it.contains("api_key stands in clear")).count(), 2);
    assert!(!made.text.contains("sk-fake") && !made.left_out.join("\n").contains("sk-fake"));
}

#[test]
fn what_has_no_counterpart_is_named() {
    let check = |entry: &str, expected: &str| {
        let made = imported(&format!("model_list:\n- {{model_name: x, {entry}}}\n"));
        assert!(
            made.left_out.iter().any(|it| it.contains(expected)),
            "{entry}: {:?}\n{}",
            made.left_out,
            made.text
        );
    };
    check("litellm_params: {model: sagemaker/endpoint-7b}", "the provider `sagemaker` has no counterpart");
    check("litellm_params: {model: mystery}", "does not say which provider");
    check("litellm_params: {model: azure/}", "it names no model");
    check("litellm_params: {model: openai/m, api_base: os.environ/BASE}", "api_base stands in a variable");
    check(
        "litellm_params: {model: dall-e-3}, model_info: {mode: image_generation}",
        "mode `image_generation`",
    );
    check("litellm_params: {model: azure/m}", "its type needs one");
    check("litellm_params: {model: bedrock/m}", "names no region");
    check("litellm_params: {model: openai/m, api_base: \"ftp://h/\"}", "a manifest cannot hold its api_base");
    check("litellm_params: {}", "no litellm_params.model");
    let made = imported("model_list:\n- {model_name: \"*\", litellm_params: {model: \"openai/*\"}}\n");
    assert!(made.text.contains("unlisted_models = true") && made.left_out[0].contains("without a prefix"));
    let made = imported("model_list:\n- {model_name: eco, litellm_params: {model: openai/m}}\n");
    assert!(made.left_out.iter().any(|it| it.contains("no alias can be called so")), "{:?}", made.left_out);
}

#[test]
fn unknown_vendors_with_a_url_speak_openai() {
    let check = |model: &str, base: &str, kind: &str, name: &str| {
        let text = format!(
            "model_list:\n- {{model_name: x, litellm_params: {{model: {model}, api_base: \"{base}\", api_key: os.environ/X_API_KEY}}}}\n"
        );
        let made = imported(&text);
        let provider = &manifest(&made.text)["providers"][&made.providers[0]];
        assert_eq!(
            (&provider["type"], &provider["models"][0]["name"]),
            (&kind.into(), &name.into()),
            "{}",
            made.text
        );
    };
    check(
        "siliconflow/deepseek-ai/R1",
        "https://api.siliconflow.example/v1",
        "openai-compatible",
        "deepseek-ai/R1",
    );
    check("zhipu/glm-4-flash", "https://open.bigmodel.cn/api/paas/v4", "zhipu", "glm-4-flash");
    check("mistralai/mistral-7b", "http://10.0.0.9:8000/v1", "openai-compatible", "mistralai/mistral-7b");
    check("openai/fake", "https://relay.example.com/", "openai-compatible", "fake");
    check("anthropic/claude-x", "https://relay.example.com", "anthropic", "claude-x");
}

#[test]
fn what_is_no_configuration_is_refused() {
    let check = |text: &str, expected: &str| {
        let error = import(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    };
    check("a: [", "not YAML");
    check("- 1\n", "no `model_list`");
    check("general_settings: {}\n", "no `model_list`");
    check("model_list: 5\n", "no `model_list`");
    check(&"#".repeat(MOST_BYTES + 1), "4 MiB");
    // A bomb of anchors ends before it fills the memory.
    let mut bomb = String::from("a0: &a0 [x, x]\n");
    for at in 1..40 {
        bomb += &format!("a{at}: &a{at} [*a{0}, *a{0}]\n", at - 1);
    }
    assert!(import(&bomb).is_err());
    let secret = import("model_list: [{api_key: sk-fake-0123456789abcdefghij\n").unwrap_err().to_string();
    assert!(!secret.contains("sk-fake"), "{secret}");
}

#[test]
fn prices_per_token_become_prices_per_million() {
    let check = |json: &str, expected: Option<&str>| {
        let value: Value = serde_json::from_str(json).unwrap();
        assert_eq!(per_million(&value).map(|price| price.to_string()), expected.map(str::to_owned), "{json}");
    };
    check("1.5e-07", Some("0.15"));
    check("0.00000007525", Some("0.07525"));
    check("\"0.000003\"", Some("3"));
    check("0", Some("0"));
    check("-1", None);
    check("true", None);
}
