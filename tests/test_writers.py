"""Every file that the library writes goes through `writing.py`: aside, flushed, renamed."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "unmask"
# Ways to put content into a file by its name.
WRITERS = {"save_file", "save_pretrained", "savefig", "savez", "tofile", "copyfile", "copytree", "copy2", "to_csv"}
WRITERS |= {"save_published", "_save_tensors", "_save_tokenizer"}
MODULE_WRITERS = {("np", "save"), ("torch", "save"), ("json", "dump"), ("pickle", "dump"), ("shutil", "copy")}
MODULE_WRITERS |= {("loading", "save"), ("adapters", "save"), ("checkpoints", "write_state")}
METHODS = {"write_text", "write_bytes"}
# Inside one of these blocks a name is that of an unfinished file or folder, which the block puts in its place.
BLOCKS = {"written_folder", "written_file", "written_model"}
# Functions that are given the unfinished folder; calls of them are writes like the others.
IN_A_BLOCK = {
    ("models/loading.py", "save"),
    ("models/adapters.py", "save"),
    ("models/published/writing.py", "save_published"),
    ("models/published/writing.py", "_save_tensors"),
    ("models/published/writing.py", "_save_tokenizer"),
    ("training/checkpoint.py", "write_state"),
}
APPENDS = {("runs.py", "append_record")}
"""Lines are added to a file that stays; a reader knows one that is cut off."""


def direct_writes(tree: ast.AST, where: str) -> Iterator[str]:
    """FILE:LINE of every call that writes under a name that readers look for."""

    def visit(node: ast.AST, function: str, inside: bool) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef):
            function, inside = node.name, False
        if isinstance(node, ast.With):
            names = {call_name(item.context_expr) for item in node.items}
            inside = inside or bool(names & BLOCKS)
        is_allowed = inside or (where, function) in IN_A_BLOCK | APPENDS
        if isinstance(node, ast.Call) and is_write(node) and not is_allowed:
            yield f"{where}:{node.lineno} {ast.unparse(node.func)}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, inside)

    yield from visit(tree, "", False)


def call_name(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_write(node: ast.Call) -> bool:
    name, is_method = call_name(node), isinstance(node.func, ast.Attribute)
    owner = getattr(node.func.value, "id", "") if is_method else ""
    if name == "savefig":  # into memory is no file
        return "BytesIO" not in ast.unparse(node) and ast.unparse(node.args[0]) not in ("written", "stream")
    if name == "open":
        modes = [
            one.value for one in [*node.args, *(key.value for key in node.keywords)] if isinstance(one, ast.Constant)
        ]
        return any(isinstance(one, str) and one[:1] in "wax" and set(one) <= set("waxbt+") for one in modes)
    return name in WRITERS or (owner, name) in MODULE_WRITERS or (is_method and name in METHODS)


def test_no_file_is_written_directly() -> None:
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        where = str(file.relative_to(SOURCE))
        if where != "writing.py":
            found += direct_writes(ast.parse(file.read_text(encoding="utf-8")), where)
    assert found == []


def test_the_search_finds_direct_writes() -> None:
    code = (
        "def f(path):\n    path.write_text('x')\n    open(path, 'w')\n    path.open('ab')\n    np.save(path, 1)\n"
        "    with written_file(path) as one:\n        one.write_text('x')\n    path.open()\n    open(path, 'rb')\n"
    )
    assert [one.split()[0] for one in direct_writes(ast.parse(code), "x.py")] == [
        f"x.py:{line}" for line in (2, 3, 4, 5)
    ]
