"""The generated protobuf code belongs to the .proto files beside it."""

import subprocess
import sys
from pathlib import Path

import bkctl.formats.pb

FOLDER = Path(bkctl.formats.pb.__file__).parent
TOP = FOLDER.parents[2]


def test_generating_again_gives_the_committed_bytes(tmp_path: Path) -> None:
    protos = sorted(path.relative_to(TOP).as_posix() for path in FOLDER.glob("*.proto"))
    assert len(protos) == 2
    output = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *output, *protos], cwd=TOP, check=True)
    generated = {path.name: path.read_bytes() for path in tmp_path.rglob("*_pb2.py*")}
    assert generated == {path.name: path.read_bytes() for path in FOLDER.glob("*_pb2.py*")}
    assert len(generated) == 4
