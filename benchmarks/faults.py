# SPDX-License-Identifier: Apache-2.0
"""Break a deployment at random moments, let it go on, and compare what it ends with to a run that nothing happened to.

Usage: python benchmarks/faults.py [--schedules 20] [--quorum 4] [--only 7 --only q2] [--again] [--out FILE] [--hostile]

A server and three sites run a short FedCoT over NVFlare, started by osmotic's own commands, each in a network namespace (needs
root and `ip`; without them nothing is cut). A schedule is one to three events, drawn from the seed and its number:

- site: everything of a site is killed (SIGKILL), and started again after 1 to 20 s;
- hub: so are the engine's server and the coordinator; server: the engine's server alone; coordinator: the coordinator alone;
- freeze: everything of a site is stopped (SIGSTOP) for 60 s, or for 2 to 25 s;
- cut: a site is cut off for 5 to 90 s, silently or with its link down.

Two in five run the pipeline without seeds, over private records: its releases are in the ledgers alone. Schedules
q1, q2, ... have a quorum of two in three; one site is killed and never comes back. Compared afterwards: digests of all
artifacts with those of the local transport (without seeds: with a local run over copies of the ledgers that the schedule
left), every party's ledger with that of an undisturbed run, `osmotic verify` at every party and over all of them. Finished
schedules are in the file of --out, a line each, and are not run again.
"""

import argparse
import heapq
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from faults_parts import SITES, Deployment, Net, digests, homes, ledgers, local, together

OUT = Path(__file__).parent / "results" / "faults.jsonl"
KINDS = ("site", "cut", "hub", "freeze", "coordinator", "server")
LIMIT = 600.0  # seconds that a schedule may take
BY_HAND = 3  # times that a coordinator which gave up is started again, as an operator would


@dataclass(frozen=True)
class Event:
    """What happens to whom, for how many seconds. lasts 0: for ever.

    at: a share of the run, as far as the coordinator says how far it is, and `late` seconds more: events are
    spread over the whole run, however busy the machine.
    """

    at: float
    kind: str
    target: str
    lasts: float
    silent: bool = True
    late: float = 0.0

    def told(self, seconds: float) -> str:
        """As it stands in the table. seconds: since the coordinator's first start."""
        how = {"cut": "cut off" if self.silent else "unplugged", "freeze": "frozen"}.get(self.kind, "killed")
        who = {"hub": "server+coordinator"}.get(self.target, self.target)
        return f"{seconds:.0f} s ({self.at:.0%}): {who} {how}" + (f" {self.lasts:.0f} s" if self.lasts else ", for good")


@dataclass
class Outcome:
    """What a schedule came to."""

    number: str
    kind: str
    events: list[str] = field(default_factory=list)
    missed: int = 0  # events that the run did not live to see
    seconds: float = 0.0
    result: str = ""
    by_hand: int = 0
    hashes: str = ""
    charges: str = ""
    problems: list[str] = field(default_factory=list)
    ledgers: dict[str, Any] = field(default_factory=dict)
    audit: list[str] = field(default_factory=list)


def kind_of(number: str) -> str:
    """Which pipeline a schedule runs."""
    if number in ("light", "short"):
        return number
    return "quorum" if number.startswith("q") else "private" if int(number) % 5 in (2, 4) else "seeded"


def drawn(number: str, seed: int, real: bool = True) -> list[Event]:
    """The events of a schedule; the first ones of all schedules go through all kinds."""
    draw = random.Random(f"{seed}/{number}")
    kinds = [kind for kind in KINDS if real or kind != "cut"]
    if number.startswith("q"):
        first = [Event(draw.uniform(0.3, 0.8), "site", draw.choice(SITES), 0.0, late=draw.uniform(0, 3))]
        return first + ([_event(draw, draw.choice(kinds[2:]))] if draw.random() < 0.3 else [])
    chosen = [kinds[int(number) % len(kinds)]] + [draw.choice(kinds) for _ in range(draw.choice((0, 1, 1, 2)))]
    return sorted((_event(draw, kind) for kind in chosen), key=lambda event: event.at)


