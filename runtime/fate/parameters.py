# SPDX-License-Identifier: Apache-2.0
"""What a FATE job may say (its parameters) and what only the site says (its own file, named by OSMOTIC_FATE_SITE).

Whoever submits a job writes the parameters. A path among them would choose a file of this machine, or a program to run, for
somebody else: so there are none. FATE drops unknown parameters and bends types; here both are errors, with their place.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from osmotic.runtime.fate.wire import FATE_ROLES, Start, read
from osmotic.runtime.party.policies import Policies, beside, policies_of
from osmotic.runtime.plan.load import Loaded, expanded, load, load_text, shipped
from osmotic.schemas.base import Config
from osmotic.schemas.errors import ConfigError, Problem, RefusedError
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.pipeline import NAME, Name
from osmotic.schemas.policy import SitePolicy, Sites
from osmotic.schemas.source import did_you_mean, validate
from osmotic.schemas.source import read as read_file

HOME = "~/osmotic-runs/fate"
DEADLINE = 600.0  # seconds
LONGEST = 30 * 86400.0


def _options(value: Any) -> Any:
    """{a.b: c} -> [a.b=c], as the command line has them."""
    if isinstance(value, dict):
        return [f"{key}={json.dumps(one, ensure_ascii=False)}" for key, one in value.items()]
    return [value] if isinstance(value, str) else value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Options = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_options)]
Several = Annotated[tuple[str, ...], Field(strict=False, min_length=1), BeforeValidator(_several)]


class Job(Config):
    """Parameters of the FATE component `osmotic_pipeline`."""

    pipeline: str | dict[str, Any] = Field(description="A shipped pipeline's name, or the pipeline: its YAML, or a mapping.")
    overrides: Options = Field((), description="As --set: 'a.b=value', or a mapping of a.b to a value.")
    parties: dict[Name, str] = Field(default_factory=dict, description="party of the pipeline -> 'role:party_id' of FATE.")
    roles: dict[Name, Several] = Field(
        default_factory=dict, description="role of the pipeline -> role or roles of FATE; default: server is the arbiter, "
        "everybody else guest and hosts."
    )  # fmt: skip
    outputs: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="role, or role:party_id, of FATE -> its output artifact -> task.port."
    )
    worker: str | None = Field(None, description="Which of the site's workers, by name.")
    deadline: float = Field(
        DEADLINE, gt=0, le=LONGEST, strict=False, allow_inf_nan=False, description="Seconds without progress."
    )

    def of(self, party: str) -> dict[str, str]:
        """Outputs of a party of FATE: those of its role, and its own."""
        return {**self.outputs.get(party.partition(":")[0], {}), **self.outputs.get(party, {})}


class SiteFile(Config):
    """The site's own file. Paths are relative to it."""

    python: str | None = Field(None, description="Interpreter of the worker.")
    workers: dict[Name, str] = Field(default_factory=dict, description="name -> interpreter; a job may choose one by name.")
    sites: str | None = Field(None, description="The policy file of this site.")
    home: str | None = Field(None, description=f"Folder of the runs; default {HOME}.")
    state: str | None = Field(None, description="Folder of the ledgers, if not where the policy file says.")
    party: Name | None = Field(None, description="Which party this site is; a job that makes it another is refused.")
    parties: dict[Name, str] = Field(
        default_factory=dict, description="party of pipelines -> 'role:party_id': a job that makes it somebody else is refused."
    )
    plugins: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(None, description="Plugins that are loaded.")
    inputs: dict[str, str] = Field(
        default_factory=dict, description="data set of the policy -> FATE's input (a data_directory) that it is read from."
    )


@dataclass(frozen=True)
class Settings:
    """What this party runs: the pipeline, as the job gives it, and the site's own choices with absolute paths."""

    job: Job
    site: SiteFile
    loaded: Loaded
    name: str | None  # of a shipped pipeline

    @property
    def home(self) -> Path:
        """The folder of this pipeline's runs."""
        return Path(self.site.home or Path(HOME).expanduser()) / self.loaded.pipeline.name

    def policies(self, parties: list[str], binds: tuple[str, ...]) -> Policies:
        """Of the site's file; without one, of a shipped pipeline the shipped one, of any other nothing: no data, no waivers."""
        file = Path(self.site.sites) if self.site.sites else beside(shipped()[self.name]) if self.name else None
        found = policies_of(parties, file, binds)
        return replace(found, state=self.site.state) if self.site.state else found

    def print_of(self, assigned: dict[str, str]) -> str:
        """A fingerprint of what must be the same at all parties."""
        return fingerprint([self.loaded.text, list(self.loaded.overrides), assigned])


def site_of(start: Start) -> SiteFile:
    """The site's own file; raises ConfigError for unknown keys. Relative paths start from its folder."""
    try:
        site = read(SiteFile, "site", start.site)
    except ConfigError as error:
        raise ConfigError(*[replace(p, where=start.site_file or p.where) for p in error.problems]) from error
    base = Path(start.site_file).parent if start.site_file else Path()
    paths = {key: str(base / Path(value).expanduser()) for key in ("sites", "home", "state") if (value := getattr(site, key))}
    return site.model_copy(update=paths)


