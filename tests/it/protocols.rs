//! What every provider type says, row by row, and what it must be taken to mean.

use chrono::{DateTime, TimeZone, Utc};
use secrecy::ExposeSecret as _;

use provider::{
    CheckOutcome, Controls, Evidence, KeyEcho, KeyReport, KeyVerdict, ListError, ListStep, ModelList, Models,
    Proof, ProviderType as P, Reply, Request, Step, Value, health_probe, parse_base, read_error, read_health,
    redact, retry_after,
};

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap()
}

fn reply<'a>(status: u16, headers: &'a [(String, String)], body: &'a str) -> Reply<'a> {
    Reply { status, headers, body: body.as_bytes(), truncated: false }
}

/// A verdict in short: `quota!` is quota with the key proven, `-` is "no error".
fn short(verdict: Option<&KeyVerdict>) -> String {
    let Some(verdict) = verdict else { return "-".into() };
    let proven = verdict.evidence() == Evidence::Proof && *verdict != KeyVerdict::Valid;
    format!("{}{}", verdict.word(), if proven { "!" } else { "" })
}

#[test]
fn errors_are_read_body_before_status() {
    #[rustfmt::skip]
    let rows: &[(P, u16, &str, &str)] = &[
        // OpenAI
        (P::OpenAi, 401, r#"{"error":{"message":"Incorrect API key provided: sk-x","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#, "invalid"),
        (P::OpenAi, 401, r#"{"error":{"message":"You have insufficient permissions for this operation. Missing scopes: model.request","type":"invalid_request_error","code":null}}"#, "restricted!"),
        (P::OpenAi, 401, r#"{"error":{"message":"You must be a member of an organization to use the API"}}"#, "restricted!"),
        (P::OpenAi, 401, r#"{"error":{"message":"IP not authorized"}}"#, "restricted!"),
        (P::OpenAi, 403, r#"{"error":{"message":"Country, region, or territory not supported","code":"unsupported_country_region_territory"}}"#, "restricted"),
        (P::OpenAi, 429, r#"{"error":{"message":"You exceeded your current quota, please check","type":"insufficient_quota","code":"insufficient_quota"}}"#, "quota!"),
        (P::OpenAi, 429, r#"{"error":{"message":"x","type":"insufficient_quota","code":"credit_balance_exhausted"}}"#, "quota!"),
        (P::OpenAi, 429, r#"{"error":{"message":"Rate limit reached","code":"rate_limit_exceeded"}}"#, "rate"),
        (P::OpenAi, 429, r#"{"error":{"message":"Slow","type":"slow_down"}}"#, "rate"),
        (P::OpenAi, 500, r#"{"error":{"message":"The server had an error"}}"#, "overload"),
        (P::OpenAi, 503, r#"{"error":{"code":"server_is_overloaded"}}"#, "overload"),
        (P::OpenAi, 403, r#"{"error":{"code":"account_deactivated"}}"#, "restricted"),
        (P::OpenAi, 429, r#"{"error":{"code":"billing_not_active"}}"#, "quota"),
        // Anthropic
        (P::Anthropic, 401, r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"},"request_id":"r"}"#, "invalid"),
        (P::Anthropic, 401, r#"{"type":"error","error":{"type":"authentication_error","message":"OAuth token has expired"}}"#, "invalid"),
        (P::Anthropic, 403, r#"{"type":"error","error":{"type":"permission_error","message":"no"}}"#, "restricted!"),
        (P::Anthropic, 404, r#"{"type":"error","error":{"type":"not_found_error","message":"model: x"}}"#, "inconclusive"),
        (P::Anthropic, 402, r#"{"type":"error","error":{"type":"billing_error","message":"x"}}"#, "quota!"),
        (P::Anthropic, 400, r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API"}}"#, "quota!"),
        (P::Anthropic, 400, r#"{"type":"error","error":{"type":"invalid_request_error","message":"You have reached your specified API usage limits. You will regain access"}}"#, "quota!"),
        (P::Anthropic, 400, r#"{"type":"error","error":{"type":"invalid_request_error","message":"You have reached your specified workspace API usage limits."}}"#, "quota!"),
        (P::Anthropic, 400, r#"{"type":"error","error":{"type":"invalid_request_error","message":"This organization has been disabled."}}"#, "restricted"),
        (P::Anthropic, 429, r#"{"type":"error","error":{"type":"rate_limit_error","message":"x"}}"#, "rate"),
        (P::Anthropic, 500, r#"{"type":"error","error":{"type":"api_error","message":"x"}}"#, "overload"),
        (P::Anthropic, 504, r#"{"type":"error","error":{"type":"timeout_error","message":"x"}}"#, "overload"),
        (P::Anthropic, 529, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#, "overload"),
        // Google
        (P::Google, 400, r#"{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"@type":"x","reason":"API_KEY_INVALID"}]}}"#, "invalid"),
        (P::Google, 400, r#"{"error":{"code":400,"message":"API key expired. Please renew the API key.","status":"INVALID_ARGUMENT"}}"#, "invalid"),
        (P::Google, 400, r#"{"error":{"code":400,"message":"User location is not supported for the API use.","status":"FAILED_PRECONDITION"}}"#, "restricted"),
        (P::Google, 401, r#"{"error":{"code":401,"message":"Expected OAuth 2 access token, login cookie or other","status":"UNAUTHENTICATED"}}"#, "invalid"),
        (P::Google, 403, r#"{"error":{"code":403,"message":"x","status":"PERMISSION_DENIED","details":[{"reason":"SERVICE_DISABLED"}]}}"#, "restricted!"),
        (P::Google, 403, r#"{"error":{"code":403,"message":"Your project has been denied access","status":"PERMISSION_DENIED"}}"#, "restricted!"),
        (P::Google, 403, r#"{"error":{"code":403,"message":"Method doesn't allow unregistered callers","status":"PERMISSION_DENIED"}}"#, "inconclusive"),
        (P::Google, 403, r#"{"error":{"code":403,"message":"Lightning dunning decision is deny","status":"PERMISSION_DENIED"}}"#, "quota!"),
        (P::Google, 429, r#"{"error":{"code":429,"message":"You exceeded your current quota, please check your plan","status":"RESOURCE_EXHAUSTED"}}"#, "rate!"),
        (P::Google, 503, r#"{"error":{"code":503,"status":"UNAVAILABLE"}}"#, "overload"),
        (P::Google, 400, r#"[{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT"}}]"#, "invalid"),
        // Azure
        (P::AzureOpenAi, 401, r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint. x"}}"#, "invalid"),
        (P::AzureOpenAi, 401, r#"{"error":{"code":"PermissionDenied","message":"x"}}"#, "invalid"),
        (P::AzureOpenAi, 404, r#"{"error":{"code":"DeploymentNotFound","message":"x"}}"#, "valid"),
        (P::AzureOpenAi, 403, r#"{"error":{"code":"403","message":"Access denied due to Virtual Network/Firewall rules."}}"#, "restricted"),
        (P::AzureOpenAi, 429, r#"{"error":{"code":"429","message":"x"}}"#, "rate"),
        // OpenRouter
        (P::OpenRouter, 401, r#"{"error":{"code":401,"message":"Missing Authentication header"}}"#, "invalid"),
        (P::OpenRouter, 402, r#"{"error":{"code":402,"message":"Insufficient credits"},"user_id":"u"}"#, "quota!"),
        (P::OpenRouter, 403, r#"{"error":{"code":403,"message":"Only management keys can perform this operation"}}"#, "restricted!"),
        (P::OpenRouter, 403, r#"{"error":{"code":403,"message":"Blocked by guardrail"}}"#, "restricted"),
        (P::OpenRouter, 408, r#"{"error":{"code":408,"message":"timeout"}}"#, "inconclusive"),
        (P::OpenRouter, 524, r#"{"error":{"code":524,"message":"timeout"}}"#, "overload"),
        (P::OpenRouter, 529, r#"{"error":{"code":529,"message":"x"}}"#, "overload"),
        (P::OpenRouter, 502, r#"{"error":{"code":502,"message":"upstream: invalid_api_key"}}"#, "overload"),
        // Ollama
        (P::OllamaCloud, 401, r#"{"error":"unauthorized","signin_url":"https://x"}"#, "invalid"),
        (P::OllamaCloud, 403, r#"{"error":"this model requires a subscription, upgrade"}"#, "restricted!"),
        (P::OllamaCloud, 403, r#"{"error":"forbidden"}"#, "invalid"),
        (P::OllamaCloud, 410, r#"{"error":"model retired"}"#, "inconclusive"),
        (P::OllamaCloud, 401, r#"{"error":{"message":"unauthorized","type":"api_error","param":null,"code":null}}"#, "invalid"),
        (P::Ollama, 200, "{\"message\":{}}\n{\"error\":\"broken\"}\n", "inconclusive"),
        (P::Ollama, 502, r#"{"error":"cloud model unreachable"}"#, "overload"),
        // vLLM, llama.cpp
        (P::Vllm, 401, r#"{"error":"Unauthorized"}"#, "invalid"),
        (P::LlamaCpp, 401, r#"{"error":{"code":401,"message":"Invalid API Key","type":"authentication_error"}}"#, "invalid"),
        (P::LlamaCpp, 503, r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#, "overload"),
        (P::LiteLlm, 401, r#"{"error":{"message":"Authentication Error, Invalid proxy server token passed. Unable to find token in cache","type":"token_not_found_in_db","param":"key","code":"401"}}"#, "invalid"),
        (P::LiteLlm, 429, r#"{"error":{"message":"Budget has been exceeded! Current cost: 10.51, Max budget: 10.00","type":"budget_exceeded","code":"429"}}"#, "quota!"),
        (P::LiteLlm, 400, r#"{"error":{"message":"Budget has been exceeded! Current cost: 26.075, Max budget: 0.25","type":"budget_exceeded","param":null,"code":"400"}}"#, "quota!"),
        // The proxy's own key at a vendor, not ours.
        (P::LiteLlm, 401, r#"{"error":{"message":"litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect API key provided: sk-x","type":null,"param":null,"code":"401"}}"#, "inconclusive"),
        (P::LiteLlm, 400, r#"{"error":{"message":"litellm.BadRequestError: OpenAIException - Budget has been exceeded! Current cost: 14, Max budget: 100.","type":null,"param":null,"code":"400"}}"#, "inconclusive"),
        (P::LiteLlm, 429, r#"{"error":{"message":"litellm.RateLimitError: RateLimitError: OpenAIException - You exceeded your current quota","type":null,"code":"429"}}"#, "quota"),
        (P::LmStudio, 401, r#"{"error":{"type":"invalid_request","code":"invalid_api_key","message":"An LM Studio API token is required to make requests to this server"}}"#, "invalid"),
        (P::LmStudio, 402, "", "quota"),
        // Groq
        (P::Groq, 401, r#"{"error":{"message":"Invalid API Key","type":"invalid_request_error","code":"invalid_api_key"}}"#, "invalid"),
        (P::Groq, 403, r#"{"error":{"message":"x"}}"#, "restricted"),
        (P::Groq, 429, r#"{"error":{"message":"Rate limit reached","type":"tokens","code":"rate_limit_exceeded"}}"#, "rate"),
        (P::Groq, 498, r#"{"error":{"message":"x","code":"capacity_exceeded"}}"#, "overload"),
        (P::Groq, 400, r#"{"error":{"message":"This organization has been restricted"}}"#, "restricted"),
        // Together
        (P::Together, 401, r#"{"error":{"message":"Invalid API key provided. x","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#, "invalid"),
        (P::Together, 402, r#"{"error":{"message":"spend cap"}}"#, "quota!"),
        (P::Together, 403, r#"{"error":{"message":"Input validation error: tokens + max_new_tokens too long"}}"#, "inconclusive"),
        (P::Together, 400, r#"{"error":{"message":"Unable to access model x","code":"model_not_available"}}"#, "valid"),
        (P::Together, 503, r#"{"error":"overloaded","model":"m","request_id":"r"}"#, "overload"),
        // Mistral
        (P::Mistral, 401, r#"{"detail":"Unauthorized"}"#, "invalid"),
        (P::Mistral, 401, r#"{"message":"Unauthorized","request_id":"r"}"#, "invalid"),
        (P::Mistral, 403, r#"{"object":"error","message":"no active subscription","type":"x"}"#, "restricted"),
        (P::Mistral, 422, r#"{"detail":[{"loc":["body"],"msg":"field required","type":"missing"}]}"#, "valid"),
        (P::Mistral, 429, r#"{"message":"Requests rate limit exceeded"}"#, "rate"),
        // Cohere
        (P::Cohere, 401, r#"{"message":"no api key supplied","id":"i"}"#, "invalid"),
        (P::Cohere, 401, r#"{"message":"invalid api token","id":"i"}"#, "invalid"),
        (P::Cohere, 401, r#"{"message":"Your API key has expired"}"#, "invalid"),
        (P::Cohere, 403, r#"{"message":"invalid api token"}"#, "invalid"),
        (P::Cohere, 402, r#"{"message":"billing cap"}"#, "quota!"),
        (P::Cohere, 429, r#"{"message":"You are using a Trial key, which is limited to 1000 API calls / month."}"#, "quota!"),
        (P::Cohere, 429, r#"{"message":"You are using a Trial key, which is limited to 10 calls / minute"}"#, "rate"),
        (P::Cohere, 498, r#"{"message":"blocked token"}"#, "inconclusive"),
        (P::Cohere, 499, r#"{"message":"cancelled"}"#, "inconclusive"),
        // DeepSeek
        (P::DeepSeek, 401, r#"{"error":{"message":"Authentication Fails (no such user)"}}"#, "invalid"),
        (P::DeepSeek, 402, r#"{"error":{"message":"Insufficient Balance"}}"#, "quota!"),
        (P::DeepSeek, 503, r#"{"error":{"message":"overloaded"}}"#, "overload"),
        // xAI
        (P::Xai, 400, r#"{"code":"Client specified an invalid argument","error":"Incorrect API key provided: xa***yz. You can obtain"}"#, "invalid"),
        (P::Xai, 401, r#"{"code":"x","error":"no credentials"}"#, "invalid"),
        (P::Xai, 403, r#"{"code":"x","error":"Your newly created team doesn't have any credits or licenses yet."}"#, "quota!"),
        (P::Xai, 403, r#"{"code":"x","error":"team is blocked"}"#, "restricted"),
        (P::Xai, 429, r#"{"code":"x","error":"Your team has either used all available credits or reached its monthly spending limit."}"#, "quota!"),
        (P::Xai, 429, r#"{"code":"x","error":"Too many requests"}"#, "rate"),
        // Fireworks
        (P::Fireworks, 401, r#"{"error":"invalid key or insufficient permissions"}"#, "invalid"),
        (P::Fireworks, 402, r#"{"error":"x"}"#, "quota!"),
        (P::Fireworks, 403, r#"{"error":{"code":"FORBIDDEN","message":"Fire Pass API keys are not authorized for this route."}}"#, "valid"),
        (P::Fireworks, 403, r#"{"error":{"message":"forbidden"}}"#, "invalid"),
        (P::Fireworks, 412, r#"{"error":{"message":"Account is suspended"}}"#, "quota!"),
        (P::Fireworks, 500, r#"{"error":{"message":"Error listing deployed models"}}"#, "overload"),
        (P::Fireworks, 401, r#"{"fault":{"faultstring":"Invalid ApiKey","detail":{"errorcode":"x"}}}"#, "invalid"),
        // Perplexity, Cerebras, SambaNova
        (P::Perplexity, 401, r#"{"error":{"message":"Invalid API key provided","type":"invalid_api_key","code":401}}"#, "invalid"),
        (P::Perplexity, 403, r#"{"error":{"message":"x","type":"x","code":403}}"#, "restricted"),
        (P::Perplexity, 402, r#"{"error":{"message":"insufficient credits"}}"#, "quota"),
        (P::Perplexity, 429, r#"{"error":{"message":"x","type":"x","code":429}}"#, "rate"),
        (P::Cerebras, 401, r#"{"message":"Wrong API Key","type":"invalid_request_error","param":"api_key","code":"wrong_api_key"}"#, "invalid"),
        (P::Cerebras, 402, r#"{"message":"x","type":"payment_required_error","code":"payment_required"}"#, "quota!"),
        (P::Cerebras, 403, r#"{"message":"x"}"#, "invalid"),
        (P::Cerebras, 403, "<html><body>Attention Required</body></html>", "restricted"),
        (P::Cerebras, 429, r#"{"message":"x","type":"too_many_requests_error","code":"token_quota_reached"}"#, "rate"),
        (P::SambaNova, 402, r#"{"error":{"message":"payment method required","type":"x"},"request_id":"r"}"#, "quota!"),
        (P::SambaNova, 410, r#"{"error":{"message":"model removed"}}"#, "inconclusive"),
        (P::SambaNova, 504, r#"{"error":{"message":"queue full"}}"#, "overload"),
        // NVIDIA
        (P::NvidiaNim, 403, r#"{"status":403,"title":"Forbidden","detail":"Authorization failed"}"#, "invalid"),
        (P::NvidiaNim, 403, "", "restricted"),
        (P::NvidiaNim, 404, r#"{"status":404,"title":"Not Found","detail":"Function 'f': Not found for account 'a'"}"#, "valid"),
        (P::NvidiaNim, 404, "", "inconclusive"),
        (P::NvidiaNim, 402, r#"{"status":402,"title":"Payment Required","detail":"Cloud credits expired"}"#, "quota!"),
        (P::NvidiaNim, 400, r#"{"status":400,"detail":"Function id 'f': DEGRADED function cannot be invoked"}"#, "overload"),
        (P::NvidiaNim, 429, r#"{"status":429,"title":"Too Many Requests"}"#, "rate"),
        // Hugging Face, Replicate, DeepInfra
        (P::HuggingFace, 401, r#"{"error":"Invalid username or password."}"#, "invalid"),
        (P::HuggingFace, 403, r#"{"error":"This authentication method does not have sufficient permissions to call Inference Providers on behalf of user x"}"#, "restricted!"),
        (P::HuggingFace, 402, r#"{"error":"You have exceeded your monthly included credits"}"#, "quota!"),
        (P::Replicate, 401, r#"{"title":"Unauthenticated","detail":"You did not pass a valid authentication token","status":401}"#, "invalid"),
        (P::Replicate, 402, r#"{"title":"Insufficient credit","detail":"x","status":402}"#, "quota!"),
        (P::Replicate, 429, r#"{"detail":"Request was throttled.","status":429}"#, "rate"),
        (P::DeepInfra, 401, r#"{"error":{"message":"Not authenticated","type":"invalid_request_error","param":null,"code":null}}"#, "invalid"),
        (P::DeepInfra, 403, r#"{"detail":"You need positive balance to do inference"}"#, "quota!"),
        // Moonshot
        (P::Moonshot, 401, r#"{"error":{"message":"Invalid Authentication","type":"invalid_authentication_error"}}"#, "invalid"),
        (P::Moonshot, 404, r#"{"error":{"message":"Not found the model X or Permission denied","type":"resource_not_found_error"}}"#, "valid"),
        (P::Moonshot, 403, r#"{"error":{"message":"Your account has insufficient balance","type":"x"}}"#, "quota!"),
        (P::Moonshot, 429, r#"{"error":{"message":"x","type":"exceeded_current_quota_error"}}"#, "quota"),
        (P::Moonshot, 429, r#"{"error":{"message":"x","type":"rate_limit_reached_error"}}"#, "rate"),
        (P::Moonshot, 429, r#"{"error":{"message":"x","type":"engine_overloaded_error"}}"#, "overload"),
        // Zhipu
        (P::Zhipu, 401, r#"{"error":{"code":"1002","message":"x"}}"#, "invalid"),
        (P::Zhipu, 429, r#"{"error":{"code":"1113","message":"x"}}"#, "quota!"),
        (P::Zhipu, 429, r#"{"error":{"code":"1302","message":"x"}}"#, "rate"),
        (P::Zhipu, 429, r#"{"error":{"code":"1304","message":"x"}}"#, "quota!"),
        (P::Zhipu, 429, r#"{"error":{"code":"1309","message":"x"}}"#, "quota!"),
        (P::Zhipu, 403, r#"{"error":{"code":"1311","message":"x"}}"#, "restricted!"),
        (P::Zhipu, 403, r#"{"error":{"code":"1220","message":"x"}}"#, "restricted!"),
        (P::Zhipu, 429, r#"{"error":{"code":"1121","message":"x"}}"#, "restricted"),
        (P::Zhipu, 434, r#"{"error":{"message":"beta"}}"#, "restricted"),
        (P::Zhipu, 429, r#"{"error":{"code":1113,"message":"x"}}"#, "quota!"),
        // Qwen
        (P::Qwen, 401, r#"{"error":{"message":"Incorrect API key provided.","type":"invalid_request_error","code":"invalid_api_key"}}"#, "invalid"),
        (P::Qwen, 401, r#"{"code":"InvalidApiKey","message":"Invalid API-key provided.","request_id":"r"}"#, "invalid"),
        (P::Qwen, 403, r#"{"code":"AccessDenied","message":"x","request_id":"r"}"#, "restricted"),
        (P::Qwen, 400, r#"{"code":"Arrearage","message":"Access denied"}"#, "quota!"),
        (P::Qwen, 403, r#"{"code":"AllocationQuota.FreeTierOnly","message":"x"}"#, "quota!"),
        (P::Qwen, 429, r#"{"code":"Throttling.RateQuota","message":"x"}"#, "rate"),
        (P::Qwen, 429, r#"{"code":"Throttling.AllocationQuota","message":"Allocated quota exceeded, please increase your quota limit (TPM)"}"#, "rate"),
        (P::Qwen, 429, r#"{"error":{"code":"insufficient_quota","message":"Free allocated quota exhausted."}}"#, "quota!"),
        // MiniMax
        (P::MiniMax, 200, r#"{"base_resp":{"status_code":1004,"status_msg":"cookie is missing, log in again"}}"#, "invalid"),
        (P::MiniMax, 200, r#"{"base_resp":{"status_code":2049,"status_msg":"invalid api key"}}"#, "invalid"),
        (P::MiniMax, 200, r#"{"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}}"#, "quota!"),
        (P::MiniMax, 200, r#"{"base_resp":{"status_code":1002,"status_msg":"x"}}"#, "rate"),
        (P::MiniMax, 200, r#"{"base_resp":{"status_code":0,"status_msg":"success"},"data":[]}"#, "-"),
        (P::MiniMax, 401, r#"{"type":"error","error":{"type":"authorized_error","message":"login fail: Please carry the API secret key (1004)"}}"#, "invalid"),
        (P::MiniMax, 500, r#"{"type":"error","error":{"type":"api_error","message":"insufficient balance (1008)"}}"#, "quota!"),
        (P::MiniMax, 500, r#"{"type":"error","error":{"type":"api_error","message":"x"}}"#, "overload"),
        // Bedrock, Vertex, retired
        (P::Bedrock, 403, r#"{"message":"The security token included in the request is invalid."}"#, "invalid"),
        (P::Bedrock, 403, r#"{"__type":"AccessDeniedException","message":"x"}"#, "restricted"),
        (P::Bedrock, 429, r#"{"__type":"ThrottlingException","message":"x"}"#, "rate"),
        (P::Bedrock, 400, r#"{"message":"Invocation of model ID x with on-demand throughput isn\u2019t supported."}"#, "valid"),
        (P::Vertex, 403, r#"{"error":{"message":"Vertex AI API has not been used in project x","status":"PERMISSION_DENIED"}}"#, "restricted!"),
        (P::GithubModels, 401, r#"{"error":{"message":"x"}}"#, "untestable"),
        // Anything else
        (P::Custom, 200, r#"{"data":[]}"#, "-"),
        (P::Custom, 200, r#"{"data":[],"error":null}"#, "-"),
        (P::Custom, 200, r#"{"error":{"code":"invalid_api_key"}}"#, "invalid"),
        (P::Custom, 200, r#"{"success":false,"msg":"404 NOT_FOUND","code":500}"#, "inconclusive"),
        (P::Custom, 401, "", "invalid"),
        (P::Custom, 403, "<html>blocked in your country</html>", "restricted"),
        (P::Custom, 402, "", "quota"),
        (P::Custom, 429, r#"{"error":{"code":"insufficient_quota"}}"#, "quota"),
        (P::Custom, 500, r#"{"error":"upstream said: Incorrect API key provided"}"#, "overload"),
        (P::Custom, 404, "not found", "inconclusive"),
        (P::Custom, 401, r#"{"errors":[{"message":"Invalid API key"}]}"#, "invalid"),
        // A page is some gateway's word.
        (P::OpenAi, 401, "<html><h1>401 Authorization Required</h1></html>", "inconclusive"),
        (P::AzureOpenAi, 401, "<!doctype html><title>Sign in</title>", "inconclusive"),
        (P::Custom, 302, "", "inconclusive"),
        (P::Custom, 418, "\u{0}\u{1}garbage", "inconclusive"),
    ];
    let mut wrong = Vec::new();
    for (kind, status, body, expected) in rows {
        let verdict = read_error(*kind, &reply(*status, &[], body));
        let found = short(verdict.as_ref());
        if found != *expected {
            wrong.push(format!("{kind} {status} {body}\n  expected {expected}, found {found}: {verdict:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // So is being asked for a user name and a password, unless the API itself speaks.
    let asks = |scheme: &str, body: &str| {
        let headers = [("WWW-Authenticate".to_owned(), scheme.to_owned())];
        short(read_error(P::OpenAiCompatible, &reply(401, &headers, body)).as_ref())
    };
    assert_eq!(asks("Basic realm=\"proxy\"", ""), "inconclusive");
    assert_eq!(asks("Negotiate", "Unauthorized"), "inconclusive");
    assert_eq!(asks("Basic realm=\"api\"", r#"{"error":{"message":"Invalid API key"}}"#), "invalid");
    assert_eq!(asks("Bearer", "Unauthorized"), "invalid");
}

// ---------------------------------------------------------------- proofs

const REAL: &str = "real-key-for-tests-0123456789";

/// What a fake vendor answers: by path and by who asks.
type Vendor<'a> = &'a dyn Fn(&Request, Who) -> Option<(u16, String)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    Fake,
    Real,
}

fn who(request: &Request, real: &str) -> Who {
    let key = request.headers.iter().find_map(|(_, value)| match value {
        Value::Secret(secret) => Some(secret.expose_secret().trim_start_matches("Bearer ").to_owned()),
        Value::Plain(_) => None,
    });
    match key {
        None => Who::Nobody,
        Some(key) if key == real => Who::Real,
        Some(_) => Who::Fake,
    }
}

fn run(mut proof: Proof, key: &str, vendor: Vendor<'_>) -> (KeyReport, Vec<String>, Controls) {
    let mut asked = Vec::new();
    let mut step = proof.next(None);
    loop {
        match step {
            Step::Done(report) => return (report, asked, proof.into_controls()),
            Step::Ask(request) => {
                assert!(asked.len() < 40, "goes on for ever: {asked:#?}");
                assert!(!request.url.as_str().contains(key), "key in {}", request.url);
                assert!(!format!("{request:?}").contains(key), "key in Debug");
                let who = who(&request, key);
                asked.push(format!("{who:?} {} {}", request.method.as_str(), request.url));
                let answer = vendor(&request, who);
                step = match &answer {
                    Some((status, body)) => proof.next(Some(reply(*status, &[], body))),
                    None => proof.next(None),
                };
            }
        }
    }
}

fn prove(kind: P, base: Option<&str>, key: &str, vendor: Vendor<'_>) -> (KeyReport, Vec<String>) {
    let base = parse_base(kind, base).unwrap();
    let (report, asked, _) = run(Proof::new(kind, &base, Some(key), Controls::default(), now()), key, vendor);
    (report, asked)
}

fn say(status: u16, body: &str) -> Option<(u16, String)> {
    Some((status, body.into()))
}

/// The vendor's own host: `body` under `status` at the expected place for the real key, refusal for others.
fn proof_of(kind: P, key: &str, path: &str, status: u16, body: &str) -> String {
    let (report, asked) = prove(kind, None, key, &|request, who| {
        assert_eq!(request.url.as_str(), path, "{kind}");
        if who == Who::Real { say(status, body) } else { say(401, r#"{"error":"unauthorized"}"#) }
    });
    assert!(!asked.is_empty(), "{kind} asked nothing");
    short(Some(&report.verdict))
}

#[test]
fn each_type_proves_its_key_at_its_own_endpoint() {
    let list = r#"{"object":"list","data":[{"id":"m"}]}"#;
    #[rustfmt::skip]
    let rows: &[(P, &str, &str, u16, &str, &str)] = &[
        (P::OpenAi, REAL, "https://api.openai.com/v1/models", 200, list, "valid"),
        (P::OpenAi, REAL, "https://api.openai.com/v1/models", 200, "<html>portal</html>", "inconclusive"),
        (P::OpenAi, REAL, "https://api.openai.com/v1/models", 200, r#"{"ok":true}"#, "inconclusive"),
        (P::OpenAi, "sk-admin-0000test", "https://api.openai.com/v1/organization/admin_api_keys", 200, list, "valid"),
        (P::Anthropic, REAL, "https://api.anthropic.com/v1/models?limit=1", 200, r#"{"data":[],"has_more":false}"#, "valid"),
        (P::Anthropic, REAL, "https://api.anthropic.com/v1/models?limit=1", 404, r#"{"type":"error","error":{"type":"not_found_error","message":"x"}}"#, "inconclusive"),
        (P::Anthropic, "sk-ant-admin01-test", "https://api.anthropic.com/v1/organizations/api_keys?limit=1", 200, list, "valid"),
        (P::Google, "AQ.test", "https://generativelanguage.googleapis.com/v1beta/models?pageSize=1", 200, r#"{"models":[{"name":"models/x"}]}"#, "valid"),
        (P::OpenRouter, REAL, "https://openrouter.ai/api/v1/key", 200, r#"{"data":{"label":"l","limit":null,"limit_remaining":null,"usage":1.5,"is_free_tier":false}}"#, "valid"),
        (P::OpenRouter, REAL, "https://openrouter.ai/api/v1/key", 200, r#"{"data":{"label":"l","limit":5,"limit_remaining":0,"usage":5}}"#, "quota!"),
        (P::Groq, REAL, "https://api.groq.com/openai/v1/models", 200, list, "valid"),
        (P::Together, REAL, "https://api.together.xyz/v1/models", 200, r#"[{"id":"m"}]"#, "valid"),
        (P::Mistral, REAL, "https://api.mistral.ai/v1/models", 200, list, "valid"),
        (P::Cohere, REAL, "https://api.cohere.com/v1/check-api-key", 200, r#"{"valid":true,"organization_id":"o"}"#, "valid"),
        (P::Cohere, REAL, "https://api.cohere.com/v1/check-api-key", 200, r#"{"valid":false}"#, "invalid"),
        (P::Cohere, REAL, "https://api.cohere.com/v1/check-api-key", 200, r#"{}"#, "inconclusive"),
        (P::DeepSeek, REAL, "https://api.deepseek.com/user/balance", 200, r#"{"is_available":true,"balance_infos":[{"currency":"USD","total_balance":"3.20"}]}"#, "valid"),
        (P::DeepSeek, REAL, "https://api.deepseek.com/user/balance", 200, r#"{"is_available":false,"balance_infos":[]}"#, "quota!"),
        (P::Xai, REAL, "https://api.x.ai/v1/api-key", 200, r#"{"api_key_blocked":false,"api_key_disabled":false,"team_blocked":false}"#, "valid"),
        (P::Xai, REAL, "https://api.x.ai/v1/api-key", 200, r#"{"api_key_blocked":true,"api_key_disabled":false}"#, "invalid"),
        (P::Xai, REAL, "https://api.x.ai/v1/api-key", 200, r#"{"api_key_disabled":true}"#, "invalid"),
        (P::Xai, REAL, "https://api.x.ai/v1/api-key", 200, r#"{"team_blocked":true,"api_key_blocked":false}"#, "restricted!"),
        (P::Xai, REAL, "https://api.x.ai/v1/api-key", 400, r#"{"code":"x","error":"Incorrect API key provided: x"}"#, "invalid"),
        (P::Fireworks, REAL, "https://api.fireworks.ai/v1/accounts", 200, r#"{"accounts":[]}"#, "valid"),
        (P::Fireworks, "fpk_0000test", "https://api.fireworks.ai/v1/accounts", 403, r#"{"error":{"code":"FORBIDDEN","message":"Fire Pass API keys are not authorized for this route."}}"#, "valid"),
        (P::Cerebras, REAL, "https://api.cerebras.ai/v1/models", 200, list, "valid"),
        (P::HuggingFace, REAL, "https://huggingface.co/api/whoami-v2", 200, r#"{"name":"n","auth":{"type":"access_token"}}"#, "valid"),
        (P::Replicate, REAL, "https://api.replicate.com/v1/account", 200, r#"{"type":"user","username":"u"}"#, "valid"),
        (P::DeepInfra, REAL, "https://api.deepinfra.com/payment/checklist?compute_owed=true", 200, r#"{"stripe_balance":-4.5}"#, "valid"),
        (P::DeepInfra, REAL, "https://api.deepinfra.com/payment/checklist?compute_owed=true", 200, r#"{"suspended":true,"suspend_reason":"x"}"#, "quota!"),
        (P::DeepInfra, REAL, "https://api.deepinfra.com/payment/checklist?compute_owed=true", 403, r#"{"detail":"no billing scope"}"#, "valid"),
        (P::DeepInfra, REAL, "https://api.deepinfra.com/payment/checklist?compute_owed=true", 403, "<html>waf</html>", "restricted"),
        (P::Moonshot, REAL, "https://api.moonshot.ai/v1/users/me/balance", 200, r#"{"code":0,"data":{"available_balance":12.5}}"#, "valid"),
        (P::Moonshot, REAL, "https://api.moonshot.ai/v1/users/me/balance", 200, r#"{"code":0,"data":{"available_balance":0}}"#, "quota!"),
        (P::Zhipu, REAL, "https://open.bigmodel.cn/api/paas/v4/models", 200, list, "valid"),
        (P::MiniMax, REAL, "https://api.minimax.io/v1/models", 200, list, "valid"),
        (P::MiniMax, "sk-cp-0000test", "https://api.minimax.io/v1/token_plan/remains", 200, r#"{"base_resp":{"status_code":0}}"#, "valid"),
        (P::MiniMax, REAL, "https://api.minimax.io/v1/models", 500, r#"{"type":"error","error":{"type":"api_error","message":"insufficient balance (1008)"}}"#, "quota!"),
    ];
    for (kind, key, path, status, body, expected) in rows {
        assert_eq!(proof_of(*kind, key, path, *status, body), *expected, "{kind} {status} {body}");
    }
}

#[test]
fn bases_of_ones_own_prove_as_well() {
    let list = r#"{"data":[{"id":"m"}]}"#;
    #[rustfmt::skip]
    let rows: &[(P, &str, &str, &str, &str)] = &[
        (P::AzureOpenAi, "https://res.openai.azure.com", "https://res.openai.azure.com/openai/models?api-version=2024-10-21", list, "0000000test"),
        (P::AzureOpenAi, "https://res.openai.azure.com/openai/v1", "https://res.openai.azure.com/openai/models?api-version=2024-10-21", list, "0000000test"),
        (P::Vllm, "http://h:8000/v1", "http://h:8000/v1/models", list, REAL),
        (P::LlamaCpp, "http://h:8080", "http://h:8080/props", r#"{"total_slots":1}"#, REAL),
        (P::LlamaCpp, "http://h:8080/v1", "http://h:8080/props", r#"{"total_slots":1}"#, REAL),
        (P::LiteLlm, "http://h:4000", "http://h:4000/models", list, REAL),
        (P::LmStudio, "http://h:1234/v1", "http://h:1234/v1/models", list, REAL),
        (P::Bedrock, "https://bedrock-runtime.eu-west-1.amazonaws.com", "https://bedrock.eu-west-1.amazonaws.com/foundation-models", r#"{"modelSummaries":[]}"#, "ABSKtest"),
        (P::OpenRouter, "http://127.0.0.1:9/api/v1", "http://127.0.0.1:9/api/v1/key", r#"{"data":{"label":"l"}}"#, REAL),
        (P::HuggingFace, "http://127.0.0.1:9/v1", "http://127.0.0.1:9/api/whoami-v2", r#"{"name":"n"}"#, REAL),
        (P::Fireworks, "http://127.0.0.1:9/inference/v1", "http://127.0.0.1:9/v1/accounts", r#"{"accounts":[]}"#, REAL),
        (P::Cohere, "http://127.0.0.1:9", "http://127.0.0.1:9/v1/check-api-key", r#"{"valid":true}"#, REAL),
        (P::DeepSeek, "http://127.0.0.1:9/v1", "http://127.0.0.1:9/user/balance", r#"{"is_available":true}"#, REAL),
        (P::Xai, "http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1/api-key", r#"{"team_blocked":false}"#, REAL),
        (P::DeepInfra, "http://127.0.0.1:9/v1/openai", "http://127.0.0.1:9/payment/checklist?compute_owed=true", "{}", REAL),
        (P::Anthropic, "https://api.anthropic.com", "https://api.anthropic.com/v1/models?limit=1", list, REAL),
        (P::OpenAi, "http://127.0.0.1:9/proxy/v1", "http://127.0.0.1:9/proxy/v1/models", list, REAL),
        (P::Perplexity, "http://127.0.0.1:9", "http://127.0.0.1:9/v1/models", list, REAL),
    ];
    for (kind, base, url, body, key) in rows {
        let (report, asked) = prove(*kind, Some(base), key, &|request, who| {
            assert_eq!(request.url.as_str(), *url, "{kind}");
            if who == Who::Real { say(200, body) } else { say(401, r#"{"error":"unauthorized"}"#) }
        });
        assert_eq!(short(Some(&report.verdict)), "valid", "{kind} {asked:?}");
    }
}

/// A vendor whose every `GET` succeeds for anybody, as public lists do.
fn public(chat: impl Fn(Who) -> Option<(u16, String)>) -> impl Fn(&Request, Who) -> Option<(u16, String)> {
    move |request, who| match request.method.as_str() {
        "GET" => say(200, r#"{"data":[{"id":"m"}],"models":[],"functions":[]}"#),
        _ => chat(who),
    }
}

#[test]
fn a_public_list_proves_nothing() {
    let open = public(|_| say(200, r#"{"choices":[]}"#));
    for kind in [
        P::OllamaCloud,
        P::SambaNova,
        P::NvidiaNim,
        P::Perplexity,
        P::Cerebras,
        P::Zhipu,
        P::Qwen,
        P::MiniMax,
    ] {
        let (report, asked) = prove(kind, None, REAL, &open);
        assert_eq!(short(Some(&report.verdict)), "untestable", "{kind} {asked:?}");
    }
    for kind in P::ALL {
        if matches!(kind, P::GithubModels | P::Vertex) {
            continue;
        }
        let (report, asked) = prove(*kind, Some("http://127.0.0.1:9/v1"), REAL, &open);
        assert_eq!(report.verdict.evidence(), Evidence::Nothing, "{kind} {report:?} {asked:?}");
    }
}

#[test]
fn a_malformed_request_tells_real_from_fake() {
    let refusing = |real: u16, body: &'static str| {
        public(
            move |who| {
                if who == Who::Real { say(real, body) } else { say(401, r#"{"error":"unauthorized"}"#) }
            },
        )
    };
    #[rustfmt::skip]
    let rows: &[(u16, &str, &str)] = &[
        (400, r#"{"error":{"message":"model is required"}}"#, "valid"),
        (404, r#"{"error":{"message":"model not found"}}"#, "valid"),
        (422, r#"{"detail":[{"msg":"field required"}]}"#, "valid"),
        (402, r#"{"error":{"message":"payment method required"}}"#, "quota!"),
        (429, r#"{"error":{"message":"slow"}}"#, "rate!"),
        (401, r#"{"error":"unauthorized"}"#, "invalid"),
        (401, "<html>sign in</html>", "inconclusive"),
        (403, r#"{"error":"policy"}"#, "restricted"),
        (500, "", "overload"),
        (400, "<html>bad gateway</html>", "inconclusive"),
    ];
    for kind in [P::SambaNova, P::Custom, P::OpenAiCompatible] {
        for (status, body, expected) in rows {
            let (report, asked) =
                prove(kind, Some("https://gateway.example/v1"), REAL, &refusing(*status, body));
            assert_eq!(short(Some(&report.verdict)), *expected, "{kind} {status} {body} {asked:?}");
        }
    }
    // Ollama's cloud and NVIDIA, at home.
    let (report, asked) =
        prove(P::OllamaCloud, None, REAL, &refusing(400, r#"{"error":"model is required"}"#));
    assert_eq!(report.verdict, KeyVerdict::Valid);
    assert!(
        asked.iter().all(|line| line.ends_with("POST https://ollama.com/v1/chat/completions")),
        "{asked:?}"
    );
    let nvidia = |request: &Request, who| match (request.method.as_str(), who) {
        ("POST", Who::Real) => say(404, ""),
        _ => say(403, r#"{"status":403,"title":"Forbidden","detail":"Authorization failed"}"#),
    };
    assert_eq!(prove(P::NvidiaNim, None, REAL, &nvidia).0.verdict, KeyVerdict::Valid);
    let rejected =
        |_: &Request, _| say(403, r#"{"status":403,"title":"Forbidden","detail":"Authorization failed"}"#);
    assert_eq!(short(Some(&prove(P::NvidiaNim, None, REAL, &rejected).0.verdict)), "invalid");
    // Whoever looks at the body before the key tells nothing.
    let blind = public(|_| say(400, r#"{"error":{"message":"model is required"}}"#));
    assert_eq!(
        short(Some(&prove(P::Custom, Some("https://g.example"), REAL, &blind).0.verdict)),
        "untestable"
    );
}

#[test]
fn nothing_asked_is_a_well_formed_completion() {
    let never = |_: &Request, who| if who == Who::Real { say(404, "{}") } else { say(401, "{}") };
    for kind in P::ALL {
        for base in [None, Some("http://127.0.0.1:9/v1")] {
            let Ok(base) = parse_base(*kind, base) else { continue };
            let mut bodies = Vec::new();
            run(Proof::new(*kind, &base, Some(REAL), Controls::default(), now()), REAL, &|request, who| {
                bodies_check(request);
                never(request, who)
            });
            bodies.push(health_probe(*kind, &base, Some(REAL), None));
            bodies.iter().for_each(bodies_check);
        }
    }
    fn bodies_check(request: &Request) {
        let Some(body) = request.body.as_deref().filter(|body| !body.is_empty()) else { return };
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        let messages = json.get("messages").and_then(|messages| messages.as_array());
        assert!(messages.is_none_or(Vec::is_empty), "{body}");
        assert!(json.get("prompt").is_none() && json.get("input").is_none(), "{body}");
    }
}

#[test]
fn keys_do_not_travel_between_regions() {
    let invalid = || {
        say(
            401,
            r#"{"error":{"code":"1004","message":"Invalid API-key","type":"invalid_authentication_error"}}"#,
        )
    };
    let accept = |request: &Request| match request.method.as_str() {
        "POST" => say(400, r#"{"error":{"message":"model is required"}}"#),
        _ => say(200, r#"{"code":0,"data":[{"id":"m"}]}"#),
    };
    for (kind, here, there) in [
        (P::Zhipu, "open.bigmodel.cn", "api.z.ai"),
        (P::Qwen, "dashscope.aliyuncs.com", "dashscope-us.aliyuncs.com"),
        (P::MiniMax, "api.minimax.io", "api.minimaxi.com"),
    ] {
        let elsewhere = |request: &Request, who| match (request.url.host_str(), who) {
            (Some(host), Who::Real) if host == there => accept(request),
            _ => invalid(),
        };
        let (report, _) = prove(kind, None, REAL, &elsewhere);
        assert_eq!(short(Some(&report.verdict)), "restricted", "{kind}");
        assert!(report.verdict.reason().contains(there), "{kind} {}", report.verdict.reason());
        let (report, _) = prove(kind, None, REAL, &|_, _| invalid());
        assert_eq!(short(Some(&report.verdict)), "invalid", "{kind}");
        // Another region that cannot be reached is no rejection.
        let (report, _) = prove(kind, None, REAL, &|request, _| match request.url.host_str() {
            Some(host) if host == here => invalid(),
            _ => None,
        });
        assert_eq!(short(Some(&report.verdict)), "inconclusive", "{kind}");
        // Accepted at home: nobody else ever sees the key.
        let (report, asked) = prove(kind, None, REAL, &|request, who| {
            if who == Who::Real { accept(request) } else { invalid() }
        });
        assert_eq!(report.verdict, KeyVerdict::Valid, "{kind}");
        assert!(asked.iter().all(|line| line.contains(here)), "{asked:?}");
    }
    // A foreign base has no other regions.
    let (report, asked) = prove(P::Zhipu, Some("http://127.0.0.1:9/api/paas/v4"), REAL, &|_, _| invalid());
    assert_eq!(short(Some(&report.verdict)), "invalid");
    assert!(asked.iter().all(|line| line.contains("127.0.0.1")), "{asked:?}");
}

#[test]
fn what_cannot_be_tested_for_free_is_not_tested() {
    for (kind, key) in [
        (P::Bedrock, "AKIA0000TEST"),
        (P::Vertex, r#"{"type":"service_account"}"#),
        (P::GithubModels, REAL),
        (P::Qwen, "sk-sp-0000"),
        (P::OpenAi, "two words"),
        (P::OpenAi, ""),
    ] {
        let base = parse_base(kind, Some("https://x.example")).unwrap();
        let (report, asked, _) =
            run(Proof::new(kind, &base, Some(key), Controls::default(), now()), "\u{1}", &|_, _| None);
        assert_eq!(short(Some(&report.verdict)), "untestable", "{kind}");
        assert!(asked.is_empty());
    }
}

#[test]
fn transport_failures_and_overload_prove_nothing() {
    for kind in P::ALL {
        for base in [None, Some("https://gateway.example/v1")] {
            let Ok(base) = parse_base(*kind, base) else { continue };
            for answer in [
                None,
                say(500, ""),
                say(503, "{}"),
                say(529, "{}"),
                say(302, ""),
                say(200, ""),
                say(200, "<html>"),
            ] {
                let proof = Proof::new(*kind, &base, Some(REAL), Controls::default(), now());
                let (report, asked, _) = run(proof, REAL, &|_, _| answer.clone());
                assert_eq!(
                    report.verdict.evidence(),
                    Evidence::Nothing,
                    "{kind} {answer:?} {report:?} {asked:?}"
                );
            }
        }
    }
}

#[test]
fn a_negative_control_is_kept_for_a_day() {
    let base = parse_base(P::Custom, Some("https://gateway.example/v1")).unwrap();
    let vendor =
        |_: &Request, who| if who == Who::Real { say(200, r#"{"data":[]}"#) } else { say(401, "{}") };
    let (_, asked, controls) =
        run(Proof::new(P::Custom, &base, Some(REAL), Controls::default(), now()), REAL, &vendor);
    assert_eq!(asked.len(), 3, "{asked:?}");
    let stored: Controls = serde_json::from_str(&serde_json::to_string(&controls).unwrap()).unwrap();
    let later = now() + chrono::TimeDelta::hours(23);
    let (report, asked, _) =
        run(Proof::new(P::Custom, &base, Some(REAL), stored.clone(), later), REAL, &vendor);
    assert_eq!((report.verdict, asked.len()), (KeyVerdict::Valid, 1));
    let later = now() + chrono::TimeDelta::hours(25);
    let (_, asked, _) = run(Proof::new(P::Custom, &base, Some(REAL), stored, later), REAL, &vendor);
    assert_eq!(asked.len(), 3);
}

#[test]
fn facts_beside_the_verdict() {
    let at = |kind, body: &'static str| prove(kind, None, REAL, &move |_, _| say(200, body)).0.facts;
    let facts = at(
        P::OpenRouter,
        r#"{"data":{"label":"l","limit":10,"limit_remaining":7.5,"is_management_key":true}}"#,
    );
    assert_eq!(facts.quota.unwrap().remaining, Some(7.5));
    assert_eq!(facts.can_serve, Some(false));
    let facts = at(
        P::DeepSeek,
        r#"{"is_available":false,"balance_infos":[{"currency":"CNY","total_balance":"0.00"}]}"#,
    );
    assert_eq!(facts.can_serve, Some(false));
    assert_eq!(facts.quota.unwrap().unit, "CNY");
    let facts = at(
        P::HuggingFace,
        r#"{"name":"n","auth":{"accessToken":{"role":"fineGrained","fineGrained":{"scoped":[{"permissions":["repo.read"]}]}}}}"#,
    );
    assert_eq!(facts.can_serve, Some(false));
    let facts = at(
        P::HuggingFace,
        r#"{"name":"n","auth":{"accessToken":{"role":"fineGrained","fineGrained":{"global":["inference.serverless.write"]}}}}"#,
    );
    assert_eq!(facts.can_serve, None);
}

#[test]
fn authentication_travels_as_each_type_wants_it() {
    #[rustfmt::skip]
    let rows: &[(P, &str, &str, &str)] = &[
        (P::OpenAi, "Bearer abc-key ", "authorization", "Bearer abc-key"),
        (P::Anthropic, "sk-ant-api03-x", "x-api-key", "sk-ant-api03-x"),
        (P::Anthropic, "sk-ant-oat01-x", "authorization", "Bearer sk-ant-oat01-x"),
        (P::Google, "AQ.x", "x-goog-api-key", "AQ.x"),
        (P::AzureOpenAi, "0123", "api-key", "0123"),
        (P::AzureOpenAi, "eyJ0.x", "authorization", "Bearer eyJ0.x"),
    ];
    for (kind, key, name, value) in rows {
        let base = parse_base(*kind, Some("https://x.example")).unwrap();
        let request = health_probe(*kind, &base, Some(key), None);
        let found: Vec<_> = request
            .headers
            .iter()
            .filter_map(|(name, value)| match value {
                Value::Secret(secret) => Some((*name, secret.expose_secret().to_owned())),
                Value::Plain(_) => None,
            })
            .collect();
        assert_eq!(found, [(*name, (*value).to_owned())], "{kind}");
    }
    let base = parse_base(P::Vertex, Some("https://x.example")).unwrap();
    for (kind, key) in [(P::Vertex, "{\"private_key\":\"x\"}"), (P::Bedrock, "AKIA0000TEST")] {
        let request = health_probe(kind, &base, Some(key), None);
        assert!(request.headers.iter().all(|(_, value)| matches!(value, Value::Plain(_))), "{kind}");
    }
}

// ---------------------------------------------------------------- health

#[test]
fn health_and_keys_are_two_verdicts() {
    #[rustfmt::skip]
    let rows: &[(P, u16, &str, &str)] = &[
        (P::OpenAi, 200, r#"{"data":[]}"#, "ok"),
        (P::OpenAi, 401, r#"{"error":{"code":"invalid_api_key"}}"#, "auth"),
        (P::Google, 400, r#"{"error":{"status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}"#, "auth"),
        (P::Xai, 400, r#"{"code":"x","error":"Incorrect API key provided: x"}"#, "auth"),
        (P::NvidiaNim, 403, r#"{"detail":"Authorization failed"}"#, "auth"),
        (P::NvidiaNim, 422, r#"{"detail":[]}"#, "ok"),
        (P::NvidiaNim, 404, "404 page not found", "hard"),
        (P::OpenAi, 402, r#"{"error":{"message":"payment required"}}"#, "auth"),
        (P::MiniMax, 500, r#"{"error":{"message":"insufficient balance (1008)"}}"#, "auth"),
        (P::MiniMax, 200, r#"{"base_resp":{"status_code":1004,"status_msg":"x"}}"#, "auth"),
        (P::OpenAi, 403, "<html>blocked</html>", "auth"),
        (P::OpenAi, 429, "", "soft"),
        (P::OpenAi, 408, "", "soft"),
        (P::OpenAi, 500, "", "hard"),
        (P::OpenAi, 529, "", "hard"),
        (P::OpenAi, 503, r#"{"error":{"message":"Incorrect API key provided"}}"#, "hard"),
        (P::Fireworks, 500, r#"{"error":{"message":"Error listing deployed models"}}"#, "ok"),
        (P::OpenAi, 200, "<html>portal</html>", "hard"),
        (P::OpenAi, 200, "", "hard"),
        (P::OpenAi, 200, "\u{0}\u{0}", "hard"),
        (P::OpenAi, 200, r#"{"error":{"message":"something broke"}}"#, "hard"),
        (P::OpenAi, 302, "", "hard"),
        (P::OpenAi, 404, r#"{"error":"x"}"#, "hard"),
        (P::Vllm, 200, "", "ok"),
        (P::LlamaCpp, 503, r#"{"error":{"message":"Loading model","type":"unavailable_error"}}"#, "hard"),
        (P::Ollama, 200, r#"{"version":"0.9"}"#, "ok"),
        (P::LiteLlm, 200, r#""I'm alive!""#, "ok"),
        (P::LiteLlm, 503, r#"{"status":"shutting_down"}"#, "hard"),
        // An endpoint that it does not know.
        (P::LmStudio, 200, r#"{"error":"Unexpected endpoint or method. (GET /v1)"}"#, "hard"),
        (P::GithubModels, 200, r#"{"data":[]}"#, "hard"),
    ];
    for (kind, status, body, expected) in rows {
        let outcome = read_health(*kind, None, false, &reply(*status, &[], body), now());
        assert_eq!(outcome.word(), *expected, "{kind} {status} {body} {outcome:?}");
    }
    // With the manifest's own path or statuses.
    let check = |expect: Option<&[u16]>, own, status, body| {
        read_health(P::Custom, expect, own, &reply(status, &[], body), now()).word()
    };
    assert_eq!(check(None, true, 200, "fine"), "ok");
    assert_eq!(check(Some(&[204, 404]), true, 404, ""), "ok");
    assert_eq!(check(Some(&[204]), true, 200, ""), "hard");
    assert_eq!(check(Some(&[204]), true, 401, ""), "auth");
    // What was cut off counts by its beginning.
    let cut = Reply { status: 200, headers: &[], body: b" {\"data\":[{\"id\":", truncated: true };
    assert_eq!(read_health(P::Custom, None, false, &cut, now()), CheckOutcome::Ok);
    // What servers do against all rules: a byte order mark, and a packed body that nobody asked for.
    let marked = "\u{feff}{\"data\":[]}";
    assert_eq!(read_health(P::OpenAi, None, false, &reply(200, &[], marked), now()), CheckOutcome::Ok);
    let packed = [("Content-Encoding".to_owned(), "gzip".to_owned())];
    let said = read_health(P::OpenAi, None, false, &reply(200, &packed, "\u{1f}\u{8b}"), now());
    assert!(said.word() == "hard" && said.reason().contains("content-encoding: gzip"), "{said:?}");
    let wait = [("Retry-After".to_owned(), "7".to_owned())];
    let outcome = read_health(P::OpenAi, None, false, &reply(503, &wait, ""), now());
    assert_eq!(outcome.retry_after(), Some(std::time::Duration::from_secs(7)));
}

#[test]
fn probes_stand_where_each_type_answers() {
    #[rustfmt::skip]
    let rows: &[(P, Option<&str>, Option<&str>, &str)] = &[
        (P::Ollama, None, None, "http://127.0.0.1:11434/api/version"),
        (P::Ollama, Some("http://h:1/v1"), None, "http://h:1/api/version"),
        (P::Vllm, Some("http://h:8000/v1/"), None, "http://h:8000/health"),
        (P::LlamaCpp, Some("http://h:8080"), None, "http://h:8080/health"),
        (P::LiteLlm, None, None, "http://127.0.0.1:4000/health/liveliness"),
        (P::LiteLlm, Some("https://llm.example/v1"), None, "https://llm.example/health/liveliness"),
        (P::LmStudio, None, None, "http://127.0.0.1:1234/v1/models"),
        (P::OpenAi, None, None, "https://api.openai.com/v1/models"),
        (P::OpenAi, None, Some("/ping?x=1"), "https://api.openai.com/v1/ping?x=1"),
        (P::Perplexity, None, None, "https://api.perplexity.ai/v1/models"),
        (P::Cohere, Some("https://api.cohere.com/v2"), None, "https://api.cohere.com/v1/models?page_size=1"),
        (P::OllamaCloud, Some("https://api.ollama.ai/v1"), Some("/models"), "https://api.ollama.ai/v1/models"),
    ];
    for (kind, base, path, expected) in rows {
        let base = parse_base(*kind, *base).unwrap();
        assert_eq!(health_probe(*kind, &base, None, *path).url.as_str(), *expected);
    }
    for (kind, base) in [
        (P::Custom, None),
        (P::OpenAi, Some("ftp://x")),
        (P::OpenAi, Some("https://u:p@x")),
        (P::OpenAi, Some("::")),
    ] {
        let error = parse_base(kind, base).unwrap_err().to_string();
        assert!(!error.contains("u:p"), "{error}");
    }
}

// ---------------------------------------------------------------- lists

fn list(kind: P, base: Option<&str>, pages: &[(&str, u16, &str)]) -> Result<Models, ListError> {
    list_with(kind, base, REAL, pages)
}

fn list_with(
    kind: P,
    base: Option<&str>,
    key: &str,
    pages: &[(&str, u16, &str)],
) -> Result<Models, ListError> {
    let base = parse_base(kind, base).unwrap();
    let mut machine = ModelList::new(kind, &base, Some(key));
    let mut step = machine.next(None);
    for (url, status, body) in pages {
        let ListStep::Ask(request) = step else { panic!("ended early: {step:?}") };
        assert_eq!(request.url.as_str(), *url);
        step = machine.next(Some(reply(*status, &[], body)));
    }
    match step {
        ListStep::Done(result) => result,
        ListStep::Ask(request) => panic!("asks on: {}", request.url),
    }
}

type Brief<'a> = (&'a str, Option<u32>, Option<f64>, Option<f64>);

fn brief(models: &Models) -> Vec<Brief<'_>> {
    models.models.iter().map(|m| (m.id.as_str(), m.context_length, m.cost_in, m.cost_out)).collect()
}

#[test]
fn lists_of_all_shapes() {
    #[rustfmt::skip]
    let rows: &[(P, &str, &str, Brief<'_>)] = &[
        (P::OpenAi, "https://api.openai.com/v1/models", r#"{"data":[{"id":"gpt"}]}"#, ("gpt", None, None, None)),
        (P::OpenRouter, "https://openrouter.ai/api/v1/models", r#"{"data":[{"id":"a/b","name":"B","context_length":131072,"pricing":{"prompt":"0.0000001","completion":"0.0000004"}}]}"#, ("a/b", Some(131_072), Some(0.1), Some(0.4))),
        (P::OpenRouter, "https://openrouter.ai/api/v1/models", r#"{"data":[{"id":"auto","pricing":{"prompt":"-1","completion":"-1"}}]}"#, ("auto", None, None, None)),
        (P::Ollama, "http://127.0.0.1:11434/api/tags", r#"{"models":[{"name":"llama3:8b","model":"llama3:8b"}]}"#, ("llama3:8b", None, None, None)),
        (P::Vllm, "http://127.0.0.1:8000/v1/models", r#"{"data":[{"id":"m","max_model_len":4096}]}"#, ("m", Some(4096), None, None)),
        (P::LlamaCpp, "http://127.0.0.1:8080/v1/models", r#"{"data":[{"id":"m","meta":{"n_ctx_train":8192}}]}"#, ("m", Some(8192), None, None)),
        (P::Groq, "https://api.groq.com/openai/v1/models", r#"{"data":[{"id":"m","context_window":8192}]}"#, ("m", Some(8192), None, None)),
        (P::Together, "https://api.together.xyz/v1/models", r#"[{"id":"m","context_length":8192,"pricing":{"input":0.005,"output":0.9}}]"#, ("m", Some(8192), Some(0.005), Some(0.9))),
        (P::Mistral, "https://api.mistral.ai/v1/models", r#"{"object":"list","data":[{"id":"m","max_context_length":32768}]}"#, ("m", Some(32_768), None, None)),
        (P::Xai, "https://api.x.ai/v1/language-models", r#"{"models":[{"id":"grok-3","prompt_text_token_price":30000,"completion_text_token_price":150000}]}"#, ("grok-3", None, Some(3.0), Some(15.0))),
        (P::SambaNova, "https://api.sambanova.ai/v1/models", r#"{"data":[{"id":"m","context_length":16384,"pricing":{"prompt":0.0000006,"completion":0.0000012}}]}"#, ("m", Some(16_384), Some(0.6), Some(1.2))),
        (P::Cerebras, "https://api.cerebras.ai/v1/models?format=openrouter", r#"{"data":[{"id":"m","context_length":8192,"pricing":{"prompt":"0.0000001","completion":"0.0000001"}}]}"#, ("m", Some(8192), Some(0.1), Some(0.1))),
        (P::HuggingFace, "https://router.huggingface.co/v1/models", r#"{"data":[{"id":"m","providers":[{"provider":"a","context_length":4096,"pricing":{"input":0.9,"output":0.9}},{"provider":"b","context_length":8192,"pricing":{"input":0.2,"output":0.6}}]}]}"#, ("m", Some(8192), Some(0.2), Some(0.6))),
        (P::DeepInfra, "https://api.deepinfra.com/v1/openai/models", r#"{"data":[{"id":"m","metadata":{"context_length":4096,"pricing":{"input_tokens":0.1,"output_tokens":0.3}}}]}"#, ("m", Some(4096), Some(0.1), Some(0.3))),
        (P::Perplexity, "https://api.perplexity.ai/v1/models", r#"{"data":[{"id":"sonar"}]}"#, ("sonar", None, None, None)),
        (P::Cohere, "https://api.cohere.com/v1/models?endpoint=chat&page_size=1000", r#"{"models":[{"name":"old","is_deprecated":true},{"name":"emb","endpoints":["embed"]},{"name":"cmd","endpoints":["chat"],"context_length":128000}]}"#, ("cmd", Some(128_000), None, None)),
    ];
    for (kind, url, body, expected) in rows {
        let models = list(*kind, None, &[(url, 200, body)]).unwrap();
        assert_eq!(brief(&models), [*expected], "{kind}");
    }
}

#[test]
fn lists_of_many_pages() {
    let models = list(
        P::Anthropic,
        None,
        &[
            (
                "https://api.anthropic.com/v1/models?limit=1000",
                200,
                r#"{"data":[{"id":"a","display_name":"A"}],"has_more":true,"last_id":"a"}"#,
            ),
            (
                "https://api.anthropic.com/v1/models?limit=1000&after_id=a",
                200,
                r#"{"data":[{"id":"b"},{"id":"a"}],"has_more":false,"last_id":"b"}"#,
            ),
        ],
    );
    assert_eq!(models.unwrap().models.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let models = list(
        P::Google,
        None,
        &[
            (
                "https://generativelanguage.googleapis.com/v1beta/models?pageSize=1000",
                200,
                r#"{"models":[{"name":"models/g","inputTokenLimit":1000,"supportedGenerationMethods":["generateContent"]},{"name":"models/emb","supportedGenerationMethods":["embedContent"]}],"nextPageToken":"t/+"}"#,
            ),
            (
                "https://generativelanguage.googleapis.com/v1beta/models?pageSize=1000&pageToken=t%2F%2B",
                200,
                r#"{"models":[{"name":"models/h"}]}"#,
            ),
        ],
    );
    assert_eq!(brief(&models.unwrap()).iter().map(|m| m.0).collect::<Vec<_>>(), ["g", "h"]);
    // A cursor into another origin would carry the key there.
    let models = list(
        P::Replicate,
        None,
        &[(
            "https://api.replicate.com/v1/models",
            200,
            r#"{"results":[{"owner":"o","name":"n"}],"next":"https://evil.example/v1/models?cursor=1"}"#,
        )],
    );
    assert_eq!(models.unwrap().models[0].id, "o/n");
    let models = list(
        P::Replicate,
        None,
        &[
            (
                "https://api.replicate.com/v1/models",
                200,
                r#"{"results":[{"owner":"o","name":"n"}],"next":"https://api.replicate.com/v1/models?cursor=1"}"#,
            ),
            ("https://api.replicate.com/v1/models?cursor=1", 500, ""),
        ],
    );
    assert!(models.unwrap().truncated);
    let base = "https://bedrock.us-east-1.amazonaws.com";
    let models = list(
        P::Bedrock,
        Some(base),
        &[
            (
                &format!("{base}/foundation-models"),
                200,
                r#"{"modelSummaries":[{"modelId":"x.y","modelName":"Y","outputModalities":["TEXT"]},{"modelId":"img","outputModalities":["IMAGE"]}]}"#,
            ),
            (
                &format!("{base}/inference-profiles?maxResults=1000"),
                200,
                r#"{"inferenceProfileSummaries":[{"inferenceProfileId":"us.x.y","status":"ACTIVE"},{"inferenceProfileId":"old","status":"GONE"}]}"#,
            ),
        ],
    );
    assert_eq!(brief(&models.unwrap()).iter().map(|m| m.0).collect::<Vec<_>>(), ["x.y", "us.x.y"]);
    // The richer list does not exist behind every gateway.
    let models = list(
        P::Xai,
        Some("http://h:1/v1"),
        &[
            ("http://h:1/v1/language-models", 404, "{}"),
            ("http://h:1/v1/models", 200, r#"{"data":[{"id":"g"}]}"#),
        ],
    );
    assert_eq!(models.unwrap().models.len(), 1);
}

#[test]
fn lists_refused_or_absurd() {
    let url = "https://api.openai.com/v1/models";
    assert!(matches!(
        list(P::OpenAi, None, &[(url, 401, "{}")]),
        Err(ListError::Refused(KeyVerdict::Invalid { .. }))
    ));
    assert!(matches!(list(P::OpenAi, None, &[(url, 200, "<html>")]), Err(ListError::Shape)));
    assert!(matches!(list(P::OpenAi, None, &[(url, 200, &"[".repeat(100_000))]), Err(ListError::Shape)));
    let long = format!(
        r#"{{"data":[{{"id":"{}"}},{{"id":""}},{{"id":7}},null,"plain",{{"id":"a\u0000b"}}]}}"#,
        "x".repeat(256)
    );
    assert_eq!(brief(&list(P::OpenAi, None, &[(url, 200, &long)]).unwrap()), [("plain", None, None, None)]);
    let many: Vec<String> = (0..6000)
        .map(|n| format!(r#"{{"id":"m{n}","context_length":1e99,"pricing":{{"prompt":1e300}}}}"#))
        .collect();
    let models = list(P::OpenAi, None, &[(url, 200, &format!("[{}]", many.join(",")))]).unwrap();
    assert!(models.truncated && models.models.len() == 5000);
    assert_eq!(brief(&models)[0], ("m0", None, None, None));
}

// ---------------------------------------------------------------- waiting, redacting

type Wait<'a> = (u16, &'a [(&'a str, &'a str)], &'a str, Option<f64>);

#[test]
fn every_form_of_retry_after() {
    #[rustfmt::skip]
    let rows: &[Wait<'_>] = &[
        (429, &[("Retry-After", "17")], "", Some(17.0)),
        (429, &[("retry-after", "1.5")], "", Some(1.5)),
        (429, &[("retry-after", "Mon, 23 Nov 2026 12:00:30 GMT")], "", Some(30.0)),
        (429, &[("retry-after", "Mon, 23 Nov 2026 11:00:30 GMT")], "", Some(0.0)),
        (429, &[("retry-after-ms", "2500"), ("retry-after", "9")], "", Some(2.5)),
        // RFC 850 and asctime.
        (429, &[("retry-after", "Monday, 23-Nov-26 12:00:45 GMT")], "", Some(45.0)),
        (503, &[("retry-after", "Monday, 23-Nov-26 11:00:45 GMT")], "", Some(0.0)),
        (503, &[("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT")], "", Some(0.0)),
        (429, &[("retry-after", "Mon Nov 23 12:01:00 2026")], "", Some(60.0)),
        (429, &[("retry-after", "Sun Nov  6 08:49:37 1994")], "", Some(0.0)),
        (429, &[("retry-after", "Sunday, 99-Nov-94 08:49:37 GMT")], "", None),
        (429, &[("retry-after", "86400")], "", Some(600.0)),
        (429, &[("retry-after", "999999999")], "", Some(600.0)),
        (429, &[("retry-after", "-5")], "", None),
        (429, &[("retry-after", "NaN")], "", None),
        (429, &[("retry-after", "1e400")], "", None),
        (429, &[("retry-after", "soon")], "", None),
        (429, &[], r#"{"error":{"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"17s"}]}}"#, Some(17.0)),
        (429, &[], r#"{"error":{"details":[{"retryDelay":"1.5s"}]}}"#, Some(1.5)),
        (429, &[], r#"{"retry_after":12}"#, Some(12.0)),
        (429, &[], r#"{"error":{"message":"Rate limit reached. Please try again in 7.66s. Visit"}}"#, Some(7.66)),
        (429, &[], r#"{"error":"Please try again in 2m"}"#, Some(120.0)),
        (429, &[], r#"{"error":{"message":"try again in 1m26.4s"}}"#, Some(86.4)),
        (429, &[], r#"{"error":{"message":"try again in 850ms"}}"#, Some(0.85)),
        (429, &[], "try again in 20 seconds", Some(20.0)),
        (429, &[("anthropic-ratelimit-requests-reset", "2026-11-23T12:00:45Z")], "", Some(45.0)),
        (
            429,
            &[
                ("x-ratelimit-reset-requests", "1s"),
                ("x-ratelimit-reset-tokens", "6m0s"),
                ("x-ratelimit-remaining-tokens", "0"),
            ],
            "",
            Some(360.0),
        ),
        (429, &[("x-ratelimit-reset", "1795435260")], "", Some(60.0)),
        (200, &[("x-ratelimit-reset-requests", "1s")], "", None),
        (429, &[], r#"{"error":{"message":"try again in a moment"}}"#, None),
        (429, &[], "", None),
    ];
    for (status, headers, body, expected) in rows {
        let headers: Vec<_> = headers.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let found = retry_after(&reply(*status, &headers, body), now()).map(|wait| wait.as_secs_f64());
        let close = match (found, expected) {
            (Some(a), Some(b)) => (a - b).abs() < 0.001,
            (None, None) => true,
            _ => false,
        };
        assert!(close, "{headers:?} {body}: expected {expected:?}, found {found:?}");
    }
}

#[test]
fn no_form_of_the_key_survives() {
    let key = "sk-proj-AbCdEf0123456789ghIJklMNopQR/+xyz";
    const DROPPED: &str = "the answer repeats the key";
    #[rustfmt::skip]
    let rows: &[(&str, &str)] = &[
        ("Incorrect API key provided: sk-proj-AbCdEf0123456789ghIJklMNopQR/+xyz.", DROPPED),
        ("HTTP 401: Incorrect API key provided: sk-proj-AbCdEf0123456789ghIJklMNopQR/+xyz.", "HTTP 401: the answer repeats the key"),
        ("Incorrect API key provided: sk-proj-********************xyz. You", "Incorrect API key provided: [key]. You"),
        ("key sk-proj...+xyz is bad", "key [key] is bad"),
        ("got AbCdEf0123456789 only", DROPPED),
        ("got abcd-ef01-2345 only", DROPPED),
        ("got Ab Cd Ef 01 23 only", DROPPED),
        ("got A\u{ad}b\u{34f}C\u{e0001}d\u{200b}E\u{301}f only", DROPPED),
        ("got ＡｂＣｄＥｆ only", DROPPED),
        ("url k=sk-proj-AbCdEf0123456789ghIJklMNopQR%2F%2Bxyz", DROPPED),
        ("you sent Basic dXNlcjpzay1wcm9qLUFiQ2RFZjAxMjM0NTY3ODlnaElKa2xNTm9wUVIvK3h5eg==", DROPPED),
        ("41 62 43 64 45 66 30 31", DROPPED),
        ("0x41 0x62 0x43 0x64 0x45 0x66 0x30 0x31", DROPPED),
        ("=41=62=43=64=45=66", DROPPED),
        ("%2541%2562%2543%2564%2545%2566", DROPPED),
        ("\\101\\142\\103\\144\\105\\146", DROPPED),
        ("other sk-ant-api03-0000000000000000AA here", "other [key] here"),
        ("HTTP 401: sk-proj- keys only", "HTTP 401: sk-proj- keys only"),
        ("HTTP 401: model gpt-4o-mini not found...", "HTTP 401: model gpt-4o-mini not found..."),
        ("a\u{1b}[31mred\u{7}\n\n  b\u{202e}", "a [31mred b"),
        ("nul\0byte", "nul byte"),
        ("asia-northeast1-aiplatform.googleapis.com refused", "asia-northeast1-aiplatform.googleapis.com refused"),
        ("AKIA0000000000FAKE00 refused", "[key] refused"),
    ];
    for (text, expected) in rows {
        assert_eq!(redact(text, key), *expected, "{text}");
    }
    assert!(redact(&"é".repeat(100_000), key).chars().count() <= 401);
    assert_eq!(redact("c19094f...o8ub leaked", ""), "[key] leaked");
    assert_eq!(redact("no key at all", ""), "no key at all");
    // Keys that are words do not drop what everybody says about keys.
    assert_eq!(redact("Invalid API key provided", "local-api-key-of-the-lab"), "Invalid API key provided");
    assert_eq!(redact("any text", "x"), "any text");
}

#[test]
fn a_list_of_models_does_not_bring_the_key() {
    let key = "fake-key-0123456789-abcdefgh";
    let url = "https://api.openai.com/v1/models";
    let reversed: String = key.chars().rev().collect();
    let body = format!(
        r#"{{"data":[{{"id":"m1"}},{{"id":"{key}"}},{{"id":"{reversed}"}},{{"id":"m2","name":"FAKE_KEY_0123456789"}},{{"id":"m3","name":"Three"}}]}}"#
    );
    let models = list_with(P::OpenAi, None, key, &[(url, 200, &body)]).unwrap();
    assert_eq!(models.models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["m1", "m3"]);
    assert_eq!(models.withheld, 3);
    // A key that is a word is no reason to hide every model of that name.
    let models =
        list_with(P::OpenAi, None, "ollama", &[(url, 200, r#"[{"id":"ollama/a"},{"id":"OLLAMA"}]"#)])
            .unwrap();
    assert_eq!((models.models.len(), models.withheld), (1, 1));
}

/// The ways in which a text can be written so that the reader has it back.
fn encodings(text: &str) -> Vec<(&'static str, String)> {
    use base64::{
        Engine as _,
        engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE},
    };
    let each = |write: &dyn Fn(char) -> String| text.chars().map(write).collect::<String>();
    let bytes = |write: &dyn Fn(u8) -> String| text.bytes().map(write).collect::<String>();
    let pieces = |by: &str, size: usize| {
        let chars: Vec<char> = text.chars().collect();
        chars.chunks(size).map(String::from_iter).collect::<Vec<_>>().join(by)
    };
    // Where half of the letters and digits are on either side.
    let places: Vec<usize> =
        text.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_alphanumeric()).map(|(at, _)| at).collect();
    let middle = places[places.len() / 2];
    vec![
        ("plain", text.to_owned()),
        ("upper", text.to_uppercase()),
        ("lower", text.to_lowercase()),
        ("reversed", text.chars().rev().collect()),
        ("first half", text[..middle].to_owned()),
        ("second half", text[middle..].to_owned()),
        ("percent", bytes(&|byte| format!("%{byte:02X}"))),
        ("percent twice", bytes(&|byte| format!("%25{byte:02x}"))),
        ("decimal entity", each(&|c| format!("&#{};", u32::from(c)))),
        ("hexadecimal entity", each(&|c| format!("&#x{:X};", u32::from(c)))),
        ("\\u", each(&|c| format!("\\u{:04x}", u32::from(c)))),
        ("\\u{}", each(&|c| format!("\\u{{{:x}}}", u32::from(c)))),
        ("\\x", bytes(&|byte| format!("\\x{byte:02x}"))),
        ("hexadecimal", bytes(&|byte| format!("{byte:02x}"))),
        ("hexadecimal with colons", bytes(&|byte| format!("{byte:02X}:"))),
        ("base64", STANDARD.encode(text)),
        ("base64 without padding", STANDARD_NO_PAD.encode(text)),
        ("base64 for URLs", URL_SAFE.encode(text)),
        ("basic", STANDARD.encode(format!("user:{text}"))),
        ("bearer in base64", STANDARD.encode(format!("Bearer {text}"))),
        ("blanks", pieces(" ", 1)),
        ("dashes", pieces("-", 4)),
        ("soft hyphens", pieces("\u{ad}", 1)),
        ("joiners", pieces("\u{34f}", 2)),
        ("tags", pieces("\u{e0001}", 3)),
        ("zero width", pieces("\u{200b}", 1)),
        ("lines", pieces("\r\n", 5)),
    ]
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(status in 0u16..700, body in proptest::collection::vec(proptest::num::u8::ANY, 0..400), which in 0usize..32) {
        let kind = P::ALL[which % P::ALL.len()];
        let reply = Reply { status, headers: &[], body: &body, truncated: false };
        let _ = read_error(kind, &reply);
        let _ = read_health(kind, None, false, &reply, now());
        let _ = retry_after(&reply, now());
        let text = String::from_utf8_lossy(&body);
        let _ = redact(&text, "sk-some-key-0123456789");
        if let Ok(base) = parse_base(kind, Some("https://gateway.example/v1")) {
            let mut machine = ModelList::new(kind, &base, None);
            let _ = machine.next(None);
            let _ = machine.next(Some(reply));
        }
    }

    #[test]
    fn an_echoed_key_never_survives(
        before in "[ -~é]{0,40}", after in "[ -~é]{0,40}", key in "[A-Za-z0-9]{4}[A-Za-z0-9_!():./+-]{0,52}[A-Za-z0-9]{4}", which in 0usize..27,
    ) {
        let forms = encodings(&key);
        let (name, form) = &forms[which % forms.len()];
        let text = format!("HTTP 401: {before} {form} {after}");
        prop_dropped(&redact(&text, &key), name)?;
        // Or as the name of a model.
        let shown = KeyEcho::of(&key).is_in_name(form);
        proptest::prop_assert!(shown || key.bytes().filter(u8::is_ascii_alphanumeric).count() < 12, "{}", name);
    }
}

fn prop_dropped(shown: &str, form: &str) -> Result<(), proptest::test_runner::TestCaseError> {
    proptest::prop_assert_eq!(shown, "HTTP 401: the answer repeats the key", "{}", form);
    Ok(())
}
