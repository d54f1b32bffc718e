# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can mend: what happened, why, how to mend it; each family has its exit code.

Between parties travel only the members of `Code`, never a message: a message may quote private data.
"""

from dataclasses import dataclass
from enum import StrEnum

from osmotic.schemas.terminal import harmless


class Code(StrEnum):
    """The closed list of reasons that may cross from one party to another."""

    CONFIG = "config"
    DATA = "data"
    POLICY = "policy"
    BUDGET = "budget"
    REQUIRE = "require"
    MEMBRANE = "membrane"
    STORE = "store"
    COMPONENT = "component"
    MODEL = "model"
    PROTOCOL = "protocol"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    INTERNAL = "internal"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it is, and how to mend it.

    `where` is ``file:line:column`` (parts may be missing), `path` the dotted key, e.g. ``tasks.sanitized.config.k``.
    """

    what: str
    where: str = ""
    path: str = ""
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        head = " ".join(part for part in (self.where, f"{self.path}:" if self.path else "", self.what) if part)
        lines = [head, *(f"    {line}" for line in (self.why, self.fix) if line)]
        return "\n".join(harmless(line.rstrip()).replace("\n", "\n    ") for line in lines)


class OsmoticError(Exception):
    """Base of every error that is shown without a stack trace. Carries one or more problems."""

    code: Code = Code.INTERNAL
    exit_code: int = 1

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = [Problem(p) if isinstance(p, str) else p for p in problems]
        super().__init__("\n".join(str(p) for p in self.problems))


class ConfigError(OsmoticError):
    """A pipeline, site or plugin configuration is wrong (exit code 2)."""

    code = Code.CONFIG
    exit_code = 2


class DataError(OsmoticError):
    """A data file is missing or malformed (exit code 3)."""

    code = Code.DATA
    exit_code = 3


class RefusedError(OsmoticError):
    """A site policy or the membrane refused (exit code 4)."""

    code = Code.POLICY
    exit_code = 4


class BudgetError(RefusedError):
    """A privacy budget would be exceeded (exit code 4)."""

    code = Code.BUDGET


class RequireError(RefusedError):
    """A metric does not keep the bound that the pipeline demands (exit code 4)."""

    code = Code.REQUIRE


class MembraneError(RefusedError):
    """Something was about to cross that may not (exit code 4)."""

    code = Code.MEMBRANE


class StoreError(OsmoticError):
    """The store or the ledger cannot be used: locked, corrupt, full, newer (exit code 5)."""

    code = Code.STORE
    exit_code = 5


class ComponentError(OsmoticError):
    """A component or a model failed on good configuration (exit code 6)."""

    code = Code.COMPONENT
    exit_code = 6


class PeerError(OsmoticError):
    """Another party failed or vanished; only its code is known here (exit code 7)."""

    code = Code.LOST
    exit_code = 7
    reason: str = ""  # in a few words, where a transport knows: "timeout after 120 s without progress"


class ProtocolError(OsmoticError):
    """A message that is not one of ours, or was altered (exit code 7)."""

    code = Code.PROTOCOL
    exit_code = 7


ProtocolFault = ProtocolError
