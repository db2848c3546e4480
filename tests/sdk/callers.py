"""The three callers: the official clients of OpenAI (chat completions and Responses) and of Anthropic (Messages), each
asking for the same things in its own words. An answer is read with the client's own helpers, streams included, so that
what they refuse fails here."""

import json
import re
from dataclasses import dataclass

import anthropic
import openai

import brain

# 16 by 16 pixels of red.
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAF0lEQVR4nGP4z8BAEiJN9aiGUQ1DSgMAkPn/Afnh+ngAAAAASUVORK5CYII="
ADDRESS = "https://pictures.example/red.png"


@dataclass
class Wish:
    """What is asked for, whoever asks."""

    stream: bool = False
    tools: bool = False
    image: str = ""
    schema: bool = False
    reason: bool = False
    # The answer whose calls get their results now.
    after: "Said | None" = None

    @property
    def text(self):
        return "What is the weather?" if self.tools else "Say hello."


@dataclass
class Said:
    """What was answered, whoever answered."""

    text: str
    thought: str
    calls: list
    finish: str
    input: int
    cached: int
    output: int
    # The share of the output that is reasoning, as far as the client is told.
    reasoning: int
    # As the client would send it back: ids of calls and all.
    turn: object = None


class Refusal(Exception):
    """400 `unsupported_parameter`, with the name of the parameter."""


def refusal(error):
    """The refusal in an error of a client, or the error itself."""
    text = str(error)
    body = error.body if isinstance(error.body, dict) else {}
    found = re.search(r"([\w.\[\]]+) is not supported by", text)
    if not found:
        return error
    # OpenAI's form has fields for it; Anthropic's has the message alone.
    if "code" in body and (body["code"], body["param"]) != ("unsupported_parameter", found[1]):
        return error
    return Refusal(re.sub(r"\[\d+\]", "", found[1]))


class Chat:
    name = "chat"
    errors = openai

    def __init__(self, url, key):
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)

    def ask(self, model, wish, id):
        content = wish.text
        if wish.image:
            url = ADDRESS if wish.image == "address" else f"data:image/png;base64,{IMAGE}"
            content = [{"type": "image_url", "image_url": {"url": url}}]
        messages = [{"role": "system", "content": brain.SYSTEM}, {"role": "user", "content": content}]
        if wish.after:
            messages.append(wish.after.turn)
            for call, text in zip(wish.after.turn["tool_calls"], brain.CITIES.values()):
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
        more = {"extra_headers": {"x-request-id": id}}
        if wish.tools:
            function = {"name": "weather", "description": "The weather of a city.", "parameters": brain.PARAMETERS}
            more["tools"] = [{"type": "function", "function": function}]
        if wish.schema:
            more["response_format"] = {"type": "json_schema", "json_schema": {"name": "weather", "schema": brain.SCHEMA, "strict": True}}
        if wish.reason:
            more["reasoning_effort"] = "low"
        if wish.stream:
            options = {"include_usage": True}
            with self.client.chat.completions.stream(model=model, messages=messages, stream_options=options, **more) as stream:
                answer = stream.get_final_completion()
        else:
            answer = self.client.chat.completions.create(model=model, messages=messages, **more)
        choice, usage = answer.choices[0], answer.usage
        turn = choice.message.model_dump(exclude_none=True, exclude={"parsed"})
        for call in turn.get("tool_calls") or []:
            # Members that the helpers for streams add.
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
        return Said(
            text=choice.message.content or "",
            thought=turn.get("reasoning_content") or turn.get("reasoning") or "",
            calls=[(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []],
            finish=choice.finish_reason, input=usage.prompt_tokens, output=usage.completion_tokens,
            cached=usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0,
            reasoning=usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0, turn=turn,
        )


class Responses:
    name = "responses"
    errors = openai

    def __init__(self, url, key):
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)

    def ask(self, model, wish, id):
        content = [{"type": "input_text", "text": wish.text}]
        if wish.image:
            url = ADDRESS if wish.image == "address" else f"data:image/png;base64,{IMAGE}"
            content = [{"type": "input_image", "image_url": url, "detail": "auto"}]
        items = [{"role": "user", "content": content}]
        if wish.after:
            items += wish.after.turn
            calls = [item for item in wish.after.turn if item["type"] == "function_call"]
            for call, text in zip(calls, brain.CITIES.values()):
                items.append({"type": "function_call_output", "call_id": call["call_id"], "output": text})
        more = {"extra_headers": {"x-request-id": id}, "store": False, "include": ["reasoning.encrypted_content"]}
        if wish.tools:
            more["tools"] = [{"type": "function", "name": "weather", "description": "The weather of a city.",
                              "parameters": brain.PARAMETERS, "strict": True}]
        if wish.schema:
            more["text"] = {"format": {"type": "json_schema", "name": "weather", "schema": brain.SCHEMA, "strict": True}}
        if wish.reason:
            more["reasoning"] = {"effort": "low", "summary": "auto"}
        if wish.stream:
            with self.client.responses.stream(model=model, instructions=brain.SYSTEM, input=items, **more) as stream:
                answer = stream.get_final_response()
        else:
            answer = self.client.responses.create(model=model, instructions=brain.SYSTEM, input=items, **more)
        calls = [item for item in answer.output if item.type == "function_call"]
        thoughts = [part.text for item in answer.output if item.type == "reasoning" for part in item.summary]
        drop = {"parsed_arguments", "parsed"}
        return Said(
            text=answer.output_text, thought="".join(thoughts),
            calls=[(call.name, json.loads(call.arguments)) for call in calls],
            # This dialect has no word for calls.
            finish={"completed": "tool_calls" if calls else "stop"}.get(answer.status, answer.status),
            input=answer.usage.input_tokens, output=answer.usage.output_tokens,
            cached=answer.usage.input_tokens_details.cached_tokens,
            reasoning=answer.usage.output_tokens_details.reasoning_tokens,
            turn=[item.model_dump(exclude_none=True, exclude=drop) for item in answer.output],
        )


