"""A graph as text: for Graphviz, for Mermaid, and as boxes and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Drawing:
    """What is drawn: names, and (from, to) pairs of them."""

    nodes: list[str]
    edges: list[tuple[str, str]] = field(default_factory=list)

    def components(self) -> list[Drawing]:
        """Its parts that hang together, in the order of their first nodes."""
        near: dict[str, list[str]] = {node: [] for node in self.nodes}
        for start, end in self.edges:
            near[start].append(end)
            near[end].append(start)
        found: list[Drawing] = []
        seen: set[str] = set()
        for node in self.nodes:
            if node in seen:
                continue
            part, waiting = {node}, [node]
            while waiting:
                fresh = [each for each in near[waiting.pop()] if each not in part]
                part.update(fresh)
                waiting += fresh
            seen |= part
            edges = [edge for edge in self.edges if edge[0] in part]
            found.append(Drawing([each for each in self.nodes if each in part], edges))
        return found


def dot(drawing: Drawing) -> str:
    """As `dvc dag --dot` has it."""
    lines = [f'"{node}";' for node in drawing.nodes]
    lines += [f'"{start}" -> "{end}";' for start, end in drawing.edges]
    return "\n".join(["strict digraph {", *lines, "}", ""])


def mermaid(drawing: Drawing, *, markdown: bool = False) -> str:
    """As `dvc dag --mermaid` has it, or --md."""
    lines = ["flowchart TD"]
    count = 0
    for part in drawing.components():
        numbers = {}
        for node in sorted(part.nodes):
            count += 1
            numbers[node] = f"node{count}"
            lines.append(f'\t{numbers[node]}["{node}"]')
        lines += [f"\t{numbers[start]}-->{numbers[end]}" for start, end in sorted(part.edges)]
    if markdown:
        lines = ["```mermaid", *lines, "```"]
    return "\n".join(lines)


def ascii_art(drawing: Drawing) -> str:
    """Boxes in layers, what is needed above what needs it, and lines of stars."""
    return "\n".join(_Canvas(part).draw() for part in drawing.components())


_GAP, _ROOM = 3, 4


class _Canvas:
    """One part that hangs together. A line that passes a layer has a place of its own in it, without a box."""

    def __init__(self, part: Drawing) -> None:
        self._layers, self._lines = _layered(part)
        self._names = set(part.nodes)
        self._at: dict[str, int] = {}
        for layer in self._layers:
            x = 0
            for node in layer:
                width = self._width(node)
                self._at[node] = x + width // 2
                x += width + _GAP
        widest = max(self._end(layer) for layer in self._layers)
        for layer in self._layers:
            shift = (widest - self._end(layer)) // 2
            for node in layer:
                self._at[node] += shift
        rows = len(self._layers) * 3 + (len(self._layers) - 1) * _ROOM
        self._rows = [[" "] * widest for _ in range(rows)]

    def draw(self) -> str:
        depth = {node: number for number, layer in enumerate(self._layers) for node in layer}
        for start, end in self._lines:
            self._line(self._at[start], depth[start] * (3 + _ROOM) + 1, self._at[end], depth[end] * (3 + _ROOM) + 1)
        for layer in self._layers:
            for node in layer:
                if node in self._names:
                    self._box(node, depth[node] * (3 + _ROOM))
        return "".join("".join(row).rstrip() + "\n" for row in self._rows)

    def _width(self, node: str) -> int:
        return len(node) + 4 if node in self._names else 1

    def _end(self, layer: Sequence[str]) -> int:
        last = layer[-1]
        return self._at[last] - self._width(last) // 2 + self._width(last)

    def _line(self, x: int, y: int, to_x: int, to_y: int) -> None:
        for row in range(y, to_y + 1):
            here = x + round((to_x - x) * (row - y) / (to_y - y))
            before = x + round((to_x - x) * max(row - 1 - y, 0) / (to_y - y))
            low, high = sorted((here, before))
            for column in range(low + (low < high and here > before), high + (low == high or here > before)):
                self._rows[row][column] = "*"

    def _box(self, node: str, y: int) -> None:
        width = self._width(node)
        left = self._at[node] - width // 2
        edge = f"+{'-' * (width - 2)}+"
        for row, text in enumerate((edge, f"| {node} |", edge)):
            self._rows[y + row][left : left + width] = text


def _layered(part: Drawing) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Layers of nodes and of places where lines pass, ordered so that few lines cross; lines from layer to layer."""
    above: dict[str, list[str]] = {node: [] for node in part.nodes}
    below: dict[str, list[str]] = {node: [] for node in part.nodes}
    for start, end in part.edges:
        above[end].append(start)
        below[start].append(end)
    depth = _depths(part.nodes, above, below)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in part.nodes:
        layers[depth[node]].append(node)
    lines = []
    for number, (start, end) in enumerate(part.edges):
        last = start
        for layer in range(depth[start] + 1, depth[end]):
            passing = f"\0{number}-{layer}"
            layers[layer].append(passing)
            lines.append((last, passing))
            last = passing
        lines.append((last, end))
    parents: dict[str, list[str]] = {}
    children: dict[str, list[str]] = {}
    for start, end in lines:
        parents.setdefault(end, []).append(start)
        children.setdefault(start, []).append(end)
    for _ in range(4):
        for index in range(1, len(layers)):
            _sort(layers[index], parents, layers[index - 1])
        for index in range(len(layers) - 2, -1, -1):
            _sort(layers[index], children, layers[index + 1])
    return layers, lines


def _depths(nodes: Iterable[str], above: dict[str, list[str]], below: dict[str, list[str]]) -> dict[str, int]:
    """The longest way to each node from one that needs nothing."""
    depth: dict[str, int] = {}
    left = {node: len(above[node]) for node in nodes}
    ready = [node for node, count in left.items() if not count]
    while ready:
        node = ready.pop()
        depth[node] = max((depth[each] + 1 for each in above[node]), default=0)
        for each in below[node]:
            left[each] -= 1
            if not left[each]:
                ready.append(each)
    return depth


def _sort(layer: list[str], near: dict[str, list[str]], other: Sequence[str]) -> None:
    """By the middle of each one's neighbours in the other layer."""
    place = {node: index for index, node in enumerate(other)}
    own = {node: index for index, node in enumerate(layer)}

    def middle(node: str) -> float:
        around = [place[each] for each in near.get(node, [])]
        return sum(around) / len(around) if around else own[node]

    layer.sort(key=middle)
