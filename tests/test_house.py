"""Rules of the code base: imports, exact money, secrets, lock files, and names in the docs.

Each failure is a sentence that names the file and the rule, so that it can be fixed without reading this file.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mapper import adapter, settings
from mapper.commands import cli

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for folder in ("mapper", "adapters") for path in (ROOT / folder).rglob("*.py"))
SANDBOXES = [path for path in MODULES if "sandbox" in path.relative_to(ROOT).with_suffix("").parts]
ADAPTERS = [path for path in MODULES if path.is_relative_to(ROOT / "adapters") and path not in SANDBOXES]
LOCKS = sorted(ROOT.glob("requirements*.txt"))
DOCS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "adapters" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

# What adapters and sandboxes may import of the service. Both may import msgspec, sandboxes starlette too; adapters may
# import the pure modules of the standard library.
ADAPTER_MAY = {"mapper.adapter"}
SANDBOX_MAY = {"mapper.domain.money", "mapper.sandbox.rulebook", "mapper.sandbox.emulator"}
IMPURE = {
    *("asyncio", "concurrent", "queue", "sched", "select", "selectors", "signal", "threading", "time"),
    *("http", "smtplib", "socket", "socketserver", "ssl", "urllib.request"),
    *("glob", "io", "os", "pathlib", "pickle", "shelve", "shutil", "sqlite3", "subprocess", "tempfile"),
    *("importlib", "logging", "multiprocessing", "platform", "random", "secrets", "sys", "uuid", "warnings"),
}
HTTP_CLIENTS = {"aiohttp", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), name(path))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


ALL_DOTTED = {dotted(path) for path in MODULES}


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the modules that a file imports, at any level, including imports for types.

    `from package import module` counts as the module.
    """
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
            base = (
                ".".join([*package[: len(package) - node.level + 1], node.module or ""]) if node.level else node.module
            )
            base = (base or "").rstrip(".")
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in ALL_DOTTED else base for alias in node.names}
    return frozenset(found)


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def third_party(module: str) -> bool:
    top = module.split(".", 1)[0]
    return top not in sys.stdlib_module_names and top not in ("mapper", "adapters")


def none(offences: Iterator[str] | list[str]) -> None:
    __tracebackhide__ = True
    if found := sorted(offences):
        pytest.fail("\n".join(found), pytrace=False)


def test_service_never_imports_an_adapter() -> None:
    none(
        f"{name(path)} imports {module}: the service finds its engines by entry point, never by import."
        for path in MODULES
        if path.is_relative_to(ROOT / "mapper")
        for module in imports(path)
        if below(module, "adapters")
    )


def own_package(path: Path) -> str:
    """adapters/talon_one/wire.py belongs to adapters.talon_one; adapters/__init__.py to no package."""
    return ".".join(path.relative_to(ROOT).parts[:2]).removesuffix(".py")


def test_adapters_import_only_the_contract_and_pure_modules() -> None:
    def offences() -> Iterator[str]:
        for path in ADAPTERS:
            for module in imports(path):
                if below(module, "adapters"):
                    if not below(module, own_package(path)):
                        yield f"{name(path)} imports {module}: adapters never import each other."
                    elif "sandbox" in module.split("."):
                        yield f"{name(path)} imports {module}: an adapter never imports its sandbox."
                elif below(module, "mapper") and module not in ADAPTER_MAY:
                    yield f"{name(path)} imports {module}: of the service, an adapter sees {sorted(ADAPTER_MAY)}."
                elif third_party(module) and not below(module, "msgspec"):
                    yield f"{name(path)} imports {module}: an adapter needs no package but msgspec."
                elif any(below(module, impure) for impure in IMPURE):
                    yield f"{name(path)} imports {module}: adapters compute; mapper/engine talks, waits and logs."

    none(offences())


# The layers of mapper/, the lowest first: a module imports from its own package and from lower layers only.
LAYERS = (
    {"domain", "pages", "threads"},
    {"adapter"},
    {"installed"},
    {"settings", "sandbox"},
    {"engine"},
    {"orders"},
    {"promotions", "nacelle", "conformance", "recording"},
    {"explain"},
    {"ops", "conformance"},
    {"http"},
    {"commands"},
    {"__main__"},
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}


def package(module: str) -> str:
    """`mapper.domain.money` is in the package `domain`."""
    return module.split(".")[1]


