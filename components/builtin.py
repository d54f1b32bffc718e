# SPDX-License-Identifier: Apache-2.0
"""The built-in components, registered through the same hook as a stranger's."""

from collections.abc import Iterable
from typing import Any

from osmotic.plugins.contract import Component
from osmotic.plugins.hookspecs import hookimpl


@hookimpl
def register_components() -> Iterable[type[Component[Any]]]:
    """FedCoT's building blocks, and attacks on what was released."""
    from osmotic.components.aggregator import Aggregator
    from osmotic.components.bayes_attacker import BayesAttacker
    from osmotic.components.dp_sanitizer import DpSanitizer
    from osmotic.components.evaluator import Evaluator
    from osmotic.components.feedback_sanitizer import FeedbackSanitizer
    from osmotic.components.inversion_attacker import InversionAttacker
    from osmotic.components.label_counter import LabelCounter
    from osmotic.components.masked_attacker import MaskedAttacker
    from osmotic.components.mechanism_auditor import MechanismAuditor
    from osmotic.components.rationale_decoder import RationaleDecoder
    from osmotic.components.rationale_filter import RationaleFilter
    from osmotic.components.record_blinder import RecordBlinder
    from osmotic.components.record_joiner import RecordJoiner
    from osmotic.components.record_loader import RecordLoader
    from osmotic.components.record_uniter import RecordUniter
    from osmotic.components.student_trainer import StudentTrainer
    from osmotic.components.teacher_generator import TeacherGenerator

    return (
        RecordLoader,
        RecordBlinder,
        DpSanitizer,
        FeedbackSanitizer,
        LabelCounter,
        TeacherGenerator,
        RationaleDecoder,
        RationaleFilter,
        RecordUniter,
        RecordJoiner,
        StudentTrainer,
        Aggregator,
        Evaluator,
        BayesAttacker,
        InversionAttacker,
        MaskedAttacker,
        MechanismAuditor,
    )
