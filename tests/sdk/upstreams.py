"""The providers behind the gateway, one per column of the matrix, and the manifest that declares them: `upstreams.py PORT
SHA256` prints it. PORT is the fake provider's, SHA256 the hash of the caller's key."""

import sys
from dataclasses import dataclass, replace

import brain


@dataclass(frozen=True)
class Upstream:
    """One column. `thinks`: reasoning comes with its text. `proves`: with a proof that must come back, on `calls` even
    where no reasoning was asked for, or on `thought` only. `caches`, `counts`: its figures show what was read from the
    cache, and the share of reasoning."""

    column: str
    provider: str
    model: str
    thinks: bool = True
    proves: str = ""
    caches: bool = True
    counts: bool = True
    # The model that is shown images, where it is another one.
    sees: str = ""

    def asked_by(self, caller, wish):
        """The column as this question meets it: OpenAI shows reasoning at `/responses` only, where its own callers go, and
        the tools of gpt-5.4 and later."""
        responses = self.provider == "openai" and (caller == "responses" or self.model == "gpt-5.4" and wish.tools)
        return replace(self, thinks=True, proves="thought") if responses else self

    def named(self, ending=""):
        return f"{self.provider}/{self.model}{ending}"


UPSTREAMS = [
    Upstream("compatible", "compatible", "a-model"),
    Upstream("openai", "openai", "gpt-5.2", thinks=False),
    Upstream("gpt-5.4", "openai", "gpt-5.4", thinks=False),
    Upstream("azure", "azure", "gpt-5.2", thinks=False),
    Upstream("anthropic", "anthropic", "claude-sonnet-4-5", proves="thought"),
    Upstream("google", "google", "gemini-3-flash", proves="calls"),
    Upstream("vertex", "vertex", "gemini-3-flash", proves="calls"),
    Upstream("vertex-claude", "vertex", "claude-sonnet-4-5", proves="thought"),
    Upstream("bedrock", "bedrock", "anthropic.claude-sonnet-4-5-v1:0", proves="thought", counts=False),
    Upstream("cohere", "cohere", "command-a-reasoning", counts=False, sees="command-a-vision"),
    Upstream("ollama", "ollama", "gpt-oss:20b", caches=False, counts=False),
]

# The type and the place of each provider.
PROVIDERS = {
    "compatible": ("openai-compatible", "/compatible/v1"),
    "openai": ("openai", "/openai-api/v1"),
    "azure": ("azure-openai", ""),
    "anthropic": ("anthropic", "/anthropic/v1"),
    "google": ("google", "/google/v1beta"),
    "vertex": ("vertex", "/v1/projects/p-1/locations/eu"),
    "bedrock": ("bedrock", ""),
    "cohere": ("cohere", ""),
    "ollama": ("ollama", ""),
}

# USD per million tokens.
PRICE_INPUT, PRICE_CACHED, PRICE_OUTPUT = 1, 0.1, 2

# Endings of model names that the fake provider knows: it breaks streams off, or refuses all requests (each caller has a
# model of its own for it, since the gateway lets it rest afterwards).
BREAKS, LIMITED = "-breaks", "-limited"
ENDINGS = ("", BREAKS, *(f"{LIMITED}-{caller}" for caller in ("chat", "responses", "messages")))


def variable(provider):
    return f"FAKE_{provider.upper()}_KEY"


def manifest(port, sha256):
    parts = []
    for provider, (kind, path) in PROVIDERS.items():
        key = f'api_key = {{ env = "{variable(provider)}" }}\n' if provider in brain.KEYS else ""
        parts.append(f'[providers.{provider}]\ntype = "{kind}"\nbase_url = "http://127.0.0.1:{port}{path}"\n{key}')
        own = [upstream for upstream in UPSTREAMS if upstream.provider == provider]
        models = [upstream.model + ending for upstream in own for ending in ENDINGS]
        models += [upstream.sees for upstream in own if upstream.sees]
        for model in models:
            parts.append(
                f'[[providers.{provider}.models]]\nname = "{model}"\ncost_per_1m_input_tokens = {PRICE_INPUT}\n'
                f"cost_per_1m_output_tokens = {PRICE_OUTPUT}\ncost_per_1m_cached_input_tokens = {PRICE_CACHED}\n"
            )
    parts.append('[[routes]]\nmodels = "compatible/a-model"\npower_level = "eco"\nuser_tier = "all"\n')
    parts.append(f'[consumers.sdk]\nkeys = [{{ sha256 = "{sha256}" }}]\n')
    return "\n".join(parts)


if __name__ == "__main__":
    port, sha256 = sys.argv[1:]
    print(manifest(port, sha256))
