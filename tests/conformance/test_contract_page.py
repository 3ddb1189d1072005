"""docs/adapter_contract.md: the contract word by word, from its docstrings.

`python -m tests.conformance.test_contract_page` writes it anew.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from mapper import adapter

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adapter_contract.md"

SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Conversations": ("mapper/adapter.py", ("Adapter", "EngineRequest", "EngineReply", "together", "Account")),
    "Results": ("mapper/adapter.py", ("Redeemed", "NotRedeemed", "LookedUp")),
    "What an engine grants": (
        "mapper/domain/outcome.py", ("Outcome", "Discount", "Rejection", "Notice", "Cost", "Diagnostic"),
    ),
    "Declarations": ("mapper/adapter.py", ("Capabilities",)),
    "Options": ("mapper/domain/options.py", ("Option", "Misconfigured", "read", "pairs", "names")),
    "Errors": (
        "mapper/domain/errors.py",
        ("Problem", "EngineRejected", "EngineUnavailable", "OrderMismatch", "InvalidRequest"),
    ),
    "What comes in": ("mapper/domain/checkout.py", ("Checkout",)),
    "Lines": ("mapper/domain/lines.py", ("Line",)),
    "Codes": ("mapper/domain/codes.py", ("Promotions",)),
    "Money": (
        "mapper/domain/money.py", ("from_engine", "to_minor", "to_major", "total", "split", "NotMoney"),
    ),
    "Reasons": ("mapper/domain/reasons.py", ("Reason",)),
    "An emulator": ("mapper/sandbox/emulator.py", ("Emulator",)),
    "A conformance test": ("mapper/conformance/adopter.py", ("Adopter",)),
}  # fmt: skip
"""By heading: the file, and its names."""

HEAD = """\
# The adapter contract, version {version}

What an adapter sees of the mapper, name by name. All of it is imported from `mapper.adapter` (an emulator's part: from
`mapper.sandbox.emulator`; its test's: from `mapper.conformance.suite`). [Writing an adapter](../adapters/README.md) is
the guide.

Generated from the docstrings: `python -m tests.conformance.test_contract_page`.
"""


Named = ast.ClassDef | ast.FunctionDef


def page() -> str:
    parts = [HEAD.format(version=adapter.CONTRACT)]
    for heading, (file, wanted) in SECTIONS.items():
        parts.append(f"## {heading}\n")
        found = {node.name: node for node in ast.parse((ROOT / file).read_text("utf-8")).body if is_named(node)}
        parts += [described(found[name]) for name in wanted]
    return "\n".join(parts)


def is_named(node: ast.stmt) -> TypeGuard[Named]:
    return isinstance(node, ast.ClassDef | ast.FunctionDef)


def described(node: Named) -> str:
    if isinstance(node, ast.FunctionDef):
        return f"### `{node.name}`\n\n{signature(node)}\n\n{text_of(node)}\n"
    lines = [f"### `{node.name}`\n", text_of(node), ""]
    if any(one.arg == "kw_only" for one in node.keywords):
        lines += ["Keyword arguments only.", ""]
    if fields := list(fields_of(node)):
        lines += ["| field | type | default | says |", "|---|---|---|---|", *fields, ""]
    for method in node.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and shown(method):
            text = text_of(method)
            lines += [f"**`{method.name}`** {signature(method)}\n", *([text, ""] if text else [])]
    return "\n".join(line for line in lines if line is not None)


def shown(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    hidden = (method.name.startswith(("_", "test_")) and method.name != "__init__") or any(
        ast.unparse(one) in ("contextmanager", "pytest.fixture") for one in method.decorator_list
    )
    return (method.name == "__init__" or bool(ast.get_docstring(method))) and not hidden


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"`({ast.unparse(node.args)}){returns}`".replace("(self, ", "(").replace("(self)", "()")


def text_of(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return ast.get_docstring(node) or ""


def fields_of(node: ast.ClassDef) -> Iterator[str]:
    """Yield a row for each field; the string after a field describes it."""
    for place, one in enumerate(node.body):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not one.target.id.startswith("_"):
            after = node.body[place + 1] if place + 1 < len(node.body) else None
            says = after.value.value if is_text(after) else ""  # type: ignore[union-attr]
            default = f"`{ast.unparse(one.value)}`" if one.value is not None else ""
            if node.name == "Checkout" and "repr" in default:
                default = ""
            row = (f"`{one.target.id}`", f"`{ast.unparse(one.annotation)}`", default, re.sub(r"\s+", " ", str(says)))
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        elif node.name == "Reason" and isinstance(one, ast.Assign) and isinstance(one.value, ast.Tuple):
            word, message = (ast.literal_eval(part) for part in one.value.elts)
            yield f"| `{ast.unparse(one.targets[0])}` | `{word}` | | {message} |"


def is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_contract_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tests.conformance.test_contract_page"


def test_contract_page_lists_every_importable_name() -> None:
    modules = {"checkout", "errors", "money", "reasons"}
    plumbing = {"ADAPTERS", "SANDBOXES", "known", "CONTRACT", "Conversation", "Scope"}
    told = {name for _, wanted in SECTIONS.values() for name in wanted}
    assert set(adapter.__all__) - modules - plumbing <= told


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