def test_modules_import_only_lower_layers() -> None:
    def offences() -> Iterator[str]:
        for path in MODULES:
            here = dotted(path)
            if not here.startswith("mapper."):
                continue
            if package(here) not in LAYER_OF:
                yield f"{name(path)}: LAYERS does not name the package {package(here)!r}."
                continue
            for module in imports(path):
                up = module.startswith("mapper.") and LAYER_OF.get(package(module), -1) >= LAYER_OF[package(here)]
                if up and package(module) != package(here):
                    yield f"{name(path)} imports {module}, which is not below it."

    none(offences())


def test_imports_have_no_cycles() -> None:
    graph = {dotted(path): imports(path) & ALL_DOTTED for path in MODULES}
    circles = []
    done: set[str] = set()

    def follow(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            circles.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for other in graph[module]:
                follow(other, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        follow(module, ())
    none(circles)


def test_adapters_do_not_read_the_clock() -> None:
    none(
        f"{name(path)}:{node.lineno} calls {node.func.attr}(): an adapter has no clock."
        for path in ADAPTERS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("now", "today", "utcnow")
    )


def test_sandboxes_never_import_their_adapter() -> None:
    def offences() -> Iterator[str]:
        for path in SANDBOXES:
            if path.is_relative_to(ROOT / "mapper"):
                continue
            for module in imports(path):
                if below(module, "adapters") and "sandbox" not in module.split("."):
                    yield f"{name(path)} imports {module}: a field misread once would be misread twice."
                elif below(module, "adapters") and not below(module, own_package(path)):
                    yield f"{name(path)} imports {module}: sandboxes never import each other."
                elif below(module, "mapper") and module not in SANDBOX_MAY:
                    yield f"{name(path)} imports {module}: of the service, a sandbox sees {sorted(SANDBOX_MAY)}."
                elif third_party(module) and module.split(".", 1)[0] not in ("msgspec", "starlette"):
                    yield f"{name(path)} imports {module}: a sandbox needs msgspec and starlette only."

    none(offences())


def test_only_engine_clients_import_an_http_library() -> None:
    none(
        f"{name(path)} imports {module}: only the clients in mapper/engine talk HTTP."
        for path in MODULES
        if not re.fullmatch(r"mapper/engine/\w+_client\.py", name(path))
        for module in imports(path)
        if module.split(".", 1)[0] in HTTP_CLIENTS
    )


def test_only_http_pages_and_sandboxes_import_starlette() -> None:
    none(
        f"{name(path)} imports {module}: routes and responses belong to mapper/http, mapper/pages and the sandboxes."
        for path in MODULES
        if not name(path).startswith(("mapper/http/", "mapper/pages/")) and path not in SANDBOXES
        for module in imports(path)
        if below(module, "starlette")
    )


def test_secrets_are_compared_in_one_place() -> None:
    places = [
        f"{name(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Attribute) and node.attr == "compare_digest")
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "compare_digest" for alias in node.names))
    ]
    assert len(places) == 1, f"hmac.compare_digest stands in {places}; use signature.is_one_of"
    assert places[0].startswith("mapper/domain/signature.py:")


def test_digests_are_never_compared_with_equals() -> None:
    """The time of `==` on a digest reveals how much of a forged signature is right."""
    none(
        f"{name(path)}:{node.lineno} compares a digest with ==; use signature.is_one_of."
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Compare) and any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops)
        for side in (node.left, *node.comparators)
        for call in ast.walk(side)
        if isinstance(call, ast.Attribute) and ast.unparse(call).startswith("hmac.")
    )


def test_domain_and_adapters_use_no_floats() -> None:
    """Amounts are computed in mapper/domain and the adapters."""
    exact = sorted((ROOT / "mapper" / "domain").glob("*.py"))
    none(
        f"{name(path)}:{node.lineno} has the float {ast.unparse(node)}: amounts are exact."
        for path in [*exact, *ADAPTERS]
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float")
    )


