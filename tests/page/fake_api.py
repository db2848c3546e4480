#!/usr/bin/env python3
"""The admin API with made-up data, and the page in front of it: for working on the page and for its tests.

    tests/page/fake_api.py --providers 12 --port 7499 --token t

Serves web from the disk with the headers of the real server, so that a reload shows an edit.
Below /_fake/ a test pushes it about: POST /_fake/event {item}, /_fake/set {"database": false, ...},
/_fake/fail {"status": 503} (every call of the API answers so until {"status": 0}), /_fake/cut (ends streams).
"""

import argparse
import datetime
import hashlib
import json
import pathlib
import queue
import random
import re
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT = pathlib.Path(__file__).resolve().parents[2]
ASSETS = ROOT / "web"
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
NAMES = ["ollama-cloud", "openai-prod", "anthropic-prod", "groq-eu", "mistral-fr", "together-batch",
         "vllm-rack4", "azure-weu", "openrouter", "deepseek", "cohere-rerank", "legacy-proxy"]
TYPES = ["ollama-cloud", "openai", "anthropic", "groq", "mistral", "together", "vllm", "azure-openai",
         "openrouter", "deepseek", "cohere", "openai-compatible"]
REVISION = "8a1f3c27d90b4e55a1c0ffee0123456789abcdef"


