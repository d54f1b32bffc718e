# SPDX-License-Identifier: Apache-2.0
"""What the bridge and a worker, and the workers of two parties, say to each other: a closed list, with versions.

Between bridge and worker, as frames of `runtime.transports.frames` on the worker's standard input and output:

==========  ================  ==================================================================================
frame       from              what it has
==========  ================  ==================================================================================
hello       worker, first     protocol, osmotic, rules, python
start       bridge            protocol, bridge, kind (pipeline, component), role, party, peers, parameters, site,
                              site_file, task {id, name}, inputs and outputs {name: {type, path}}
put         worker            to; the body is one message for that party's worker
got         bridge            from; the body is one message of that party's worker
log         worker            level, text: names of tasks, counts and codes, never a record or a reason
metric      worker            name, value, step: only what may be shown
beat        worker            count: the process is alive; sent every 5 s
lost        bridge            peer, why: that party is gone
stop        bridge            the task is to end
end         worker, last      exit, code, problems, outputs
==========  ================  ==================================================================================

Between workers, each one message (a frame again, header and body): `hello` (versions, who coordinates, a fingerprint of the
job) to the coordinator and back; then `request`, `reply` and `outbound` as on every transport; `alive` now and then;
`done` (code, party) to everybody at the end. One end of every message is the coordinator, and only it sends `request` and
`done`: whoever sends anything else is named, and the run ends. The bridge never looks inside; what is in a message passed the
membrane.
"""

import platform
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from osmotic import __version__
from osmotic.runtime.party.keys import RULES
from osmotic.schemas.base import Config
from osmotic.schemas.errors import ConfigError, Problem, ProtocolError
from osmotic.schemas.source import Source, validate

PROTOCOL = 1
BEAT = 5.0  # seconds between two beats
FATE_ROLES = ("arbiter", "guest", "host")
M = TypeVar("M", bound=BaseModel)


class Place(Config):
    """An artifact of FATE: its type and the path where it lies, or is to lie."""

    type: str
    path: str


class TaskOf(Config):
    """FATE's names of the task."""

    id: str = ""
    name: str = ""


class Start(Config):
    """What the bridge tells a worker to do."""

    frame: Literal["start"]
    protocol: int
    bridge: str = ""
    kind: Literal["pipeline", "component"]
    role: str
    party: str = Field(description="role:party_id of this party.")
    peers: list[str] = Field(default_factory=list, description="The others: arbiter, guest, hosts in FATE's order.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="Of the job: whoever submits it wrote them.")
    site: dict[str, Any] = Field(default_factory=dict, description="This site's own file, as it was read.")
    site_file: str = ""
    task: TaskOf = Field(default_factory=TaskOf)
    inputs: dict[str, Place] = Field(default_factory=dict)
    outputs: dict[str, Place] = Field(default_factory=dict)


def hello() -> dict[str, Any]:
    """The first frame of a worker."""
    return {"frame": "hello", "protocol": PROTOCOL, **versions(), "python": platform.python_version()}


def versions() -> dict[str, Any]:
    """What must be equal everywhere: equal plans, labels and keys rest on it."""
    return {"osmotic": __version__, "rules": RULES}


def read(model: type[M], name: str, value: Any) -> M:
    """Validate plain values; raises ConfigError whose paths start with `name`."""
    return validate(model, Source("", {name: value}), (name,))


def start(frame: dict[str, Any]) -> Start:
    """The frame `start`, checked: its protocol before anything else. Raises ProtocolError or ConfigError."""
    if frame.get("frame") != "start":
        raise ProtocolError(Problem("the bridge did not begin with 'start'"))
    if frame.get("protocol") != PROTOCOL:
        what = f"the bridge speaks protocol {str(frame.get('protocol'))[:20]}, the worker protocol {PROTOCOL}"
        why = f"bridge {str(frame.get('bridge'))[:40]}, worker osmotic {__version__}"
        fix = "install osmotic-fate in FATE's environment and osmotic in the worker's from the same release"
        raise ProtocolError(Problem(what, why=why, fix=fix))
    return read(Start, "start", frame)


def greeting(coordinator: str, job: str) -> dict[str, Any]:
    """The first message between two workers."""
    return {"frame": "hello", "protocol": PROTOCOL, **versions(), "coordinator": coordinator, "job": job}


def check_greeting(peer: str, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raise ProtocolError unless another worker has equal versions, ConfigError unless it was given the same job."""
    if theirs.get("frame") != "hello":
        raise ProtocolError(Problem(f"the worker of {peer} did not begin with a greeting"))
    if [theirs.get(key) for key in ("protocol", "osmotic", "rules")] != [mine[key] for key in ("protocol", "osmotic", "rules")]:
        fix = "install the same version of osmotic for the workers of all parties"
        raise ProtocolError(Problem(f"the workers differ: {peer} has {_told(theirs)}, this party {_told(mine)}", fix=fix))
    if theirs.get("coordinator") != mine["coordinator"]:
        what = f"{peer} takes {_word(theirs.get('coordinator'))} for the coordinator, this party {mine['coordinator']}"
        raise ConfigError(Problem(what, path="parameters", fix="give 'pipeline', 'parties' and 'roles' alike at all parties"))
    if theirs.get("job") != mine["job"]:
        what = f"{peer} was given another pipeline, other overrides or another mapping of parties than this party"
        raise ConfigError(Problem(what, path="parameters", fix="give them as common parameters of the task"))


def _told(versions: dict[str, Any]) -> str:
    found = [_word(versions.get(key)) for key in ("osmotic", "rules", "protocol")]
    return f"osmotic {found[0]} (rules {found[1]}, protocol {found[2]})"


def _word(value: object) -> str:
    """What another party says, short and on one line."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:40])
