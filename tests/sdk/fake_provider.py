"""A provider for tests of the gateway with official clients: speaks chat completions, embeddings and Anthropic's Messages,
plain and streaming, with a tool call where the request offers tools. Prints its port and serves until it is ended."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


class Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send_json(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_events(self, events):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for name, data in events:
            text = (f"event: {name}\n" if name else "") + f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
            chunk = text.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        self.send_json({"object": "list", "data": [{"id": "small"}, {"id": "claude-small"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/chat/completions"):
            self.chat(asked)
        elif self.path.endswith("/embeddings"):
            self.send_json({
                "object": "list", "model": asked["model"], "usage": {"prompt_tokens": 3, "total_tokens": 3},
                "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
            })
        elif self.path.endswith("/messages"):
            self.messages(asked)
        else:
            self.send_json({"error": {"message": "no such path"}}, 404)

    def chat(self, asked):
        if asked["messages"][-1]["content"] == "fail":
            self.send_json({"error": {"message": "temperature is too high", "type": "invalid_request_error"}}, 400)
            return
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bern\"}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]} if asked.get("tools") else \
            {"role": "assistant", "content": "Hello"}
        finish = "tool_calls" if asked.get("tools") else "stop"
        head = {"id": "chatcmpl-1", "created": 1, "model": asked["model"]}
        if not asked.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self.send_json({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})
            return
        if asked.get("tools"):
            first = {**call, "index": 0, "function": {"name": "weather", "arguments": "{\"city\":"}}
            rest = {"index": 0, "function": {"arguments": " \"Bern\"}"}}
            deltas = [{"role": "assistant", "tool_calls": [first]}, {"tool_calls": [rest]}]
        else:
            deltas = [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}]
        chunk = {**head, "object": "chat.completion.chunk"}
        events = [(None, {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas]
        events.append((None, {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}))
        if asked.get("stream_options", {}).get("include_usage"):
            events.append((None, {**chunk, "choices": [], "usage": USAGE}))
        self.send_events([*events, (None, "[DONE]")])

    def messages(self, asked):
        usage = {"input_tokens": 12, "output_tokens": 5}
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"], "stop_sequence": None}
        if not asked.get("stream"):
            self.send_json({**head, "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "usage": usage})
            return
        begun = {**head, "content": [], "stop_reason": None, "usage": {"input_tokens": 12, "output_tokens": 1}}
        delta = lambda text: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 5}}
        self.send_events([
            ("message_start", {"type": "message_start", "message": begun}),
            ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            ("content_block_delta", delta("Hel")),
            ("content_block_delta", delta("lo")),
            ("content_block_stop", {"type": "content_block_stop", "index": 0}),
            ("message_delta", ended),
            ("message_stop", {"type": "message_stop"}),
        ])


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    print(server.server_address[1], flush=True)
    server.serve_forever()
