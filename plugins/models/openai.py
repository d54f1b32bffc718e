# SPDX-License-Identifier: Apache-2.0
"""A model behind an OpenAI-compatible server: vLLM, llama.cpp, TGI, or a hosted one.

The server is a party of its own for the membrane: the site's policy must list it under ``remote``, and the runtime asks the
policy and writes the transcript before any prompt leaves. The key comes from the environment variable that ``key_variable``
names; it is in no file, log, error or fingerprint. Proxies of the environment (HTTP_PROXY and the like) and ``.netrc`` are not
used, and redirects are not followed: prompts go to the address that the policy lists and nowhere else.

Log-probabilities of given texts (`Scorer`) are not offered: few servers can echo a prompt with its scores, and none says so.
"""

import os
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from osmotic.plugins.contract import Answer, Config, Generation, ModelPlugin
from osmotic.plugins.models.openai_pace import Pace
from osmotic.schemas.addresses import Address
from osmotic.schemas.errors import ComponentError, ConfigError, OsmoticError, Problem
from osmotic.schemas.messages import fingerprint

INSTALL = "pip install 'osmotic[openai]'"


class Price(Config):
    """What a million tokens cost, in any currency; 0 where nothing is paid."""

    prompt: float = Field(0.0, ge=0, strict=False, allow_inf_nan=False)
    completion: float = Field(0.0, ge=0, strict=False, allow_inf_nan=False)


class OpenAiConfig(Config):
    """Where the server is, which of its models answers, and how patiently it is asked."""

    url: str = Field(description="Base address, e.g. http://127.0.0.1:8000/v1; '/chat/completions' is put behind it.")
    model: str = Field(min_length=1, description="The model's name at the server.")
    api: Literal["chat", "completions"] = "chat"
    key_variable: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="NAME of the environment variable with the key, never the key."
    )
    system: str | None = Field(None, description="chat: the system message before every prompt.")
    concurrency: int = Field(8, ge=1, le=1024, description="Most requests at a time; fewer while the server is overloaded.")
    timeout: float = Field(120.0, gt=0, strict=False, allow_inf_nan=False, description="Seconds for one request.")
    attempts: int = Field(6, ge=1, le=20, description="How often a request is sent at most.")
    length_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="How the server calls the length limit; newer hosted models want the longer name."
    )
    price: Price = Field(default_factory=Price, description="Per million tokens: {prompt: 0.5, completion: 1.5}.")

    @field_validator("url")
    @classmethod
    def _strict_url(cls, value: str) -> str:
        return str(Address.parse(value))


class OpenAiModel(ModelPlugin[OpenAiConfig]):
    """Text from an OpenAI-compatible server."""

    name = "openai"
    provides: ClassVar[frozenset[str]] = frozenset({"text_generator"})

    def fingerprint(self) -> str:
        """SHA-256 of address, model's name, api and system message; not of key, prices or patience.

        What the server has behind that name can change unseen: pin a dated name where there is one.
        """
        config = self.config
        return fingerprint(["openai", config.url, config.model, config.api, config.system, config.length_key])

    def endpoint(self) -> str:
        """The server's base address."""
        return self.config.url

    def memory(self, training: bool) -> int:
        """None of this machine's, to speak of."""
        return 0

    def build(self) -> "Remote":
        """The client; connects to nothing yet. Raises ConfigError when httpx2 or the key is missing."""
        check_client()
        key_of(self.config.key_variable)
        return Remote(self.config)


class Remote:
    """Asks a server. `stream` gives answers as they come; `generate` all of them, in order."""

    def __init__(self, config: OpenAiConfig) -> None:
        self.config = config
        self.pace = Pace(config.concurrency)
        self.schemas = True  # until the server refused a response format and took the same prompt without it

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt, in order. Raises ComponentError when a prompt has none."""
        found = dict(self.stream(prompts, how))
        failed = [answer.problem for answer in found.values() if answer.problem]
        if failed:
            reasons = ", ".join(f"{failed.count(word)} {word}" for word in sorted(set(failed)))
            raise ComponentError(Problem(f"{len(failed)} of {len(prompts)} prompts have no answer", why=reasons))
        return [found[i] for i in range(len(prompts))]

    def stream(self, prompts: Sequence[str], how: Generation) -> Iterator[tuple[int, Answer]]:
        """(index, answer) as they come, each once; `Answer.problem` says why there is none.

        Raises ConfigError when the server refuses the key, the path or the model: then nothing more is asked. A stream that is
        closed early takes back what is under way.
        """
        with closing(self.batches(prompts, how)) as batches:
            for batch in batches:
                yield from batch

    def batches(self, prompts: Sequence[str], how: Generation) -> Generator[list[tuple[int, Answer]], None, None]:
        """The same, those together that came at the same moment. Who asks for more has kept what was given."""
        from osmotic.plugins.models.openai_client import THREAD, Batch, Call

        call = Call(self, key_of(self.config.key_variable), list(prompts), how)
        came: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        thread = threading.Thread(target=call.run, args=(came.put,), name=THREAD, daemon=True)
        thread.start()
        try:
            while (item := came.get()) is not None:
                if isinstance(item, OsmoticError):
                    raise item
                if isinstance(item, BaseException):
                    what = f"the client of {self.config.url} failed"
                    raise ComponentError(Problem(what, why=type(item).__name__)) from None
                yield item
                call.taken(len(item))
        finally:
            call.cancel()
            thread.join()


def check_client() -> None:
    """Raise ConfigError when h11 or httpx2 cannot be imported."""
    try:
        import h11  # noqa: F401
        import httpx2  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            Problem("the model 'openai' needs the packages h11 and httpx2", why=str(error), fix=INSTALL)
        ) from error


def key_of(variable: str | None) -> str:
    """The key in an environment variable; '' without one. Raises ConfigError, which never holds the value."""
    if variable is None:
        return ""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(
            Problem(f"the environment variable {variable} is not set", path="key_variable", fix=f"export {variable}=...")
        )
    if not all("!" <= letter <= "~" for letter in value):
        what = f"the environment variable {variable} holds no key"
        raise ConfigError(Problem(what, path="key_variable", why="a key has no spaces and no letters beyond ASCII"))
    return value


def body_of(config: OpenAiConfig, prompt: str, how: Generation, schema: bool) -> dict[str, Any]:
    """What is sent for a prompt. schema: ask for JSON of `how.json_schema`."""
    body: dict[str, Any] = {
        "model": config.model, config.length_key: how.max_new_tokens, "temperature": how.temperature, "top_p": how.top_p,
        "seed": how.seed,
    }  # fmt: skip
    if how.top_k > 0:
        body["top_k"] = how.top_k  # a field that vLLM and llama.cpp know, and some services refuse
    if how.stop:
        body["stop"] = list(how.stop)
    if schema and how.json_schema is not None:
        shape = {"name": "answer", "schema": dict(how.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    if config.api == "completions":
        return {**body, "prompt": prompt}
    system = [] if config.system is None else [{"role": "system", "content": config.system}]
    return {**body, "messages": [*system, {"role": "user", "content": prompt}]}
