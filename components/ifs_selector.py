# SPDX-License-Identifier: Apache-2.0
"""Choose the synthetic examples whose responses follow from their instructions (FedPIT, arXiv 2403.06131, "select").

IFS(x, y) = L(y|x) / L(y): the mean loss a token of the response after its instruction, over that after a prompt without one.
Low: the instruction says what the response will be. The `keep` lowest stay; `highest` (as instruction-following difficulty
would have it) and `random` are for comparison. An L(y) needs some prompt: the `bare` one, by default `prompt` with nothing in
the place of the instruction.

The selector must be the *local* model W^l, trained on the private records just before: it knows how a response to such an
instruction reads. The global W^g wrote these examples and finds all of them likely; selected by it, the paper's training
collapsed. By `weights` the output depends on what they were trained on: with W^l it is as private as the client's records and
crosses only under a waiver. A path with a guarantee gives W^g or no weights: then nothing private is read here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from osmotic.components.instructing.demonstrations import examples_of
from osmotic.components.instructing.settings import weighted
from osmotic.components.matching import unique
from osmotic.components.scoring import Score, scored
from osmotic.components.templates import check_slots, compile_template, slots
from osmotic.plugins.contract import Component, Config, Context, Document, ModelName, Out, Outputs, Records, Weights
from osmotic.schemas.errors import ComponentError, DataError, Problem
from osmotic.schemas.records import RecordSchema

COLUMNS = ("id", "instruction", "response")
SCORES = ("id", "ifs", "loss", "bare_loss", "kept")
LEAST = 1e-9  # of a loss below: a response that is certain without its instruction
Order = Literal["lowest", "highest", "random"]


class IfsSelectorConfig(Config):
    """By which model, how it is asked, and how many stay."""

    model: ModelName
    prompt: str = Field(
        "### Instruction:\n{{ instruction }}\n### Response:", description="Jinja2 over `instruction`, as in training."
    )
    bare: str | None = Field(
        None, description="The prompt of L(y), without a slot; not blank. null: `prompt` with an empty instruction."
    )
    target: str = Field("{{ response }}", description="Jinja2 over `response`, as in training: what is scored.")
    keep: int = Field(16, ge=1, description="Examples that stay.")
    order: Order = Field("lowest", description="Which: of the lowest IFS (FedPIT), the highest, or any, by a seeded draw.")
    batch: int = Field(32, ge=1, description="Pairs scored at a time.")


class IfsSelector(Component[IfsSelectorConfig]):
    """Synthetic examples and the local adapter in, the `selected` ones, every score and a `report` out."""

    name = "ifs_selector"
    outputs = {"selected": Out(Records), "scores": Out(Records), "report": Out(Document)}

    @classmethod
    def check(cls, config: IfsSelectorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates; a prompt of L(y) that says something."""
        found = check_slots(config.prompt, ["instruction"], "prompt") + check_slots(config.target, ["response"], "target")
        found += check_slots(config.bare or "", (), "bare")
        if found:
            return found
        shown = (("prompt", config.prompt, "instruction"), ("target", config.target, "response"))
        for key, text, name in shown:
            found += [] if name in slots(text) else [f"{key}: does not show {name!r}: write {{{{ {name} }}}} where it belongs"]
        if not found and not _bare(config).strip():
            found.append("bare: is empty, and no model gives the loss of a response after nothing; write a neutral prompt")
        return found

    def run(self, context: Context, synthetic: Records, weights: Weights | None = None) -> Outputs:
        """`selected`: rows of id, instruction, response, in the order in which they came. synthetic: rows with these.

        weights: the local adapter W^l (default: the model as it is). `scores`: of every row its IFS, the mean loss a token
        (nats) with and without the instruction, and whether it was kept. Of equal ones, those that came first are kept; where
        there are fewer than `keep`, all, with a note. Raises ComponentError for a model that gives no likelihoods, DataError
        where there is no usable row.
        """
        config = self.config
        unique(synthetic, "id", "synthetic")
        rows = _rows(synthetic)
        if not _bare(config).strip():
            raise ComponentError(Problem("the prompt of L(y) is empty", path="bare", fix="write a neutral one, not blank"))
        model = weighted(context.model(config.model), config.model, weights)
        told, bare = self._losses(context, model, rows)
        ratios = [loss / max(base, LEAST) for loss, base in zip(told, bare, strict=True)]
        chosen = self._chosen(context, ratios)
        scores = [
            {"id": row["id"], "ifs": ratio, "loss": loss, "bare_loss": base, "kept": i in chosen}
            for i, (row, ratio, loss, base) in enumerate(zip(rows, ratios, told, bare, strict=True))
        ]
        return {
            "selected": Records([row for i, row in enumerate(rows) if i in chosen], COLUMNS),
            "scores": Records(scores, SCORES),
            "report": Document(_report(scores, config)),
        }

    def _losses(self, context: Context, model: Any, rows: Sequence[Mapping[str, str]]) -> tuple[list[float], list[float]]:
        """Mean losses a token of the responses: after their instructions, after the bare prompt."""
        config = self.config
        prompt, target = compile_template(config.prompt, "prompt"), compile_template(config.target, "target")
        targets = [target.render({"response": row["response"]}) for row in rows]
        pairs = [(prompt.render({"instruction": row["instruction"]}), text) for row, text in zip(rows, targets, strict=True)]
        bare = [(_bare(config), text) for text in targets]
        told = scored(context, model, pairs, config.batch, "with the instruction", "told")
        return _mean(told), _mean(scored(context, model, bare, config.batch, "without it", "bare"))

    def _chosen(self, context: Context, ratios: Sequence[float]) -> set[int]:
        """Numbers of the rows that stay."""
        order = list(range(len(ratios)))
        if self.config.order == "random":
            context.rng("selection").shuffle(order)
        else:
            sign = 1 if self.config.order == "lowest" else -1
            order.sort(key=lambda i: sign * ratios[i])  # stable: of equal ones the first
        return set(order[: self.config.keep])


def _bare(config: IfsSelectorConfig) -> str:
    if config.bare is not None:
        return compile_template(config.bare, "bare").render({})
    return compile_template(config.prompt, "prompt").render({"instruction": ""})


def _rows(synthetic: Records) -> list[dict[str, str]]:
    """id, instruction, response. Raises DataError where there are none, or one has a blank text."""
    rows = examples_of(synthetic, {"instruction": "instruction", "response": "response"}, "synthetic rows")
    if not rows or len(rows) < len(synthetic):
        what = f"{len(synthetic) - len(rows)} of {len(synthetic)} synthetic rows have a blank text"
        what = what if len(synthetic) else "there is no synthetic example to choose from"
        raise DataError(Problem(what, path="synthetic", fix="connect what instruction_filter or response_synthesizer kept"))
    return [{name: row[name] for name in COLUMNS} for row in synthetic]


def _mean(scores: Sequence[Score]) -> list[float]:
    """Losses a token; never below 0."""
    return [max(0.0, -total / count) for total, count in scores]


def _report(scores: Sequence[Mapping[str, Any]], config: IfsSelectorConfig) -> dict[str, Any]:
    """Counts, and the mean IFS of those that were kept and left."""
    parts = {name: [row["ifs"] for row in scores if row["kept"] is kept] for name, kept in (("kept", True), ("left", False))}
    means = {f"ifs_{name}": sum(several) / len(several) for name, several in parts.items() if several}
    notes = [f"{len(scores)} examples, fewer than keep ({config.keep}): all stay"] if len(scores) < config.keep else []
    return {"rows": len(scores), "kept": len(parts["kept"]), "order": config.order, **means, "notes": notes}
