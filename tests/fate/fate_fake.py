# SPDX-License-Identifier: Apache-2.0
"""A context with FATE's rules as pyfate 2.2.0 showed them: (name, tag, party) once, builtins only, `get` waits for ever."""

import threading
from typing import Any

BUILTIN = (bytes, str, int, float, bool, type(None), list, dict, tuple)


class Post:
    """What all parties share: values on their way, and who has stopped (its values no longer go out)."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.values: dict = {}
        self.there = threading.Condition()
        self.dead: set = set()
        self.broken: set = set()
        self.most = most
        self.sizes: list = []

    def put(self, key: tuple, value: Any) -> None:
        if not isinstance(value, BUILTIN):
            raise TypeError(f"{type(value).__name__} does not survive the way")
        with self.there:
            if key[2] in self.dead:
                return
            self.sizes.append(len(value))
            self.values[key] = value
            self.there.notify_all()

    def get(self, key: tuple) -> Any:
        with self.there:
            self.there.wait_for(lambda: key in self.values or key[3] in self.broken)
            if key[3] in self.broken:
                raise OSError("the engine is gone")
            return self.values.pop(key)

    def kill(self, party: tuple) -> None:
        with self.there:
            self.dead.add(party)

    def break_at(self, party: tuple) -> None:
        with self.there:
            self.broken.add(party)
            self.there.notify_all()


class Federation:
    def __init__(self, post: Post) -> None:
        self.post, self.session_id = post, "job_1"
        self._push_history: set = set()
        self._pull_history: set = set()
        self.used: set = set()  # as FATE's two histories, but nobody may forget

    def get_default_max_message_size(self) -> int:
        return self.post.most

    def once(self, direction: str, name: str, tag: str, party: tuple) -> None:
        if (direction, name, tag, party) in self.used:
            raise ValueError(f"{direction} with a name and tag that were used: {name} {tag}")
        self.used.add((direction, name, tag, party))
        (self._push_history if direction == "push" else self._pull_history).add((name, tag, party))


class Namespace:
    def __init__(self, tag: str) -> None:
        self.federation_tag = tag


class Party:
    def __init__(self, ctx: "Context", party: tuple) -> None:
        self.ctx, self.party = ctx, party
        self.role, self.party_id = party

    def put(self, name: str, value: Any) -> None:
        tag = self.ctx.namespace.federation_tag
        self.ctx.federation.once("push", name, tag, self.party)
        self.ctx.federation.post.put((name, tag, self.ctx.me, self.party), value)

    def get(self, name: str) -> Any:
        tag = self.ctx.namespace.federation_tag
        self.ctx.federation.once("pull", name, tag, self.party)
        return self.ctx.federation.post.get((name, tag, self.party, self.ctx.me))


class Metrics:
    def __init__(self, ctx: "Context") -> None:
        self.ctx = ctx

    def log_scalar(self, name: str, scalar: float) -> None:
        self.ctx.told.append((name, scalar, self.ctx.namespace.federation_tag))

    def log_metrics(self, data: dict, name: str, type: str) -> None:
        if any(told[0] == name for told in self.ctx.told):
            raise ValueError(f"duplicated metrics: `{name}` already exists")
        self.ctx.told.append((name, data, type))


class Context:
    def __init__(
        self, federation: Federation, me: tuple, parties: list, tag: str = "default", told: list | None = None
    ) -> None:
        self.federation, self.me, self.everybody = federation, me, parties
        self.namespace = Namespace(tag)
        self.told: list = [] if told is None else told

    def _with(self, tag: str) -> "Context":
        return Context(self.federation, self.me, self.everybody, tag, self.told)

    def sub_ctx(self, name: str) -> "Context":
        return self._with(f"{self.namespace.federation_tag}.{name}")

    def indexed_ctx(self, index: int) -> "Context":
        return self._with(f"{self.namespace.federation_tag.rpartition('#')[0] or self.namespace.federation_tag}#{index}")

    @property
    def metrics(self) -> Metrics:
        return Metrics(self)

    @property
    def parties(self) -> list:
        return [Party(self, party) for party in self.everybody]

    @property
    def local(self) -> Party:
        return Party(self, self.me)


PARTIES = [("guest", "9999"), ("host", "10000"), ("arbiter", "10001")]


def contexts(post: Post | None = None, parties: list | None = None) -> dict:
    """A context for each party, by its name."""
    shared, all_of_them = post or Post(), parties or PARTIES
    return {f"{role}:{name}": Context(Federation(shared), (role, name), all_of_them) for role, name in all_of_them}
