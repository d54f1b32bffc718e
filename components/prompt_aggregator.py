# SPDX-License-Identifier: Apache-2.0
"""One prompt from the prompts of several clients, token by token (FedDTPT, arXiv 2411.00985, the server's step).

Similar tokens of different clients are put into clusters, and the one that is most similar to the other clients' tokens speaks
for its cluster; `components.prompting.clusters` says where the paper's numbers had to be mended, `merging` how the new prompt
is ordered. Frozen tokens (slots, label words) must be the same at all clients, are never compared, and stand in the new prompt
in their order. One client's prompt, or that of all, is returned as it is; the previous one stays where no token is kept, and
with `guard` unless the new one is at least as good on public records, as the black box answers them: the call is a crossing
like any other.

By the paper's rule a word that one client alone has put in hardly ever stays, for what stood there is at all others; see
`prefer`, and `merging` for why. No rule here is made against a client that lies: it cannot make a cluster by itself, nor a
prompt longer than the usual one, but with a word like others' it may speak for them, and with `prefer: changed` it can put
words wherever no other client changed one. `guard` is what there is against it.

Guarantee: none, and none is voided. An upload is numbers of public words, and still follows its client's private classes: it
crosses under a waiver, or not at all. What comes out has the labels of everything that came in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from pydantic import Field

from osmotic.components.prompting.clusters import NOISE, need_sklearn, same
from osmotic.components.prompting.judging import Judge, Labels, Verbalizer, label_problems, words_of
from osmotic.components.prompting.merging import (
    STILL,
    Clustering,
    Group,
    Merged,
    NoisePolicy,
    Prefer,
    Rules,
    Spot,
    merged,
    spots_of,
)
from osmotic.components.prompting.prompts import FROZEN, Prompt, Token
from osmotic.components.prompting.words import Words, decoded
from osmotic.components.vectors import vectors
from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Gathered,
    Generation,
    ModelName,
    Out,
    Outputs,
    Records,
)
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema, numbered
from osmotic.schemas.source import did_you_mean

LONGEST = 4096  # tokens of an upload
WORD = 4  # bytes of an id
ALIKE = 2  # words that may well have one vector
AUDIT = ("id", "client", "position", "token", "cluster", "weight", "kept", "place")
CHANGES = ("id", "place", "written", "before", "after", "frozen", "cluster", "weight", "client")


class PromptAggregatorConfig(Config):
    """What the ids of the uploads mean, how tokens are compared, and which of them are kept."""

    prompt: str | None = Field(None, description="The hand-written prompt, for the round in which no prompt comes in.")
    labels: Labels = Field(default=(), description="Their words are frozen in `prompt`; the guard reads answers by them.")
    masked: ModelName = Field(description="The masked model whose vocabulary the uploads are numbers of.")
    embedder: ModelName = Field(description="An embedder: tokens are compared by it; its input embeddings with layer: 0.")
    clustering: Clustering = Field("dbscan", description="none: every different word is a cluster of its own.")
    min_samples: int = Field(2, ge=1, description="dbscan: tokens within eps, itself counted, that make a cluster.")
    reach: float | None = Field(
        0.5,
        gt=0,
        strict=False,
        allow_inf_nan=False,
        description="dbscan: eps is at most this share of the median distance between words. null: the knee alone decides, "
        "which puts words together that have nothing to do with each other where there are no clusters.",
    )
    clusters: int | None = Field(None, ge=1, description="kmeans: how many. Default: as many as there are places.")
    noise: NoisePolicy = Field("keep_top_m", description="What becomes of words without a cluster.")
    keep: int | None = Field(
        None, ge=0, description="keep_top_m: how many. Default: so many that the length is the median of the prompts'."
    )
    prefer: Prefer = Field(
        "all",
        description="all: every token is compared, the paper's rule; a word that one client alone changed hardly ever stays. "
        "changed: at a place that a client changed, the new words are compared alone, and one of them takes it, so that one "
        "client may change a prompt by itself; all other places stay as they are.",
    )
    max_tokens: int | None = Field(
        None, ge=1, le=LONGEST, description="Of the new prompt, frozen ones counted. Default: as many as the median prompt has."
    )
    guard: bool = Field(False, description="Keep the previous prompt if the new one is worse on the input `public`.")
    model: ModelName | None = Field(None, description="guard: the black box.")
    label_field: str = Field("label", description="guard: the class of a public record.")
    max_new_tokens: int = Field(8, ge=1, description="guard: tokens of an answer.")
    batch: int = Field(32, ge=1, description="guard: prompts asked at a time, of a model that cannot stream its answers.")

    def rules(self, frozen: int) -> Rules:
        """Those of merging; frozen: tokens that the new prompt has in any case. Raises ConfigError where they leave no room."""
        values = {name: getattr(self, name) for name in Rules.__dataclass_fields__}
        if self.max_tokens is not None and self.max_tokens <= frozen:
            what = f"{self.max_tokens} tokens have no room for a free one: {frozen} are frozen"
            raise ConfigError(Problem(what, path="max_tokens", fix=f"allow {frozen + 1} or more"))
        return Rules(**values | {"max_tokens": None if self.max_tokens is None else self.max_tokens - frozen})


class PromptAggregator(Component[PromptAggregatorConfig]):
    """Uploads in; the new prompt, what became of every token, and what changed out."""

    name = "prompt_aggregator"
    outputs = {"prompt": Out(Document), "audit": Out(Records), "changes": Out(Records), "report": Out(Document)}

    @classmethod
    def check(cls, config: PromptAggregatorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """A guard without a black box or with labels that cannot be told apart, keys that say nothing, a wrong prompt."""
        found = ["model: needed for the guard"] if config.guard and config.model is None else []
        found += label_problems(config.labels) if config.guard else []
        if config.keep is not None and config.noise != "keep_top_m":
            found.append(f"keep: says how much noise keep_top_m keeps; with {config.noise!r} it says nothing")
        if config.clusters is not None and config.clustering != "kmeans":
            found.append(f"clusters: a number for kmeans; {config.clustering!r} has none")
        if config.prompt is not None:
            try:
                Prompt.parse(config.prompt, words_of(config.labels).values())
            except ConfigError as error:
                found += [f"prompt: {problem.what}" for problem in error.problems]
        return found

    def run(
        self, context: Context, uploads: Gathered[Document], previous: Document | None = None, public: Records | None = None
    ) -> Outputs:
        """`prompt`: the new one. `audit`: a row for each token of each upload. `changes`: the new prompt beside the previous
        and the hand-written one.
        `report`: clusters, distance curve and eps, bytes a client sent, the guard's scores.

        Raises DataError naming the client whose upload is malformed, empty or has other frozen tokens; ConfigError without a
        prompt to begin with, without scikit-learn where it is needed, and for a guard without public records.
        """
        config = self.config
        if config.clustering != "none":
            need_sklearn("clustering")
        if config.guard and (public is None or not len(public)):
            fix = "connect records of the label 'public', or 'guard: false'"
            raise ConfigError(Problem("the guard has no public records to compare prompts on", path="guard", fix=fix))
        before = self._before(previous)
        words = Words.of(context.model(config.masked), config.masked)
        sent = {client: uploads[client].data for client in uploads}
        given = {client: _numbers(client, data, before, words) for client, data in sent.items()}
        if not given:
            raise DataError(Problem("no client sent a prompt", path="uploads"))
        made = self._merged(context, given, before, words)
        after = _assembled(before, given, made.chosen, words)
        scores = self._guarded(context, before, after, public) if config.guard and public is not None else None
        kept = before if not made.chosen or (scores and scores["kept"] == "previous") else after
        report = _report(sent, given, made, kept) | ({"guard": scores} if scores else {})
        rows = _audit(given, made, words, before, after if kept is after else None)
        changes = _changes(self._written(), before, kept, made, changed=kept is after)
        return {
            "prompt": Document(kept.to_json()),
            "audit": Records(rows, AUDIT),
            "changes": Records(changes, CHANGES),
            "report": Document(report),
        }

    def _before(self, previous: Document | None) -> Prompt:
        if previous is not None:
            return Prompt.of_json(previous.data, "previous")
        written = self._written()
        if written is None:
            fix = "connect 'previous', or write the prompt that the clients began with"
            raise ConfigError(Problem("there is no prompt that the uploads are edits of", path="prompt", fix=fix))
        return written

    def _written(self) -> Prompt | None:
        """The hand-written prompt, where the configuration has one."""
        return None if self.config.prompt is None else Prompt.parse(self.config.prompt, words_of(self.config.labels).values())

    def _merged(self, context: Context, given: Mapping[str, list[int]], before: Prompt, words: Words) -> Merged:
        """The free tokens of the new prompt. Raises ConfigError for an embedder that tells no word from another."""
        rules = self.config.rules(len(before.tokens) - len(before.free))
        spots = spots_of(given, [-1 if token.frozen else words.id(token.text) for token in before.tokens])
        numbers = sorted({spot.number for spot in spots})
        found = vectors(context.model(self.config.embedder), [words.word(number) or "" for number in numbers])
        if len(numbers) > ALIKE and rules.clustering != "none" and same(found):
            what = f"the embedder {self.config.embedder!r} gives {len(numbers)} different words the same vector"
            why = "all of them would be one cluster, and the prompt one word"
            raise ConfigError(Problem(what, path="embedder", why=why, fix="name another one, or 'clustering: none'"))
        seed = context.rng("clusters").getrandbits(32)
        return merged(spots, dict(zip(numbers, found, strict=True)), rules, seed)

    def _guarded(self, context: Context, before: Prompt, after: Prompt, public: Records) -> dict[str, Any]:
        """Share of public records that each prompt gets right, and which one is kept: the new one unless it is worse."""
        config, name = self.config, self.config.label_field
        absent = next((one for one in [name, *before.slots] if any(one not in row for row in public)), None)
        if absent is not None:
            fix = did_you_mean(absent, public.columns)
            raise DataError(Problem(f"the public records have no field {absent!r}", path="public", fix=fix))
        judge = Judge(
            context, config.model or "", Verbalizer.of(config.labels), Generation(config.max_new_tokens), config.batch
        )
        shares = [
            sum(said == str(row[name]) for said, row in zip(judge.answers(one.template, public.rows), public, strict=True))
            / len(public)
            for one in (before, after)
        ]
        told = {"records": len(public), "previous": shares[0], "new": shares[1], "queries": judge.queries}
        return told | judge.notes() | {"kept": "new" if shares[1] >= shares[0] else "previous"}


def _numbers(client: str, data: Any, before: Prompt, words: Words) -> list[int]:
    """The ids of an upload. Raises DataError that names the client."""
    path = f"uploads.{client}"
    try:
        decoded(data, before, words, path)
    except DataError as error:
        raise DataError(*[replace(one, what=f"the upload of {client}: {one.what}") for one in error.problems]) from error
    numbers: list[int] = data["ids"]
    if not any(number >= 0 for number in numbers):
        raise DataError(Problem(f"the upload of {client} is empty: no word that may change", path=path, fix=FROZEN))
    if len(numbers) > LONGEST:
        raise DataError(Problem(f"the upload of {client} has {len(numbers)} tokens, at most {LONGEST} are taken", path=path))
    return numbers


def _assembled(before: Prompt, given: Mapping[str, list[int]], chosen: Sequence[Group], words: Words) -> Prompt:
    """The chosen tokens with the frozen ones of the previous prompt between them."""
    frozen = [token for token in before.tokens if token.frozen]
    made: list[Token] = []
    for gap in range(len(frozen) + 1):
        if gap:
            made.append(frozen[gap - 1])
        for group in chosen:
            if group.gap == gap:
                made.append(_placed(before, given[group.spot.client], group.spot, words, made))
    return Prompt(tuple(made))


def _placed(before: Prompt, numbers: Sequence[int], spot: Spot, words: Words, made: Sequence[Token]) -> Token:
    """A token as it is written: as in the previous prompt if it has not changed, with white space that fits its new place."""
    word, aligned = words.word(spot.number) or "", len(numbers) == len(before.tokens)
    old = before.tokens[spot.position] if aligned else Token(word, " " if word[:1].isalnum() else "")
    text = old.text if words.id(old.text) == spot.number else word
    left = before.tokens[spot.position - 1].text if aligned and spot.position else ""
    apart = made and not old.glue and made[-1].text != left and word[:1].isalnum()
    return Token(text, " " if apart else old.glue)


def _report(sent: Mapping[str, Any], given: Mapping[str, list[int]], made: Merged, kept: Prompt) -> dict[str, Any]:
    """What the aggregation did, in numbers."""
    noise, still = (sum(group.cluster == kind for group in made.groups) for kind in (NOISE, STILL))
    about: dict[str, Any] = {
        "clients": list(given),
        "tokens": len(made.weights),
        "different": len({spot.number for spot in made.weights}),
        "clusters": len(made.groups) - noise - still,
        "noise": noise,
        "noise kept": sum(group.cluster == NOISE for group in made.chosen),
        "over max_tokens": len(made.over),
        "unchanged": still,
        "gave way": len(made.yielded),
        "length": len(kept.free),
        "bytes": {
            client: {"ids": WORD * len(numbers), "sent": len(canonical(sent[client]))} for client, numbers in given.items()
        },
    }
    if made.curve is not None:
        curve = made.curve
        limit = curve.limit if curve.limit < float("inf") else None
        about |= {"eps": curve.eps, "knee": curve.knee, "limit": limit, "curve": [round(one, 6) for one in curve.distances]}
    return about


def _audit(
    given: Mapping[str, list[int]], made: Merged, words: Words, before: Prompt, after: Prompt | None
) -> list[dict[str, Any]]:
    """A row for each token of each upload. after: None where the guard kept the previous prompt."""
    group_of = {spot: group for group in made.groups for spot in group.members}
    spot_at = {(spot.client, spot.position): spot for spot in made.weights}
    chosen = {group.spot: place for place, group in zip(after.free, made.chosen, strict=True)} if after else {}
    speaking = {group.spot for group in made.chosen}
    fixed = [i for i, token in enumerate((after or before).tokens) if token.frozen]
    frozen = [token.text for token in before.tokens if token.frozen]
    rows: list[dict[str, Any]] = []
    for client, numbers in given.items():
        for position, number in enumerate(numbers):
            row: dict[str, Any] = {"id": numbered(len(rows)), "client": client, "position": position}
            if number < 0:
                row |= {"token": frozen[-1 - number], "cluster": "frozen", "weight": None, "kept": "frozen"}
                rows.append(row | {"place": fixed[-1 - number]})
                continue
            spot = spot_at[(client, position)]
            if spot in made.yielded:
                row |= {"token": words.word(number), "cluster": "", "weight": made.weights[spot], "kept": "gave way"}
                rows.append(row | {"place": None})
                continue
            kept = _fate(spot, group_of[spot], speaking, made, after is None)
            row |= {"token": words.word(number), "cluster": _named(group_of[spot]), "weight": made.weights[spot], "kept": kept}
            rows.append(row | {"place": chosen.get(spot)})
    return rows


def _fate(spot: Spot, group: Group, speaking: set[Spot], made: Merged, guarded: bool) -> str:
    """What became of a token, in a word or two."""
    if spot in speaking:
        return "guarded" if guarded else "noise kept" if group.cluster == NOISE else "representative"
    if spot != group.spot:
        return "merged" if group.spot in speaking else "dropped"
    return "over max_tokens" if spot in made.over else "dropped"


def _named(group: Group) -> str:
    return {NOISE: "noise", STILL: "unchanged"}.get(group.cluster, str(group.cluster))


def _changes(
    written: Prompt | None, before: Prompt, kept: Prompt, made: Merged, changed: bool
) -> list[dict[str, Any]]:  # fmt: skip
    """The new prompt beside the previous one and the hand-written one, place by place; "" where one of them has ended."""
    group_at = dict(zip(kept.free, made.chosen, strict=True)) if changed else {}
    rows: list[dict[str, Any]] = []
    first = written.tokens if written else ()
    for place, each in enumerate(zip_longest(first, before.tokens, kept.tokens)):
        group, new = group_at.get(place), each[2]
        texts = dict(zip(("written", "before", "after"), [token.text if token else "" for token in each], strict=True))
        told = {"id": numbered(place), "place": place, **texts}
        told |= {"frozen": bool(new and new.frozen), "cluster": _named(group) if group else ""}
        rows.append({**told, "weight": group.weight if group else None, "client": group.spot.client if group else ""})
    return rows
