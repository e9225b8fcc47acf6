"""The layers of docs/architecture.md: a package imports from the layers below it, and from itself."""

import ast
import tomllib
from pathlib import Path

import codekiln

PACKAGE = Path(codekiln.__file__).parent
LAYERS = (
    {"errors"},
    {"files", "progress", "extras", "machine", "threads"},
    {"arrays", "folders", "hub", "metrics_log", "tables"},
    {"corpus", "tokenizer", "model", "index"},
    {"train", "generate", "convert"},
    {"evaluate", "serve"},
    {"indexing", "recipe", "runs"},
    {"overrides", "pipeline", "verification"},
    {"recipes", "report", "planning", "doctor"},
    {"cli"},
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
ENTRY_POINTS = ("codekiln", "codekiln.__main__")
FORBIDDEN_NAMES = {"utils", "common", "base", "types", "constants", "registry"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """The modules of Codekiln that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    known = {name_of(module) for module in modules()}
    return {name for name in found if name in known and name != "codekiln"}


def package_of(module: str) -> str:
    return module.split(".")[1]


def test_every_package_is_in_a_layer() -> None:
    assert {package_of(name_of(path)) for path in modules() if name_of(path) not in ENTRY_POINTS} == set(LAYER_OF)


def test_packages_import_downward_only() -> None:
    wrong = [
        f"{name_of(path)} imports {imported}"
        for path in modules()
        if name_of(path) not in ENTRY_POINTS
        for imported in imports_of(path)
        if package_of(imported) != package_of(name_of(path))
        and LAYER_OF[package_of(imported)] >= LAYER_OF[package_of(name_of(path))]
    ]
    assert not wrong


def test_there_is_no_import_cycle() -> None:
    graph = {name_of(path): imports_of(path) - {name_of(path)} for path in modules()}
    settled: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in settled:
            for imported in graph[module]:
                # The __init__ of a package is imported with each of its modules, and imports none of them.
                if not module.startswith(imported + "."):
                    visit(imported, (*above, module))
            settled.add(module)

    for module in graph:
        visit(module, ())


def test_every_file_begins_with_a_docstring_and_none_is_called_utils() -> None:
    for path in modules():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        assert first.startswith('"""') and len(first) > 10, path
        assert path.stem not in FORBIDDEN_NAMES, path


def test_every_dependency_is_explained_in_the_architecture() -> None:
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = {r.split(">")[0].split("<")[0].split("[")[0].strip() for r in wanted} - {"codekiln"}
    assert not [name for name in sorted(names) if f"`{name}`" not in text]
