//! Words in error bodies that decide before the status does.
//!
//! All texts are lower case and are looked for in codes and messages alike. What a marker means may depend on
//! the type, so exceptions stand in `read`.

/// Without credit or over a billing limit: the key was recognized.
pub(super) const QUOTA: &[&str] = &[
    "insufficient_quota",
    "credit_balance_exhausted",
    "insufficient balance",
    "insufficient_balance",
    "insufficient credit",
    "credit balance is too low",
    "spending limit",
    "usage limits",
    "used all available credits",
    "doesn't have any credits",
    "payment required",
    "payment_required",
    "payment method required",
    "positive balance",
    "billing_error",
    "billing_not_active",
    "exceeded_current_quota_error",
    "exceeded your current quota",
    "allocationquota",
    "arrearage",
    "credits expired",
    "dunning",
];

/// The key is real; something else is missing.
pub(super) const RESTRICTED: &[&str] = &[
    "missing scopes",
    "permission_error",
    "service_disabled",
    "api_key_service_blocked",
    "api_key_http_referrer_blocked",
    "api_key_ip_address_blocked",
    "ip not authorized",
    "member of an organization",
    "requires a subscription",
    "sufficient permissions to call inference providers",
    "only management keys",
    "project has been denied access",
    "api has not been used in project",
];

/// Refused, and the key may or may not be real: the host's own region, a dead account, a policy.
pub(super) const REFUSED: &[&str] = &[
    "country, region",
    "unsupported_country_region_territory",
    "country",
    "user location is not supported",
    "free tier is not available",
    "failed_precondition",
    "permission_denied",
    "accessdenied",
    "access_denied",
    "not authorized for this route",
    "organization has been disabled",
    "organization has been restricted",
    "account_deactivated",
];

/// The provider does not accept this key.
pub(super) const INVALID: &[&str] = &[
    "invalid_api_key",
    "invalidapikey",
    "incorrect api key",
    "invalid api key",
    "invalid x-api-key",
    "api_key_invalid",
    "api key not valid",
    "api key expired",
    "api key has expired",
    "oauth token has expired",
    "invalid api token",
    "no api key supplied",
    "invalid api-key",
    "authentication_error",
    "invalid_authentication_error",
    "authentication fails",
    "invalid subscription key",
];

pub(super) const RATE: &[&str] = &[
    "rate_limit",
    "ratelimit",
    "rate limit",
    "slow_down",
    "throttling",
    "too many requests",
    "resource_exhausted",
];

pub(super) const OVERLOAD: &[&str] = &[
    "overloaded",
    "capacity_exceeded",
    "engine_overloaded",
    "degraded function cannot be invoked",
    "unavailable_error",
];

pub(super) fn any(text: &str, markers: &[&str]) -> bool {
    markers.iter().any(|marker| text.contains(marker))
}
