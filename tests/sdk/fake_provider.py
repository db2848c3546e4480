"""A provider for tests of the gateway with official clients: it speaks every protocol that the gateway translates to, each
at the paths of the real API, over HTTP with streams cut anywhere. Prints its port and serves until it is ended."""

import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import brain
from wires import Azure, Chat, Cohere, Converse, Gemini, Messages, Ollama, OllamaChat, Responses

# Where each API stands, and whose it is. A path that begins like this is answered by it.
ROUTES = [
    ("/openai-api/v1/chat/completions", "openai", Chat("openai")),
    ("/openai-api/v1/responses", "openai", Responses()),
    ("/compatible/v1/chat/completions", "compatible", Chat("compatible", thinks="reasoning_content", fields="max_tokens")),
    ("/openai/v1/chat/completions", "azure", Azure("azure", allowed=lambda headers: headers.get("api-key") == brain.KEYS["azure"])),
    ("/anthropic/v1/messages", "anthropic", Messages()),
    ("/google/v1beta/models/", "google", Gemini()),
    ("/v1/projects/p-1/locations/eu/publishers/google/models/", "vertex", Gemini(vertex=True)),
    ("/v1/projects/p-1/locations/eu/publishers/anthropic/models/", "vertex", Messages(vertex=True)),
    ("/model/", "bedrock", Converse()),
    ("/v2/chat", "cohere", Cohere()),
    ("/api/chat", "ollama", Ollama()),
    # Ollama's compatible endpoint: without a key.
    ("/v1/chat/completions", "ollama", OllamaChat("ollama", thinks="reasoning", allowed=lambda headers: True, fields="max_tokens")),
]

# Streams are written in pieces of so many bytes: events and characters are cut wherever that falls.
PIECE = 61


class Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send_json(self, value, status=200):
        body = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_stream(self, content_type, parts):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            waiting = b""
            for part in parts:
                waiting += part
                while len(waiting) >= PIECE:
                    self.send_chunk(waiting[:PIECE])
                    waiting = waiting[PIECE:]
            self.send_chunk(waiting)
            self.wfile.write(b"0\r\n\r\n")
        except brain.Broken:
            # What came so far, and then nothing: not even the end of the body.
            self.send_chunk(waiting)
            self.close_connection = True

    def send_chunk(self, data):
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def do_GET(self):
        self.send_json({"object": "list", "data": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found = next((route for route in ROUTES if self.path.startswith(route[0])), None)
        if self.path.endswith("/embeddings"):
            self.embeddings(json.loads(body))
            return
        if found is None:
            self.send_json({"error": {"message": f"no such path: {self.path}"}}, 404)
            return
        _, kind, wire = found
        try:
            asked = wire.read(self.path, self.headers, json.loads(body))
            answer = brain.answer(asked, kind)
        except brain.Refused as refused:
            print(f"{kind}: {refused.status}: {refused}", file=sys.stderr, flush=True)
            self.send_json(wire.error(refused.status, str(refused)), refused.status)
            return
        except Exception as error:  # A request of a shape that the reader does not expect is refused like any other.
            print(f"{kind}: {error!r}: {body[:2000]!r}", file=sys.stderr, flush=True)
            self.send_json(wire.error(400, f"{type(error).__name__}: {error}"), 400)
            return
        if asked.stream:
            self.send_stream(wire.content_type, wire.stream(asked, answer))
        else:
            self.send_json(wire.whole(asked, answer))

    def embeddings(self, asked):
        self.send_json({
            "object": "list", "model": asked["model"], "usage": {"prompt_tokens": 3, "total_tokens": 3},
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
        })


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def get_request(self):
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Provider)
    print(server.server_address[1], flush=True)
    server.serve_forever()
