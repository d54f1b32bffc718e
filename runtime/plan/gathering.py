# SPDX-License-Identifier: Apache-2.0
"""What a pipeline may say of an input beside where it comes from: quorums for gathers, secure sums for weights of a role."""

from collections.abc import Collection, Iterator, Mapping

from osmotic.plugins.contract import Weights
from osmotic.runtime.plan.nodes import Node, Reference
from osmotic.schemas.pipeline import InputSpec


def objections(
    node: Node, port: str, given: InputSpec, found: Reference, producer: Node, parties: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    """(key of the input, what is wrong there, what to do), as far as it shows without any cell or round."""
    if given.quorum and not node.ports[port].gathered and given.secure_sum is None:
        what = f"a quorum is for a gather: the input {port!r} of {node.spec.component} takes one artifact"
        yield "quorum", what, "put it where artifacts of several parties are gathered"
    if given.secure_sum is not None:
        what = _summed(node, port, given.secure_sum.at_least, found, producer, parties)
        if what:
            yield "secure_sum", what, "one Weights input, from a role with several parties (secure_aggregator has it)"


def _summed(
    node: Node, port: str, at_least: int, found: Reference, producer: Node, parties: Mapping[str, Collection[str]]
) -> str:  # fmt: skip
    """A secure sum is of weights that tasks of one other role, with several parties, made before it."""
    about = node.ports[port]
    if about.kind is not Weights or about.gathered:
        return f"a secure sum arrives as one weights artifact, which {port!r} of {node.spec.component} does not take"
    if found.carried:
        return "a secure sum takes what tasks have just made, not a carried value"
    if producer.spec.at == node.spec.at or producer.spec.each or node.spec.each:
        return "a secure sum is over the parties of another role, one artifact each; 'each: party' does not go with it"
    if len(parties.get(producer.spec.at, ())) < at_least:
        return f"fewer parties than at_least are at {producer.spec.at!r}"
    return ""
