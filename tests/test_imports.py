"""The packages work together; where they do not, every other test fails for a reason that is hard to see."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_torch_and_torchvision_import_together():
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]  # a compiled operation of torchvision


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_arrows_point_down_only():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert scripts and list(ROOT.glob("models/*.py")) and list(ROOT.glob("memorization/*.py"))
    for path in [*ROOT.glob("models/*.py"), *ROOT.glob("memorization/*.py"), *ROOT.glob("*.py")]:
        for module in imported_modules(path):
            assert module.split(".")[0] not in scripts, f"{path.name} imports a script, {module}"
            if path.parent == ROOT / "models":
                assert not module.startswith("memorization"), f"models/{path.name} imports {module}"
            if path.parent == ROOT / "memorization" and module.startswith("models"):
                assert path.name == "checkpoint.py" and module == "models.encoders", f"memorization/{path.name} imports {module}"
