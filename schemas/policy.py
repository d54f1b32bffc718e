# SPDX-License-Identifier: Apache-2.0
"""Site policy: a local file of one party that decides what leaves it. No pipeline can change it.

A pipeline asks for data by name, for waivers and seeds with reasons; here they are granted or not. Nothing is granted by
default: data must be bound, waivers listed, and both work on data whose purpose is `benchmark` only.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from osmotic.schemas.addresses import Address
from osmotic.schemas.base import Config
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.secure import SumRules


def _kind_of_schema(value: Any) -> str:
    return "str" if isinstance(value, str) else "RecordSchema"


def _nothing(value: Any) -> Any:
    """A party with nothing below it: the defaults."""
    return {} if value is None else value


class DataBinding(Config):
    """A data set of this party, under the name that pipelines ask for."""

    path: str = Field(description="JSONL, CSV or Parquet file; 'osmotic:NAME/FILE' for a shipped one; relative to this file.")
    schema_: Annotated[
        Annotated[RecordSchema, Tag("RecordSchema")] | Annotated[str, Tag("str")], Discriminator(_kind_of_schema)
    ] = Field(alias="schema", description="The public schema, inline or a YAML file.")
    label: Literal["private", "public"] = "private"
    purpose: Literal["private", "benchmark"] = Field(
        "private", description="benchmark: published data; waivers, seeds and grids may be granted, and reports may show it."
    )
    rows: Annotated[tuple[int, int] | None, Field(strict=False)] = Field(
        None, description="[first, end) of the file's records."
    )
    map: dict[str, str] = Field(
        default_factory=dict, description="field -> Jinja2 template over the file's own keys, e.g. stem: '{{ question.stem }}'."
    )

    @field_validator("rows")
    @classmethod
    def _forwards(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 0 <= value[0] < value[1]:
            raise ValueError(f"must be [first, end) with 0 <= first < end (got [{value[0]}, {value[1]}])")
        return value


class RecordBudget(Config):
    """Cap of the composition of all record-level events (histograms, DP-SGD) of a data set, at its delta."""

    epsilon: float = Field(gt=0, strict=False, allow_inf_nan=False)
    delta: float = Field(0.0, ge=0, lt=1, strict=False, description="0: pure events only.")


class Budget(Config):
    """Caps of what a data set may spend, ever, over all runs; unlike units are capped kind by kind and never added."""

    per_document: float | None = Field(
        None, gt=0, strict=False,
        description="Sum of epsilon of all releases of one document; of each kind of unit by itself "
        "(pure; given the class patterns, all partitions together; nominal).",
    )  # fmt: skip
    per_distance: float | None = Field(
        None, gt=0, strict=False,
        description="The same for metric mechanisms, per unit of distance; default: per_document.",
    )  # fmt: skip
    per_record: RecordBudget | None = Field(None, description="(epsilon, delta) of all histograms and trainings together.")
    per_client: RecordBudget | None = Field(
        None, description="(epsilon, delta) a client of all noisy sums: under the name 'clients' of those made here, "
        "under a data set's name of all secure sums that this party's updates from it go into.",
    )  # fmt: skip


class Waiver(Config):
    """An edge that may carry unprotected data (benchmark data sets only) to these parties."""

    edge: str = Field(description="task.input of the receiving task, or '*'.")
    observers: tuple[str, ...] = Field(
        min_length=1, strict=False, description="Parties (by name, not by role) that may then see it or what follows from it."
    )


class Remote(Config):
    """A model server that this party's models may ask. It is a party of its own, named by its origin (scheme, host, port)."""

    url: str = Field(description="Its address, e.g. https://api.example.com/v1; whatever lies below that path is meant too.")
    sees: Literal["public", "protected", "private"] = Field(
        "protected",
        description="What this party's own data may reach it as: public only; released too; private too, and unprotected.",
    )
    key: str | None = Field(None, description="Name of the one environment variable that may be sent there as the key.")

    @field_validator("url")
    @classmethod
    def _strict_url(cls, value: str) -> str:
        return str(Address.parse(value))

    @property
    def address(self) -> Address:
        """The address, read."""
        return Address.parse(self.url)


class SitePolicy(Config):
    """What one party allows."""

    data: dict[str, DataBinding] = Field(default_factory=dict, description="Name that pipelines ask for -> data set.")
    budget: dict[str, Budget] = Field(default_factory=dict, description="Data set -> cap; '*' for every other one.")
    components: tuple[str, ...] = Field(("*",), strict=False, description="Component names that may run here.")
    mechanisms: tuple[str, ...] = Field(("*",), strict=False, description="Mechanism names, or name@sha256-prefix of its code.")
    max_epsilon: float | None = Field(None, gt=0, strict=False, description="Largest epsilon a token or field here.")
    waivers: tuple[Waiver, ...] = Field((), strict=False, description="Edges that may carry unprotected benchmark data.")
    seeded: bool = Field(False, description="Allow seeded noise on benchmark data (tests).")
    cleartext: tuple[str, ...] = Field((), strict=False, description="Cleartext classes that a mechanism may declare.")
    endpoints: tuple[str, ...] = Field(
        (), strict=False, description="Parties (by name) whose models may be asked about private data."
    )
    remote: tuple[Remote, ...] = Field(
        (), strict=False, description="Model servers that a pipeline's models here may ask at all, and what each may see."
    )
    models: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Paths or hub names of models that a pipeline may load here; shipped ones (osmotic:...) always may; "
        "'*' for any.",
    )
    handover: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Outputs (task.port) that the software around this party (FATE) may get although they depend on "
        "private data.",
    )
    tables: tuple[str, ...] = Field(("*",), strict=False, description="Digests (or prefixes) of tables a mechanism may use.")
    unproven: bool = Field(False, description="Allow mechanisms that are not certified (never shown as a guarantee).")
    secure_sum: SumRules = Field(default_factory=SumRules, description="What this party asks of secure sums of its data.")
    identities: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(
        default_factory=dict,
        description="Party -> its public key (osmotic keys identity): who else is in a secure sum is then signed and checked.",
    )
    threads: int = Field(1, ge=1, description="Compute threads of this party.")
    deadline: float | None = Field(
        None, gt=0, strict=False, allow_inf_nan=False,
        description="Seconds that a task may run here without telling progress; then it is ended. Default: no end.",
    )  # fmt: skip


class Sites(Config):
    """Policies of several parties in one file, for runs on one machine."""

    osmotic_sites: Literal[1] = Field(description="Version of this document's format.")
    state: str | None = Field(
        None, description="Folder of the parties' ledgers, relative to this file; default for private data: NAME.state."
    )
    defaults: SitePolicy = Field(
        default_factory=SitePolicy, description="Keys that hold for every party below that does not set them itself."
    )
    parties: dict[str, Annotated[SitePolicy, BeforeValidator(_nothing, json_schema_input_type=SitePolicy | None)]]

    @field_validator("parties")
    @classmethod
    def _apply_defaults(cls, parties: dict[str, SitePolicy], info: ValidationInfo) -> dict[str, SitePolicy]:
        defaults: SitePolicy | None = info.data.get("defaults")
        if defaults is None:
            return parties
        given = {key: getattr(defaults, key) for key in defaults.model_fields_set}
        return {
            name: policy.model_copy(update={k: v for k, v in given.items() if k not in policy.model_fields_set})
            for name, policy in parties.items()
        }
