//! Errors of every family → classes, and classes → both callers' shapes.

use super::*;

#[test]
fn every_familys_errors_have_a_class() {
    use FailureClass as C;
    let cases: &[(&str, u16, &str, Value, C)] = &[
        (
            "openai key",
            401,
            "",
            json!({"error": {"message": "Incorrect API key provided", "type": "invalid_request_error", "code": "invalid_api_key"}}),
            C::Auth,
        ),
        (
            "openai quota",
            429,
            "",
            json!({"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}}),
            C::NoCredit,
        ),
        (
            "openai rate",
            429,
            "",
            json!({"error": {"message": "Rate limit reached", "type": "tokens", "code": "rate_limit_exceeded"}}),
            C::RateLimit,
        ),
        (
            "openai context",
            400,
            "",
            json!({"error": {"message": "This model's maximum context length is 8192 tokens", "code": "context_length_exceeded"}}),
            C::ContextOverflow,
        ),
        (
            "openai long string",
            400,
            "",
            json!({"error": {"message": "Invalid 'user': string too long", "code": "string_above_max_length"}}),
            C::Invalid,
        ),
        (
            "openai model",
            404,
            "",
            json!({"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}),
            C::NotFound,
        ),
        (
            "openai parameter",
            400,
            "",
            json!({"error": {"message": "Unsupported parameter: 'temperature'", "type": "invalid_request_error", "param": "temperature", "code": "unsupported_parameter"}}),
            C::Unsupported,
        ),
        (
            "openai overload",
            503,
            "",
            json!({"error": {"message": "busy", "code": "server_is_overloaded"}}),
            C::Overloaded,
        ),
        (
            "azure policy",
            400,
            "",
            json!({"error": {"message": "The response was filtered", "code": "content_filter", "innererror": {}}}),
            C::Policy,
        ),
        (
            "azure deployment",
            404,
            "",
            json!({"error": {"code": "DeploymentNotFound", "message": "no"}}),
            C::NotFound,
        ),
        (
            "anthropic overload",
            529,
            "",
            json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
            C::Overloaded,
        ),
        (
            "anthropic context",
            400,
            "",
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}}),
            C::ContextOverflow,
        ),
        (
            "anthropic credit",
            400,
            "",
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the Anthropic API"}}),
            C::NoCredit,
        ),
        (
            "anthropic size",
            413,
            "",
            json!({"type": "error", "error": {"type": "request_too_large", "message": "no"}}),
            C::TooLarge,
        ),
        (
            "google key",
            400,
            "",
            json!({"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}),
            C::Auth,
        ),
        (
            "google context",
            400,
            "",
            json!({"error": {"code": 400, "message": "The input token count exceeds the maximum number of tokens allowed", "status": "INVALID_ARGUMENT"}}),
            C::ContextOverflow,
        ),
        (
            "google rate",
            429,
            "",
            json!({"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "37.2s"}]}}),
            C::RateLimit,
        ),
        (
            "google list",
            400,
            "",
            json!([{"error": {"code": 400, "message": "Unknown name", "status": "INVALID_ARGUMENT"}}]),
            C::Invalid,
        ),
        (
            "bedrock throttling",
            429,
            "ThrottlingException:http://x/",
            json!({"message": "Too many requests"}),
            C::RateLimit,
        ),
        ("bedrock access", 403, "AccessDeniedException", json!({"Message": "no"}), C::Auth),
        ("bedrock validation", 400, "ValidationException", json!({"message": "bad"}), C::Invalid),
        (
            "bedrock context",
            400,
            "ValidationException",
            json!({"message": "Input is too long for requested model."}),
            C::ContextOverflow,
        ),
        ("bedrock stream", 424, "ModelStreamErrorException", json!({"message": "x"}), C::Server),
        (
            "cohere",
            422,
            "",
            json!({"id": "1", "message": "parameter 'index' is not a valid field"}),
            C::Invalid,
        ),
        ("ollama", 404, "", json!({"error": "model 'x' not found"}), C::NotFound),
        (
            "llama.cpp",
            400,
            "",
            json!({"error": {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error"}}),
            C::ContextOverflow,
        ),
        (
            "xai text",
            400,
            "",
            json!({"code": "Client specified an invalid argument", "error": "bad"}),
            C::Invalid,
        ),
        (
            "fastapi",
            422,
            "",
            json!({"detail": [{"loc": ["body"], "msg": "field required", "type": "missing"}]}),
            C::Invalid,
        ),
        (
            "cerebras flat",
            402,
            "",
            json!({"message": "no", "type": "payment_required_error", "code": "payment_required"}),
            C::NoCredit,
        ),
        (
            "minimax inside 200",
            200,
            "",
            json!({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),
            C::NoCredit,
        ),
        (
            "minimax key",
            200,
            "",
            json!({"base_resp": {"status_code": 2049, "status_msg": "invalid api key"}}),
            C::Auth,
        ),
        (
            "openrouter inside 200",
            200,
            "",
            json!({"error": {"code": 502, "message": "Provider returned error"}}),
            C::Server,
        ),
        ("groq flex", 498, "", json!({"error": {"message": "capacity_exceeded"}}), C::Overloaded),
        ("server", 500, "", json!({"error": {"message": "x"}}), C::Server),
        ("gateway timeout", 504, "", json!({}), C::Timeout),
    ];
    for (name, status, kind, body, class) in cases {
        let failure = read_failure(*status, kind, body.to_string().as_bytes());
        assert_eq!(failure.class, *class, "{name}: {failure}");
        if let "google rate" = *name {
            assert_eq!(failure.retry_after, Some(38));
        }
    }
    let page = read_failure(502, "", b"<html>Bad gateway</html>");
    assert_eq!((page.class, page.message.as_str()), (C::Server, ""));
    let long = read_failure(500, "", &[b'x'; 100_000]);
    assert!(long.message.len() <= 2000);
}

#[test]
fn classes_have_both_shapes() {
    let anthropic_types = [
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "timeout_error",
        "overloaded_error",
        "api_error",
        "billing_error",
        "request_too_large",
    ];
    use FailureClass as C;
    for class in [
        C::Invalid,
        C::Unsupported,
        C::ContextOverflow,
        C::Policy,
        C::TooLarge,
        C::Auth,
        C::NoCredit,
        C::NotFound,
        C::RateLimit,
        C::Overloaded,
        C::Server,
        C::Timeout,
        C::Truncated,
        C::Malformed,
    ] {
        let failure = UpstreamFailure::new(class, "key sk-fake-0000 refused");
        for caller in CallerDialect::ALL {
            let (status, body) = write_error(caller, &failure);
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert!((400..600).contains(&status));
            assert!(status != 401 && status != 403, "the upstream's refusal of our key is not the caller's");
            if caller == CallerDialect::Messages {
                assert_eq!(body["type"], "error");
                assert!(anthropic_types.contains(&body["error"]["type"].as_str().unwrap()), "{body}");
            } else {
                for key in ["message", "type", "param", "code"] {
                    assert!(body["error"].get(key).is_some(), "{body}");
                }
            }
            if class == C::Auth {
                assert!(!body.to_string().contains("sk-fake"), "{body}");
            }
        }
    }
    let (status, body) = write_error(CallerDialect::Messages, &UpstreamFailure::new(C::Overloaded, "x"));
    assert_eq!((status, body.is_empty()), (529, false));
    let context = write_error(CallerDialect::Messages, &UpstreamFailure::new(C::ContextOverflow, "x")).1;
    assert!(String::from_utf8(context).unwrap().contains("prompt is too long"));
}

#[test]
fn refusals_name_the_parameter() {
    let error = refused(
        CallerDialect::Chat,
        UpstreamDialect::Anthropic,
        &json!({"messages": [{"role": "user", "content": "a"}], "n": 2}),
    );
    let (status, body) = refuse(CallerDialect::Chat, &error);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status, 400);
    assert_eq!(
        (&body["error"]["code"], &body["error"]["param"]),
        (&json!("unsupported_parameter"), &json!("n"))
    );
    assert_eq!(error.code(), "unsupported_parameter");
}
