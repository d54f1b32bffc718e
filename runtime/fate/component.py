# SPDX-License-Identifier: Apache-2.0
"""The FATE component `osmotic_component`: one component at one party, by the same road as `osmotic.call`.

Same policy, ledger, store and releases as in a pipeline. What FATE hands over counts as data of the binding `data` of the
site's policy, whatever its manifest says: its schema, label, purpose and budget hold for it. What goes back to FATE is one
output a folder, and only what may (`runtime.fate.handing`); all outputs lie in the site's store.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from osmotic.plugins.contract import Port, input_ports
from osmotic.plugins.datafiles import load_records
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime.fate import handing, wire
from osmotic.runtime.fate.folders import artifact
from osmotic.runtime.fate.giving import path_of, write_json
from osmotic.runtime.fate.parameters import HOME, SiteFile, check_party, site_of
from osmotic.runtime.fate.taking import data_file
from osmotic.runtime.party.data import Datasets
from osmotic.runtime.party.policies import Policies, policies_of
from osmotic.runtime.party.single import Call
from osmotic.runtime.party.site import Ref, Site
from osmotic.runtime.privacy import accounts
from osmotic.schemas.artifacts import Artifact, Metrics, Records
from osmotic.schemas.base import Config
from osmotic.schemas.errors import Code, ConfigError, DataError, MembraneError, OsmoticError, Problem, RefusedError
from osmotic.schemas.pipeline import Name
from osmotic.schemas.policy import DataBinding, Sites
from osmotic.schemas.source import did_you_mean, validate
from osmotic.schemas.source import read as read_file

Say = Callable[[dict[str, Any], bytes], None]
INPUTS = {"data": "data_directory", "model": "model_directory"}
OUTPUTS = {"output_data": "data_directory", "output_model": "model_directory", "report": "json_model"}
QUOTING = (Code.DATA, Code.COMPONENT, Code.MODEL, Code.INTERNAL)  # errors of these families may quote what they read
OFTEN = 10.0  # seconds between two lines about progress


class Single(Config):
    """Parameters of the FATE component `osmotic_component`."""

    component: str = Field(description="A registered component's name (osmotic components).")
    config: dict[str, Any] = Field(default_factory=dict, description="Its own configuration.")
    party: Name | None = Field(None, description="Which party of the site's policy file this is; needed where it has several.")
    data: str = Field("records", description="The binding of the policy that the input counts as, or is read from.")
    models: dict[str, Any] = Field(default_factory=dict, description="As in a pipeline, without 'at'.")
    outputs: dict[str, str] = Field(
        default_factory=dict, description="FATE's output folder -> output of the component; default: the first that fits."
    )
    worker: str | None = Field(None, description="Which of the site's workers, by name.")
    deadline: float = Field(
        600.0, gt=0, strict=False, allow_inf_nan=False, description="Seconds without progress until the end."
    )


def run_component(start: dict[str, Any], say: Say) -> dict[str, Any]:
    """Run it; returns the frame `end`. Raises OsmoticError, located in the job's parameters or the site's file."""
    given = wire.start(start)
    site_file, job = site_of(given), wire.read(Single, "parameters", given.parameters)
    registry = build_registry(site_file.plugins) if site_file.plugins is not None else build_registry()
    if job.component not in registry.components:
        fix = did_you_mean(job.component, registry.components)
        raise ConfigError(Problem(f"there is no component {job.component!r}", path="parameters.component", fix=fix))
    _check_places(given)
    party = _party(site_file, job, given.site_file)
    _check_taken(given, site_file, job)
    policies = policies_of([party], Path(site_file.sites or ""))
    run = _Run(job, party, replace(policies, state=site_file.state or policies.state), registry, given, say)
    try:
        run.execute(Path(site_file.home or Path(HOME).expanduser()) / f"component-{job.component}")
    except OsmoticError as error:
        error.problems = [_in_parameters(problem) for problem in error.problems]
        raise _told(error, job, policies.policies[party].data.get(job.data)) from None
    return {"frame": "end", "exit": 0, "code": "", "problems": [], "outputs": run.outputs}


@dataclass
class _Run:
    """One call: what goes in, what is handed over, what is said meanwhile."""

    job: Single
    party: str
    policies: Policies
    registry: Registry
    start: wire.Start
    say: Say
    outputs: dict[str, Any] = field(default_factory=dict)
    said: float = 0.0

    def execute(self, home: Path) -> None:
        """Read the inputs, call, hand over."""
        chosen = self._chosen()
        records, inputs = self._inputs()

        def after(site: Site, refs: Mapping[str, Ref]) -> None:
            self._hand(site, refs, chosen)

        made = Call(
            self.job.component, self.job.config, self.party, self.job.data, self.job.models, self.registry,
            after=after, progress=self._progress,
        )  # fmt: skip
        self._log("started")
        made.run(records, inputs, self.policies, home)
        self._log("done")

    def _chosen(self) -> dict[str, str]:
        """FATE's output folder -> port; raises ConfigError for what does not fit."""
        ports = {port: out.kind.kind for port, out in self.registry.component(self.job.component).outputs.items()}
        found = {}
        for name, place in self.start.outputs.items():
            kinds = handing.FOLDERS.get(place.type, ())
            fitting = [port for port, kind in ports.items() if kind in kinds]
            wanted = self.job.outputs.get(name)
            if wanted is not None and wanted not in fitting:
                what = f"{self.job.component} has no output {wanted!r} for a {place.type}"
                raise ConfigError(Problem(what, path=f"parameters.outputs.{name}", fix=did_you_mean(wanted, fitting)))
            if fitting:
                found[name] = wanted or fitting[0]
        if unknown := [name for name in self.job.outputs if name not in found]:
            fix = did_you_mean(unknown[0], self.start.outputs)
            raise ConfigError(Problem(f"FATE's task has no output {unknown[0]!r}", path="parameters.outputs", fix=fix))
        return found

    def _inputs(self) -> tuple[Records | None, dict[str, Artifact]]:
        """(somebody's own records, artifacts that osmotic wrote by input port)"""
        ports = input_ports(self.registry.component(self.job.component))
        records: Records | None = None
        found: dict[str, Artifact] = {}
        for name, place in self.start.inputs.items():
            made = artifact(path_of(place), f"inputs.{name}")
            if name == "data" and (made is None or self._is_bound(made)):
                records = made if isinstance(made, Records) else self._own_records(place)
                continue
            if made is None:
                raise DataError(Problem("the folder is none that osmotic wrote", path=f"inputs.{name}"))
            port = next((port for port, one in ports.items() if port not in found and _takes(one, made)), None)
            if port is None:
                fix = f"its inputs: {', '.join(f'{port} ({one.kind.kind})' for port, one in ports.items()) or 'none'}"
                raise ConfigError(Problem(f"{self.job.component} takes no {made.kind} there", path=f"inputs.{name}", fix=fix))
            found[port] = made
        return records, found

    def _is_bound(self, made: Artifact) -> bool:
        """Whether it is a table with the columns of the binding: records like those of its file."""
        datasets = self._datasets()
        fields = datasets.schema(self.job.data).fields if datasets.has(self.job.data) else {}
        return isinstance(made, Records) and set(made.columns) == {"id", *fields}

    def _datasets(self) -> Datasets:
        return Datasets(self.policies.policies[self.party], self.policies.base, self.party)

    def _own_records(self, place: wire.Place) -> Records:
        """Somebody's own file, read with the schema and the map of the binding."""
        datasets = self._datasets()
        binding = datasets.binding(self.job.data)
        return load_records(data_file(place, "inputs.data"), datasets.schema(self.job.data), binding.map, None)

    def _hand(self, site: Site, refs: Mapping[str, Ref], chosen: Mapping[str, str]) -> None:
        """Hand over what FATE's configuration names; raises MembraneError for what has to stay."""
        for port in chosen.values():
            handing.may_hand(site, f"{self.job.component}.{port}", refs[port].label)
        for name, place in self.start.outputs.items():
            if name in chosen:
                self.outputs[name] = self._hand_one(site, refs[chosen[name]], chosen[name], path_of(place))
            elif place.type in handing.FOLDERS:
                self.outputs[name] = handing.nothing(path_of(place))
        for name, place in self.start.outputs.items():
            if place.type in handing.JSON:
                write_json(path_of(place), self._report(refs, chosen))
                self.outputs[name] = {"kind": "report"}

    def _report(self, refs: Mapping[str, Ref], chosen: Mapping[str, str]) -> dict[str, Any]:
        """What others may know: every output with its label; no digest of what is private, which could be guessed from it."""
        told = {port: {"kind": ref.kind, "label": ref.label.word} for port, ref in refs.items()}
        for port, ref in refs.items():
            if not ref.label.of("raw"):
                told[port]["digest"] = ref.digest
        about = {"component": self.job.component, "party": self.party, "data": self.job.data}
        return {**about, "outputs": told, "handed": dict(chosen)}

    def _hand_one(self, site: Site, ref: Ref, port: str, folder: Path) -> dict[str, Any]:
        """One artifact as a folder, and what may be said of it in FATE's log; returns its manifest."""
        producer = {"component": self.job.component, "port": port, "party": self.party}
        made = handing.give_out(site, folder, ref, f"{self.job.component}.{port}", producer)
        if ref.kind == Metrics.kind:
            with contextlib.suppress(MembraneError):  # of benchmark and public data alone
                accounts.may_show(site, ref, f"metrics of {self.job.component}")
                for name, value in Metrics.from_files(site.store.files(ref.kind, ref.digest)).values.items():
                    self.say({"frame": "metric", "name": name, "value": value, "step": 0}, b"")
        self._log(f"{port}: {ref.kind}, {ref.label.word}")
        return made

    def _log(self, text: str) -> None:
        self.say({"frame": "log", "level": "info", "text": f"{self.job.component}: {text}"}, b"")

    def _progress(self, task: str, done: int, total: int, note: str) -> None:
        """Counts only: a note of a component may quote what it works on."""
        if (now := time.monotonic()) - self.said >= OFTEN:
            self.said = now
            self._log(f"{done} of {total}")