def check_party(site: SiteFile, file: str) -> None:
    """Raise RefusedError where the job would choose which of several parties with private data a site is.

    file: the site's own file, for messages. Ledgers go by party: the same records under two names would be spent twice.
    """
    if site.party is None and site.sites:
        policies = validate(Sites, read_file(Path(site.sites))).parties
        private = [name for name, policy in policies.items() if has_private(policy)]
        if len(private) > 1:
            what = f"the site's policy has private data of {', '.join(private)}; the job would choose which party this site is"
            raise RefusedError(Problem(what, file, "site.party", fix=f'add to the site\'s file: "party": "{private[0]}"'))


def has_private(policy: SitePolicy) -> bool:
    """Whether a policy binds records that are neither public nor benchmark data."""
    return any(one.label == one.purpose == "private" for one in policy.data.values())


def check_names(site: SiteFile, policy: SitePolicy, names: dict[str, str], party: str, file: str) -> None:
    """Raise RefusedError where the job gives a name that this site takes for one party of FATE to another one.

    A policy trusts parties by name, and which party has a name says the job: so whoever may get private data has to be in the
    site's own file. names: party of the pipeline -> party of FATE.
    """
    problems = []
    for name, fate in site.parties.items():
        if names.get(name, fate) != fate:
            what = f"the job makes {names[name]} the party {name!r}, which is {fate} for this site"
            problems.append(Problem(what, file, f"site.parties.{name}"))
    trusted = [name for name in policy.endpoints if name in names and name not in site.parties and name != party]
    for name in trusted if site.sites and has_private(policy) else ():
        what = f"the policy of {party} trusts {name!r} with private data, and the job says that this is {names[name]}"
        fix = f'if it is, add to the site\'s file: "parties": {{"{name}": "{names[name]}"}}'
        problems.append(Problem(what, file, "site.parties", fix=fix))
    if problems:
        raise RefusedError(*problems)


def settings(start: Start) -> Settings:
    """Validate parameters and site file, and load the pipeline. Raises ConfigError with every problem, located."""
    site, job = site_of(start), read(Job, "parameters", start.parameters)
    problems = [
        Problem(f"FATE has no role {role!r}", path=f"parameters.outputs.{key}", fix=did_you_mean(role, FATE_ROLES))
        for key in job.outputs
        if (role := key.partition(":")[0]) not in FATE_ROLES
    ]
    if problems:
        raise ConfigError(*problems)
    name = _shipped_name(job.pipeline)
    _check_sets(job.overrides)
    with located():
        return Settings(job, site, _load(job, name), name)


@contextlib.contextmanager
def located() -> Iterator[None]:
    """Problems of a pipeline with its options called as they are in a job."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(*[_in_parameters(problem) for problem in error.problems]) from error


def _load(job: Job, name: str | None) -> Loaded:
    if name is not None:
        return load(name, job.overrides)
    try:
        text = job.pipeline if isinstance(job.pipeline, str) else json.dumps(job.pipeline, ensure_ascii=False, indent=1)
    except RecursionError as error:
        raise ConfigError(Problem("is nested too deep", path="parameters.pipeline")) from error
    return load_text(text, "parameters.pipeline", expanded(job.overrides))


def _shipped_name(pipeline: str | dict[str, Any]) -> str | None:
    """The name of a shipped pipeline; None for a text. Raises ConfigError for a path, and for an unknown name."""
    if isinstance(pipeline, dict) or "\n" in pipeline.strip() or pipeline.lstrip().startswith("{"):
        return None
    known = shipped()
    if pipeline in known:
        return pipeline
    if re.fullmatch(NAME, pipeline):
        what = f"no shipped pipeline is called {pipeline!r}"
        raise ConfigError(Problem(what, path="parameters.pipeline", fix=did_you_mean(pipeline, known)))
    why = "a path would name a file of each party's own machine, chosen by whoever submits the job"
    fix = "give the pipeline's text, or the name of a shipped one"
    raise ConfigError(Problem("neither a shipped pipeline's name nor a pipeline", path="parameters.pipeline", why=why, fix=fix))


def _check_sets(overrides: tuple[str, ...]) -> None:
    """Raise ConfigError for ``@FILE``: of sets of options, a job may name shipped ones alone."""
    known = shipped(".set.yaml")
    for option in overrides:
        if option.startswith("@") and option[1:] not in known:
            what, why = f"{option!r} is no shipped set of options", "a job names no files of this machine"
            raise ConfigError(Problem(what, path="parameters.overrides", why=why, fix=did_you_mean(option[1:], known)))


def _in_parameters(problem: Problem) -> Problem:
    """Options are called as they are in a job."""
    told = {key: getattr(problem, key).replace("--set ", "parameters.overrides: ") for key in ("what", "where")}
    return replace(problem, **told)
