"""The official clients of OpenAI and Anthropic against a running gateway: `check.py URL KEY`. Both clients ask providers
of both dialects, so what is not the client's own dialect goes through a translation."""

import sys

import anthropic
import openai

URL, KEY = sys.argv[1:]
chat = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
messages = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
HELLO = [{"role": "user", "content": "Hello"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
passed = failed = 0


def case(name, work):
    global passed, failed
    try:
        work()
        passed += 1
        print(f"ok      {name}")
    except Exception as error:  # Every failure is shown, not only the first.
        failed += 1
        print(f"FAILED  {name}: {type(error).__name__}: {error}")


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def plain(model):
    answer = chat.chat.completions.create(model=model, messages=HELLO)
    equal(answer.choices[0].message.content, "Hello")
    equal((answer.usage.prompt_tokens, answer.usage.completion_tokens), (12, 5))


def streaming(model):
    stream = chat.chat.completions.create(model=model, messages=HELLO, stream=True)
    chunks = list(stream)
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), "Hello")
    assert all(chunk.choices for chunk in chunks), "usage that was not asked for is withheld"


def streaming_usage():
    stream = chat.chat.completions.create(
        model="first/small", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    equal([chunk.usage.total_tokens for chunk in stream if chunk.usage], [17])


def tools(stream):
    tool = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    answer = chat.chat.completions.create(model="first/small", messages=HELLO, tools=[tool], stream=stream)
    if not stream:
        call = answer.choices[0].message.tool_calls[0].function
        equal((call.name, call.arguments), ("weather", '{"city": "Bern"}'))
        return
    parts = [part for chunk in answer for part in (chunk.choices[0].delta.tool_calls or [])]
    equal("".join(part.function.arguments or "" for part in parts), '{"city": "Bern"}')


def embeddings():
    answer = chat.embeddings.create(model="first/small", input="Hello", encoding_format="float")
    equal(answer.data[0].embedding, [0.25, -0.5])


def models():
    names = {model.id for model in chat.models.list()}
    assert {"first/small", "second/claude-small", "eco"} <= names, names


def refused(expected, work):
    try:
        work()
    except expected as error:
        return error
    raise AssertionError(f"no {expected.__name__}")


def errors():
    error = refused(openai.NotFoundError, lambda: plain("first/none"))
    equal(error.code, "model_not_found")
    error = refused(
        openai.BadRequestError,
        lambda: chat.chat.completions.create(model="first/small", messages=[{"role": "user", "content": "fail"}]),
    )
    assert "temperature" in str(error), error
    stranger = openai.OpenAI(base_url=f"{URL}/v1", api_key="pd_fake-unknown", max_retries=0)
    refused(openai.AuthenticationError, lambda: stranger.models.list())


def message(model):
    answer = messages.messages.create(model=model, max_tokens=50, messages=HELLO)
    equal(answer.content[0].text, "Hello")
    equal((answer.usage.input_tokens, answer.usage.output_tokens, answer.stop_reason), (12, 5, "end_turn"))


def message_stream(model):
    with messages.messages.stream(model=model, max_tokens=50, messages=HELLO) as stream:
        equal("".join(stream.text_stream), "Hello")
        equal(stream.get_final_message().usage.output_tokens, 5)


def message_errors():
    refused(anthropic.NotFoundError, lambda: message("second/none"))


case("OpenAI: plain", lambda: plain("first/small"))
case("OpenAI: by power level", lambda: plain("eco"))
case("OpenAI: streaming", lambda: streaming("first/small"))
case("OpenAI: streaming with usage", streaming_usage)
case("OpenAI: a tool call", lambda: tools(False))
case("OpenAI: a streamed tool call", lambda: tools(True))
case("OpenAI: embeddings", embeddings)
case("OpenAI: models", models)
case("OpenAI: errors", errors)
case("OpenAI: plain, from Anthropic's dialect", lambda: plain("second/claude-small"))
case("OpenAI: streaming, from Anthropic's dialect", lambda: streaming("second/claude-small"))
case("Anthropic: plain", lambda: message("second/claude-small"))
case("Anthropic: streaming", lambda: message_stream("second/claude-small"))
case("Anthropic: errors", message_errors)
case("Anthropic: plain, from OpenAI's dialect", lambda: message("first/small"))
case("Anthropic: streaming, from OpenAI's dialect", lambda: message_stream("first/small"))
print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
