# SPDX-License-Identifier: Apache-2.0
"""The built-in components, registered through the same hook as a stranger's."""

from collections.abc import Iterable
from typing import Any

from osmotic.plugins.contract import Component
from osmotic.plugins.hookspecs import hookimpl

Found = tuple[type[Component[Any]], ...]


@hookimpl
def register_components() -> Iterable[type[Component[Any]]]:
    """Everything that ships."""
    return (*_data(), *_teaching(), *_prompting(), *_instructing(), *_training(), *_measuring())


def _data() -> Found:
    """Records: loaded, released, blinded, joined."""
    from osmotic.components.dp_sanitizer import DpSanitizer
    from osmotic.components.feedback_sanitizer import FeedbackSanitizer
    from osmotic.components.label_counter import LabelCounter
    from osmotic.components.record_blinder import RecordBlinder
    from osmotic.components.record_joiner import RecordJoiner
    from osmotic.components.record_loader import RecordLoader
    from osmotic.components.record_uniter import RecordUniter

    return (
        RecordLoader,
        RecordBlinder,
        DpSanitizer,
        FeedbackSanitizer,
        LabelCounter,
        RecordUniter,
        RecordJoiner,
    )


def _teaching() -> Found:
    """What a teacher writes, and what becomes of it."""
    from osmotic.components.candidate_evolver import CandidateEvolver
    from osmotic.components.cluster_judge import ClusterJudge
    from osmotic.components.copy_checker import CopyChecker
    from osmotic.components.nearest_voter import NearestVoter
    from osmotic.components.rationale_decoder import RationaleDecoder
    from osmotic.components.rationale_filter import RationaleFilter
    from osmotic.components.synthetic_filter import SyntheticFilter
    from osmotic.components.teacher_augmenter import TeacherAugmenter
    from osmotic.components.teacher_generator import TeacherGenerator
    from osmotic.components.text_synthesizer import TextSynthesizer

    return (
        TeacherGenerator,
        TeacherAugmenter,
        ClusterJudge,
        RationaleDecoder,
        RationaleFilter,
        TextSynthesizer,
        SyntheticFilter,
        CopyChecker,
        CandidateEvolver,
        NearestVoter,
    )


def _instructing() -> Found:
    """Synthetic instructions and responses: written, filtered, selected."""
    from osmotic.components.ifs_selector import IfsSelector
    from osmotic.components.instruction_filter import InstructionFilter
    from osmotic.components.instruction_synthesizer import InstructionSynthesizer
    from osmotic.components.response_synthesizer import ResponseSynthesizer

    return (
        InstructionSynthesizer,
        ResponseSynthesizer,
        InstructionFilter,
        IfsSelector,
    )


def _prompting() -> Found:
    """Prompts of black-box models: tuned, put together, voted on."""
    from osmotic.components.bdpl_decoder import BdplDecoder
    from osmotic.components.bdpl_tuner import BdplTuner
    from osmotic.components.phrase_miner import PhraseMiner
    from osmotic.components.prompt_aggregator import PromptAggregator
    from osmotic.components.prompt_answerer import PromptAnswerer
    from osmotic.components.prompt_proposer import PromptProposer
    from osmotic.components.prompt_tuner import PromptTuner
    from osmotic.components.prompt_voter import PromptVoter

    return (PromptTuner, PromptAggregator, PromptProposer, PromptAnswerer, PromptVoter, PhraseMiner, BdplTuner, BdplDecoder)


def _training() -> Found:
    """Trainers, and one model of several."""
    from osmotic.components.adapter_mixer import AdapterMixer
    from osmotic.components.aggregator import Aggregator
    from osmotic.components.dp_generator import DpGenerator
    from osmotic.components.dp_task_trainer import DpTaskTrainer
    from osmotic.components.secure_aggregator import SecureAggregator
    from osmotic.components.student_trainer import StudentTrainer
    from osmotic.components.task_trainer import TaskTrainer
    from osmotic.components.update_maker import UpdateMaker

    return (
        StudentTrainer,
        TaskTrainer,
        DpTaskTrainer,
        DpGenerator,
        AdapterMixer,
        Aggregator,
        UpdateMaker,
        SecureAggregator,
    )


def _measuring() -> Found:
    """Scores, and attacks on what was released or trained."""
    from osmotic.components.bayes_attacker import BayesAttacker
    from osmotic.components.canary_planter import CanaryPlanter
    from osmotic.components.evaluator import Evaluator
    from osmotic.components.extraction_attack import ExtractionAttack
    from osmotic.components.inversion_attacker import InversionAttacker
    from osmotic.components.masked_attacker import MaskedAttacker
    from osmotic.components.mechanism_auditor import MechanismAuditor
    from osmotic.components.membership_attack import MembershipAttack
    from osmotic.components.text_evaluator import TextEvaluator

    return (
        Evaluator,
        TextEvaluator,
        BayesAttacker,
        InversionAttacker,
        MaskedAttacker,
        MechanismAuditor,
        MembershipAttack,
        ExtractionAttack,
        CanaryPlanter,
    )
