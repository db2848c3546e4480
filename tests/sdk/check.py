"""The official clients of OpenAI and Anthropic against a running gateway, each asking providers of every protocol for the
same things: `check.py URL KEY --log FILE --rows COMMAND [--matrix FILE [--write]]`.

Each cell of the matrix is one feature, one caller, one provider: the text, the calls, the reason of the end and the
tokens that the client reads must be those that the provider sent, and so must be the tokens and the cost in the database.
FILE has the matrix between two marks; what differs from it is an error, or is written there with `--write`. COMMAND
prints the rows of the database as lines of JSON; the log is the daemon's, for the hints that a translation dropped."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import brain
from callers import Chat, Messages, Refusal, Responses, Wish, refusal
from upstreams import BREAKS, LIMITED, PRICE_CACHED, PRICE_INPUT, PRICE_OUTPUT, UPSTREAMS

BEGIN = "<!-- made by scripts/sdk-check -->"
END = "<!-- end -->"

arguments = argparse.ArgumentParser()
arguments.add_argument("url")
arguments.add_argument("key")
arguments.add_argument("--log", type=Path, required=True)
arguments.add_argument("--rows", required=True)
arguments.add_argument("--matrix", type=Path)
arguments.add_argument("--write", action="store_true")
options = arguments.parse_args()
callers = [caller(options.url, options.key) for caller in (Chat, Responses, Messages)]
chat, _, messages = (caller.client for caller in callers)
failures = []


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


# The matrix.

WISHES = {
    "plain": Wish(),
    "stream": Wish(stream=True),
    "calls in parallel": Wish(tools=True),
    "calls in parallel, stream": Wish(tools=True, stream=True),
    "image, bytes": Wish(image="bytes"),
    "image, address": Wish(image="address"),
    "JSON by schema": Wish(schema=True),
    "JSON by schema, stream": Wish(schema=True, stream=True),
    "reasoning": Wish(reason=True),
    "reasoning, stream": Wish(reason=True, stream=True),
    "reasoning with calls": Wish(reason=True, tools=True),
    "reasoning with calls, stream": Wish(reason=True, tools=True, stream=True),
}
# These are followed by a second turn with the results of the calls.
RESULTS = {
    "calls in parallel": "results",
    "calls in parallel, stream": "results, stream",
    "reasoning with calls": "results after reasoning",
    "reasoning with calls, stream": "results after reasoning, stream",
}
FEATURES = [feature for wish in WISHES for feature in (wish, RESULTS.get(wish)) if feature] + ["limit of requests", "broken stream"]


def expected(upstream, wish, reasons):
    """Text, reasoning, calls and finish that the provider sent."""
    image = (("image/png", PICTURE) if wish.image == "bytes" else ("url", ADDRESS)) if wish.image else None
    thought = brain.THOUGHT if reasons and upstream.thinks else ""
    if wish.after:
        proven = "proven" if upstream.proves == "calls" or reasons and upstream.proves else "unproven"
        text = f"Bern has {brain.CITIES['Bern']}, Rome has {brain.CITIES['Rome']} ({proven})."
    elif wish.tools:
        text = "I will look."
    elif image:
        text = brain.seen([image])
    else:
        text = brain.FORMED if wish.schema else brain.HELLO
    calls = [("weather", {"city": city}) for city in brain.CITIES] if wish.tools and not wish.after else []
    return text, thought, calls, "tool_calls" if calls else "stop"


def picture():
    import base64

    from callers import ADDRESS, IMAGE

    return base64.b64decode(IMAGE), ADDRESS.encode()


PICTURE, ADDRESS = picture()


class Cell:
    """One question and what came of it."""

    def __init__(self, caller, upstream, feature, wish, model):
        self.caller, self.feature, self.wish, self.model = caller, feature, wish, model
        self.upstream = upstream.asked_by(caller.name, wish)
        self.id = f"{caller.name}.{upstream.column}.{feature}".replace(" ", "-").replace(",", "")
        self.said, self.error = None, None

    def ask(self):
        try:
            self.said = self.caller.ask(self.model, self.wish, self.id)
        except Exception as error:  # What it means is judged when the matrix is made.
            self.error = refusal(error) if isinstance(error, self.caller.errors.BadRequestError) else error
        return self

    def word(self, rows, dropped):
        """The cell as it stands in the matrix; an assertion fails where it is not what it must be."""
        if isinstance(self.error, Refusal):
            assert self.id not in rows, "a refused request has a row"
            return f"`{self.error}` refused"
        if self.feature == "limit of requests":
            assert isinstance(self.error, self.caller.errors.RateLimitError), f"no RateLimitError: {self.error!r}"
            return "the client's error"
        if self.feature == "broken stream":
            # The client's own error, and no answer that looks whole.
            kinds = (self.caller.errors.APIError, RuntimeError)
            assert isinstance(self.error, kinds) and self.said is None, f"no error: {self.error!r} {self.said!r}"
            assert rows[self.id]["success"] is False, rows[self.id]
            return "the client's error"
        if self.wish.image == "address" and "invalid image input" in str(self.error):
            # Nothing is translated where both sides speak the same: the provider's own refusal.
            assert isinstance(self.error, self.caller.errors.BadRequestError), f"no BadRequestError: {self.error!r}"
            return "refused by the provider"
        if self.error:
            raise self.error
        hints = dropped.get(self.id, [])
        reasons = self.wish.reason and not any("reasoning" in hint or "thinking" in hint for hint in hints)
        said = self.said
        equal((said.text, said.thought, said.calls, said.finish), expected(self.upstream, self.wish, reasons))
        cached = brain.CACHED if self.upstream.caches else 0
        reasoning = brain.REASONING if reasons and self.upstream.counts else 0
        equal((said.input, said.cached, said.output, said.reasoning), (brain.INPUT, cached, brain.OUTPUT, reasoning))
        row = rows[self.id]
        found = (row["prompt_tokens"], row["cached"], row["completion_tokens"], row["reasoning"])
        equal(found, (brain.INPUT, cached, brain.OUTPUT, reasoning))
        cost = ((brain.INPUT - cached) * PRICE_INPUT + cached * PRICE_CACHED + brain.OUTPUT * PRICE_OUTPUT) / 1e6
        equal(round(float(row["cost"]), 10), round(cost, 10))
        words = ["same"]
        if reasons and not self.upstream.thinks:
            words.append("without its text")
        return ", ".join(words + [f"`{hint}` dropped" for hint in hints])


def matrix():
    """Asks everything; the cells by caller, feature and column."""
    cells = []
    for caller in callers:
        for upstream in UPSTREAMS:
            for feature, wish in WISHES.items():
                model = upstream.named() if not (wish.image and upstream.sees) else f"{upstream.provider}/{upstream.sees}"
                first = Cell(caller, upstream, feature, wish, model).ask()
                cells.append(first)
                if feature in RESULTS:
                    after = Wish(**{**vars(wish), "after": first.said})
                    second = Cell(caller, upstream, RESULTS[feature], after, model)
                    if first.said is None:
                        second.error = first.error
                    else:
                        second.ask()
                    cells.append(second)
                # Between other answers, so that the provider is not left alone for its failures.
                if feature == "stream":
                    cells.append(Cell(caller, upstream, "broken stream", wish, upstream.named(BREAKS)).ask())
                    cells.append(Cell(caller, upstream, "limit of requests", WISHES["plain"], upstream.named(f"{LIMITED}-{caller.name}")).ask())
    return cells


def rows_of(cells):
    """The rows of the database by request id, once all are there."""
    wanted = {cell.id for cell in cells if cell.said}
    for _ in range(100):
        output = subprocess.run(options.rows, shell=True, check=True, capture_output=True, text=True).stdout
        rows = {row["request_id"]: row for row in map(json.loads, output.splitlines())}
        if wanted <= rows.keys():
            break
        time.sleep(0.1)
    return rows


def dropped_hints():
    """What translations dropped, by request id."""
    hints = {}
    for line in options.log.read_text().splitlines():
        if '"dropped"' in line:
            fields = json.loads(line)
            fields = fields.get("fields", fields)
            if fields.get("dropped"):
                hints[fields["request_id"]] = json.loads(fields["dropped"])
    return hints


def tables(words):
    lines = []
    for caller in callers:
        columns = [upstream.column for upstream in UPSTREAMS]
        lines += [f"### {type(caller).__name__}, by its official client", "", f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        for feature in FEATURES:
            lines.append(f"| {feature} | {' | '.join(words[caller.name, feature, column] for column in columns)} |")
        lines.append("")
    return "\n".join(lines)


def check_matrix():
    cells = matrix()
    rows, dropped, words = rows_of(cells), dropped_hints(), {}
    for cell in cells:
        try:
            word = cell.word(rows, dropped)
        except Exception as error:
            word = "FAILED"
            failures.append(cell.id)
            print(f"FAILED  {cell.id}: {type(error).__name__}: {error}")
        words[cell.caller.name, cell.feature, cell.upstream.column] = word
    print(f"{len(cells)} cells")
    if not options.matrix:
        return
    text, made = options.matrix.read_text(), tables(words)
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    if old.strip() == made.strip():
        return
    if options.write and not failures:
        options.matrix.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}")
        print(f"{options.matrix}: written")
        return
    known = set(old.splitlines())
    for line in made.splitlines():
        if line not in known:
            print(f"        {line}")
    failures.append(f"{options.matrix} has another matrix; scripts/sdk-check --write writes it")


# What has no place in the matrix.


def case(name, work):
    try:
        work()
        print(f"ok      {name}")
    except Exception as error:  # Every failure is shown, not only the first.
        failures.append(name)
        print(f"FAILED  {name}: {type(error).__name__}: {error}")


BRIEF = {"role": "system", "content": brain.SYSTEM}
HELLO = {"role": "user", "content": "Say hello."}


def by_level():
    answer = chat.chat.completions.create(model="eco", messages=[BRIEF, HELLO])
    equal(answer.choices[0].message.content, brain.HELLO)


def withheld_usage():
    for model in ("compatible/a-model", "anthropic/claude-sonnet-4-5"):
        chunks = list(chat.chat.completions.create(model=model, messages=[BRIEF, HELLO], stream=True))
        equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), brain.HELLO)
        assert all(chunk.choices and chunk.usage is None for chunk in chunks), "usage that was not asked for is withheld"


def embeddings():
    answer = chat.embeddings.create(model="compatible/a-model", input="Hello", encoding_format="float")
    equal(answer.data[0].embedding, [0.25, -0.5])


def models():
    names = {model.id for model in chat.models.list()}
    assert {"compatible/a-model", "anthropic/claude-sonnet-4-5", "eco"} <= names, names
    names = {model.id for model in messages.models.list()}
    assert "compatible/a-model" in names, names


def refused(kind, work):
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def errors():
    from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

    ask = lambda model, text: chat.chat.completions.create(model=model, messages=[BRIEF, {"role": "user", "content": text}])
    equal(refused(NotFoundError, lambda: ask("compatible/none", "Say hello.")).code, "model_not_found")
    # A provider's own refusal reaches the caller, whatever protocol it came in.
    for upstream in UPSTREAMS:
        error = refused(BadRequestError, lambda: ask(upstream.named(), "Say nothing."))
        assert "the text is 'Say nothing.'" in str(error), error
    stranger = OpenAI(base_url=f"{options.url}/v1", api_key="pd_fake-unknown", max_retries=0)
    refused(AuthenticationError, lambda: stranger.models.list())


def message_errors():
    from anthropic import BadRequestError, NotFoundError

    ask = lambda model, text: messages.messages.create(
        model=model, max_tokens=9, system=brain.SYSTEM, messages=[{"role": "user", "content": text}])
    refused(NotFoundError, lambda: ask("anthropic/none", "Say hello."))
    for upstream in UPSTREAMS:
        error = refused(BadRequestError, lambda: ask(upstream.named(), "Say nothing."))
        assert "the text is 'Say nothing.'" in str(error), error


def counts():
    for upstream in UPSTREAMS:
        if upstream.column != "anthropic":
            answer = messages.messages.count_tokens(model=upstream.named(), messages=[HELLO], system="x" * 4000)
            assert answer.input_tokens > 1000, answer


begin = time.monotonic()
check_matrix()
case("OpenAI: by power level", by_level)
case("OpenAI: usage only where it is asked for", withheld_usage)
case("OpenAI: embeddings", embeddings)
case("both: lists of models", models)
case("OpenAI: errors", errors)
case("Anthropic: errors", message_errors)
case("Anthropic: counting tokens", counts)
print(f"{len(failures)} failed, {time.monotonic() - begin:.1f} s")
sys.exit(bool(failures))
