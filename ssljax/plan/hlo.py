"""What a compiled program moves, read from its HLO text: memory traffic and collectives.

Also the line of Python that each collective is from, by the text's tables of stack frames.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
import math
import pathlib
import re
import sysconfig

import numpy as np

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
# Instructions that move nothing.
FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "iota",
        "copy-done",
        "opt-barrier",
        "while",
        "conditional",
        "call",
        "domain",
    }
)
SLICES = ("gather", "dynamic-slice", "slice")
UPDATES = ("dynamic-update-slice", "scatter")  # Of an array that is changed in place.
BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
HEAD = re.compile(r"(ENTRY )?%[\w.\-]+ \(.*\{$")  # Of a computation.
NAME = re.compile(r"%([\w.\-]+)")


@dataclass
class Instruction:
    name: str
    type: str
    op: str
    inside: str  # What is between its brackets.
    rest: str  # Attributes.
    root: bool = False  # Whether it is what its computation returns.

    @property
    def operands(self) -> list[str]:
        return NAME.findall(self.inside)

    @property
    def bytes(self) -> int:
        """Bytes in the device's memory."""
        return bytes_of_type(self.type)

    @property
    def bytes_anywhere(self) -> int:
        """Bytes in the device's memory, or in a TPU's own fast memory."""
        return bytes_of_type(self.type.replace("S(1)", ""))

    @property
    def frame(self) -> int:
        found = re.search(r"stack_frame_id=(\d+)", self.rest)
        return int(found[1]) if found else 0

    def called(self) -> list[str]:
        """Computations that run when it does."""
        found = re.findall(r"\b(?:calls|body|condition|to_apply)=%([\w.\-]+)", self.rest)
        found += re.findall(r"\b(?:true|false)_computation=%([\w.\-]+)", self.rest)
        for group in re.findall(r"\bbranch_computations=\{([^}]*)\}", self.rest):
            found += NAME.findall(group)
        return found

    @property
    def trips(self) -> int | None:
        """Iterations of a while loop; None where the compiler doesn't know them."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.rest)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Collective:
    """Arrays that collectives of one kind exchange for one line, as often as a step does.

    `bytes` are those of the whole array on one device: what is reduced, gathered or exchanged.
    """

    kind: str
    line: str  # "experiments/simclr.py:70"; empty where the compiler has lost it.
    arrays: float
    bytes: float
    group: int  # Devices that take part.
    nodes: int  # In so many nodes.

    @property
    def sent_by_links(self) -> float:
        """Bytes that a device sends to others of its node, by algorithms that send the least."""
        g = self.group // self.nodes  # Devices of a node that take part.
        if self.kind == "collective-permute":
            return self.bytes if self.nodes == 1 and self.group > 1 else 0.0
        if self.kind == "all-to-all":
            return self.bytes * (g - 1) / self.group
        return self.bytes * (g - 1) / g * (2 if self.kind == "all-reduce" else 1)

    @property
    def sent_by_network(self) -> float:
        """Bytes that a device sends to other nodes.

        Reductions and gathers send a node's part once, of which each device has its share.
        """
        m = self.nodes
        if self.kind == "collective-permute":
            return self.bytes if m > 1 else 0.0
        if self.kind == "all-to-all":
            return self.bytes * (m - 1) / m
        share = self.bytes / (self.group // m)
        return share * (m - 1) / m * (2 if self.kind == "all-reduce" else 1)

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return self.sent_by_links + self.sent_by_network


@dataclass
class Module:
    """An HLO module's computations, and its tables of stack frames."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    files: list[str] = field(default_factory=list)
    locations: list[tuple[int, int]] = field(default_factory=list)  # (file, line)
    frames: list[tuple[int, int]] = field(default_factory=list)  # (location, parent)

    def times(self) -> dict[str, float]:
        """How often each computation runs in a step; fusions' own are not among them."""
        found: dict[str, float] = {}

        def visit(name: str, times: float) -> None:
            found[name] = found.get(name, 0) + times
            for one in self.computations.get(name, {}).values():
                if one.op == "while":
                    for inner in one.called():
                        visit(inner, times * (one.trips or 1))
                elif one.op in ("call", "conditional", "async-start"):
                    for inner in one.called():
                        visit(inner, times)

        visit(self.entry, 1.0)
        return found

    def line_of(self, frame: int) -> str:
        """The innermost line of a frame's stack that is no library's: path:line."""
        seen = set()
        while 0 < frame <= len(self.frames) and frame not in seen:
            seen.add(frame)
            location, parent = self.frames[frame - 1]
            file, line = self.locations[location - 1]
            if name := own_file(self.files[file - 1]):
                return f"{name}:{line}"
            frame = parent
        return ""


def own_file(path: str) -> str:
    """A file's short name if it is the project's or the user's; empty for a library's."""
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")}
    here = str(pathlib.Path(__file__).parents[2])
    if path.startswith(here + "/ssljax/") or path.startswith(here + "/experiments/"):
        return path[len(here) + 1 :]
    if (
        "site-packages" in path
        or path.startswith("<")
        or any(path.startswith(str(library)) for library in libraries)
    ):
        return ""
    return path


