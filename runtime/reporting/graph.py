# SPDX-License-Identifier: Apache-2.0
"""The picture of a pipeline in its report.

Roles are bands side by side, tasks stand in rows from top to bottom, lines run at right angles. Between two rows each group
of lines has a horizontal *track* of its own; lines that pass rows have a vertical *lane* in a gutter beside the columns of
tasks. So no line runs through a task or along another one. The outputs of a task that go the same way share a line: a
*trunk*, and a trunk that crosses is numbered where it does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WIDE, HIGH = 172, 46  # a task
LANE, TRACK, PAD, HEAD, BETWEEN, EDGE = 11, 19, 11, 46, 40, 6  # distances, in SVG units
REACH = WIDE / 2 - 26  # how far from a task's middle a line may come in


@dataclass
class Trunk:
    """Edges of one task that leave together: to one role, by one kind of line (`style`)."""

    source: str
    role: str
    style: str
    edges: list[dict[str, Any]] = field(default_factory=list)
    gutter: int = 0
    lane: int = -1
    out: float = 0.0
    into: dict[str, float] = field(default_factory=dict)
    tracks: dict[int, int] = field(default_factory=dict)
    n: int | None = None


@dataclass
class Picture:
    """What the template draws, in SVG units."""

    width: float = 0.0
    height: float = 0.0
    bands: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)
    boundaries: list[float] = field(default_factory=list)
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)


def lay_out(graph: Mapping[str, Any], parties: Mapping[str, list[str]]) -> Picture:
    """The picture of a summary's ``graph``; `numbers` maps (producing task, edge name) to the mark of its crossing."""
    return _Layout(graph, parties).picture() if graph["nodes"] else Picture()


def _reach(names: list[str], edges: list[dict[str, Any]]) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {n: set() for n in names}
    for edge in edges:
        out[edge["from"]].add(edge["to"])
    found = {}
    for name in names:
        seen, todo = set(out[name]), list(out[name])
        while todo:
            todo += (new := out[todo.pop()] - seen)
            seen |= new
        found[name] = seen
    return found


