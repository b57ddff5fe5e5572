"""Every family that vLLM serves here: hand-over with its parity check, and answers by both pathways.

vLLM's classes of these families import torchvision, of which only a CUDA build is published; `make test`
puts it into a folder of its own, and `torchvision_site` makes it importable beside the CPU build of torch.
(Idefics3 needs none of this: the other tests of engines are about it.)
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.engines.pool import engine_environment
from tests.helpers.repository import ROOT

pytestmark = pytest.mark.slow

TORCHVISION = Path(sys.prefix) / "torchvision-for-tests"


@pytest.mark.skipif(not TORCHVISION.is_dir(), reason=f"no torchvision in {TORCHVISION}; see the Makefile")
@pytest.mark.parametrize("family", ["internvl", "llava", "qwen2_5_vl"])
def test_an_engine_takes_the_familys_adapter_and_answers(family, tmp_path):
    paths = [ROOT / "tests/helpers/torchvision_site", TORCHVISION, ROOT]
    environment = os.environ | engine_environment(load_config("demo").engines)
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.helpers.family_engine", family, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["how"] == "reload"
    assert result["parity"] < 1e-4
    assert len(result["direct"]) == 8
    # The answer is the option whose own tokens, those that are trained, are the most probable.
    for answer, logprob, options in zip(
        result["direct"], result["direct_logprobs"], result["options"], strict=True
    ):
        assert answer == max(options, key=options.get)
        assert logprob == pytest.approx(options[answer], abs=1e-4)
    assert all(0 < tokens <= 8 for tokens in result["reasoning_tokens"])
