"""What the fake provider's models say: it follows from what arrived, so that a text, an image, a schema, a result or a
proof of reasoning that was lost on the way changes the answer, or is refused."""

import hashlib
from dataclasses import dataclass, field

# Tokens of every answer; a protocol shows as many of them as it has fields for.
INPUT, CACHED, OUTPUT, REASONING = 60, 20, 15, 5

# The key of each provider. Bedrock's must look like an API key of Amazon to be sent.
KEYS = {kind: f"fake-{at}{at}{at}{at}{at}{at}{at}{at}" for at, kind in
        enumerate(("openai", "compatible", "azure", "anthropic", "google", "vertex", "cohere"))}
KEYS["bedrock"] = "ABSKfake-88888888"

SYSTEM = "Be brief."
HELLO = "Hello, Zürich 🦀 and all."
THOUGHT = "Let me think about it."
CITIES = {"Bern": "18 degrees", "Rome": "21 degrees"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
          "required": ["city", "degrees"], "additionalProperties": False}
FORMED = '{"city": "Bern", "degrees": 18}'


class Refused(Exception):
    """A request that the API refuses."""

    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status


class Broken(Exception):
    """The stream breaks off here."""


def need(condition, message, status=400):
    if not condition:
        raise Refused(message, status)


@dataclass
class Call:
    id: str
    name: str
    input: dict


@dataclass
class Asked:
    """A request, whatever protocol it came in."""

    model: str
    stream: bool
    system: str = ""
    text: str = ""
    images: list = field(default_factory=list)
    tools: dict = field(default_factory=dict)
    schema: dict | None = None
    reasons: bool = False
    calls: dict = field(default_factory=dict)
    results: dict = field(default_factory=dict)
    proofs: list = field(default_factory=list)
    shows_usage: bool = True
    wants_proof: bool = True

    def call(self, id, name, arguments):
        need(name == "weather", f"history: call of {name}")
        self.calls[id] = arguments["city"]

    def result(self, id, text):
        need(id in self.calls, f"history: result of {id}")
        self.results[self.calls[id]] = text


@dataclass
class Answer:
    text: str = ""
    thought: str = ""
    calls: list = field(default_factory=list)
    proof: str = "fake-proof"
    breaks: bool = False

    def may_break(self):
        if self.breaks:
            raise Broken


def seen(images):
    """What a model says about images."""
    return "I see " + ", ".join(f"{kind} {hashlib.sha256(data).hexdigest()[:8]}" for kind, data in images) + "."


def answer(asked, kind):
    need("limited" not in asked.model, "too many requests", 429)
    need(asked.system == SYSTEM, f"the instructions are {asked.system!r}")
    out = Answer(breaks="breaks" in asked.model, proof=f"fake-proof-of-{kind}")
    out.thought = THOUGHT if asked.reasons else ""
    if asked.results:
        need(asked.results == CITIES, f"the results are {asked.results}")
        need(asked.text == "What is the weather?", f"the text is {asked.text!r}")
        proven = "proven" if out.proof in asked.proofs else "unproven"
        need(all(proof in (out.proof, "skip_thought_signature_validator") for proof in asked.proofs), f"foreign proofs {asked.proofs}")
        out.text = f"Bern has {asked.results['Bern']}, Rome has {asked.results['Rome']} ({proven})."
    elif asked.tools:
        need({name: clean(schema) for name, schema in asked.tools.items()} == {"weather": PARAMETERS}, f"the tools are {asked.tools}")
        out.text = "I will look."
        out.calls = [Call(f"call_{city.lower()}", "weather", {"city": city}) for city in CITIES]
    elif asked.images:
        out.text = seen(asked.images)
    elif asked.schema:
        need(clean(asked.schema) == SCHEMA, f"the schema is {asked.schema}")
        out.text = FORMED
    else:
        need(asked.text == "Say hello.", f"the text is {asked.text!r}")
        out.text = HELLO
    return out


def clean(schema):
    """A schema without what does not change its meaning."""
    return {key: value for key, value in schema.items() if key != "$schema"}