def parse(text: str) -> Module:
    """The module of an HLO text, as `compiled.as_text()` gives it."""
    module = Module({}, "")
    current: dict[str, Instruction] | None = None
    table = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
        elif table and line[:1].isdigit():
            _add_row(module, table, line)
        elif HEAD.match(line):
            # Not where a bracket closes: a kernel's text may have such lines.
            table, name = "", line.split("%", 1)[1].split(" ", 1)[0]
            current = module.computations.setdefault(name, {})
            if line.startswith("ENTRY"):
                module.entry = name
        elif current is not None and (one := _instruction(line)):
            current[one.name] = one
    return module


def _add_row(module: Module, table: str, line: str) -> None:
    numbers = dict(re.findall(r"(\w+)=(\d+)", line))
    if table == "FileNames":
        module.files.append(line.partition(" ")[2].strip().strip('"'))
    elif table == "FileLocations":
        module.locations.append((int(numbers["file_name_id"]), int(numbers["line"])))
    elif table == "StackFrames":
        at, parent = int(numbers["file_location_id"]), int(numbers.get("parent_frame_id", 0))
        module.frames.append((at, parent))


def _instruction(line: str) -> Instruction | None:
    line = line.strip()
    head, equals, rest = line.removeprefix("ROOT ").partition(" = ")
    if not equals or not head.startswith("%"):
        return None
    kind, rest = _cut(rest) if rest.startswith("(") else _first_word(rest)
    op, _, _ = rest.partition("(")
    inside, attributes = _cut(rest[len(op) :])
    return Instruction(
        head[1:], kind, op.strip(), inside[1:-1], attributes, line.startswith("ROOT ")
    )


def _first_word(text: str) -> tuple[str, str]:
    word, _, rest = text.partition(" ")
    return word, rest


