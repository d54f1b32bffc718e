# SPDX-License-Identifier: Apache-2.0
"""The four hooks of a plugin. Classes are imported inside them, so that finding the plugin costs nothing."""

from collections.abc import Iterable
from typing import Any

from osmotic.plugins.contract import Component, Mechanism, ModelPlugin, TablePlugin
from osmotic.plugins.hookspecs import hookimpl

osmotic_api = 1  # the version of the contract that this is written for


@hookimpl
def register_components() -> Iterable[type[Component[Any]]]:
    """`word_counter`."""
    from osmotic_example.word_counter import WordCounter

    return (WordCounter,)


@hookimpl
def register_mechanisms() -> Iterable[type[Mechanism[Any]]]:
    """`coin-rr`."""
    from osmotic_example.coin_rr import CoinRandomisedResponse

    return (CoinRandomisedResponse,)


@hookimpl
def register_models() -> Iterable[type[ModelPlugin[Any]]]:
    """`markov`."""
    from osmotic_example.markov import Markov

    return (Markov,)


@hookimpl
def register_tables() -> Iterable[type[TablePlugin]]:
    """`wheel`."""
    from osmotic_example.wheel import Wheel

    return (Wheel,)
