"""Seeds for fuzzing: every answer and every stream that the fake provider of `tests/sdk` gives, and requests of the three
callers, each in the form that its target reads. Run it in `fuzz/`."""

import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "sdk"))

import brain
import wires

UPSTREAMS = [wires.Chat("openai", thinks="reasoning_content"), wires.Responses(), wires.Azure("azure"), wires.Messages(),
             wires.Gemini(), wires.Gemini(True), wires.Messages(True), wires.Converse(), wires.Cohere(), wires.Ollama()]
ANSWERS = [
    brain.Answer(text=brain.HELLO),
    brain.Answer(text="I will look.", thought=brain.THOUGHT,
                 calls=[brain.Call(f"call_{city}", "weather", {"city": city}) for city in brain.CITIES]),
]
TOOL = {"name": "weather", "description": "d", "parameters": brain.PARAMETERS}
URL = "data:image/png;base64,iVBORw0KGgo="
REQUESTS = [
    {"messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": URL}}]},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "x"}],
     "tools": [{"type": "function", "function": TOOL}], "tool_choice": "auto", "reasoning_effort": "low", "stream": True,
     "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": brain.SCHEMA, "strict": True}},
     "stop": ["x"], "temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 2000, "seed": 1, "user": "u"},
    {"instructions": "s", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": URL}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}], "encrypted_content": "e"},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"}],
     "tools": [{"type": "function", "strict": True, **TOOL}, {"type": "custom", "name": "f"}], "reasoning": {"effort": "low"},
     "text": {"format": {"type": "json_schema", "name": "n", "schema": brain.SCHEMA}}, "max_output_tokens": 2000, "stream": True},
    {"max_tokens": 2000, "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"},
                                          {"type": "tool_use", "id": "c", "name": "weather", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x", "is_error": True}]}],
     "tools": [{"name": "weather", "input_schema": brain.PARAMETERS}], "tool_choice": {"type": "auto"}, "top_k": 5,
     "thinking": {"type": "enabled", "budget_tokens": 1024}, "stop_sequences": ["x"], "metadata": {"user_id": "u"}},
]


def put(target, name, data):
    folder = Path(__file__).parent / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


asked = brain.Asked(model="m", stream=True)
for at, wire in enumerate(UPSTREAMS):
    for kind, answer in enumerate(ANSWERS):
        stream = b"".join(wire.stream(asked, answer))
        whole = json.dumps(wire.whole(asked, answer), ensure_ascii=False).encode()
        for caller in range(3):
            put("dialects", f"stream-{at}-{kind}-{caller}", bytes([at * 3 + caller, 50]) + stream)
            put("dialects", f"whole-{at}-{kind}-{caller}", bytes([at * 3 + caller, 50]) + whole)
        put("frames", f"stream-{at}-{kind}", stream + b"\x10\x00\x20\x00")
        put("tap", f"stream-{at}-{kind}", stream + b"\x00\x10\x00\x20\x00")
for caller, request in enumerate(REQUESTS):
    body = json.dumps({"model": "m", **request}).encode()
    for model in range(6):
        put("requests", f"{caller}-{model}", bytes([caller + 3 * model]) + body)
    put("skim", f"{caller}", body)
    put("splice", f"{caller}", body)