def csp():
    text = (ROOT / "src/admin/page.rs").read_text(encoding="utf-8") if (ROOT / "src/admin/page.rs").exists() else ""
    found = re.search(r'const POLICY: &str = "([^;].*?)";\n', text, re.S)
    return re.sub(r"\\\s*\n\s*", "", found.group(1)) if found else (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def stamp(seconds_ago=0.0):
    return (now() - datetime.timedelta(seconds=seconds_ago)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class World:
    """Everything the fake knows; one lock for all of it."""

    def __init__(self, count, seed=7):
        self.lock = threading.Lock()
        self.random = random.Random(seed)
        self.fail = 0
        self.streams = []
        self.tests = []
        self.calls = []
        self.flags = {"synced": True, "suspended": False, "leader": True, "database": True, "impaired": None}
        self.providers = {}
        self.events = []
        self.held = []
        self.manifests = []
        self.cells = []
        for index in range(count):
            self.add(index)
        if count:
            self.hold()
            self.route()
            self.history()

    def add(self, index):
        rng = self.random
        base = NAMES[index % len(NAMES)]
        name = base if index < len(NAMES) else f"{base}-{index:04d}"
        kind = TYPES[index % len(TYPES)]
        roll = rng.random()
        if index < len(NAMES):
            health = ["healthy", "healthy", "healthy", "unhealthy", "degraded", "healthy", "unhealthy", "healthy",
                      "healthy", "unknown", "healthy", "healthy"][index]
            key = ["valid", "valid", "failed", "valid", "valid", "valid", "none", "valid",
                   "error", "pending", "valid", "missing"][index]
            state = ["synced", "synced", "synced", "synced", "drifted", "synced", "synced", "frozen",
                     "synced", "pending", "synced", "held"][index]
        else:
            health = "healthy" if roll < .95 else "degraded" if roll < .97 else "unhealthy" if roll < .99 else "unknown"
            key = "valid" if rng.random() < .96 else rng.choice(["failed", "error", "pending", "none"])
            state = "synced" if rng.random() < .985 else rng.choice(["drifted", "pending", "frozen", "unmanaged"])
        middle = rng.choice([90, 160, 240, 420, 700]) + rng.random() * 60
        reason = {"unhealthy": rng.choice(["connect: connection refused (3 in a row)", "HTTP 502 from the provider (3 in a row)",
                                           "no answer within 10 s (3 in a row)"]),
                  "degraded": "slower than 3 s in 3 of the last 10 checks", "unknown": "not checked yet"}.get(health)
        since = {"unhealthy": rng.uniform(300, 20000), "degraded": rng.uniform(600, 9000),
                 "unknown": 45}.get(health, rng.uniform(90000, 2.4e6))
        self.providers[name] = {
            "id": f"00000000-0000-4000-8000-{index:012d}", "name": name, "type": kind, "state": state,
            "enabled": index != 11, "priority": 50 + (index * 7) % 50,
            "base_url": f"https://api.{name}.example.com/v1", "health": health, "health_since": stamp(since),
            "health_reason": reason, "latency_ms": None if health in ("unhealthy", "unknown") else round(middle * (14 if health == "degraded" else 1)),
            "last_check": None if health == "unknown" else stamp(rng.uniform(1, 29)), "key": key,
            "key_reason": {"failed": "401 invalid_api_key, twice", "error": "untestable: the list of models is public",
                           "missing": "the variable LEGACY_PROXY_API_KEY is not set"}.get(key),
            "key_last_tested": stamp(rng.uniform(60, 20000)) if key in ("valid", "failed", "error") else None,
            "key_source": "database" if index % 5 else "hybrid", "models": 1 + index % 9,
            "source": None if state == "unmanaged" else f"{['cloud', 'eu/west', 'team-a', 'local'][index % 4]}.toml:{3 + (index * 13) % 240}",
            "revision": None if state == "unmanaged" else REVISION,
            "checks_paused": False,
            "notices": {"drifted": ["priority was changed by someone else: 50 → 10"],
                        "frozen": ["its file does not parse; the last good state is kept"],
                        "held": ["no manifest declares it any more; the prune is held back"]}.get(state, []),
            "strip": self.strip(health, since), "_middle": middle, "_since": since,
        }

    def strip(self, health, since):
        rng, strip = self.random, []
        for ago in range(24, 0, -1):
            if health == "unknown":
                strip.append(None)
                continue
            bucket = {"ok": 120, "slow": 0, "bad": 0}
            if since > (ago - 1) * 3600 and health == "unhealthy":
                lost = 120 if since > ago * 3600 else int(120 * (since - (ago - 1) * 3600) / 3600)
                bucket = {"ok": 120 - lost, "slow": 0, "bad": lost}
            elif health == "degraded" and ago <= 5:
                slow = rng.randint(20, 80)
                bucket = {"ok": 120 - slow, "slow": slow, "bad": 0}
            elif rng.random() < .03:
                bad = rng.randint(1, 12)
                bucket = {"ok": 120 - bad, "slow": 0, "bad": bad}
            elif rng.random() < .05:
                slow = rng.randint(2, 30)
                bucket = {"ok": 120 - slow, "slow": slow, "bad": 0}
            strip.append(bucket)
        return strip

    def hold(self):
        self.held = [
            {"kind": "prune", "reason": "4 of 12 managed providers would be deleted; the limit is 3",
             "objects": ["legacy-proxy", "old-bedrock", "pilot-xai", "trial-perplexity"], "digest": "3fa9c1d20b7e",
             "command": "providerd apply --confirm-prune 3fa9c1d20b7e"},
            {"kind": "route", "reason": "the cell would have no usable model left",
             "objects": ["precision × enterprise"], "digest": None, "command": None}]
        self.manifests = [{"file": "eu/west.toml", "line": 31, "column": 12,
                           "message": "unknown key `base_ulr`; did you mean `base_url`?"}]

    def route(self):
        names = list(self.providers)
        tiers = ["all", "free", "pro", "enterprise"]
        for level in ("eco", "balanced", "precision"):
            for tier in tiers:
                if (level, tier) == ("eco", "enterprise"):
                    continue
                models = []
                for rank in range({"eco": 4, "balanced": 3, "precision": 2}[level]):
                    name = names[(len(models) * 5 + len(self.cells) * 3) % min(len(names), 12)]
                    models.append({"provider": name, "model": f"{name.split('-')[0]}-{['7b', '70b', 'large', 'mini'][rank]}",
                                   "priority": 100 - rank * 10, "weight": 100 if rank else 60,
                                   "enabled": not (rank == 2 and level == "balanced"),
                                   "health": self.providers[name]["health"], "key": self.providers[name]["key"]})
                if (level, tier) == ("precision", "free"):
                    models = []
                if level == "precision" and tier == "pro":
                    models = [{"provider": "groq-eu", "model": "groq-405b", "priority": 100, "weight": 100,
                               "enabled": True, "health": "unhealthy", "key": "valid"}]
                self.cells.append({"power_level": level, "user_tier": tier, "task_type": None, "models": models})
        self.cells.append({"power_level": "eco", "user_tier": "all", "task_type": "embedding",
                           "models": [{"provider": names[0], "model": "embed-small", "priority": 100, "weight": 100,
                                       "enabled": True, "health": "healthy", "key": "valid"}]})

    def history(self):
        base = [
            (7400, "change", "mistral-fr", "declared", {"changes": [{"kind": "provider", "action": "update", "name": "mistral-fr", "id": "x", "fields": [
                {"field": "priority", "old": 40, "new": 50, "cause": "declared"},
                {"field": "config.region", "old": None, "new": "eu-west-3", "cause": "declared"}]},
                {"kind": "model", "action": "create", "name": "mistral-small-2", "values": {"context_length": 32768, "cost_per_1m_input_tokens": 0.1}}]}, None),
            (6100, "key", "openai-prod", "the source changed", {"action": "replace", "old": "3f9a11c0ffee2211", "new": "77c1b0a9d8e7f601"}, None),
            (self.since("groq-eu"), "health", "groq-eu", self.providers["groq-eu"]["health_reason"], {"from": "healthy", "to": "unhealthy"}, None),
            (4100, "key_test", "anthropic-prod", "401 invalid_api_key, twice", {"from": "valid", "to": "failed"}, None),
            (2600, "drift", "mistral-fr", "changed by someone else; set back", {"corrected": True, "changes": [
                {"kind": "provider", "name": "mistral-fr", "id": "x", "fields": [{"field": "priority", "old": 10, "new": 50, "cause": "drift"}]}]}, None),
            (1500, "hold", None, "4 of 12 managed providers would be deleted; the limit is 3", {"kind": "prune", "objects": ["legacy-proxy", "old-bedrock", "pilot-xai", "trial-perplexity"], "digest": "3fa9c1d20b7e"}, None),
            (900, "admin", None, "sync through the API", {"call": "sync"}, "5e884898"),
            (self.since("vllm-rack4"), "health", "vllm-rack4", self.providers["vllm-rack4"]["health_reason"], {"from": "degraded", "to": "unhealthy"}, None),
            (65, "health", "cohere-rerank", "2 ok in a row", {"from": "unhealthy", "to": "healthy"}, None)]
        names = list(self.providers)
        for back in range(260, 0, -1):
            name = names[back * 31 % len(names)]
            self.event("health", name, "2 ok in a row" if back % 2 else "HTTP 502 from the provider (3 in a row)",
                       {"from": "unhealthy" if back % 2 else "healthy", "to": "healthy" if back % 2 else "unhealthy"}, ago=30000 + back * 900)
        for ago, kind, provider, reason, detail, actor in sorted(base, key=lambda each: -each[0]):
            self.event(kind, provider, reason, detail, actor=actor, ago=ago)

    def since(self, name):
        return self.providers[name]["_since"]

    def event(self, kind, provider, reason, detail, actor=None, ago=0.0):
        item = {"id": len(self.events) + 1, "at": stamp(ago), "kind": kind, "provider": provider, "reason": reason,
                "origin": self.providers[provider]["source"] if provider in self.providers and kind in ("change", "drift", "key") else None,
                "revision": REVISION if kind in ("change", "key") else None, "actor": actor, "detail": detail}
        self.events.append(item)
        for stream in self.streams:
            stream.put(item)
        return item

    # ------------------------------------------------------------ answers

    def status(self):
        rows = list(self.providers.values())
        count = lambda field, value: sum(row[field] == value for row in rows)
        attention = []
        for row in rows:
            if row["health"] == "unhealthy":
                attention.append({"provider": row["name"], "kind": "unhealthy", "message": row["health_reason"], "command": f"providerd check {row['name']}"})
            if row["key"] == "failed":
                attention.append({"provider": row["name"], "kind": "key_failed", "message": row["key_reason"], "command": f"providerd check {row['name']}"})
            if row["key"] == "missing":
                attention.append({"provider": row["name"], "kind": "key_missing", "message": row["key_reason"], "command": None})
            if row["state"] == "drifted":
                attention.append({"provider": row["name"], "kind": "drift", "message": row["notices"][0], "command": f"providerd plan"})
        for held in self.held:
            attention.append({"provider": None, "kind": "held", "message": held["reason"], "command": held["command"]})
        for problem in self.manifests:
            attention.append({"provider": None, "kind": "invalid", "message": f"{problem['file']}:{problem['line']}:{problem['column']}: {problem['message']}", "command": "providerd validate"})
        return {**self.flags, "revision": REVISION if rows else None, "version": "0.1.0",
                "providers": {"total": len(rows), **{word: count("health", word) for word in ("healthy", "degraded", "unhealthy", "unknown")},
                              "disabled": sum(not row["enabled"] for row in rows)},
                "keys": {word: count("key", word) for word in ("valid", "failed", "error", "pending", "none")},
                "cells": {"total": len(self.cells), "without_model": 4 if self.cells else 0, "unproven": 0},
                "attention": attention, "held": self.held, "manifests": self.manifests, "checked_at": stamp(0)}

    def public(self, row):
        return {key: value for key, value in row.items() if not key.startswith("_")}

    def detail(self, name):
        row = self.providers[name]
        rng = random.Random(name)
        def history(points, seconds):
            found = []
            if row["health"] == "unknown":
                return found
            # As the server does it: sums begin at full hours and days, and only those with checks are told.
            begun = time.time() % seconds
            for back in range(points, 0, -1):
                at = stamp((back - 1) * seconds + begun)
                total = max(1, seconds // 30)
                lost = 0
                if row["health"] == "unhealthy" and row["_since"] > (back - 1) * seconds:
                    lost = total if row["_since"] > back * seconds else int(total * (row["_since"] - (back - 1) * seconds) / seconds)
                elif rng.random() < .05:
                    lost = max(1, total // 40)
                slow = total // 3 if row["health"] == "degraded" and back * seconds < 18000 else 0
                middle = row["_middle"] * (1 + .25 * rng.random()) * (9 if slow else 1)
                found.append({"at": at, "ok": max(0, total - lost - slow), "slow": slow, "bad": lost,
                              "p50_ms": None if lost == total else round(middle), "p95_ms": None if lost == total else round(middle * (1.6 + .8 * rng.random()))})
            return found
        day = history(24, 3600)
        return {**self.public(row), "models": [
                    {"name": f"{name.split('-')[0]}-{size}", "display_name": f"{name.split('-')[0].title()} {size.upper()}", "enabled": index != 2,
                     "context_length": 4096 << index, "cost_per_1m_input_tokens": round(.1 * (index + 1), 2), "cost_per_1m_output_tokens": round(.2 * (index + 1), 2),
                     "avg_latency_ms": None if index == 2 else 140 * (index + 1)}
                    for index, size in enumerate(["7b", "13b", "34b", "70b", "mini", "large", "embed", "vision", "code"][:row["models"]])],
                "config": {"base_url": row["base_url"], "model_prefixes": [f"{name}/"], "description": f"Made-up provider <b>{name}</b>", "region": "eu", "retries": {"max": 3, "backoff_ms": [100, 250, 500]}},
                "key_preview": None if row["key"] in ("none", "missing") else "fake190...o8ub", "key_fingerprint": None if row["key"] in ("none", "missing") else hashlib.sha256(name.encode()).hexdigest()[:16],
                "history": {"day": day, "month": history(30, 86400)} if day else None,
                "recent_checks": [] if row["health"] == "unknown" else [
                    {"at": stamp(12 + 30 * back), "outcome": "hard" if row["health"] == "unhealthy" and back < 9 else "slow" if row["health"] == "degraded" and back % 3 == 0 else "ok",
                     "took_ms": 10_000 if row["health"] == "unhealthy" and back < 9 else round(row["_middle"] * (.8 + .5 * rng.random())),
                     "reason": row["health_reason"] if row["health"] == "unhealthy" and back < 9 else None} for back in range(60)],
                "usage": None if row["type"] == "vllm" else {"calls": 18234, "failures": 41, "prompt_tokens": 9_312_004, "completion_tokens": 2_120_441, "cost_usd": 812.4472}}


LEVELS = ["balanced", "eco", "precision", ""]
CONSUMERS = ["web-app", "batch", "support-bot"]
USERS = ["ada", "ben", "cleo", "dora", ""]
STEPS = {"hour": (3600, "%Y-%m-%dT%H:00Z"), "day": (86400, "%Y-%m-%d"), "week": (604800, "%Y-%m-%d"), "month": (2592000, "%Y-%m")}


def usage(world, query):
    """Sums as the server has them: the same numbers for the same stretch and name, whatever is asked."""
    keys = [word for word in query.get("by", "provider").split(",") if word]
    amount, unit = re.fullmatch(r"(\d+)([hd])", query.get("since", "30d")).groups()
    since = time.time() - int(amount) * {"h": 3600, "d": 86400}[unit]
    step = next((key for key in keys if key in STEPS), None)
    width = STEPS[step][0] if step else 3600
    offset = 4 * 86400 if step == "week" else 0
    names = {"provider": list(world.providers)[:9], "consumer": CONSUMERS, "user": USERS, "level": LEVELS, "hour": [""], "day": [""], "week": [""], "month": [""]}
    names["model"] = [f"{name}/{name.split('-')[0]}-7b" for name in names["provider"]]
    if not world.providers:
        return keys, []
    sums = {}
    begin = (since - offset) // width * width + offset
    other = [key for key in keys if key not in STEPS]
    while begin < time.time():
        for at, name in enumerate(names[other[0]] if other else [""]):
            rng = random.Random(f"{begin}{other}{name}")
            hours = min(width, time.time() - begin + 60) / 3600
            requests = int(hours * (90 / (at + 1)) * (.6 + .8 * rng.random())) + 1
            errors = int(requests * rng.choice([0, 0, .004, .02]))
            label = datetime.datetime.fromtimestamp(begin, datetime.timezone.utc).strftime(STEPS[step][1]) if step else None
            item = sums.setdefault((label, name), {"requests": 0, "errors": 0, "fallbacks": 0, "input_tokens": 0, "output_tokens": 0, "cost": 0.0})
            for field, value in (("requests", requests), ("errors", errors), ("fallbacks", errors * 2), ("input_tokens", requests * 812), ("output_tokens", requests * 240), ("cost", requests * .0021 * (at + 1))):
                item[field] += value
        begin += width
    items = []
    for (label, name), item in sums.items():
        cost = item.pop("cost")
        slow = 1 + len(name) % 4
        items.append({**({step: label} if step else {}), **({other[0]: name} if other else {}), **item, "cached_tokens": item["input_tokens"] // 5, "cache_write_tokens": 0, "reasoning_tokens": 0,
                      "cost_usd": f"{cost:.10f}".rstrip("0").rstrip("."), "unpriced": item["requests"] if name == "vllm-rack4" else 0, "latency_avg_ms": 700 * slow, "latency_p50_ms": 640 * slow, "latency_p95_ms": 2100 * slow,
                      "ttft_p50_ms": 210 * slow, "ttft_p95_ms": 700 * slow})
    items.sort(key=lambda item: -float(item["cost_usd"]))
    return keys, items


def budgets(world):
    if not world.providers:
        return {"budgets": [], "limits": []}
    line = lambda consumer, user, per, limit, used, held: {
        "consumer": consumer, "tier": "free" if user else None, "user": user, "per": per, "limit_usd": str(limit), "used_usd": str(used), "held_usd": str(held),
        "left_usd": str(round(max(limit - used - held, 0), 4)), "used_percent": int(100 * used / limit), "window_start": stamp(40000), "window_end": stamp(-40000)}
    return {"budgets": [line("batch", None, "day", 20, 20.004, 0), line("web-app", "ada", "day", .5, .43, .02), line("web-app", None, "month", 500, 211.5, 5)],
            "limits": [{"consumer": "web-app", "tier": None, "requests_per_minute": 600, "tokens_per_minute": 400000, "concurrency": 50},
                       {"consumer": None, "tier": "free", "requests_per_minute": 20, "tokens_per_minute": None, "concurrency": None}]}


def explain(world, asked):
    """As the gateway decides, but for the finer points: the cell and the wider ones, health and keys."""
    level, tier, task = asked.get("power_level") or "balanced", asked.get("user_tier") or "all", asked.get("task_type")
    model = asked.get("model")
    if asked.get("consumer") and asked["consumer"] not in CONSUMERS:
        return 422, {"error": {"code": "invalid", "message": f"there is no consumer `{asked['consumer']}`\nhint: `providerd plan` lists what manifests declare"}}
    found, cells, skipped = [], [], []
    if model and "/" in model:
        provider, name = model.split("/", 1)
        rows = [{"provider": provider, "model": name, "priority": 0, "weight": 100, "enabled": True}] if provider in world.providers else []
        route = "pin"
    else:
        rows, route = [], "cell"
        for at_tier, at_task in [(tier, task), (tier, None), ("all", task), ("all", None)]:
            if any((cell["user_tier"], cell["task_type"]) == (at_tier, at_task) for cell in cells):
                continue
            cell = next((cell for cell in world.cells if (cell["power_level"], cell["user_tier"], cell["task_type"]) == (level, at_tier, at_task)), None)
            rows = cell["models"] if cell else []
            usable = any(row["enabled"] and world.providers[row["provider"]]["key"] not in ("failed", "missing") for row in rows)
            cells.append({"power_level": level, "user_tier": at_tier, "task_type": at_task, "models": len(rows), "usable": usable, "origin": "routes.toml:14" if rows else None})
            if usable:
                break
    for row in rows:
        provider = world.providers[row["provider"]]
        common = {"provider": row["provider"], "model": row["model"], "origin": "routes.toml:14"}
        if not row["enabled"]:
            skipped.append({**common, "reason": "disabled", "note": "the rule is disabled", "wait_ms": None})
        elif provider["key"] in ("failed", "missing"):
            skipped.append({**common, "reason": "key_failed", "note": provider["key_reason"], "wait_ms": None})
        elif asked.get("privacy_required") and provider["type"] != "vllm":
            skipped.append({**common, "reason": "not_local", "note": None, "wait_ms": None})
        else:
            found.append({**common, "upstream_model": row["model"], "priority": row["priority"], "weight": row["weight"], "health": provider["health"],
                          "native": provider["type"] != "anthropic", "context_length": 32768})
    rank = ["healthy", "unknown", "degraded", "unhealthy"]
    found.sort(key=lambda row: (-row["priority"], rank.index(row["health"])))
    error = None if found else {"status": 503, "code": "no_upstream", "message": f"no model serves {level} × {tier}"}
    return 200, {"revision": "abc", "asked": model, "route": route, "targets": [model or level], "power_level": level, "user_tier": tier, "task_type": task,
                 "privacy_required": bool(asked.get("privacy_required")), "seed": "0000000000000000", "cells": cells, "candidates": found, "skipped": skipped, "error": error}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world = None
    token = "t"

    def log_message(self, *arguments):
        pass

    def answer(self, status, body, kind="application/json", headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        tag = '"' + hashlib.sha256(data).hexdigest()[:20] + '"'
        if status == 200 and self.command == "GET" and self.headers.get("If-None-Match") == tag:
            status, data = 304, b""
        self.send_response(status)
        self.send_header("ETag", tag)
        if status != 304:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status, code, message, headers=()):
        self.answer(status, {"error": {"code": code, "message": message}}, headers=headers)

    def body(self):
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[-1] for key, values in urllib.parse.parse_qs(url.query).items()}
        if url.path == "/" or url.path.startswith("/assets/"):
            return self.asset("index.html" if url.path == "/" else url.path.removeprefix("/assets/"))
        if url.path == "/_fake/calls":
            return self.answer(200, self.world.calls)
        if not self.allowed(url):
            return None
        part = url.path.removeprefix("/api/v1/")
        world = self.world
        if part == "events" and "text/event-stream" in (self.headers.get("Accept") or ""):
            return self.follow()
        with world.lock:
            if part == "status":
                return self.answer(200, world.status())
            if part == "providers":
                rows = [world.public(row) for row in world.providers.values()]
                return self.page(rows, query)
            if part.startswith("providers/"):
                name = urllib.parse.unquote(part.removeprefix("providers/"))
                if name not in world.providers:
                    return self.error(404, "not-found", f"there is no provider {name}")
                return self.answer(200, world.detail(name))
            if part == "models":
                rows = [{**model, "provider": name, "id": f"{name}-{at}"} for name in list(world.providers)[:400] for at, model in enumerate(world.detail(name)["models"])]
                return self.page(rows, query)
            if part == "usage":
                keys, items = usage(world, query)
                if query.get("format") == "csv":
                    return self.answer(200, ("\n".join([",".join([*keys, "requests", "cost_usd"])] + [",".join(str(item[key]) for key in [*keys, "requests", "cost_usd"]) for item in items]) + "\n").encode(), "text/csv; charset=utf-8")
                return self.answer(200, {"since": stamp(0), "until": None, "by": keys, "items": items})
            if part == "budgets":
                return self.answer(200, budgets(world))
            if part == "routes":
                return self.answer(200, {"cells": world.cells})
            if part == "events":
                rows = [item for item in reversed(world.events)
                        if query.get("provider") in (None, item["provider"]) and query.get("kind") in (None, item["kind"])]
                return self.page(rows, query)
        return self.error(404, "not-found", "there is nothing at this path")

    def page(self, rows, query):
        limit, start = min(int(query.get("limit", 100)), 500), int(query.get("cursor", 0))
        more = start + limit < len(rows)
        self.answer(200, {"items": rows[start:start + limit], "next": str(start + limit) if more else None, "total": len(rows)})

    def allowed(self, url):
        self.world.calls.append(f"{self.command} {url.path}")
        if self.world.fail:
            self.error(self.world.fail, "unavailable", "made up")
            return False
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            self.error(401, "unauthorized", "the token is missing or not known")
            return False
        return True

    def follow(self):
        stream = queue.Queue()
        with self.world.lock:
            self.world.streams.append(stream)
            after = int(self.headers.get("Last-Event-ID", len(self.world.events)))
            for item in self.world.events:
                if item["id"] > after:
                    stream.put(item)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.wfile.write(b": hello\n\n")
            self.wfile.flush()
            while True:
                try:
                    item = stream.get(timeout=15)
                except queue.Empty:
                    self.wfile.write(b": still here\n\n")
                else:
                    if item is None:
                        break
                    self.wfile.write(f"id: {item['id']}\ndata: {json.dumps(item)}\n\n".encode())
                self.wfile.flush()
        except OSError:
            pass
        finally:
            self.close_connection = True
            with self.world.lock:
                self.world.streams.remove(stream)

    def do_POST(self):
        url = urllib.parse.urlsplit(self.path)
        world = self.world
        body = self.body()
        if url.path == "/_fake/fail":
            world.fail = body["status"]
            return self.answer(200, {})
        if url.path == "/_fake/cut":
            for stream in list(world.streams):
                stream.put(None)
            return self.answer(200, {})
        if url.path == "/_fake/tested":
            world.tests = [time.monotonic()] * 10
            return self.answer(200, {})
        if url.path == "/_fake/storm":
            with world.lock:
                for number, row in enumerate(list(world.providers.values())[:body["events"]]):
                    row["health"] = "unhealthy"
                    world.event("health", row["name"], f"HTTP 503, number {number}", {"from": "healthy", "to": "unhealthy"})
            return self.answer(200, {})
        if url.path == "/_fake/set":
            world.flags.update(body)
            return self.answer(200, {})
        if url.path == "/_fake/event":
            with world.lock:
                if body.get("set") and body["provider"] in world.providers:
                    world.providers[body["provider"]].update(body["set"])
                return self.answer(200, world.event(body["kind"], body.get("provider"), body.get("reason", ""), body.get("detail", {}), body.get("actor")))
        if not self.allowed(url):
            return None
        part = url.path.removeprefix("/api/v1/")
        with world.lock:
            if part == "sync":
                world.event("admin", None, "sync through the API", {"call": "sync"}, "5e884898")
                return self.answer(202, {"triggered": True})
            if part == "routes/explain":
                return self.answer(*explain(world, body))
            if part.startswith("providers/") and part.endswith("/check"):
                row = world.providers.get(urllib.parse.unquote(part.split("/")[1]))
                if row is None:
                    return self.error(404, "not-found", "no provider has this name")
                row["last_check"] = stamp(0)
                world.event("admin", row["name"], "check through the API", {"call": "check"}, "5e884898")
                return self.answer(202, {"triggered": not row["checks_paused"]})
            if part in ("suspend", "resume"):
                suspended = part == "suspend"
                if body.get("checks"):
                    world.providers[body["provider"]]["checks_paused"] = suspended
                elif body.get("provider"):
                    world.providers[body["provider"]]["state"] = "suspended" if suspended else "synced"
                else:
                    world.flags["suspended"] = suspended
                world.event(part, body.get("provider"), body.get("reason") or "", {}, "5e884898")
                return self.answer(200, {"suspended": suspended})
            if part == "llm/providers/keys/test":
                world.tests = [at for at in world.tests if at > time.monotonic() - 60]
                if len(world.tests) >= 10:
                    return self.error(429, "too-many", "at most 10 key tests a minute", [("Retry-After", "37")])
                world.tests.append(time.monotonic())
                row = world.providers.get(body.get("provider_type"))
                if row is None:
                    return self.error(404, "not-found", "no such provider or type")
                time.sleep(.3)
                if row["key"] in ("failed", "missing", "none"):
                    return self.answer(200, {"success": False, "latency_ms": 211, "models_found": None, "error": row["key_reason"] or "no key is stored"})
                row["key"], row["key_last_tested"] = "valid", stamp(0)
                return self.answer(200, {"success": True, "latency_ms": 450, "models_found": 15, "error": None})
        return self.error(404, "not-found", "there is nothing at this path")

    def asset(self, name):
        path = ASSETS / name
        if "/" in name or not path.is_file():
            return self.error(404, "not-found", "there is nothing at this path")
        self.answer(200, path.read_bytes(), KINDS.get(path.suffix, "application/octet-stream"), [
            ("Content-Security-Policy", csp()), ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-cache")])


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--providers", type=int, default=12)
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--token", default="t")
    chosen = options.parse_args()
    Handler.world, Handler.token = World(chosen.providers), chosen.token
    server = ThreadingHTTPServer(("127.0.0.1", chosen.port), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    # Whoever started it holds the other end: it ends with them.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if chosen.port:
        threading.Event().wait()
    sys.stdin.read()


if __name__ == "__main__":
    main()
