"""The house: which module may import which, how long functions are, and who sees the config."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the bottom up. A module imports modules of its own layer and of those below it.
LAYERS = [
    ["memorization.errors"],
    ["memorization.machine"],
    ["models"],
    [
        "memorization.alignment", "memorization.fields", "memorization.fingerprints",
        "memorization.neighbors", "memorization.normalization", "memorization.optimizers",
        "memorization.significance", "memorization.reliability", "memorization.local_offset",
        "memorization.validation",
    ],
    ["memorization.data"],
    ["memorization.imports.settings", "memorization.options", "memorization.settings"],
    [
        "memorization.encoder", "memorization.checkpoint_file", "memorization.checkpoint",
        "memorization.results",
    ],
    ["memorization.figures", "memorization.imports", "memorization.measuring"],
    ["memorization.config"],
    ["memorization.run", "memorization.training"],
    ["memorization.reporting"],
]  # fmt: skip
FILES = sorted(path for room in ("models", "memorization") for path in ROOT.glob(f"{room}/**/*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))


def test_torch_and_torchvision_import_together():
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5)  # a compiled operation
    assert kept.tolist() == [1]


def imported_modules(path):
    """The modules that a file imports, with what it imports from packages as modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                is_module = (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
                yield module if is_module else node.module


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module):
    for number, packages in enumerate(LAYERS):
        if any(module == package or module.startswith(f"{package}.") for package in packages):
            return number
    return None


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_arrows_point_down_only(path):
    own = layer(module_name(path))
    for module in imported_modules(path):
        number = layer(module)
        assert number is None or own is None or number <= own, f"{path.name} imports {module}"
        assert module not in {script.stem for script in SCRIPTS}, f"{path.name} imports {module}"
        if module_name(path).startswith("models"):
            assert not module.startswith("memorization"), f"{path.name} imports {module}"


def test_every_module_has_a_layer():
    without = [module_name(path) for path in FILES if layer(module_name(path)) is None]
    assert without == ["memorization"]


def test_no_script_imports_a_script():
    names = {path.stem for path in SCRIPTS}
    for path in SCRIPTS:
        assert not names & set(imported_modules(path)), path.name


def test_no_module_imports_itself_through_others():
    imports = {module_name(path): set(imported_modules(path)) for path in FILES}

    def visit(module, above):
        assert module not in above, " imports ".join([*above[above.index(module) :], module])
        if module in unvisited:
            for other in imports[module] & imports.keys():
                visit(other, [*above, module])
            unvisited.discard(module)

    unvisited = set(imports)
    for module in imports:
        visit(module, [])


CODE = [*FILES, *SCRIPTS, *ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")]
SEE_THE_CONFIG = {"open_run", "train_pair"}  # beside the scripts


def functions():
    """(path, function) of every function and method of the code, as a node of its syntax tree."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def parameters(function):
    arguments = function.args
    names = [part.arg for part in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def takes_an_encoder_and_settings(path, function):
    """Whether a function makes a method, from an encoder and each of the method's settings."""
    is_constructor = path.parent.name == "models" and function.name == "__init__"
    return is_constructor and parameters(function)[:1] == ["encoder"]


def test_a_function_has_six_parameters_at_most_beside_the_settings_of_a_method():
    many = [
        f"{path.name}: {function.name}"
        for path, function in functions()
        if len(parameters(function)) > 6 and not takes_an_encoder_and_settings(path, function)
    ]
    assert many == []


def test_only_open_run_train_pair_and_scripts_take_a_config():
    takers = [
        f"{path.name}: {function.name}"
        for path, function in functions()
        if "config" in parameters(function)
        and path not in SCRIPTS
        and function.name not in SEE_THE_CONFIG
    ]
    assert takers == []


def test_a_script_has_180_lines_at_most():
    lengths = {path.name: len(path.read_text().splitlines()) for path in SCRIPTS}
    assert {name: length for name, length in lengths.items() if length > 180} == {}


def test_only_the_machine_asks_whether_it_is_the_first_process():
    asking = [path.name for path in CODE if "is_first" in path.read_text()]
    machine = {path.name for path in ROOT.glob("memorization/machine/*.py")}
    assert set(asking) <= machine


def test_benchmarks_and_examples_import_no_script():
    names = {path.stem for path in SCRIPTS}
    for room in ("benchmarks", "examples"):
        for path in ROOT.glob(f"{room}/*.py"):
            assert not names & set(imported_modules(path)), path.name


def test_the_training_loop_is_short():
    (loop,) = (function for _, function in functions() if function.name == "train_encoder")
    assert loop.end_lineno - loop.lineno < 40


def test_files_of_tests_have_different_names():
    """pytest collects none of them if two rooms have a file of the same name."""
    names = [path.stem for path in ROOT.glob("tests/**/*.py")]
    assert len(names) == len(set(names))