def tracked() -> list[Path]:
    """Return the files that git tracks."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if found.returncode:
        pytest.skip("this is no git checkout")
    return [path for line in found.stdout.decode().split("\0") if line and (path := ROOT / line).is_file()]


def test_no_file_names_a_registry_or_local_path() -> None:
    # Joined here, so that this file does not match itself.
    hosts = ["pypi" + ".org", "python" + "hosted", "test.py" + "pi", "npmjs" + ".", "devpi" + "."]
    folders = ["/ho" + "me/", "/ro" + "ot/", "/Us" + "ers/", "/wo" + "rk/", "/opt" + "/"]
    forbidden = re.compile("|".join([*map(re.escape, hosts), rf"(?<![\w.~/-])(?:{'|'.join(folders)})"]).encode())
    none(
        f"{name(path)}:{number} contains {found[0].decode()!r}: a checkout must work on any machine, with any registry."
        for path in tracked()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if (found := forbidden.search(line))
    )


@pytest.mark.parametrize("lock", LOCKS, ids=name)
def test_lock_file_pins_packages_by_hash_and_names_no_host(lock: Path) -> None:
    text = lock.read_text("utf-8")
    assert "://" not in text, f"{name(lock)} names a host; run make lock"
    entries = re.split(r"\n(?=[a-z])", text)
    assert len(entries) > 5
    none(
        f"{name(lock)}: {entry.splitlines()[0]} is not pinned by hash; run make lock."
        for entry in entries
        if not re.match(
            r"[a-z0-9][a-z0-9.-]*==[^ ]+(?: ;[^\\]+)? \\\n(?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", entry + "\n"
        )
    )


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)==([^ ]+)", lock.read_text("utf-8"), re.MULTILINE))


def test_lock_files_agree_on_versions() -> None:
    runtime, *others = [pins(ROOT / f"requirements{part}.txt") for part in ("", "-dev", "-tools")]
    for other in others:
        assert {
            package: version for package, version in other.items() if runtime.get(package, version) != version
        } == {}
    assert runtime.keys() <= others[0].keys(), "requirements-dev.txt holds all that runs, too"


def dependencies() -> list[tuple[str, str]]:
    """Return the lines of pyproject.toml that name a direct dependency: (package, line)."""
    found: list[tuple[str, str]] = []
    within = False
    for line in (ROOT / "pyproject.toml").read_text("utf-8").splitlines():
        if match := re.match(r'  "([a-zA-Z0-9_.-]+)', line) if within else None:
            found.append((match[1], line))
        if re.match(r"(dependencies|\w+) = \[$", line):
            within = True
        elif line.startswith("]"):
            within = False
        elif line.startswith("[tool."):
            return found
    return found


def test_every_direct_dependency_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    groups = [project["project"]["dependencies"], *extras, *project["dependency-groups"].values()]
    named = [re.split(r"[^a-zA-Z0-9_.-]", entry)[0] for group in groups for entry in group]
    assert [package for package, _ in dependencies()] == named, "each dependency stands on a line of its own"
    none(
        f"pyproject.toml gives no reason for {line.strip()}"
        for _, line in dependencies()
        if not re.search(r"# \w.{9}", line)
    )


def test_every_direct_dependency_is_locked() -> None:
    locked = {package for lock in LOCKS for package in pins(lock)}
    assert {package.lower().replace("_", "-") for package, _ in dependencies()} <= locked, "run make lock"


def doc_mentions(pattern: str) -> list[tuple[str, str]]:
    texts = [(name(path), path.read_text("utf-8")) for path in DOCS if path.is_file()]
    return [(where, match) for where, text in texts for match in re.findall(pattern, text)]


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = doc_mentions(r"(?:`|^|\$ )make ([a-z][a-z-]*)")
    none(
        f"{where} names `make {target}`, which the Makefile does not have."
        for where, target in named
        if target not in targets
    )


def test_every_command_in_the_docs_exists() -> None:
    help_text = cli._parser().format_help()
    named = doc_mentions(r"(?:python -m mapper|promotions-mapper) ([a-z]+)\b")
    none(
        f"{where} names the command {command!r}, which mapper/commands/cli.py does not have."
        for where, command in named
        if not re.search(rf"^    {command}\b", help_text, re.MULTILINE)
    )


def known_settings() -> set[str]:
    plain = set(settings.TABLE) | {f"{setting}_FILE" for setting in settings.SECRETS}
    options: set[str] = set()
    for engine, point in adapter.known().items():
        names = {f"{engine.upper()}_{option}" for option in adapter.names(point.load().options)}
        options |= names | {f"{option}_FILE" for option in names}
    return plain | options


def test_every_setting_in_the_docs_exists() -> None:
    named = doc_mentions(r"\b((?:MAPPER|NACELLE|NOMS|TALON_ONE|VOUCHERIFY)_[A-Z][A-Z_]*[A-Z])\b")
    known = known_settings()
    none(f"{where} names {setting}, which is no setting." for where, setting in named if setting not in known)
