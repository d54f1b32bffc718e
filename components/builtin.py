# SPDX-License-Identifier: Apache-2.0
"""The built-in components, registered through the same hook as a stranger's."""

from collections.abc import Iterable
from typing import Any

from osmotic.plugins.contract import Component
from osmotic.plugins.hookspecs import hookimpl


@hookimpl
def register_components() -> Iterable[type[Component[Any]]]:
    """FedCoT's building blocks."""
    from osmotic.components.aggregator import Aggregator
    from osmotic.components.dp_sanitizer import DpSanitizer
    from osmotic.components.evaluator import Evaluator
    from osmotic.components.rationale_decoder import RationaleDecoder
    from osmotic.components.rationale_filter import RationaleFilter
    from osmotic.components.record_blinder import RecordBlinder
    from osmotic.components.record_loader import RecordLoader
    from osmotic.components.student_trainer import StudentTrainer
    from osmotic.components.teacher_generator import TeacherGenerator

    return (
        RecordLoader,
        RecordBlinder,
        DpSanitizer,
        TeacherGenerator,
        RationaleDecoder,
        RationaleFilter,
        StudentTrainer,
        Aggregator,
        Evaluator,
    )
