"""The floors of docs/architecture.md: a room imports from the floors below it, and from itself."""

import ast
import tomllib
from pathlib import Path

import codekiln

PACKAGE = Path(codekiln.__file__).parent
FLOORS = (
    {"errors"},
    {"files", "progress", "extras"},
    {"folders"},
    {"corpus", "tokenizer", "model"},
    {"train", "generate", "exchange"},
    {"evaluate", "serve"},
    {"recipe", "charts"},
    {"recipes", "card", "compare", "forecast"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FORBIDDEN_NAMES = {"utils", "common", "base", "types", "constants", "registry"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    known = {name_of(module) for module in modules()}
    return {name for name in found if name in known and name != "codekiln"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(name_of(path)) for path in modules() if name_of(path) not in ("codekiln", "codekiln.__main__")}
    assert rooms == set(FLOOR_OF)


def test_rooms_import_downward_only() -> None:
    wrong = [
        f"{name_of(path)} imports {imported}"
        for path in modules()
        if name_of(path) not in ("codekiln", "codekiln.__main__")
        for imported in imports_of(path)
        if room_of(imported) != room_of(name_of(path))
        and FLOOR_OF[room_of(imported)] >= FLOOR_OF[room_of(name_of(path))]
    ]
    assert not wrong


def test_there_is_no_import_cycle() -> None:
    graph = {name_of(path): imports_of(path) - {name_of(path)} for path in modules()}
    settled: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in settled:
            for imported in graph[module]:
                # A package's own __init__ is imported with each of its modules and imports none of them.
                if not module.startswith(imported + "."):
                    visit(imported, (*above, module))
            settled.add(module)

    for module in graph:
        visit(module, ())


def test_every_file_says_its_idea_first_and_none_is_called_utils() -> None:
    for path in modules():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        assert first.startswith('"""') and len(first) > 10, path
        assert path.stem not in FORBIDDEN_NAMES, path


def test_every_dependency_has_its_reason_in_the_architecture() -> None:
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    told = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = {r.split(">")[0].split("<")[0].split("[")[0].strip() for r in wanted} - {"codekiln"}
    assert not [name for name in sorted(names) if f"`{name}`" not in told]