def _told(error: OsmoticError, job: Single, binding: DataBinding | None) -> OsmoticError:
    """The error as FATE may show it to whoever submitted the job: what may quote private records is in the log alone."""
    private = binding is None or binding.label == binding.purpose == "private"
    if not private or error.code not in QUOTING:
        return error
    print(*error.problems, sep="\n", file=sys.stderr)
    made = OsmoticError(
        Problem(f"{job.component} failed ({error.code})", fix="the reason is in the worker's own log, at this party")
    )
    made.code, made.exit_code = error.code, error.exit_code
    return made


def _check_places(given: wire.Start) -> None:
    """Raise ConfigError for inputs and outputs of types that osmotic does not read or write."""
    problems = []
    for side, places, known in (("inputs", given.inputs, INPUTS), ("outputs", given.outputs, OUTPUTS)):
        for name, place in places.items():
            if name not in known:
                problems.append(
                    Problem("osmotic_component has no such artifact", path=f"{side}.{name}", fix=did_you_mean(name, known))
                )
            elif place.type != known[name]:
                why = "dataframes and tables of FATE are read by none of osmotic's components"
                fix = "put the records into a folder: one file, JSONL, CSV or Parquet (docs/fate.md)"
                problems.append(Problem(f"must be a {known[name]} (got {place.type})", path=f"{side}.{name}", why=why, fix=fix))
    if problems:
        raise ConfigError(*problems)