def _cut(text: str) -> tuple[str, str]:
    """A text that begins with a bracket, up to where it closes, and the rest."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :].lstrip()
    return text, ""


def bytes_of_type(text: str) -> int:
    """Bytes of an array's or a tuple's type; those that lie in a TPU's own fast memory are none."""
    total = 0
    for kind, shape, layout in ARRAY.findall(text):
        if "S(1)" in layout:
            continue
        digits = re.search(r"\d+", kind)
        bits = BITS.get(kind, int(digits[0]) if digits else 0)
        elements = math.prod(int(n) for n in shape.replace("<=", "").split(",") if n)
        total += -(-elements * bits // 8)
    return total


def bytes_moved(module: Module) -> float:
    """Bytes that a step reads from and writes to a device's memory, each instruction by itself."""
    total = 0.0
    for name, times in module.times().items():
        inside = module.computations.get(name, {})
        for one in inside.values():
            if one.op not in FREE and not one.op.endswith("-done"):
                total += times * (_written(module, inside, one) + _read(module, inside, one))
    return total


def _written(module: Module, inside: Mapping[str, Instruction], one: Instruction) -> float:
    if one.op.endswith("-start") and one.op != "all-reduce-start":  # Of operands and results.
        return max(0, one.bytes - sum(inside[o].bytes for o in one.operands if o in inside))
    if one.op in UPDATES:
        return _update_bytes(inside, one)
    written = one.bytes
    if one.op == "fusion":
        body = _body(module, one)
        roots = [x for x in body.values() if x.root]
        if roots and roots[0].op == "tuple":
            roots = [body[o] for o in roots[0].operands]
        for root in (_renamed(body, x) for x in roots):
            if root.op in UPDATES and _renamed(body, body[root.operands[0]]).op == "parameter":
                written -= root.bytes - _update_bytes(body, root)
    return max(0, written)


def _read(module: Module, inside: Mapping[str, Instruction], one: Instruction) -> float:
    if one.op in SLICES:
        return one.bytes
    if one.op in UPDATES:
        return sum(inside[o].bytes for o in one.operands[1:] if o in inside)
    taken = _sliced(_body(module, one)) if one.op == "fusion" else {}
    return sum(taken.get(i, inside[o].bytes) for i, o in enumerate(one.operands) if o in inside)


def _body(module: Module, fusion: Instruction) -> dict[str, Instruction]:
    called = fusion.called()
    return module.computations.get(called[0], {}) if called else {}


def _update_bytes(inside: Mapping[str, Instruction], one: Instruction) -> int:
    """Bytes of what is written into an array that is changed in place."""
    return inside[one.operands[1 if one.op == "dynamic-update-slice" else -1]].bytes


def _renamed(body: Mapping[str, Instruction], one: Instruction) -> Instruction:
    """What a bitcast is of."""
    while one.op == "bitcast" and one.operands[0] in body:
        one = body[one.operands[0]]
    return one


def _sliced(body: Mapping[str, Instruction]) -> dict[int, int]:
    """Bytes of the operands of which a fusion reads only slices, by the operand's number.

    None of one that it only changes in place.
    """
    found: dict[int, int] = {}
    users: dict[str, list[Instruction]] = {}
    for one in body.values():
        for operand in one.operands:
            users.setdefault(operand, []).append(one)

    def read(name: str) -> int | None:
        """Bytes that are read of an array; None for all."""
        total = 0
        for use in users.get(name, []):
            if use.op == "bitcast":
                part = read(use.name)
            elif name in use.operands[1:] or use.op not in (*SLICES, *UPDATES):
                part = None
            else:
                part = use.bytes if use.op in SLICES else 0
            if part is None:
                return None
            total += part
        return total

    for one in body.values():
        if one.op == "parameter" and users.get(one.name):
            part = read(one.name)
            if part is not None:
                found[int(one.inside)] = part
    return found


def collectives(module: Module, devices: int, per_node: int) -> list[Collective]:
    """The collectives of a step, those of a kind and a line together, the largest first."""
    found: dict[tuple[str, str, int, int], list[float]] = {}
    for name, times, of_fusion in _with_fusions(module):
        inside = module.computations.get(name, {})
        for one in inside.values():
            kind = one.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            if kind == "all-reduce" and name.lstrip("%").startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # As a TPU's compiler writes it.
            group, nodes = _group(one.rest, devices, per_node)
            own = _line_of(module, inside, one) or of_fusion
            several = len(one.operands) > 1  # Joined by the compiler, each from its own line.
            for part in (inside[o] for o in one.operands if o in inside):
                line = (several and _line_of(module, inside, part)) or own
                size = part.bytes_anywhere * (group if kind == "all-gather" else 1)
                entry = found.setdefault((kind, line, group, nodes), [0.0, 0.0])
                entry[0] += times
                entry[1] += times * size
    all_of = [
        Collective(kind, line, count, size, group, nodes)
        for (kind, line, group, nodes), (count, size) in found.items()
    ]
    return sorted(all_of, key=lambda c: (-c.sent, c.line))


def _with_fusions(module: Module) -> Iterator[tuple[str, float, str]]:
    """Computations, those of fusions among them, how often they run, and the line of a fusion."""

    def visit(name: str, times: float, line: str) -> Iterator[tuple[str, float, str]]:
        inside = module.computations.get(name, {})
        yield name, times, line
        for one in inside.values():
            if one.op == "fusion":
                own = _line_of(module, inside, one) or line
                for inner in one.called():
                    yield from visit(inner, times, own)

    for name, times in module.times().items():
        yield from visit(name, times, "")


def _line_of(module: Module, inside: Mapping[str, Instruction], one: Instruction) -> str:
    """The line that an instruction is from: its own, or that of the largest of its operands.

    Compilers that join several collectives leave the joint one without a line.
    """
    if line := module.line_of(one.frame):
        return line
    level, seen = [one], {one.name}
    for _ in range(6):
        level = [
            inside[o]
            for x in level
            for o in x.operands
            if o in inside and not (o in seen or seen.add(o))
        ]
        lines = {line: x.bytes for x in level if (line := module.line_of(x.frame))}
        if lines:
            return max(lines, key=lambda line: lines[line])
    return ""


def _group(rest: str, devices: int, per_node: int) -> tuple[int, int]:
    """How many devices take part in a collective with one another, in how many nodes."""
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest):
        ends = [tuple(map(int, p.split(","))) for p in re.findall(r"\{(\d+,\d+)\}", pairs[1])]
        crosses = any(a // per_node != b // per_node for a, b in ends)
        return (2 if ends else 1), (2 if crosses else 1)
    groups = _groups(rest, devices)
    first = groups[0]
    return len(first), len({device // per_node for device in first})


def _groups(rest: str, devices: int) -> list[list[int]]:
    everyone = [list(range(devices))]
    text = re.search(r"replica_groups=(.*)", rest)
    if not text:
        return everyone
    if listed := re.match(r"\{((?:\{[\d,]*\},?)+)\}", text[1]):
        return [
            [int(d) for d in group.split(",") if d]
            for group in re.findall(r"\{([\d,]*)\}", listed[1])
        ]
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text[1]):
        shape, source = (tuple(map(int, iota[i].split(","))) for i in (1, 2))
        ids = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            ids = ids.transpose(tuple(map(int, iota[3].split(","))))
        return ids.reshape(shape).tolist()
    if mesh := re.match(r"mesh\[([^\]]*)\](?:[^{]*)\{([^}]*)\}", text[1]):
        axes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        chosen = re.findall(r"'(\w+)'", mesh[2])
        if all(name in axes for name in chosen) and ":" not in mesh[2]:
            ids = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
            order = [name for name in axes if name not in chosen] + chosen
            ids = ids.transpose([list(axes).index(name) for name in order])
            return ids.reshape(-1, math.prod(axes[name] for name in chosen)).tolist()
    return everyone
