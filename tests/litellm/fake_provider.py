"""A provider for scripts/litellm-check: answers OpenAI's chat completions and Anthropic's Messages with "Hello", to callers
with a key. Prints its port and serves until it is ended."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("x-api-key") or (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not key.startswith("sk-fake-key-of-the-litellm-check-"):
            self.send_json({"error": {"message": "no such key", "type": "authentication_error"}}, 401)
        elif self.path == "/v1/chat/completions":
            message = {"role": "assistant", "content": "Hello"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
            self.send_json({
                "id": "c1", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice], "usage": usage,
            })
        elif self.path == "/v1/messages":
            self.send_json({
                "id": "m1", "type": "message", "role": "assistant", "model": asked["model"], "stop_reason": "end_turn",
                "content": [{"type": "text", "text": "Hello"}], "usage": {"input_tokens": 5, "output_tokens": 2},
            })
        else:
            self.send_json({"error": {"message": f"no such path: {self.path}"}}, 404)


server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
print(server.server_port, flush=True)
server.serve_forever()