def _event(draw: random.Random, kind: str) -> Event:
    at, late, silent = round(draw.uniform(0.05, 0.9), 3), draw.uniform(0, 3), draw.random() < 0.6
    lasts = {"freeze": draw.choice((60.0, draw.uniform(2, 25))), "cut": draw.uniform(5, 90)}.get(kind, draw.uniform(1, 20))
    target = kind if kind in ("hub", "coordinator", "server") else draw.choice(SITES)
    return Event(at, kind, target, round(lasts, 1), silent, late)


# ---- one schedule ----


class Play:
    """Runs a deployment through a schedule."""

    def __init__(self, deployment: Deployment, outcome: Outcome, events: list[Event]) -> None:
        self.deployment, self.outcome = deployment, outcome
        self.begun = time.monotonic()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._down: dict[str, int] = {}  # places that are not to run just now
        self.waiting, self.furthest = sorted(events, key=lambda event: event.at), 0.0

    def _at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, id(do), do))

    def run(self) -> bool:
        """Until the coordinator has finished; whether it did."""
        places = ("hub", *SITES, "coordinator")
        for place in places:
            self.deployment.start(place)
        self.begun = time.monotonic()
        while self._now() < LIMIT:
            self._look()
            while self._due and self._due[0][0] <= self._now():
                heapq.heappop(self._due)[2]()
            code = self.deployment.started["coordinator"].poll()
            if code is not None and not self._down.get("coordinator"):
                if code == 0 or self.outcome.by_hand >= BY_HAND:
                    self.outcome.seconds = self._now()
                    self.outcome.result = "done" if code == 0 else f"ended with {code}"
                    return code == 0
                self._by_hand(code)
            time.sleep(0.1)
        self.outcome.seconds, self.outcome.result = self._now(), f"not done after {LIMIT:.0f} s"
        return False

    def _look(self) -> None:
        """How far the run is: a quarter of it is to find the sites and to ask them. What is due by that begins."""
        said = (self.deployment.folder / "coordinator.log").read_text(encoding="utf-8", errors="replace").rpartition("====")[2]
        begun = sum(word in said for word in ("starting at", ": here", "say to the plan", " tasks")) / 4
        done = [int(n) / int(of) for n, of in re.findall(r"\[(\d+)/(\d+)\]", said)]
        self.furthest = max(self.furthest, 0.25 * begun + 0.75 * max(done, default=0.0))
        while self.waiting and self.waiting[0].at <= self.furthest:
            event = self.waiting.pop(0)
            self._at(self._now() + event.late, lambda event=event: self._begin(event))

    def _now(self) -> float:
        return time.monotonic() - self.begun

    def _by_hand(self, code: int) -> None:
        """The coordinator gave up: the same command again."""
        self.outcome.by_hand += 1
        self.outcome.events.append(f"{self._now():.0f} s: (the coordinator ended with {code}, and was started again by hand)")
        self._stop(["coordinator"])
        self._at(self._now() + 5.0, lambda: self._start(["coordinator"]))

    def _begin(self, event: Event) -> None:
        places = {"hub": ["coordinator", "hub"], "server": ["hub"]}.get(event.target, [event.target])
        self.outcome.events.append(event.told(self._now()))
        deployment = self.deployment
        if event.kind == "cut":
            deployment.net.cut(event.target, event.silent)
            after: Callable[[], None] = lambda: deployment.net.mend(event.target)  # noqa: E731
        elif event.kind == "freeze":
            deployment.send(event.target, signal.SIGSTOP)
            after = lambda: (deployment.send(event.target, signal.SIGCONT), None)[1]  # noqa: E731
        else:
            self._stop(places)
            after = lambda: self._start(places)  # noqa: E731
        if event.lasts:
            self._at(self._now() + event.lasts, after)

    def _stop(self, places: list[str]) -> None:
        for place in places:
            self._down[place] = self._down.get(place, 0) + 1
            self.deployment.kill(place)

    def _start(self, places: list[str]) -> None:
        for place in reversed(places):
            self._down[place] -= 1
            if not self._down[place]:
                self.deployment.start(place)


