"""The protocols that the fake provider speaks, one class each: a request is read as strictly as the real API reads it
(a field or an order that it refuses is a 400 here too), and an answer is written in its own shapes.

Sources: the API references of each maker. What a model says follows from what arrived (see `brain.py`), so that anything
lost on the way is missing in the answer."""

import base64
import json
import re
import struct
import zlib

from brain import CACHED, INPUT, KEYS, OUTPUT, REASONING, Asked, Refused, need


def only(value, known, where):
    """Refuses members that the API does not know."""
    need(isinstance(value, dict), f"{where}: must be an object")
    for key in value:
        need(key in known.split(), f"{where}: unknown field {key!r}")


def pieces(text):
    """A text as a model streams it: cut where words end, and once inside of one."""
    words = re.findall(r"\S+\s*", text)
    return [part for word in words for part in (word[:2], word[2:]) if part]


def picture(url):
    """The bytes of a `data:` address, or the address itself."""
    head, comma, data = url.partition(",")
    return (head[5:].removesuffix(";base64"), base64.b64decode(data, validate=True)) if comma else ("url", url.encode())


def bearer(kind):
    return lambda headers: headers.get("Authorization") == f"Bearer {KEYS[kind]}"


class Wire:
    """One protocol: reads a request, writes an answer whole, as a stream, or as an error."""

    content_type = "text/event-stream"

    def error(self, status, message):
        return {"error": {"message": message, "type": "rate_limit_error" if status == 429 else "invalid_request_error",
                          "param": None, "code": None}}

    def usage_of(self, answer):
        """Input, cached, output and reasoning."""
        return INPUT, CACHED, OUTPUT, REASONING if answer.thought else 0


def sse(events, named=False, end="\n\n"):
    out = []
    for event in events:
        name = f"event: {event['type']}{end[:len(end) // 2]}" if named else ""
        out.append(f"{name}data: {json.dumps(event, ensure_ascii=False)}{end}".encode())
    return out


