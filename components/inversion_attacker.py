# SPDX-License-Identifier: Apache-2.0
"""Embedding inversion: is the true symbol among the K nearest of the one that was released? And the same figure as utility.

The attack of Song and Raghunathan (2020, "Information leakage in embedding models") in the form used against token
sanitisers: the attacker has the public vectors and guesses the neighbours of what it sees. Its other direction, how many
symbols stay within the K nearest of the true one, is what text is still good for. Both are measured on one release of these
records; neither is a bound: `bayes_attacker` has the best attack. Both read private records, so the metrics stay private.
Distance: Euclidean between vectors of length 1, ties by index; the symbol itself is the nearest.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from osmotic.components.attacks import Pair, attacked, paired, space_of, symbols
from osmotic.components.mechanism_config import FieldsConfig, unknown_fields
from osmotic.plugins.contract import Component, Context, Metrics, Out, Outputs, Records, Space
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema

if TYPE_CHECKING:
    import numpy as np

BLOCK = 256


class InversionAttackerConfig(FieldsConfig):
    """Configuration of `inversion_attacker`."""

    k: int = Field(20, ge=1, description="K: how many nearest symbols, the symbol itself included.")
    share: float = Field(
        0.25,
        gt=0,
        le=1,
        strict=False,
        description="K is at most this share of a field's symbols: small domains get a smaller K.",
    )


class InversionAttacker(Component[InversionAttackerConfig]):
    """How often the true symbol is near the released one (attack), and the released near the true one (utility)."""

    name = "inversion_attacker"
    outputs = {"metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: InversionAttackerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Fields that the schema does not have, or that have no vectors."""
        found = unknown_fields(config, schema)
        for name in config.fields if schema else ():
            spec = schema.fields.get(name) if schema else None
            if spec is not None and spec.table is None:
                found.append(f"fields: {name!r} has no vectors to measure a distance by; give it a 'table' in the schema")
        return found

    def run(self, context: Context, records: Records, sanitized: Records, key: Records) -> Outputs:
        """Metrics, means over fields: ``inversion`` and ``kept`` (at K), ``unchanged``, ``chance`` (of `inversion` by guessing
        K symbols at random); of each field ``inversion_FIELD`` and ``kept_FIELD``. Outcomes: the first three, of each record.
        ``aligned``: share of texts that have as many symbols as before; the others count in none of these.
        """
        fields = attacked(self.config, sanitized)
        pairs = paired(records, sanitized, key, fields)
        sums: dict[str, list[list[float]]] = {"inversion": [], "kept": [], "unchanged": []}
        values: dict[str, float] = {}
        chances, aligned = [], []
        for done, field in enumerate(fields):
            context.progress(done, len(fields), field)
            space = space_of(context, field)
            k = nearest_of(space, self.config.k, self.config.share)
            rows, fitting = self._field(space, field, pairs, k)
            for name, row in rows.items():
                sums[name].append(row)
                if name != "unchanged":
                    values[f"{name}_{field}"] = sum(row) / len(row)
            chances.append(k / space.size)
            aligned.append(fitting)
        outcomes = {name: [sum(v) / len(v) for v in zip(*rows, strict=True)] for name, rows in sums.items()}
        means = {name: sum(row) / len(row) for name, row in outcomes.items()}
        count = len(fields)
        means |= {"chance": sum(chances) / count, "aligned": sum(aligned) / count, "records": float(len(pairs))}
        return {"metrics": Metrics({**means, **values}, outcomes)}

    def _field(self, space: Space, field: str, pairs: list[Pair], k: int) -> tuple[dict[str, list[float]], float]:
        """(each record's shares, share of texts of equal length)."""
        import numpy as np

        found = list(symbols(space, field, pairs))
        empty = np.zeros(0, dtype=np.int64)
        true = np.concatenate([one[0] if one else empty for one in found])
        seen = np.concatenate([one[1] if one else empty for one in found])
        if not len(true):
            raise DataError(Problem(f"nothing of the field {field!r} could be compared", path="fields"))
        flags = {
            "inversion": ranks(space, seen, true) < k, "kept": ranks(space, true, seen) < k, "unchanged": true == seen,
        }  # fmt: skip
        ends = np.cumsum([len(one[0]) if one else 0 for one in found]).tolist()
        shares = {}
        for name, flag in flags.items():
            cuts = zip([0, *ends], ends, strict=False)
            shares[name] = [float(flag[start:end].mean()) if end > start else 0.0 for start, end in cuts]
        return shares, sum(one is not None for one in found) / len(found)


def nearest_of(space: Space, k: int, share: float) -> int:
    """K for a space: `k`, but at most a share of the symbols, at least 1."""
    return max(1, min(k, int(space.size * share)))


def ranks(space: Space, centre: "np.ndarray", other: "np.ndarray") -> "np.ndarray":
    """int64 [n]: how many symbols are nearer to centre[i] than other[i] is (0: it is the same symbol).

    Symbols outside the space (index V) have no vector: their rank is V. Raises ConfigError for a space without vectors.
    """
    import numpy as np

    if space.vectors is None:
        raise ConfigError(Problem(f"the space {space.name!r} has no vectors", fix="give the field a 'table' in the schema"))
    vectors = np.asarray(space.vectors, dtype=np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    v = space.size
    out = np.full(len(centre), v, dtype=np.int64)
    inside = np.flatnonzero((centre < v) & (other < v))
    pairs, where = np.unique(np.stack([centre[inside], other[inside]], axis=1), axis=0, return_inverse=True)
    made = np.empty(len(pairs), dtype=np.int64)
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        rows = np.arange(len(block))
        near = unit[block[:, 0]] @ unit.T
        near[rows, block[:, 0]] = np.inf
        theirs = near[rows, block[:, 1]][:, None]
        ties = (near == theirs) & (np.arange(v)[None, :] < block[:, 1][:, None])
        made[start : start + BLOCK] = (near > theirs).sum(axis=1) + ties.sum(axis=1)
    out[inside] = made[where.reshape(-1)]
    return out
