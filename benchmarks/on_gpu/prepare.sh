#!/usr/bin/env bash
# For a GPU machine without a network, in the project's root:
#
#     bash benchmarks/on_gpu/prepare.sh PACKAGE ...
#
# Fills two folders, to be copied there beside the project; git ignores them from now on:
#   .whl/       wheels of what requirements.txt names, for Python 3.12, but for the packages named
#               here, which that machine has; EXTRA="kornia kornia_rs" brings others along, without
#               what they need
#   .gpu-data/  the files of Fashion-MNIST, packed, from the Debian package dataset-fashion-mnist
set -euo pipefail
exclude=$(git rev-parse --git-path info/exclude)
for folder in .whl .gpu-data; do
    grep -qxF "/$folder/" "$exclude" 2>/dev/null || echo "/$folder/" >>"$exclude"
done
rm -rf .whl .gpu-data
mkdir .whl .gpu-data
cp /usr/share/datasets/fashion-mnist/*.gz .gpu-data/

${PYTHON:-.venv/bin/python} - "$@" <<'PY'
import os
import re
import subprocess
import sys
from pathlib import Path

ON_MACHINE = set(sys.argv[1:])
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (39, 38, 36, 35, 34, 31, 28, 27, 24, 17)]
TARGET = ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
TARGET += ["--abi=cp312", "--abi=abi3", "--abi=none"]
TARGET += [f"--platform={name}" for name in (*PLATFORMS, "manylinux2014_x86_64")]


def plain(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


lines = [line.split("#")[0].strip() for line in Path("requirements.txt").read_text().splitlines()]
missing = [line for line in lines if line and plain(line) not in ON_MACHINE]
download = [sys.executable, "-m", "pip", "download", "-q", *TARGET, "-d", ".whl"]
if missing:
    subprocess.run([*download, *missing], check=True)
alone = os.environ.get("EXTRA", "").split()
if alone:
    subprocess.run([*download, "--no-deps", *alone], check=True)
for wheel in sorted(Path(".whl").glob("*.whl")):
    if plain(wheel.name.split("-")[0]) in ON_MACHINE:
        wheel.unlink()
    else:
        print(wheel.name)
PY
du -sh .whl .gpu-data
