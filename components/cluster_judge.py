# SPDX-License-Identifier: Apache-2.0
"""The teacher judges synthetic texts, a cluster of alike ones at a time, and keeps the eligible (FDKT, arXiv 2405.14212).

Texts are embedded and clustered (k-means, ceil(N / per_cluster) clusters, seeded); one prompt shows one cluster, numbered from
0, and the answer names the numbers to keep. An answer that does not say is asked for again with another seed; what then still
does not say keeps or drops its cluster (`unparsed`), and is counted, with the raw answers in `audit`.

For the server: it reads what crossed, so its outputs are as protected as `texts` is. Prompts are rendered and searched for the
samples before a model is asked for, in the plan with stand-ins and here with the rows at hand.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from osmotic.components.teaching.asking import Asking, Replies, ask
from osmotic.components.teaching.rows import Row, labelled_rows
from osmotic.components.templates import compile_template
from osmotic.components.vectors import vectors
from osmotic.plugins.contract import (
    Answer,
    Component,
    Config,
    Context,
    Document,
    Generation,
    Metrics,
    ModelName,
    Out,
    Outputs,
    Records,
)
from osmotic.plugins.labelled import Chosen, PlainTemplate, Prompt, Sample, check_formats, choice, slot_problems, stand_ins
from osmotic.plugins.labelled.ids import MARKER, SCHEMA
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.records import RecordSchema

if TYPE_CHECKING:
    import numpy as np

SAMPLE = "{{ index }}. label: {{ label }} text: {{ text }}"
ASKED = """Below are texts, each with its number and the label that it was written for.

{{ samples }}

