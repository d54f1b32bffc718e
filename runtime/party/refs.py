# SPDX-License-Identifier: Apache-2.0
"""What a party holds: which artifact, under which label."""

from dataclasses import dataclass
from typing import Any

from osmotic.schemas.labels import Label


@dataclass(frozen=True)
class Ref:
    """An artifact in the store, with its label."""

    kind: str
    digest: str
    label: Label

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "digest": self.digest, "label": self.label.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Ref":
        """The inverse of `to_json`."""
        return cls(value["kind"], value["digest"], Label.from_json(value["label"]))
