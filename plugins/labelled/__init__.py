# SPDX-License-Identifier: Apache-2.0
"""Labelled texts in prompts and answers: how a sample is written, read back, and checked both ways before a model is loaded."""

from osmotic.plugins.labelled.formats import FormatError, Labels, Parsed, Rejected, Sample, SampleFormat
from osmotic.plugins.labelled.ids import Chosen, choice
from osmotic.plugins.labelled.roundtrip import Prompt, check_formats, stand_ins
from osmotic.plugins.labelled.template import PlainTemplate, slot_problems

__all__ = [
    "Chosen", "FormatError", "Labels", "Parsed", "PlainTemplate", "Prompt", "Rejected", "Sample", "SampleFormat",
    "check_formats", "choice", "slot_problems", "stand_ins",
]  # fmt: skip
