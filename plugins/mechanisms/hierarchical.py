# SPDX-License-Identifier: Apache-2.0
"""The exponential mechanism in two levels: a cluster of similar symbols first, then a symbol of that cluster.

Clusters come from the public vectors (k-means on vectors of length 1, seeded, the same every time). For a symbol x, the
cluster c is drawn with probability proportional to n_c exp(eps1 u1(x, c) / 2), n_c its size (a public base measure) and u1
the cosine of x and the cluster's centre, rescaled to [0, 1] over the clusters; then y in c with probability proportional to
exp(eps2 u2(x, y)/2), u2 the cosine of x and y, rescaled to [0, 1] within c (McSherry, Talwar 2007, "Mechanism design via
differential privacy"; both levels see x, so they compose: Dwork, Roth 2014, section 3.5).

Guarantee: pure, at most eps1 + eps2 = epsilon a token, for any clusters; conservative, the certificate says how much is used.
An unknown symbol has utility 0 everywhere: clusters by their size, symbols evenly, which is the uniform row. Void when: the
vectors depend on private data, or the randomness is seeded. A draw costs a product with the centres and one with a cluster,
whatever V is.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.clusters import Clusters
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows, unit_vectors, vector_norms
from osmotic.plugins.mechanisms.utility import RESOLUTION, ROUNDING, check_resolution
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1024


class HierarchicalConfig(Config):
    """Configuration of `hierarchical`."""

    epsilon: Epsilon
    share: float = Field(0.5, gt=0, lt=1, allow_inf_nan=False, description="The part of epsilon that the cluster gets: eps1.")
    clusters: int | None = Field(None, ge=1, description="How many clusters at most; default: the square root of V.")


class Hierarchical(Mechanism[HierarchicalConfig]):
    """A cluster, then a symbol in it; clusters are made when they are first needed, once an instance."""

    name = "hierarchical"

    def __init__(self, config: HierarchicalConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        if space.vectors is None:
            fix = "give the field a 'table: FILE#KEY', or use list-rr with 'lists: order'"
            raise ConfigError(Problem("hierarchical needs vectors", why=f"the space {space.name!r} has none", fix=fix))
        if config.clusters is not None and config.clusters > space.size:
            why = f"clusters is {config.clusters}, the space {space.name!r} has {space.size} symbols"
            raise ConfigError(Problem("more clusters than symbols", path="clusters", why=why, fix=f"clusters: {space.size}"))
        check_resolution(space, config.epsilon, -2 * float(np.log(RESOLUTION * space.size)))  # P(y|x) >= e^(-eps/2) / V
        vector_norms(space)  # raises for vectors without a direction
        self._made: Clusters | None = None

    @property
    def clusters(self) -> Clusters:
        """The public clusters, made at first use: some seconds for 30,000 symbols."""
        if self._made is None:
            import numpy as np

            unit = unit_vectors(self.space, np.float64)
            self._made = Clusters(unit, self.config.clusters or max(round(self.space.size**0.5), 1))
        return self._made

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]; the uniform row for the unknown symbol."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        out = np.full((len(rows), v), -np.log(v))
        known = np.flatnonzero(rows < v)
        if not known.size:
            return out
        clusters = self.clusters
        scores = clusters.of(rows[known]) @ clusters.unit.T  # symbols in the order of their clusters
        self._rescale(scores, clusters.starts, clusters.sizes, self.config.epsilon * (1 - self.config.share) / 2)
        totals = np.add.reduceat(np.exp(scores), clusters.starts, axis=1)
        scores += np.repeat(self._cluster_log_prob(rows[known]) - np.log(totals), clusters.sizes, axis=1)
        out[known] = scores[:, clusters.place]
        return out

    def sample(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """int64 [n]: two uniform numbers a token and an even draw for the unknown symbol; every row draws the same amount."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        out, draws = entropy.integers(v, len(rows)), entropy.uniform(2 * len(rows)).reshape(2, -1)
        known = np.flatnonzero(rows < v)
        cluster = np.empty(len(known), dtype=np.int64)
        for start in range(0, len(known), BLOCK):
            here = known[start : start + BLOCK]
            cluster[start : start + BLOCK] = _inverse(self._cluster_log_prob(rows[here]), draws[0, here])
        groups = np.split(known[np.argsort(cluster, kind="stable")], np.cumsum(np.bincount(cluster))[:-1])
        for c, group in enumerate(groups):
            for start in range(0, len(group), BLOCK):
                here = group[start : start + BLOCK]
                out[here] = self._inside(rows[here], c, draws[1, here])
        return out

    def guarantee(self) -> Guarantee:
        """Certified, at most epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")

    def _cluster_log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, C] for known symbols."""
        import numpy as np

        clusters = self.clusters
        scores = clusters.of(rows) @ clusters.centres.T
        whole = np.zeros(1, dtype=np.int64), np.array([len(clusters.sizes)])
        self._rescale(scores, *whole, self.config.epsilon * self.config.share / 2)
        scores += np.log(clusters.sizes)
        return np.asarray(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))

    def _inside(self, rows: "np.ndarray", cluster: int, draws: "np.ndarray") -> "np.ndarray":
        """int64 [n]: symbols of one cluster."""
        import numpy as np

        members = self.clusters.inside(cluster)
        scores = self.clusters.of(rows) @ self.clusters.unit[members].T
        whole = np.zeros(1, dtype=np.int64), np.array([scores.shape[1]])
        self._rescale(scores, *whole, self.config.epsilon * (1 - self.config.share) / 2)
        return np.asarray(self.clusters.order[members][_inverse(scores, draws)])

    @staticmethod
    def _rescale(scores: "np.ndarray", starts: "np.ndarray", sizes: "np.ndarray", factor: float) -> None:
        """In each run of columns: to [0, factor]; to factor where there is no difference."""
        import numpy as np

        low, high = (of.reduceat(scores, starts, axis=1) for of in (np.minimum, np.maximum))
        width = high - low
        flat = width <= ROUNDING
        scale = np.where(flat, 0.0, factor / np.where(flat, 1.0, width))
        scores -= np.repeat(low, sizes, axis=1)
        scores *= np.repeat(scale, sizes, axis=1)
        np.minimum(scores, factor, out=scores)


def _inverse(scores: "np.ndarray", draws: "np.ndarray") -> "np.ndarray":
    """int64 [n]: for each row of unnormalised log-probabilities the column that a uniform number falls into."""
    import numpy as np

    sums = np.cumsum(np.exp(scores), axis=1)
    return np.asarray(np.minimum((sums < (draws * sums[:, -1])[:, None]).sum(axis=1), scores.shape[1] - 1))