class _Layout:
    def __init__(self, graph: Mapping[str, Any], parties: Mapping[str, list[str]]) -> None:
        self.nodes = {n["name"]: n for n in graph["nodes"]}
        self.parties = parties
        self.roles = list(dict.fromkeys(n["at"] for n in graph["nodes"]))
        self.most = {1: 3, 2: 2}.get(len(self.roles), 1)  # tasks of a role in one row
        reach, at = _reach(list(self.nodes), graph["edges"]), {n: i for i, n in enumerate(self.nodes)}
        self.edges = [
            {**e, "back": e["from"] in reach[e["to"]] | {e["to"]} and at[e["from"]] >= at[e["to"]]} for e in graph["edges"]
        ]
        self.row: dict[str, int] = {}
        self.column: dict[str, int] = {}
        self._rows()
        self.last = max(self.row.values())
        self.columns = {r: 1 + max(self.column[n] for n in self.nodes if self.nodes[n]["at"] == r) for r in self.roles}
        self.trunks = self._trunks()
        self.lanes: dict[tuple[str, int], list[list[tuple[int, int]]]] = {}
        for trunk in self.trunks:
            self._lane(trunk)
        self._across()
        self._ports()
        self._down()

    def role(self, name: str) -> str:
        return str(self.nodes[name]["at"])

    # ---- rows and columns ----

    def _rows(self) -> None:
        """Each task below what it takes; a task that takes nothing stands just above its first consumer."""
        before: dict[str, list[str]] = {n: [] for n in self.nodes}
        for edge in self.edges:
            if not edge["back"]:
                before[edge["to"]].append(edge["from"])
        taken: dict[tuple[str, int], set[int]] = {}
        waiting = [n for n in self.nodes if before[n]]
        while waiting:
            ready = [n for n in waiting if all(p in self.row or not before[p] for p in before[n])]
            for name in ready:
                lowest = max((self.row[p] + 1 for p in before[name] if p in self.row), default=1)
                for source in [p for p in dict.fromkeys(before[name]) if p not in self.row]:
                    self._place(source, max(lowest - 1, 0), taken, before)
                self._place(name, max(self.row[p] + 1 for p in before[name]), taken, before)
            waiting = [n for n in waiting if n not in self.row]
        for name in self.nodes:
            if name not in self.row:
                self._place(name, 0, taken, before)

    def _place(self, name: str, row: int, taken: dict[tuple[str, int], set[int]], before: dict[str, list[str]]) -> None:
        role = self.role(name)
        while len(taken.setdefault((role, row), set())) >= self.most:
            row += 1
        near = [self.column[p] for p in before[name] if p in self.column and self.role(p) == role]
        wish = sum(near) / len(near) if near else 0
        column = min((c for c in range(self.most) if c not in taken[(role, row)]), key=lambda c: abs(c - wish))
        taken[(role, row)].add(column)
        self.row[name], self.column[name] = row, column

    # ---- trunks and their lanes ----

    def _trunks(self) -> list[Trunk]:
        found: dict[tuple[str, str, str], Trunk] = {}
        for edge in self.edges:
            style = "waived" if edge["waived"] else "crossing" if edge["crossing"] else "inside"
            style = "exposed" if style == "crossing" and edge.get("exposed") else style
            key = (edge["from"], self.role(edge["to"]), style + (" back" if edge["back"] else ""))
            found.setdefault(key, Trunk(*key)).edges.append(edge)
        trunks = sorted(
            found.values(), key=lambda t: (self.row[t.source], self.roles.index(self.role(t.source)), self.column[t.source])
        )
        for n, trunk in enumerate([t for t in trunks if not t.style.startswith("inside")], 1):
            trunk.n = n
        return trunks

    def _gap(self, edge: dict[str, Any]) -> int:
        """The gap from which a line comes into its task: gap g lies below row g, gap -1 above them all."""
        return self.row[edge["to"]] - 1

    def _lane(self, trunk: Trunk) -> None:
        start, gaps = self.row[trunk.source], [self._gap(e) for e in trunk.edges]
        if set(gaps) == {start}:
            return
        first, last = min(start, *gaps), max(start, *gaps)
        trunk.gutter = self._gutter(trunk)
        lanes = self.lanes.setdefault((trunk.role, trunk.gutter), [])
        for index, used in enumerate(lanes):
            if all(last < low or first > high for low, high in used):
                used.append((first, last))
                trunk.lane = index
                return
        lanes.append([(first, last)])
        trunk.lane = len(lanes) - 1

    def _gutter(self, trunk: Trunk) -> int:
        mine, columns = self.role(trunk.source), self.columns[trunk.role]
        if mine != trunk.role:
            return 0 if self.roles.index(mine) < self.roles.index(trunk.role) else columns
        column = self.column[trunk.source]
        mean = sum(self.column[e["to"]] for e in trunk.edges) / len(trunk.edges)
        right = mean > column or (mean == column and column == columns - 1 and columns > 1) or "back" in trunk.style
        return column + right

    # ---- where things stand from left to right ----

    def _across(self) -> None:
        self.left: dict[str, float] = {}
        self.right: dict[str, float] = {}
        self.gutters: dict[tuple[str, int], float] = {}
        self.middle: dict[str, float] = {}
        x = float(EDGE)
        for role in self.roles:
            self.left[role] = x
            for gutter in range(self.columns[role] + 1):
                self.gutters[(role, gutter)] = x + PAD
                count = len(self.lanes.get((role, gutter), ()))
                x += PAD + (LANE * (count - 1) + PAD if count else 0)
                if gutter < self.columns[role]:
                    for name in (n for n in self.nodes if self.role(n) == role and self.column[n] == gutter):
                        self.middle[name] = x + WIDE / 2
                    x += WIDE
            self.right[role] = x
            x += BETWEEN
        self.width = x - BETWEEN + EDGE

    def lane_x(self, trunk: Trunk) -> float:
        return self.gutters[(trunk.role, trunk.gutter)] + LANE * trunk.lane

    def _ports(self) -> None:
        leaving: dict[str, list[Trunk]] = {}
        for trunk in self.trunks:
            leaving.setdefault(trunk.source, []).append(trunk)
        for name, trunks in leaving.items():
            trunks.sort(key=lambda t: (self.left[t.role], self.lane_x(t) if t.lane >= 0 else self.middle[t.edges[0]["to"]]))
            for i, trunk in enumerate(trunks):
                trunk.out = self.middle[name] + (i - (len(trunks) - 1) / 2) * 24
        coming: dict[str, list[tuple[float, Trunk]]] = {}
        for trunk in self.trunks:
            for name in dict.fromkeys(e["to"] for e in trunk.edges):
                direct = trunk.lane < 0 or self.row[name] - 1 == self.row[trunk.source]
                coming.setdefault(name, []).append((trunk.out if direct else self.lane_x(trunk), trunk))
        for name, found in coming.items():
            found.sort(key=lambda f: f[0])
            for x, (_, trunk) in zip(self._spread([f[0] for f in found], self.middle[name]), found, strict=True):
                trunk.into[name] = x

    @staticmethod
    def _spread(wishes: list[float], middle: float) -> list[float]:
        """Near to where the lines come from, yet apart."""
        low, high = middle - REACH, middle + REACH
        step = min(13.0, 2 * REACH / max(len(wishes) - 1, 1))
        found: list[float] = []
        for wish in wishes:
            found.append(max(min(max(wish, low), high), found[-1] + step if found else low))
        limit = high
        for i in reversed(range(len(found))):
            found[i] = min(found[i], limit)
            limit = found[i] - step
        return found

    # ---- tracks, and where things stand from top to bottom ----

    def _ends(self, trunk: Trunk, gap: int) -> tuple[list[float], list[float]]:
        """Where a trunk touches a gap from above and from below."""
        start, gaps = self.row[trunk.source], [self._gap(e) for e in trunk.edges]
        above = [trunk.out] if gap == start else []
        below = [x for name, x in trunk.into.items() if self.row[name] - 1 == gap]
        if trunk.lane >= 0:
            above += [self.lane_x(trunk)] * (min(start, *gaps) < gap)
            below += [self.lane_x(trunk)] * (max(start, *gaps) > gap)
        return above, below

    def _down(self) -> None:
        self.gap_top: dict[int, float] = {}
        self.row_top: dict[int, float] = {}
        y = float(EDGE + HEAD)
        for gap in range(-1, self.last + 1):
            here = [t for t in self.trunks if gap == self.row[t.source] or gap in {self._gap(e) for e in t.edges}]
            self.gap_top[gap] = y
            count = self._assign(gap, {i: (t, *self._ends(t, gap)) for i, t in enumerate(here)})
            outer = gap in (-1, self.last)
            y += (count + 1) * TRACK - 2 if count else (8 if outer else 28)
            self.row_top[gap + 1] = y
            y += HIGH
        self.height = self.row_top[self.last + 1] + EDGE

    def _assign(self, gap: int, groups: dict[int, tuple[Trunk, list[float], list[float]]]) -> int:
        """A track for each trunk in a gap, above those that would run down onto it; how many tracks there are."""
        over = {
            i: [j for j, (_, above, _) in groups.items() if j != i and any(abs(a - b) < 5 for a in above for b in below)]
            for i, (_, _, below) in groups.items()
        }
        used: list[list[tuple[float, float]]] = []
        waiting = list(groups)
        while waiting:
            i = next((w for w in waiting if not set(over[w]) & set(waiting)), waiting[0])
            waiting.remove(i)
            trunk, above, below = groups[i]
            low, high = min(above + below) - 10, max(above + below) + 10
            track = max((groups[j][0].tracks[gap] + 1 for j in over[i] if gap in groups[j][0].tracks), default=0)
            while track < len(used) and any(low < b and high > a for a, b in used[track]):
                track += 1
            while len(used) <= track:
                used.append([])
            used[track].append((low, high))
            trunk.tracks[gap] = track
        return len(used)

    def _track_y(self, trunk: Trunk, gap: int) -> float:
        return self.gap_top[gap] + TRACK * (trunk.tracks[gap] + 1) - 5

    # ---- the picture ----

    def picture(self) -> Picture:
        made = Picture(self.width, self.height)
        for role in self.roles:
            width = self.right[role] - self.left[role]
            made.bands.append({"role": role, "x": self.left[role], "width": width, "parties": self.parties.get(role, [])})
        made.boundaries = [self.left[role] - BETWEEN / 2 for role in self.roles[1:]]
        for name, node in self.nodes.items():
            made.nodes.append({**node, "x": self.middle[name] - WIDE / 2, "y": self.row_top[self.row[name]]})
        for trunk in self.trunks:
            self._draw(trunk, made)
        return made

    def _draw(self, trunk: Trunk, made: Picture) -> None:
        start = self.row[trunk.source]
        y = self._track_y(trunk, start)
        for edge in trunk.edges:
            gap, into = self._gap(edge), trunk.into[edge["to"]]
            points = [(trunk.out, self.row_top[start] + HIGH), (trunk.out, y)]
            if gap != start:
                points += [(self.lane_x(trunk), y), (self.lane_x(trunk), self._track_y(trunk, gap))]
            points += [(into, points[-1][1]), (into, self.row_top[gap + 1] - 7)]
            tip = f"M{into:g} {self.row_top[gap + 1]:g}l-4 -8h8z"
            made.lines.append({"d": _path(points), "tip": tip, "style": trunk.style, "edge": edge})
            if trunk.n is not None:
                made.numbers[(edge["from"], edge["name"])] = trunk.n
        if trunk.n is not None:
            names = ", ".join(dict.fromkeys(f"{e['from']}.{e['port']}" for e in trunk.edges))
            made.marks.append({"n": trunk.n, "x": self._mark_x(trunk), "y": y, "style": trunk.style, "names": names})

    def _mark_x(self, trunk: Trunk) -> float:
        mine = self.role(trunk.source)
        if mine == trunk.role:
            return trunk.out
        rightwards = self.roles.index(mine) < self.roles.index(trunk.role)
        return self.right[mine] + BETWEEN / 2 if rightwards else self.left[mine] - BETWEEN / 2


def _path(points: list[tuple[float, float]], radius: float = 6.0) -> str:
    """A line through the points with rounded corners."""
    corners = [p for i, p in enumerate(points) if i == 0 or abs(p[0] - points[i - 1][0]) + abs(p[1] - points[i - 1][1]) > 0.5]
    parts = [f"M{corners[0][0]:g} {corners[0][1]:g}"]
    for a, b, c in zip(corners, corners[1:], corners[2:], strict=False):
        before, after = _towards(b, a, radius), _towards(b, c, radius)
        parts.append(f"L{before[0]:g} {before[1]:g}Q{b[0]:g} {b[1]:g} {after[0]:g} {after[1]:g}")
    parts.append(f"L{corners[-1][0]:g} {corners[-1][1]:g}")
    return "".join(parts)


def _towards(a: tuple[float, float], b: tuple[float, float], radius: float) -> tuple[float, float]:
    """The point up to `radius` from a on the way to b, at most half of it."""
    length = abs(b[0] - a[0]) + abs(b[1] - a[1])  # lines run at right angles
    part = min(radius, length / 2) / length
    return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part