def play(deployment: Deployment, number: str, events: list[Event], baseline: dict[str, Any]) -> Outcome:
    """One schedule, from nothing to the comparison."""
    kind, outcome = kind_of(number), Outcome(number, kind_of(number))
    deployment.write(kind)
    deployment.reset()
    running = Play(deployment, outcome, events)
    try:
        done = running.run()
    finally:
        deployment.stop()
        for site in SITES:
            deployment.net.mend(site)
    outcome.missed = len(events) - sum("by hand" not in text for text in outcome.events)
    for site in SITES:
        outcome.audit += [f"{site}: {line['what']} {line.get('why', '')}".strip() for line in deployment.audit(site)]
    if done:
        compare(deployment, outcome, baseline)
    else:
        outcome.problems.append(outcome.result)
    return outcome


# ---- comparing ----


def compare(deployment: Deployment, outcome: Outcome, baseline: dict[str, Any]) -> None:
    """Digests, ledgers, chains; with a quorum, what the run says of itself."""
    from osmotic.runtime.results.survivors import lines

    kind, folders = outcome.kind, homes(deployment, outcome.kind)
    found, outcome.ledgers = digests(folders), ledgers(deployment.folder / "ledgers")
    expected = again(deployment, outcome) if kind == "private" else baseline.get("digests", {}).get("seeded", {})
    run = json.loads((deployment.home / "run.json").read_text(encoding="utf-8"))
    quorums = [f"{row['task']}: {row['what']}" for row in lines(run)]
    equal = sum(found.get(name) == digest for name, digest in expected.items())
    outcome.hashes = f"{equal} of {len(expected)}" if expected else "none to compare with"
    if quorums:
        outcome.result = "; ".join(quorums)
    elif expected and (equal < len(expected) or len(found) != len(expected)):
        outcome.problems.append(
            f"{len(expected) - equal} artifacts are other ones, {len(found)} in all: {_unlike(found, expected)}"
        )
    _ledgers(outcome, baseline, bool(quorums))
    verified(deployment, outcome, folders)


def _unlike(found: dict[str, str], expected: dict[str, str]) -> str:
    return ", ".join(sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))[:6])


def _ledgers(outcome: Outcome, baseline: dict[str, Any], lost: bool) -> None:
    """Every ledger as that of the undisturbed run, and no release charged twice."""
    known, wrong = baseline.get("ledgers", {}).get(outcome.kind, {}), []
    for party, ledger in outcome.ledgers.items():
        if ledger["twice"] or ledger["again"]:
            wrong.append(f"{party}: {ledger['twice']} charges too many, {ledger['again']} documents released again")
        if outcome.kind != "private" and known and ledger != known[party] and not (lost and ledger["charges"] == 0):
            wrong.append(f"{party}: {ledger}, undisturbed {known[party]}")
    outcome.charges = "no" if wrong else "yes"
    outcome.problems += wrong


def again(deployment: Deployment, outcome: Outcome) -> dict[str, str]:
    """Digests of a local run over copies of ledgers and keys that were left, and of nothing else; it may charge nothing."""
    copies = deployment.folder / "again-ledgers"
    shutil.copytree(deployment.folder / "ledgers", copies, ignore=shutil.ignore_patterns("*lock"))
    found = local(deployment)
    for party, after in ledgers(copies).items():
        if after != outcome.ledgers[party]:
            outcome.problems.append(f"{party}: the same run once more charged {after}, after {outcome.ledgers[party]}")
    return found


def verified(deployment: Deployment, outcome: Outcome, folders: dict[str, Path]) -> None:
    """`osmotic verify` at every party, and over all of them."""
    for party, folder in [*folders.items(), ("together", together(deployment, folders) / "parties" / "all")]:
        try:
            deployment.command("again", "verify", str(folder.parent.parent))
        except RuntimeError as error:
            outcome.problems.append(f"verify, {party}: {str(error).splitlines()[-1][:200]}")


# ---- all of them ----