def _check_taken(given: wire.Start, site: SiteFile, job: Single) -> None:
    """Raise RefusedError unless the site's own file lets records of FATE stand for the data set.

    Budgets count record ids: whoever may hand over the same records under other ids could spend them twice.
    """
    if "data" in given.inputs and site.inputs.get(job.data) != "data":
        why = "which data set an input becomes says the site's own file, not the job"
        fix = f'add to the site\'s file: "inputs": {{"{job.data}": "data"}}; or connect nothing: the policy\'s own file is read'
        raise RefusedError(
            Problem(f"this site takes no records of FATE for {job.data!r}", path="inputs.data", why=why, fix=fix)
        )


def _party(site: SiteFile, job: Single, file: str) -> str:
    """Which party of the policy file this is: the site's word, or the job's where the site leaves it open."""
    if not site.sites:
        fix = "name a policy file: key 'sites' of the file that OSMOTIC_FATE_SITE names"
        raise RefusedError(Problem("this site has no policy, so no data may be used", path="site.sites", fix=fix))
    if site.party is not None:
        if job.party not in (None, site.party):
            raise RefusedError(Problem(f"this site is {site.party!r}, not {job.party!r}", path="parameters.party"))
        return site.party
    check_party(site, file)
    known = list(validate(Sites, read_file(Path(site.sites))).parties)
    party = job.party or (known[0] if len(known) == 1 else None)
    if party not in known:
        what = f"the site's policy has no party {party!r}" if party else "the site's policy has several parties"
        raise ConfigError(Problem(what, path="parameters.party", fix=f"one of {', '.join(known)}"))
    return str(party)


def _takes(port: Port, artifact: Artifact) -> bool:
    return not port.gathered and isinstance(artifact, port.kind)


def _in_parameters(problem: Problem) -> Problem:
    """A place in the pipeline that a call makes is a place in the job's parameters."""
    path = problem.path
    if path.startswith("tasks.called."):
        path = "parameters." + path.removeprefix("tasks.called.")
    elif path.startswith("models."):
        path = f"parameters.{path}"
    where = "" if problem.where.startswith("osmotic.call") else problem.where
    return replace(problem, path=path, where=where)