A text is eligible if it is clear, fits its label, and says something that the others do not say as well. """
PROMPT = ASKED + f'Answer with "{MARKER}" and the numbers of the eligible texts with blanks between them, or "none".'
JSON_PROMPT = ASKED + 'Answer with JSON: {"eligible": [numbers of the eligible texts]}.'


class ClusterJudgeConfig(Config):
    """Configuration of `cluster_judge`."""

    embedder: ModelName = Field(description="An embedder: texts that are near each other are judged together.")
    model: ModelName = Field(description="The teacher, a text generator.")
    sample: str = Field(SAMPLE, description="How a text is shown; plain slots index, label and text.")
    prompt: str | None = Field(
        None, description="Template with the slot samples: all texts of a cluster, as `sample` has them. An answer is read "
        "from 'The eligible samples:' on, as a bare list, or as JSON; a prompt may end with these words.",
    )  # fmt: skip
    per_cluster: int = Field(4, ge=1, le=64, description="Texts of a cluster, on average.")
    most: int | None = Field(
        None, ge=1, description="Texts of a prompt; larger clusters are split. Default: twice per_cluster."
    )
    attempts: int = Field(3, ge=1, le=10, description="How often a cluster is asked about whose answer does not say.")
    unparsed: Literal["keep", "drop"] = Field("keep", description="What becomes of a cluster that was not judged.")
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0, strict=False, description="Of the first attempt; 0: the likeliest answer.")
    retry_temperature: float = Field(0.7, ge=0, strict=False, description="Of further attempts.")
    top_p: float = Field(1.0, gt=0, le=1, strict=False)
    json_: bool = Field(False, alias="json", description="Hold the model to JSON, where it can be.")
    batch: int = Field(32, ge=1, description="Prompts asked at a time, of a model that cannot stream its answers.")
    max_failures: float = Field(
        0.05, ge=0, le=1, strict=False, description="Share of clusters that may stay without an answer; past it the task fails."
    )

    @property
    def template(self) -> str:
        """The prompt, or the default one for the form of the answer."""
        return self.prompt or (JSON_PROMPT if self.json_ else PROMPT)


class ClusterJudge(Component[ClusterJudgeConfig]):
    """Synthetic texts in, the eligible ones out: the same rows in the same order, fewer of them."""

    name = "cluster_judge"
    outputs = {"judged": Out(Records), "report": Out(Metrics), "audit": Out(Document)}

    @classmethod
    def check(cls, config: ClusterJudgeConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Templates that cannot be filled in, or do not show the samples."""
        return _problems(config, stand_ins(schema))

    def run(self, context: Context, texts: Records) -> Outputs:
        """`judged`: the rows (id, label, text, and what else they have) that the teacher finds eligible.

        Rows without a label or a text are dropped (`empty`). `report`: rows, kept, clusters and what went wrong with them,
        tokens, cost. `audit`: the raw answers that did not parse or are odd, rows and kept a label. Raises ConfigError for
        templates that do not show the rows, or when scikit-learn is missing; ComponentError past `max_failures`.
        """
        rows = labelled_rows(texts)
        samples = [Sample(row["label"], row["text"]) for row in rows]
        parts = [samples[i : i + 64] for i in range(0, max(1, len(samples)), 64)]
        problems = [problem for part in parts for problem in _problems(self.config, part)]
        if problems:
            raise ConfigError(*dict.fromkeys(problems))
        groups = self._clusters(context, rows)
        prompts = [self._prompt([rows[i] for i in group]) for group in groups]
        replies = self._ask(context, prompts, groups)
        verdicts = [self._verdict(replies, prompt, len(group)) for prompt, group in zip(prompts, groups, strict=True)]
        keep = self.config.unparsed == "keep"
        eligible = {
            group[i]
            for group, verdict in zip(groups, verdicts, strict=True)
            for i in (range(len(group)) if verdict is None and keep else verdict.ids if verdict else ())
        }
        judged = [row for i, row in enumerate(rows) if i in eligible]
        audit = _audit(rows, groups, prompts, verdicts, replies)
        audit["labels"] = _by_label(rows, judged)
        report = _report(len(texts), len(rows), len(judged), groups, prompts, verdicts, replies)
        return {"judged": Records(judged, texts.columns), "report": Metrics(report), "audit": Document(audit)}

    def _clusters(self, context: Context, rows: list[Row]) -> list[list[int]]:
        """Positions of rows, cluster by cluster."""
        if not rows:
            return []
        need_sklearn()
        points = vectors(context.model(self.config.embedder), [row["text"] for row in rows])
        most = self.config.most or 2 * self.config.per_cluster
        return clusters(points, self.config.per_cluster, most, context.rng("clusters").getrandbits(32))

    def _prompt(self, rows: list[Row]) -> str:
        shown = "\n".join(_blocks(self.config.sample, [Sample(row["label"], row["text"]) for row in rows]))
        return compile_template(self.config.template, "prompt").render({"samples": shown})

    def _ask(self, context: Context, prompts: list[str], groups: list[list[int]]) -> Replies[str]:
        sizes = {prompt: len(group) for prompt, group in zip(prompts, groups, strict=True)}
        config = self.config
        how = Generation(config.max_new_tokens, config.temperature, config.top_p, json_schema=SCHEMA if config.json_ else None)

        def says(prompt: str, answer: Answer) -> bool:
            return _read(prompt, answer.text, sizes[prompt], answer.finished) is not None

        asking = Asking(
            config.model, how, config.batch, config.attempts, config.max_failures, config.retry_temperature, says, "judge"
        )
        return ask(context, Counter(prompts), asking)

    def _verdict(self, replies: Replies[str], prompt: str, size: int) -> Chosen | None:
        reply = replies.known.get(prompt)
        return _read(prompt, reply.text, size, reply.finished) if reply else None


def clusters(points: "np.ndarray", per_cluster: int, most: int, seed: int) -> list[list[int]]:
    """Positions of the rows of a float array [n, d] by k-means: ceil(n / per_cluster) clusters, those beyond `most` split
    evenly, in the order of their first rows. Equal rows are together, unless so many are split."""
    import warnings

    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    distinct, where = np.unique(points, axis=0, return_inverse=True)
    count = min(math.ceil(len(points) / per_cluster), len(distinct))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of points that are all but equal
        found = KMeans(count, n_init=1, random_state=seed).fit_predict(distinct)[where.reshape(-1)]
    members: dict[int, list[int]] = {}
    for i, number in enumerate(found.tolist()):
        members.setdefault(number, []).append(i)
    parts = [part for group in members.values() for part in _split(group, most)]
    return sorted(parts)