class Messages:
    name = "messages"
    errors = anthropic

    def __init__(self, url, key):
        self.client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)

    def ask(self, model, wish, id):
        content = wish.text
        if wish.image:
            source = {"type": "url", "url": ADDRESS} if wish.image == "address" else \
                {"type": "base64", "media_type": "image/png", "data": IMAGE}
            content = [{"type": "image", "source": source}]
        messages = [{"role": "user", "content": content}]
        if wish.after:
            messages.append({"role": "assistant", "content": wish.after.turn})
            calls = [block for block in wish.after.turn if block["type"] == "tool_use"]
            messages.append({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": call["id"], "content": text}
                for call, text in zip(calls, brain.CITIES.values())]})
        more = {"extra_headers": {"x-request-id": id}, "max_tokens": 4000}
        if wish.tools:
            more["tools"] = [{"name": "weather", "description": "The weather of a city.", "input_schema": brain.PARAMETERS}]
        if wish.schema:
            more["output_config"] = {"format": {"type": "json_schema", "schema": brain.SCHEMA}}
        if wish.reason:
            more["thinking"] = {"type": "enabled", "budget_tokens": 1024}
        if wish.stream:
            with self.client.messages.stream(model=model, system=brain.SYSTEM, messages=messages, **more) as stream:
                answer = stream.get_final_message()
        else:
            answer = self.client.messages.create(model=model, system=brain.SYSTEM, messages=messages, **more)
        usage = answer.usage
        cached = usage.cache_read_input_tokens or 0
        return Said(
            text="".join(block.text for block in answer.content if block.type == "text"),
            thought="".join(block.thinking for block in answer.content if block.type == "thinking"),
            calls=[(block.name, block.input) for block in answer.content if block.type == "tool_use"],
            finish={"end_turn": "stop", "tool_use": "tool_calls"}.get(answer.stop_reason, answer.stop_reason),
            input=usage.input_tokens + cached, cached=cached, output=usage.output_tokens,
            reasoning=usage.output_tokens_details.thinking_tokens if usage.output_tokens_details else 0,
            turn=[block.model_dump(exclude_none=True, exclude={"parsed_output"}) for block in answer.content],
        )
