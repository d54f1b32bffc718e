# SPDX-License-Identifier: Apache-2.0
"""The conformance kit for plugin authors: fakes, a way to run a component alone, and checks of the contract.

Public as ``from osmotic import testing``. In a test of your package::

    def test_contract():
        testing.check_component(MyComponent, {"key": 1}, {"records": Records([...])})

Every failed check raises `ConformanceError`, which says what to mend. Passing shows that a plugin fits; the guarantee of a
mechanism is shown by its certificate (`check_mechanism` computes it on one space, the host on every space in use).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import (
    Artifact,
    Component,
    Context,
    Embedder,
    Gathered,
    Generation,
    MaskedLM,
    ModelPlugin,
    NextToken,
    Outputs,
    Records,
    Scorer,
    TextGenerator,
    Trainable,
    config_type,
    input_ports,
)
from osmotic.plugins.fake_mechanism import MatrixMechanism, matrix_mechanism
from osmotic.plugins.fakes import (
    FakeContext,
    FakeEmbedder,
    FakeJournal,
    FakeMaskedLM,
    FakeNextToken,
    FakeScorer,
    FakeTextGenerator,
    validated,
)
from osmotic.plugins.testing_checks import (
    ConformanceError,
    Recorded,
    changed_row,
    check_apart,
    check_contained,
    check_forgotten,
    check_identity,
    check_imports,
    check_labels,
    contained,
    remembered,
)
from osmotic.plugins.testing_mechanisms import (
    check_config,
    check_document,
    check_mechanism,
    small_slots,
    small_space,
)
from osmotic.plugins.testing_tables import check_table
from osmotic.schemas.artifacts import digest_of
from osmotic.schemas.errors import Problem
from osmotic.schemas.source import did_you_mean

__all__ = [
    "ConformanceError",
    "FakeContext",
    "FakeEmbedder",
    "FakeJournal",
    "FakeMaskedLM",
    "FakeNextToken",
    "FakeScorer",
    "FakeTextGenerator",
    "MatrixMechanism",
    "check_component",
    "check_document",
    "check_mechanism",
    "check_model",
    "check_table",
    "matrix_mechanism",
    "run_component",
    "small_slots",
    "small_space",
]  # fmt: skip

PROTOCOLS: Mapping[str, type[Any]] = {
    "text_generator": TextGenerator, "scorer": Scorer, "masked_lm": MaskedLM, "embedder": Embedder, "trainable": Trainable,
    "next_token": NextToken,
}  # fmt: skip
Inputs = Mapping[str, Any]


# ---- components ------------------------------------------------------------------------------------------------------


def run_component(
    cls: type[Component[Any]], config: Mapping[str, Any], inputs: Inputs, context: Context | None = None
) -> Outputs:
    """Run a component once, as the host would: configuration, inputs and outputs are checked.

    inputs: port -> artifact; for a ``Gathered`` port a dictionary party -> artifact. context: default `FakeContext()`.
    Raises ConfigError for a wrong configuration or input, ConformanceError for outputs that were not declared.
    """
    settings = validated(config_type(cls), config, "config")
    given = _inputs(cls, inputs)
    outputs = cls(settings).run(context if context is not None else FakeContext(), **given)
    _check_outputs(cls, outputs)
    return outputs


def check_component(
    cls: type[Component[Any]],
    config: Mapping[str, Any],
    inputs: Inputs,
    make_context: Callable[[], Context] = FakeContext,
) -> None:
    """Check that a component fits the contract; what does not is named, with why it matters and how to mend it.

    Configuration (comes back from its JSON, refuses unknown keys), name and docstring, ports, outputs, labels no weaker than
    what it read, the same outputs twice under a seed, inputs untouched, nothing left behind in variables of its package, no
    file outside of its folder, no socket, nothing heavy imported with its module, and, where ``mixes()`` says so, rows that
    depend on their own record alone. It is run two or three times. make_context: makes a fresh, equal context for each run.
    """
    settings = check_config(config_type(cls), config)
    check_identity(cls, "components")
    before = _digests(_flat(inputs))
    outputs = _contained_run(cls, config, inputs, make_context())
    first, second = (_digests(part) for part in (outputs, _contained_run(cls, config, inputs, make_context())))
    differ = sorted(name for name in first if first[name] != second.get(name))
    if differ or first.keys() != second.keys():
        what = f"{cls.name}: two runs with the same seed differ in {', '.join(differ) or 'their ports'}"
        why = "a run could not be repeated, nor its results compared"
        raise ConformanceError(Problem(what, why=why, fix="draw from context.rng(...), and do not rely on the order of sets"))
    if _digests(_flat(inputs)) != before:
        why = "other tasks read the same artifact"
        raise ConformanceError(Problem(f"{cls.name}: run changed its inputs", why=why, fix="copy rows before you change them"))
    if not cls.mixes(settings):
        _check_mixes(cls, config, inputs, make_context, outputs)
    check_imports(cls)


def _contained_run(cls: type[Component[Any]], config: Mapping[str, Any], inputs: Inputs, context: Context) -> Outputs:
    """One run that writes nowhere but into its scratch folder, opens no socket and claims no label that it has not got."""
    recorded, before = Recorded(context), remembered(cls)
    with contained(cls.name, Path(context.scratch())):
        outputs = run_component(cls, config, inputs, recorded)
    check_forgotten(cls, before)
    check_labels(cls, outputs, recorded)
    return outputs


def _check_mixes(
    cls: type[Component[Any]], config: Mapping[str, Any], inputs: Inputs, make_context: Callable[[], Context], before: Outputs
) -> None:
    """Change the content of the last record of every input, and see which rows follow."""
    changed = {name: made for name, value in inputs.items() if isinstance(value, Records) and (made := changed_row(value))}
    if changed:
        others = {**inputs, **{name: records for name, (records, _) in changed.items()}}
        after = run_component(cls, config, others, make_context())
        check_apart(cls, before, after, {identity for _, identity in changed.values()})


def _inputs(cls: type[Component[Any]], inputs: Inputs) -> dict[str, Any]:
    ports = input_ports(cls)
    problems = [
        Problem(f"unknown input {name!r}", path="inputs", fix=did_you_mean(name, ports)) for name in inputs if name not in ports
    ]
    given: dict[str, Any] = {}
    for name, port in ports.items():
        value = inputs.get(name)
        items = list(value.values()) if port.gathered and isinstance(value, Mapping) else [value]
        given[name] = Gathered({k: _constant(v) for k, v in value.items()}) if port.gathered and value is not None else value
        if value is None and not port.optional:
            problems.append(Problem("this input is required", path=f"inputs.{name}", fix=f"give {port.kind.kind}"))
        elif value is not None and not all(isinstance(item, port.kind) for item in items):
            kinds = ", ".join(sorted({type(item).__name__ for item in items}))
            problems.append(Problem(f"must be {port.kind.kind} (got {kinds})", path=f"inputs.{name}"))
    if problems:
        raise ConformanceError(*problems)
    return given


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _check_outputs(cls: type[Component[Any]], outputs: Any) -> None:
    if not isinstance(outputs, Mapping):
        raise ConformanceError(
            Problem(f"{cls.name}: run must return a mapping port -> artifact (got {type(outputs).__name__})")
        )
    declared = cls.outputs
    problems = [
        Problem(f"{cls.name}: the output {name!r} is not declared", fix=did_you_mean(name, declared))
        for name in outputs
        if name not in declared
    ]
    for name, out in declared.items():
        if name not in outputs and not cls.private_choice:
            problems.append(Problem(f"{cls.name}: the declared output {name!r} is missing", fix="return it, empty if need be"))
        elif name in outputs and not isinstance(outputs[name], out.kind):
            got = type(outputs[name]).__name__
            problems.append(Problem(f"{cls.name}: the output {name!r} must be {out.kind.kind} (got {got})"))
    if problems:
        raise ConformanceError(*problems)


def _flat(inputs: Inputs) -> dict[str, Artifact]:
    """Inputs with gathered ones as ``port/party``."""
    flat: dict[str, Artifact] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{party}": artifact for party, artifact in value.items()}
        elif value is not None:
            flat[name] = value
    return flat


def _digests(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    digests = {}
    for name, artifact in artifacts.items():
        files = artifact.to_files()
        digests[name] = digest_of(artifact.kind, files)
        again = type(artifact).from_files(files)
        if digest_of(artifact.kind, again.to_files()) != digests[name]:
            raise ConformanceError(Problem(f"{name!r} does not come back from its files", fix="use plain values in the rows"))
    return digests


# ---- models ----------------------------------------------------------------------------------------------------------


def check_model(cls: type[ModelPlugin[Any]], config: Mapping[str, Any]) -> Any:
    """Check a model plugin and return the object it built.

    Configuration, name and docstring; a stable fingerprint without loading the model; `provides` as built; shapes of the
    answers; the same answers under the same seed and no socket (but where `endpoint` names a server); light import.
    """
    settings = check_config(config_type(cls), config)
    check_identity(cls, "models")
    torch_before = "torch" in sys.modules
    prints = [check_contained(cls, cls(settings).fingerprint) for _ in range(2)]
    if prints[0] != prints[1] or not (len(prints[0]) == 64 and set(prints[0]) <= set("0123456789abcdef")):
        fix = "hash the files that make the model (64 hexadecimal digits), nothing that changes"
        raise ConformanceError(Problem(f"{cls.name}: the fingerprint is not a stable SHA-256", why=", ".join(prints), fix=fix))
    if not torch_before and "torch" in sys.modules:
        why = "a plan asks for fingerprints, and is to print in seconds"
        raise ConformanceError(Problem(f"{cls.name}: fingerprint() loads torch", why=why, fix="read the files only"))
    remote = cls(settings).endpoint() is not None
    with contained(cls.name, sockets=not remote):
        built = cls(settings).build()
        _check_provides(cls, built)
        _check_answers(cls.name, built)
        if not remote and isinstance(built, TextGenerator):
            _check_seeded(cls.name, built)
    check_imports(cls)
    return built


def _check_seeded(name: str, built: TextGenerator) -> None:
    """The same prompts with the same seed twice."""
    how = Generation(max_new_tokens=4, temperature=1.0, seed=5)
    first, second = ([answer.text for answer in built.generate(["one", "two two"], how)] for _ in range(2))
    if first != second:
        why = "a run could not be repeated; answers are found again by their seed"
        fix = "draw with random.Random(how.seed), or a generator of your own that is seeded by it"
        raise ConformanceError(Problem(f"{name}: generate gives other answers under the same seed", why=why, fix=fix))


def _check_provides(cls: type[ModelPlugin[Any]], built: Any) -> None:
    unknown = sorted(cls.provides - PROTOCOLS.keys())
    problems = [Problem(f"{cls.name}: unknown in provides: {n!r}", fix=did_you_mean(n, PROTOCOLS)) for n in unknown]
    for name, protocol in PROTOCOLS.items():
        methods = ", ".join(sorted(m for m in vars(protocol) if not m.startswith("_") and callable(getattr(protocol, m))))
        if name in cls.provides and not isinstance(built, protocol):
            problems.append(
                Problem(f"{cls.name} promises {name!r}, but {type(built).__name__} lacks it", why=f"needs: {methods}")
            )
        elif name not in cls.provides and isinstance(built, protocol):
            problems.append(Problem(f"{type(built).__name__} has {methods}, but {cls.name} does not provide {name!r}"))
    if problems:
        raise ConformanceError(*problems)


def _check_answers(name: str, built: Any) -> None:
    """A few calls with tiny inputs: one answer each, in the promised form; an empty list gives an empty list."""
    wrong: list[str] = []
    if isinstance(built, TextGenerator):
        how = Generation(max_new_tokens=2)
        wrong += _unless(_counts(lambda x: built.generate(x, how), ["one", "two two"]), "generate: one answer a prompt")
    if isinstance(built, Scorer):
        scores = built.log_likelihood([("one", " two"), ("a b", " c")])
        good = all(value <= 1e-6 and count >= 1 for value, count in scores)
        wrong += _unless(good and len(scores) == 2, "log_likelihood: (log-probability <= 0, tokens >= 1) for each pair")
        wrong += _unless(built.log_likelihood([]) == [], "log_likelihood: nothing for nothing")
    if isinstance(built, MaskedLM):
        found = built.fill(["a [MASK] day", "it is [MASK]"], 2)
        good = all(0 < len(f) <= 2 and [v for _, v in f] == sorted((v for _, v in f), reverse=True) for f in found)
        wrong += _unless(good and len(found) == 2, "fill: at most top_k candidates a text, best first")
        table = built.logits(["a [MASK] day", "it is [MASK]"])
        good = table.shape == (2, len(built.vocabulary())) and str(table.dtype) == "float32"
        wrong += _unless(good, "logits: float32, one row a text, one column a token of vocabulary()")
    if isinstance(built, NextToken):
        state, first = built.start(["one", "two two"])
        _, second = built.advance(state, [0, 0])
        good = all(t.shape == (2, built.vocabulary) and str(t.dtype) == "float32" for t in (first, second))
        wrong += _unless(good and isinstance(built.text([0]), str), "start, advance: float32 [n, vocabulary]")
    if isinstance(built, Embedder):
        import numpy as np

        vectors = built.embed(["one", "two two"])
        good = vectors.dtype == np.float32 and len(vectors) == 2 and np.allclose((vectors**2).sum(axis=1), 1, atol=1e-3)
        wrong += _unless(good, "embed: float32, one row of length 1 a text")
    if wrong:
        raise ConformanceError(*(Problem(f"{name}: {text}") for text in wrong))


def _unless(good: Any, text: str) -> list[str]:
    return [] if good else [text]


def _counts(call: Callable[[Sequence[str]], Sequence[Any]], texts: Sequence[str]) -> bool:
    return len(call(texts)) == len(texts) and len(call([])) == 0