def _split(group: list[int], most: int) -> list[list[int]]:
    """A group in parts of at most `most`, as equal as can be."""
    count = math.ceil(len(group) / most)
    return [group[i * len(group) // count : (i + 1) * len(group) // count] for i in range(count)]


def need_sklearn() -> None:
    """Raise ConfigError when scikit-learn is not installed."""
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise ConfigError(Problem("k-means needs scikit-learn", fix="pip install 'osmotic[eval]'"))


def _problems(config: ClusterJudgeConfig, samples: Sequence[Sample]) -> list[str]:
    """What is wrong with the templates, tried on samples."""
    try:
        found = slot_problems(PlainTemplate(config.sample, "sample"), ("index", "label", "text"))
    except ConfigError as error:
        found = error.problems
    if found:
        return [f"sample: {p.what}; {p.fix}" if p.fix else f"sample: {p.what}" for p in found]
    blocks = _blocks(config.sample, samples)
    prompt = Prompt("prompt", config.template, {"samples": "\n".join(blocks)}, blocks)
    return check_formats((), (), prompts=[prompt])


def _blocks(template: str, samples: Sequence[Sample]) -> list[str]:
    """Samples as a prompt shows them, numbered from 0; on one line, where the template has one: a line of a text that begins
    with a number would be taken for another sample."""
    plain, lines = PlainTemplate(template, "sample"), "\n" in template.strip()
    texts = [one.text.strip() if lines else " ".join(one.text.splitlines()).strip() for one in samples]
    return [
        plain.fill({"index": str(i), "label": one.label.strip(), "text": text})
        for i, (one, text) in enumerate(zip(samples, texts, strict=True))
    ]


def _read(prompt: str, answer: str, size: int, finished: bool) -> Chosen | None:
    """What an answer chooses; a prompt that ends with the marker has said it for the answer."""
    begun = prompt.rstrip().casefold().endswith(MARKER.casefold())
    return choice(f"{MARKER} {answer}" if begun else answer, size, finished)


def _audit(
    rows: list[Row], groups: list[list[int]], prompts: list[str], verdicts: list[Chosen | None], replies: Replies[str]
) -> dict[str, Any]:
    """Clusters with nothing to read in the answers, or something odd: ids, raw answers, why."""
    unparsed, odd = [], []
    for number, (group, prompt, verdict) in enumerate(zip(groups, prompts, verdicts, strict=True)):
        reply = replies.known.get(prompt) or replies.rejected.get(prompt)
        answers = [*reply.earlier, reply.text] if reply else []
        about = {"cluster": number, "ids": [rows[i]["id"] for i in group], "answers": answers}
        if verdict is None:
            unparsed.append({**about, "problem": replies.failed.get(prompt, "unparsed")})
        elif verdict.warning or len(answers) > 1:
            odd.append({**about, "warning": verdict.warning or "asked again"})
    return {"unparsed": unparsed, "odd": odd}


def _by_label(rows: list[Row], judged: list[Row]) -> dict[str, dict[str, int]]:
    before, after = Counter(row["label"] for row in rows), Counter(row["label"] for row in judged)
    return {label: {"rows": count, "kept": after[label]} for label, count in sorted(before.items())}


def _report(
    given: int, judged: int, kept: int, groups: list[list[int]], prompts: list[str], verdicts: list[Chosen | None],
    replies: Replies[str],
) -> dict[str, float]:  # fmt: skip
    read, written, cost = replies.spent()
    open_ = [group for group, verdict in zip(groups, verdicts, strict=True) if verdict is None]
    values = {
        "rows": given,
        "empty": given - judged,
        "kept": kept,
        "kept_share": kept / given if given else 0.0,
        "clusters": len(groups),
        "unparsed": len(open_),
        "unparsed_rows": sum(len(group) for group in open_),
        "unanswered": sum(prompt in replies.failed for prompt in prompts),
        "none_eligible": sum(verdict is not None and not verdict.ids for verdict in verdicts),
        "asked_again": replies.asked_again(),
        "prompt_tokens": read,
        "tokens": written,
        "cost": cost,
    }
    return {name: float(value) for name, value in values.items()}
