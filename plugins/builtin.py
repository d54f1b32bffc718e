# SPDX-License-Identifier: Apache-2.0
"""The built-in mechanisms, models and tables, registered through the same hooks as a stranger's."""

from collections.abc import Iterable
from typing import Any

from osmotic.plugins.contract import DocumentMechanism, Mechanism, ModelPlugin, TablePlugin
from osmotic.plugins.hookspecs import hookimpl


@hookimpl
def register_mechanisms() -> Iterable[type[Mechanism[Any]] | type[DocumentMechanism[Any]]]:
    """Token mechanisms, and mechanisms of whole documents."""
    from osmotic.plugins.mechanisms.adaptive_exponential import AdaptiveExponential
    from osmotic.plugins.mechanisms.calibrated import Calibrated
    from osmotic.plugins.mechanisms.cleartext import Cleartext
    from osmotic.plugins.mechanisms.custext import CusText
    from osmotic.plugins.mechanisms.dp_mlm import DpMlm
    from osmotic.plugins.mechanisms.dp_prompt import DpPrompt
    from osmotic.plugins.mechanisms.encoder import Encoder
    from osmotic.plugins.mechanisms.exponential import Exponential
    from osmotic.plugins.mechanisms.hierarchical import Hierarchical
    from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse
    from osmotic.plugins.mechanisms.mixture import Mixture
    from osmotic.plugins.mechanisms.rank_exponential import RankExponential
    from osmotic.plugins.mechanisms.rantext import RanText
    from osmotic.plugins.mechanisms.santext import SanText
    from osmotic.plugins.mechanisms.santext_plus import SanTextPlus
    from osmotic.plugins.mechanisms.tem import Tem

    return (
        ListRandomisedResponse, RankExponential, Exponential, Calibrated, Mixture, Hierarchical, SanText, SanTextPlus, Tem,
        CusText, RanText, Cleartext, AdaptiveExponential, DpPrompt, DpMlm, Encoder,
    )  # fmt: skip


@hookimpl
def register_models() -> Iterable[type[ModelPlugin[Any]]]:
    """Models from local directories, the real small one that a registry package ships, and a server's."""
    from osmotic.plugins.models.causal_fill import CausalFill, SmolLm2Fill
    from osmotic.plugins.models.embedding import EmbedderModel, MiniLmModel
    from osmotic.plugins.models.masked import TransformersMasked
    from osmotic.plugins.models.openai import OpenAiModel
    from osmotic.plugins.models.smollm2 import SmolLm2
    from osmotic.plugins.models.transformers import TransformersModel
    from osmotic.plugins.models.vllm import VllmModel

    return (
        TransformersModel, SmolLm2, VllmModel, TransformersMasked, CausalFill, SmolLm2Fill, OpenAiModel, EmbedderModel,
        MiniLmModel,
    )  # fmt: skip


@hookimpl
def register_tables() -> Iterable[type[TablePlugin]]:
    """Vocabularies with vectors: word pieces, words by frequency, a model's words, a model directory."""
    from osmotic.plugins.tables.glove import Glove
    from osmotic.plugins.tables.minilm import MiniLm
    from osmotic.plugins.tables.smollm2 import SmolLm2Words
    from osmotic.plugins.tables.transformers import TransformersTable

    return (MiniLm, Glove, SmolLm2Words, TransformersTable)