def undisturbed(deployment: Deployment, kinds: list[str], baseline: dict[str, Any], say: Callable[[str], None]) -> None:
    """What is compared with: local digests, and for each pipeline a run that nothing happens to."""
    for kind in kinds:
        if kind in baseline.get("seconds", {}):
            continue
        if kind != "private" and "seeded" not in baseline.setdefault("digests", {}):
            deployment.write("seeded")
            deployment.reset()
            begun = time.monotonic()
            baseline["digests"]["seeded"] = local(deployment)
            baseline.setdefault("seconds", {})["local"] = round(time.monotonic() - begun, 1)
            say(f"local: {len(baseline['digests']['seeded'])} artifacts, {baseline['seconds']['local']} s")
        number = {"seeded": "0", "private": "2", "quorum": "q0"}[kind]
        outcome = play(deployment, number, [], {**baseline, "ledgers": {}})
        say(f"undisturbed, {kind}: {outcome.seconds:.0f} s, {outcome.result}, hashes {outcome.hashes}, {outcome.problems}")
        if outcome.result != "done":
            raise SystemExit(f"the undisturbed run of {kind} did not end well: {deployment.folder}/coordinator.log")
        baseline.setdefault("seconds", {})[kind] = round(outcome.seconds, 1)
        baseline.setdefault("ledgers", {})[kind] = outcome.ledgers


def table(outcomes: list[Outcome]) -> str:
    """As Markdown."""
    lines = [
        "| schedule | events | seconds | result | hashes equal | charges equal | problems |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        events, problems = "; ".join(one.events), "; ".join(one.problems) or "none"
        row = (f"{one.number} {one.kind}", events, f"{one.seconds:.0f}", one.result, one.hashes, one.charges, problems)
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |")
    return "\n".join(lines)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """The baseline and the finished schedules of a file."""
    baseline: dict[str, Any] = {}
    found: dict[str, Outcome] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        entry = json.loads(line)
        if "baseline" in entry:
            baseline = entry["baseline"]
        elif "number" in entry:
            found[entry["number"]] = Outcome(**entry)
    return baseline, found


def _keep(path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, sort_keys=True) + "\n")


def schedules(given: argparse.Namespace, deployment: Deployment) -> list[Outcome]:
    """Run what is asked for and not in the file yet."""
    numbers = given.only or [str(n + 1) for n in range(given.schedules)] + [f"q{n + 1}" for n in range(given.quorum)]
    baseline, found = read(given.out)
    todo = [number for number in numbers if number not in found or given.again]
    deployment.make("seeded")
    before = json.dumps(baseline, sort_keys=True)
    undisturbed(deployment, sorted({kind_of(number) for number in todo}), baseline, lambda line: print(line, flush=True))
    if json.dumps(baseline, sort_keys=True) != before:
        _keep(given.out, {"baseline": baseline})
    for number in todo:
        events = drawn(number, given.seed, deployment.net.real)
        found[number] = outcome = play(deployment, number, events, baseline)
        _keep(given.out, asdict(outcome))
        print(table([outcome]).splitlines()[-1], flush=True)
        if outcome.problems:
            kept = given.folder / f"problem-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(deployment.folder, kept, ignore=shutil.ignore_patterns("store", "*.sock", "problem-*"))
    return [found[number] for number in numbers if number in found]


def main() -> int:
    """Print the table; exit code 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedules", type=int, default=20)
    parser.add_argument("--quorum", type=int, default=4, help="schedules of the second group")
    parser.add_argument("--only", action="append", help="one schedule by its number, again if need be")
    parser.add_argument("--again", action="store_true", help="also those that are in the file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the deployment lies; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--hostile", action="store_true", help="hostile messages, jobs and plans instead")
    given = parser.parse_args()
    scratch = None if given.folder else tempfile.TemporaryDirectory(prefix="faults-")
    given.folder = given.folder or Path(scratch.name if scratch else ".")
    folder = given.folder / f"deployment-{os.getpid()}"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    net = Net(str(os.getpid() % 100_000)).open()
    deployment = Deployment(folder, net)
    try:
        if given.hostile:
            from faults_hostile import hostile

            return hostile(deployment)
        outcomes = schedules(given, deployment)
    finally:
        deployment.stop()
        net.close()
        shutil.rmtree(folder, ignore_errors=True)
        if scratch is not None:
            scratch.cleanup()
    print(table(outcomes))
    return 1 if any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