class Chat(Wire):
    """OpenAI's chat completions. `thinks`: the field in which a compatible server shows reasoning; OpenAI shows none."""

    FIELDS = ("model messages stream stream_options max_completion_tokens tools tool_choice parallel_tool_calls "
              "response_format reasoning_effort user service_tier verbosity prompt_cache_key store metadata n")

    def __init__(self, key, thinks="", allowed=None, fields=""):
        self.thinks, self.allowed, self.fields = thinks, allowed or bearer(key), f"{self.FIELDS} {fields}"

    def read(self, path, headers, body):
        need(self.allowed(headers), "wrong key", 401)
        only(body, self.fields, "body")
        asked = Asked(model=body["model"], stream=bool(body.get("stream")))
        asked.shows_usage = not asked.stream or (body.get("stream_options") or {}).get("include_usage") is True
        waiting = {}
        for at, message in enumerate(body["messages"]):
            role, content = message["role"], message.get("content")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
            need(not waiting or role == "tool", f"messages[{at}]: tool calls without their results before it")
            if role in ("system", "developer"):
                asked.system += "".join(part["text"] for part in parts)
            elif role == "assistant":
                only(message, "role content tool_calls reasoning_content reasoning refusal annotations", f"messages[{at}]")
                for call in message.get("tool_calls") or []:
                    need(call["type"] == "function" and len(call["id"]) <= 40, f"messages[{at}]: tool_calls")
                    asked.call(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
                    waiting[call["id"]] = True
            elif role == "tool":
                need(waiting.pop(message["tool_call_id"], None), f"messages[{at}]: no such call")
                asked.result(message["tool_call_id"], "".join(part["text"] for part in parts))
            else:
                for part in parts:
                    only(part, "type text image_url", f"messages[{at}].content")
                    if part["type"] == "image_url":
                        asked.images.append(picture(part["image_url"]["url"]))
                    else:
                        asked.text += part["text"]
        for tool in body.get("tools") or []:
            only(tool["function"], "name description parameters strict", "tools")
            asked.tools[tool["function"]["name"]] = tool["function"]["parameters"]
        form = body.get("response_format") or {}
        if form.get("type") == "json_schema":
            only(form["json_schema"], "name description schema strict", "response_format.json_schema")
            asked.schema = form["json_schema"]["schema"]
        effort = body.get("reasoning_effort")
        need(effort in (None, "none", "low", "medium", "high", "xhigh"), "reasoning_effort")
        asked.reasons = effort not in (None, "none")
        return asked

    def usage(self, answer):
        inputs, cached, outputs, reasoning = self.usage_of(answer)
        return {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs,
                "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0}}

    def finish(self, answer):
        return "tool_calls" if answer.calls else "stop"

    def whole(self, asked, answer):
        calls = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.input)}}
                 for call in answer.calls]
        message = {"role": "assistant", "content": answer.text or None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        if self.thinks and answer.thought:
            message[self.thinks] = answer.thought
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish(answer)}
        return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked.model, "choices": [choice],
                "usage": self.usage(answer)}

    def stream(self, asked, answer):
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": asked.model}
        chunk = lambda delta, finish=None: {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        events = [chunk({"role": "assistant", "content": ""})]
        if self.thinks:
            events += [chunk({self.thinks: part}) for part in pieces(answer.thought)]
        events += [chunk({"content": part}) for part in pieces(answer.text)]
        for at, call in enumerate(answer.calls):
            function = {"name": call.name, "arguments": ""}
            events.append(chunk({"tool_calls": [{"index": at, "id": call.id, "type": "function", "function": function}]}))
            events += [chunk({"tool_calls": [{"index": at, "function": {"arguments": part}}]})
                       for part in pieces(json.dumps(call.input))]
        yield from sse(events)
        answer.may_break()
        yield from sse([chunk({}, self.finish(answer))])
        if asked.shows_usage:
            yield from sse([{**head, "choices": [], "usage": self.usage(answer)}])
        yield b"data: [DONE]\n\n"


class Azure(Chat):
    """A deployment on Azure: what its filters found comes in chunks without a choice, or without a delta."""

    def stream(self, asked, answer):
        yield from sse([{"id": "", "object": "", "created": 0, "model": "", "choices": [],
                         "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}])
        for event in super().stream(asked, answer):
            yield event
            if b'"content": ""' in event:
                yield from sse([{"id": "", "object": "", "created": 0, "model": "", "choices": [
                    {"index": 0, "finish_reason": None, "content_filter_offsets": {}, "content_filter_results": {}}]}])


class OllamaChat(Chat):
    """Ollama's compatible endpoint: images as bytes only, nothing of caches and reasoning in its figures."""

    def read(self, path, headers, body):
        asked = super().read(path, headers, body)
        need(all(kind != "url" for kind, _ in asked.images), "invalid image input")
        return asked

    def usage_of(self, answer):
        return INPUT, 0, OUTPUT, 0


class Responses(Wire):
    FIELDS = ("model input instructions stream max_output_tokens tools tool_choice parallel_tool_calls text reasoning "
              "store include user service_tier prompt_cache_key metadata")

    def read(self, path, headers, body):
        need(bearer("openai")(headers), "wrong key", 401)
        only(body, self.FIELDS, "body")
        asked = Asked(model=body["model"], stream=bool(body.get("stream")), system=body.get("instructions") or "")
        items = body["input"]
        for at, item in enumerate([{"role": "user", "content": items}] if isinstance(items, str) else items):
            kind = item.get("type", "message")
            if kind == "function_call":
                asked.call(item["call_id"], item["name"], json.loads(item["arguments"]))
            elif kind == "function_call_output":
                asked.result(item["call_id"], item["output"])
            elif kind == "reasoning":
                only(item, "type id summary content encrypted_content status", f"input[{at}]")
                asked.proofs.append(item["encrypted_content"])
            else:
                need(kind == "message", f"input[{at}].type")
                parts = item["content"]
                for part in [{"type": "input_text", "text": parts}] if isinstance(parts, str) else parts:
                    if part["type"] == "input_image":
                        asked.images.append(picture(part["image_url"]))
                    elif item["role"] in ("system", "developer"):
                        asked.system += part["text"]
                    elif item["role"] == "user":
                        need(part["type"] == "input_text", f"input[{at}].content: {part['type']}")
                        asked.text += part["text"]
                    else:
                        need(part["type"] == "output_text", f"input[{at}].content: {part['type']}")
        for tool in body.get("tools") or []:
            only(tool, "type name description parameters strict", "tools")
            asked.tools[tool["name"]] = tool["parameters"]
        form = (body.get("text") or {}).get("format") or {}
        if form.get("type") == "json_schema":
            only(form, "type name description schema strict", "text.format")
            asked.schema = form["schema"]
        effort = (body.get("reasoning") or {}).get("effort")
        asked.reasons = effort not in (None, "none")
        asked.wants_proof = "reasoning.encrypted_content" in (body.get("include") or [])
        return asked

    def items(self, asked, answer):
        items = []
        if answer.thought:
            proof = {"encrypted_content": answer.proof} if asked.wants_proof else {}
            items.append({"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": answer.thought}], **proof})
        if answer.text:
            part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
            items.append({"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]})
        for call in answer.calls:
            items.append({"id": f"fc_{call.id}", "type": "function_call", "call_id": call.id, "name": call.name,
                          "arguments": json.dumps(call.input), "status": "completed"})
        return items

    def whole(self, asked, answer, status="completed", items=None):
        inputs, cached, outputs, reasoning = self.usage_of(answer)
        usage = {"input_tokens": inputs, "output_tokens": outputs, "total_tokens": inputs + outputs,
                 "input_tokens_details": {"cached_tokens": cached}, "output_tokens_details": {"reasoning_tokens": reasoning}}
        return {"id": "resp_1", "object": "response", "created_at": 1, "status": status, "error": None, "incomplete_details": None,
                "instructions": None, "model": asked.model, "output": self.items(asked, answer) if items is None else items,
                "parallel_tool_calls": True, "tools": [], "tool_choice": "auto", "temperature": 1.0, "top_p": 1.0, "metadata": {},
                "usage": usage if status == "completed" else None}

    def stream(self, asked, answer):
        begun = self.whole(asked, answer, "in_progress", [])
        events = [{"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}]
        for at, item in enumerate(self.items(asked, answer)):
            here = {"output_index": at, "item_id": item["id"]}
            if item["type"] == "reasoning":
                open_item, part = {**item, "summary": []}, {**here, "summary_index": 0}
                part_of, deltas = {"type": "summary_text", "text": ""}, pieces(answer.thought)
                middle = [{"type": "response.reasoning_summary_part.added", **part, "part": part_of},
                          *({"type": "response.reasoning_summary_text.delta", **part, "delta": delta} for delta in deltas),
                          {"type": "response.reasoning_summary_text.done", **part, "text": answer.thought},
                          {"type": "response.reasoning_summary_part.done", **part, "part": item["summary"][0]}]
                open_item.pop("encrypted_content", None)
            elif item["type"] == "message":
                open_item, part = {**item, "content": [], "status": "in_progress"}, {**here, "content_index": 0}
                empty = {**item["content"][0], "text": ""}
                middle = [{"type": "response.content_part.added", **part, "part": empty},
                          *({"type": "response.output_text.delta", **part, "delta": delta, "logprobs": []} for delta in pieces(answer.text)),
                          {"type": "response.output_text.done", **part, "text": answer.text, "logprobs": []},
                          {"type": "response.content_part.done", **part, "part": item["content"][0]}]
            else:
                open_item = {**item, "arguments": "", "status": "in_progress"}
                middle = [*({"type": "response.function_call_arguments.delta", **here, "delta": delta} for delta in pieces(item["arguments"])),
                          {"type": "response.function_call_arguments.done", **here, "name": item["name"], "arguments": item["arguments"]}]
            events += [{"type": "response.output_item.added", "output_index": at, "item": open_item}, *middle,
                       {"type": "response.output_item.done", "output_index": at, "item": item}]
        numbered = [{**event, "sequence_number": at} for at, event in enumerate(events)]
        yield from sse(numbered, named=True)
        answer.may_break()
        yield from sse([{"type": "response.completed", "response": self.whole(asked, answer), "sequence_number": len(events)}], named=True)


class Messages(Wire):
    """Anthropic's Messages. `vertex`: as `rawPredict` has it."""

    FIELDS = ("model messages system max_tokens stream tools tool_choice thinking output_config metadata service_tier "
              "temperature top_p top_k stop_sequences anthropic_version")

    def __init__(self, vertex=False):
        self.vertex = vertex

    def error(self, status, message):
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        return {"type": "error", "error": {"type": kind, "message": message}}

    def read(self, path, headers, body):
        only(body, self.FIELDS, "body")
        if self.vertex:
            need(bearer("vertex")(headers), "wrong key", 401)
            need(body.get("anthropic_version") == "vertex-2023-10-16" and "model" not in body, "anthropic_version")
            model = re.search(r"/publishers/anthropic/models/([^/:]+):", path)[1]
            need(bool(body.get("stream")) == path.endswith(":streamRawPredict"), "stream and verb differ")
        else:
            need(headers.get("x-api-key") == KEYS["anthropic"], "wrong key", 401)
            need(headers.get("anthropic-version") in ("2023-06-01", "2026-10-21"), "anthropic-version")
            model = body["model"]
        asked = Asked(model=model, stream=bool(body.get("stream")))
        need(body["max_tokens"] >= 1, "max_tokens")
        system = body.get("system") or []
        asked.system = system if isinstance(system, str) else "".join(block["text"] for block in system)
        sides = [message["role"] for message in body["messages"]]
        need(sides == [("user", "assistant")[at % 2] for at in range(len(sides))], f"messages: roles {sides}")
        waiting = []
        thinking = body.get("thinking") or {}
        asked.reasons = thinking.get("type") in ("enabled", "adaptive")
        if asked.reasons:
            need(1024 <= thinking.get("budget_tokens", 1024) < body["max_tokens"], "thinking.budget_tokens")
            need(body.get("temperature", 1) == 1, "temperature: only 1 while thinking")
        for at, message in enumerate(body["messages"]):
            blocks = message["content"]
            blocks = [{"type": "text", "text": blocks}] if isinstance(blocks, str) else blocks
            need(blocks, f"messages[{at}]: empty")
            results = [block for block in blocks if block["type"] == "tool_result"]
            need(blocks[:len(results)] == results, f"messages[{at}]: tool results must come first")
            need(sorted(waiting) == sorted(block["tool_use_id"] for block in results), f"messages[{at}]: calls and results differ")
            waiting = []
            if asked.reasons and message["role"] == "assistant" and any(block["type"] == "tool_use" for block in blocks):
                need(blocks[0]["type"] in ("thinking", "redacted_thinking"), f"messages[{at}]: expected thinking, found {blocks[0]['type']}")
            for block in blocks:
                self.block(asked, block, message["role"], waiting)
        need(not waiting, "messages: calls without results")
        for tool in body.get("tools") or []:
            only(tool, "name description input_schema strict cache_control", "tools")
            need(tool["input_schema"]["type"] == "object", "tools.input_schema.type")
            asked.tools[tool["name"]] = tool["input_schema"]
        form = (body.get("output_config") or {}).get("format") or {}
        if form:
            only(form, "type schema", "output_config.format")
            asked.schema = form["schema"]
        return asked

    def block(self, asked, block, role, waiting):
        kind = block["type"]
        if kind == "text":
            need(block["text"].strip(), "text: must not be blank")
            asked.text += block["text"] if role == "user" else ""
        elif kind == "image":
            source = block["source"]
            if source["type"] == "url":
                asked.images.append(("url", source["url"].encode()))
            else:
                only(source, "type media_type data", "source")
                asked.images.append((source["media_type"], base64.b64decode(source["data"], validate=True)))
        elif kind == "tool_use":
            need(isinstance(block["input"], dict), "tool_use.input")
            need(re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"]), "tool_use.id")
            asked.call(block["id"], block["name"], block["input"])
            waiting.append(block["id"])
        elif kind == "tool_result":
            content = block.get("content") or []
            asked.result(block["tool_use_id"], content if isinstance(content, str) else "".join(part["text"] for part in content))
        elif kind == "thinking":
            need(role == "assistant", "thinking: of the assistant only")
            asked.proofs.append(block["signature"])
        else:
            raise Refused(f"content.type: {kind}")

    def usage(self, answer):
        inputs, cached, outputs, reasoning = self.usage_of(answer)
        return {"input_tokens": inputs - cached, "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0,
                "output_tokens": outputs, "output_tokens_details": {"thinking_tokens": reasoning}}

    def blocks(self, answer):
        blocks = [{"type": "thinking", "thinking": answer.thought, "signature": answer.proof}] if answer.thought else []
        blocks += [{"type": "text", "text": answer.text}] if answer.text else []
        return blocks + [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input} for call in answer.calls]

    def head(self, asked):
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": asked.model, "stop_sequence": None}

    def reason(self, answer):
        return "tool_use" if answer.calls else "end_turn"

    def whole(self, asked, answer):
        return {**self.head(asked), "content": self.blocks(answer), "stop_reason": self.reason(answer), "usage": self.usage(answer)}

    def stream(self, asked, answer):
        usage = {**self.usage(answer), "output_tokens": 1, "output_tokens_details": None}
        events = [{"type": "message_start", "message": {**self.head(asked), "content": [], "stop_reason": None, "usage": usage}},
                  {"type": "ping"}]
        for at, block in enumerate(self.blocks(answer)):
            kind = block["type"]
            empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}[kind]
            events.append({"type": "content_block_start", "index": at, "content_block": {**block, **empty}})
            if kind == "text":
                deltas = [{"type": "text_delta", "text": part} for part in pieces(block["text"])]
            elif kind == "thinking":
                deltas = [{"type": "thinking_delta", "thinking": part} for part in pieces(block["thinking"])]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            else:
                deltas = [{"type": "input_json_delta", "partial_json": part} for part in ["", *pieces(json.dumps(block["input"]))]]
            events += [{"type": "content_block_delta", "index": at, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": at})
        yield from sse(events, named=True)
        answer.may_break()
        ended = {"stop_reason": self.reason(answer), "stop_sequence": None}
        yield from sse([{"type": "message_delta", "delta": ended, "usage": self.usage(answer)}, {"type": "message_stop"}], named=True)


class Gemini(Wire):
    """Gemini's own API, at AI Studio and on Vertex."""

    def __init__(self, vertex=False):
        self.vertex = vertex

    def error(self, status, message):
        word = {429: "RESOURCE_EXHAUSTED", 401: "UNAUTHENTICATED"}.get(status, "INVALID_ARGUMENT")
        return {"error": {"code": status, "message": message, "status": word}}

    def read(self, path, headers, body):
        allowed = bearer("vertex")(headers) if self.vertex else headers.get("x-goog-api-key") == KEYS["google"]
        need(allowed, "wrong key", 401)
        only(body, "contents systemInstruction tools toolConfig generationConfig", "body")
        model, verb = re.search(r"/models/([^/:]+):([^/]+)$", path).groups()
        need(verb in ("generateContent", "streamGenerateContent?alt=sse"), f"no such method {verb}", 404)
        asked = Asked(model=model, stream=verb != "generateContent")
        asked.system = "".join(part["text"] for part in (body.get("systemInstruction") or {}).get("parts", []))
        calls, ids = [], 0
        for at, content in enumerate(body["contents"]):
            only(content, "role parts", f"contents[{at}]")
            need(content["role"] == ("user", "model")[at % 2], f"contents[{at}].role")
            responses = [part for part in content["parts"] if "functionResponse" in part]
            need(len(responses) == len(calls), f"contents[{at}]: {len(responses)} responses to {len(calls)} calls")
            for call, part in zip(calls, responses):
                response = part["functionResponse"]
                need(response["name"] == call[1], f"contents[{at}]: response of {response['name']}")
                text = response["response"].get("output")
                asked.result(call[0], text if isinstance(text, str) else json.dumps(response["response"]))
            calls = []
            for part in content["parts"]:
                only(part, "text inlineData fileData functionCall functionResponse thought thoughtSignature", f"contents[{at}].parts")
                if "functionCall" in part:
                    call = part["functionCall"]
                    # The first call of a turn must have the signature that the model put on it.
                    need(calls or part.get("thoughtSignature"), "Function call is missing a thought_signature")
                    if not calls:
                        asked.proofs.append(base64.b64decode(part["thoughtSignature"]).decode())
                    ids += 1
                    calls.append((f"call-{ids}", call["name"]))
                    asked.call(f"call-{ids}", call["name"], call["args"])
                elif "inlineData" in part:
                    asked.images.append((part["inlineData"]["mimeType"], base64.b64decode(part["inlineData"]["data"], validate=True)))
                elif "fileData" in part:
                    need(self.vertex, "fileData: the address is not fetched")
                    asked.images.append(("url", part["fileData"]["fileUri"].encode()))
                elif content["role"] == "user" and "text" in part:
                    asked.text += part["text"]
        need(not calls, "contents: calls without responses")
        for group in body.get("tools") or []:
            for tool in group["functionDeclarations"]:
                only(tool, "name description parametersJsonSchema", "tools")
                asked.tools[tool["name"]] = tool["parametersJsonSchema"]
        config = body.get("generationConfig") or {}
        only(config, "maxOutputTokens temperature topP topK seed stopSequences responseMimeType responseJsonSchema thinkingConfig", "generationConfig")
        if "responseJsonSchema" in config:
            need(config["responseMimeType"] == "application/json", "responseMimeType")
            asked.schema = config["responseJsonSchema"]
        thinking = config.get("thinkingConfig") or {}
        only(thinking, "thinkingLevel includeThoughts", "thinkingConfig")
        asked.reasons = thinking.get("includeThoughts") is True
        return asked

    def parts(self, answer):
        """Groups of parts, as a stream sends them."""
        sign = base64.b64encode(answer.proof.encode()).decode()
        thoughts = [[{"text": part, "thought": True}] for part in pieces(answer.thought)]
        texts = [[{"text": part}] for part in pieces(answer.text)]
        calls = [[{"functionCall": {"name": call.name, "args": call.input}}] for call in answer.calls]
        if calls:
            calls[0][0]["thoughtSignature"] = sign
        return thoughts + texts + calls

    def usage(self, answer):
        inputs, cached, outputs, reasoning = self.usage_of(answer)
        return {"promptTokenCount": inputs, "cachedContentTokenCount": cached, "candidatesTokenCount": outputs - reasoning,
                "thoughtsTokenCount": reasoning, "totalTokenCount": inputs + outputs}

    def fragment(self, asked, parts, finish=None, usage=None):
        candidate = {"content": {"role": "model", "parts": parts}, "index": 0, **({"finishReason": finish} if finish else {})}
        return {"candidates": [candidate], "usageMetadata": usage or {"promptTokenCount": INPUT, "totalTokenCount": INPUT},
                "modelVersion": asked.model, "responseId": "r-1"}

    def whole(self, asked, answer):
        joined = [{"text": answer.thought, "thought": True}] if answer.thought else []
        joined += [{"text": answer.text}] if answer.text else []
        joined += [part for parts in self.parts(answer) for part in parts if "functionCall" in part]
        return self.fragment(asked, joined, "STOP", self.usage(answer))

    def stream(self, asked, answer):
        yield from sse((self.fragment(asked, parts) for parts in self.parts(answer)), end="\r\n\r\n")
        answer.may_break()
        # The reason comes after the last part.
        yield from sse([self.fragment(asked, [{"text": ""}], "STOP", self.usage(answer))], end="\r\n\r\n")


class Converse(Wire):
    """Bedrock's Converse, its streams in Amazon's frames."""

    content_type = "application/vnd.amazon.eventstream"

    def error(self, status, message):
        return {"message": message}

    def usage_of(self, answer):
        return INPUT, CACHED, OUTPUT, 0

    def read(self, path, headers, body):
        need(bearer("bedrock")(headers), "wrong key", 401)
        only(body, "messages system inferenceConfig toolConfig additionalModelRequestFields outputConfig serviceTier requestMetadata", "body")
        model, verb = re.fullmatch(r"/model/([^/]+)/(converse|converse-stream)", path).groups()
        asked = Asked(model=model.replace("%3A", ":"), stream=verb == "converse-stream")
        asked.system = "".join(block["text"] for block in body.get("system") or [])
        waiting, history = [], False
        for at, message in enumerate(body["messages"]):
            need(message["role"] == ("user", "assistant")[at % 2] and message["content"], f"messages[{at}].role")
            results = [block["toolResult"]["toolUseId"] for block in message["content"] if "toolResult" in block]
            need(sorted(results) == sorted(waiting), "Expected toolResult blocks")
            waiting = []
            for block in message["content"]:
                kind, value = next(iter(block.items()))
                if kind == "text":
                    need(value.strip(), "The text field in the ContentBlock object is blank")
                    asked.text += value if message["role"] == "user" else ""
                elif kind == "image":
                    only(value, "format source", "image")
                    asked.images.append((f"image/{value['format']}", base64.b64decode(value["source"]["bytes"], validate=True)))
                elif kind == "toolUse":
                    only(value, "toolUseId name input", "toolUse")
                    need(re.fullmatch(r"[a-zA-Z0-9_.:-]{1,64}", value["toolUseId"]), "toolUseId")
                    asked.call(value["toolUseId"], value["name"], value["input"])
                    waiting.append(value["toolUseId"])
                    history = True
                elif kind == "toolResult":
                    texts = [part["text"] for part in value["content"]]
                    need(all(text.strip() for text in texts), "toolResult: blank text")
                    asked.result(value["toolUseId"], "".join(texts))
                elif kind == "reasoningContent":
                    asked.proofs.append(value["reasoningText"]["signature"])
                else:
                    raise Refused(f"unknown block {kind}")
        tools = (body.get("toolConfig") or {}).get("tools") or []
        need(tools or not history, "The toolConfig field must be defined")
        for tool in tools:
            spec = tool["toolSpec"]
            only(spec, "name description inputSchema", "toolSpec")
            need(spec["description"], "toolSpec.description")
            asked.tools[spec["name"]] = spec["inputSchema"]["json"]
        form = (body.get("outputConfig") or {}).get("textFormat")
        if form:
            asked.schema = json.loads(form["structure"]["jsonSchema"]["schema"])
        thinking = (body.get("additionalModelRequestFields") or {}).get("thinking") or {}
        asked.reasons = thinking.get("type") in ("enabled", "adaptive")
        return asked

    def usage(self, answer):
        inputs, cached, outputs, _ = self.usage_of(answer)
        return {"inputTokens": inputs - cached, "outputTokens": outputs, "totalTokens": inputs + outputs,
                "cacheReadInputTokens": cached, "cacheWriteInputTokens": 0}

    def reason(self, answer):
        return "tool_use" if answer.calls else "end_turn"

    def whole(self, asked, answer):
        content = []
        if answer.thought:
            content.append({"reasoningContent": {"reasoningText": {"text": answer.thought, "signature": answer.proof}}})
        content += [{"text": answer.text}] if answer.text else []
        content += [{"toolUse": {"toolUseId": call.id, "name": call.name, "input": call.input}} for call in answer.calls]
        return {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": self.reason(answer),
                "usage": self.usage(answer), "metrics": {"latencyMs": 1}}

    @staticmethod
    def frame(kind, payload):
        header = lambda name, value: bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        headers = header(":event-type", kind) + header(":content-type", "application/json") + header(":message-type", "event")
        body = json.dumps({**payload, "p": "abcdefgh"}, ensure_ascii=False).encode()
        prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
        message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
        return message + struct.pack(">I", zlib.crc32(message))

    def stream(self, asked, answer):
        yield self.frame("messageStart", {"role": "assistant"})
        at = 0
        delta = lambda value: self.frame("contentBlockDelta", {"contentBlockIndex": at, "delta": value})
        stop = lambda: self.frame("contentBlockStop", {"contentBlockIndex": at})
        if answer.thought:
            yield from (delta({"reasoningContent": {"text": part}}) for part in pieces(answer.thought))
            yield delta({"reasoningContent": {"signature": answer.proof}})
            yield stop()
            at += 1
        if answer.text:
            yield from (delta({"text": part}) for part in pieces(answer.text))
            yield stop()
            at += 1
        for call in answer.calls:
            yield self.frame("contentBlockStart", {"contentBlockIndex": at, "start": {"toolUse": {"toolUseId": call.id, "name": call.name}}})
            yield from (delta({"toolUse": {"input": part}}) for part in pieces(json.dumps(call.input)))
            yield stop()
            at += 1
        answer.may_break()
        yield self.frame("messageStop", {"stopReason": self.reason(answer)})
        yield self.frame("metadata", {"usage": self.usage(answer), "metrics": {"latencyMs": 1}})


class Cohere(Wire):
    """Cohere's chat, second version: what it does not know is refused."""

    def error(self, status, message):
        return {"id": "1", "message": message}

    def usage_of(self, answer):
        return INPUT, CACHED, OUTPUT, 0

    def read(self, path, headers, body):
        need(bearer("cohere")(headers), "wrong key", 401)
        only(body, "model messages stream max_tokens tools tool_choice strict_tools response_format thinking temperature p k seed stop_sequences", "body")
        asked = Asked(model=body["model"], stream=body["stream"])
        for at, message in enumerate(body["messages"]):
            role = message["role"]
            if role == "assistant":
                only(message, "role content tool_calls tool_plan", f"messages[{at}]")
                for call in message.get("tool_calls") or []:
                    only(call, "id type function", "tool_calls")
                    asked.call(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            elif role == "tool":
                only(message, "role tool_call_id content", f"messages[{at}]")
                asked.result(message["tool_call_id"], "".join(part["document"]["data"] for part in message["content"]))
            else:
                only(message, "role content", f"messages[{at}]")
                content = message["content"]
                for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                    if part["type"] == "image_url":
                        need("vision" in body["model"], "the model takes no images")
                        asked.images.append(picture(part["image_url"]["url"]))
                    elif role == "system":
                        asked.system += part["text"]
                    else:
                        asked.text += part["text"]
        for tool in body.get("tools") or []:
            only(tool["function"], "name description parameters", "tools")
            asked.tools[tool["function"]["name"]] = tool["function"]["parameters"]
        form = body.get("response_format") or {}
        only(form, "type json_schema", "response_format")
        asked.schema = form.get("json_schema")
        asked.reasons = (body.get("thinking") or {}).get("type") == "enabled"
        return asked

    def usage(self, answer):
        inputs, cached, outputs, _ = self.usage_of(answer)
        return {"billed_units": {"input_tokens": 7.0, "output_tokens": float(outputs)},
                "tokens": {"input_tokens": float(inputs), "output_tokens": float(outputs)}, "cached_tokens": cached}

    def reason(self, answer):
        return "TOOL_CALL" if answer.calls else "COMPLETE"

    def calls(self, answer):
        return [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.input)}}
                for call in answer.calls]

    def whole(self, asked, answer):
        message = {"role": "assistant"}
        content = [{"type": "thinking", "thinking": answer.thought}] if answer.thought else []
        content += [{"type": "text", "text": answer.text}] if answer.text else []
        if content:
            message["content"] = content
        if answer.calls:
            message["tool_calls"] = self.calls(answer)
        return {"id": "c-1", "finish_reason": self.reason(answer), "message": message, "usage": self.usage(answer)}

    def stream(self, asked, answer):
        events = [{"type": "message-start", "id": "c-1", "delta": {"message": {"role": "assistant", "content": [], "tool_calls": [], "citations": []}}}]
        at = 0
        for kind, key, text in (("thinking", "thinking", answer.thought), ("text", "text", answer.text)):
            if text:
                events.append({"type": "content-start", "index": at, "delta": {"message": {"content": {"type": kind, key: ""}}}})
                events += [{"type": "content-delta", "index": at, "delta": {"message": {"content": {key: part}}}} for part in pieces(text)]
                events.append({"type": "content-end", "index": at})
                at += 1
        for at, call in enumerate(self.calls(answer)):
            arguments = call["function"]["arguments"]
            begun = {**call, "function": {**call["function"], "arguments": ""}}
            events.append({"type": "tool-call-start", "index": at, "delta": {"message": {"tool_calls": begun}}})
            events += [{"type": "tool-call-delta", "index": at, "delta": {"message": {"tool_calls": {"function": {"arguments": part}}}}}
                       for part in pieces(arguments)]
            events.append({"type": "tool-call-end", "index": at})
        yield from sse(events, named=True)
        answer.may_break()
        yield from sse([{"type": "message-end", "delta": {"finish_reason": self.reason(answer), "usage": self.usage(answer)}}], named=True)
        yield b"data: [DONE]\n\n"


class Ollama(Wire):
    """Ollama's own chat: lines of JSON, no ids of calls."""

    content_type = "application/x-ndjson"

    def error(self, status, message):
        return {"error": message}

    def usage_of(self, answer):
        return INPUT, 0, OUTPUT, 0

    def read(self, path, headers, body):
        only(body, "model messages stream options format tools think keep_alive", "body")
        asked = Asked(model=body["model"], stream=body.get("stream", True))
        names = []
        for at, message in enumerate(body["messages"]):
            only(message, "role content images tool_calls tool_name thinking", f"messages[{at}]")
            need(isinstance(message["content"], str), f"messages[{at}].content must be a string")
            if message["role"] == "system":
                asked.system += message["content"]
            elif message["role"] == "tool":
                names.append(message["tool_name"])
                asked.result(f"call-{len(names)}", message["content"])
            elif message["role"] == "user":
                asked.text += message["content"]
                asked.images += [("image/png", base64.b64decode(image, validate=True)) for image in message.get("images") or []]
            for at, call in enumerate(message.get("tool_calls") or []):
                need(isinstance(call["function"]["arguments"], dict), "arguments must be an object")
                asked.call(f"call-{at + 1}", call["function"]["name"], call["function"]["arguments"])
        for tool in body.get("tools") or []:
            asked.tools[tool["function"]["name"]] = tool["function"]["parameters"]
        asked.schema = body.get("format") if isinstance(body.get("format"), dict) else None
        asked.reasons = body.get("think") not in (None, False)
        return asked

    def end(self, answer):
        inputs, _, outputs, _ = self.usage_of(answer)
        return {"done": True, "done_reason": "stop", "total_duration": 1, "prompt_eval_count": inputs, "eval_count": outputs}

    def calls(self, answer):
        return [{"function": {"name": call.name, "arguments": call.input}} for call in answer.calls]

    def line(self, asked, **message):
        return {"model": asked.model, "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "", **message}}

    def whole(self, asked, answer):
        message = {"content": answer.text, **({"thinking": answer.thought} if answer.thought else {})}
        if answer.calls:
            message["tool_calls"] = self.calls(answer)
        return {**self.line(asked, **message), **self.end(answer)}

    def stream(self, asked, answer):
        lines = [self.line(asked, thinking=part) for part in pieces(answer.thought)]
        lines += [self.line(asked, content=part) for part in pieces(answer.text)]
        lines += [self.line(asked, tool_calls=[call]) for call in self.calls(answer)]
        encode = lambda line: json.dumps(line, ensure_ascii=False).encode() + b"\n"
        yield from (encode({**line, "done": False}) for line in lines)
        answer.may_break()
        yield encode({**self.line(asked), **self.end(answer)})
