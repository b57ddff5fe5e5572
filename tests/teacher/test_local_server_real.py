"""A teacher of one's own: a real `vllm serve` of the embedded model, started and ended by the command."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.teacher.local_server import vllm_server
from tools import mini

pytestmark = pytest.mark.slow

SMALL = ("--max-model-len", "1024", "--max-num-seqs", "8")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_teacher_of_ones_own_annotates_without_an_api_key(tmp_path):
    root = str(tmp_path)
    mini.write_mini(root)
    options = ["--storage", root, "--max-tokens", "300", "--max-samples", "12", "--candidates", "2"]
    options += ["--max-equal-rejections", "0"]  # so small a teacher makes one fault again and again
    command = [sys.executable, "-m", "rdmldg_ray", "annotate", "mini", "--teacher", "vllm", "--model", "tiny"]
    done = subprocess.run(
        [*command, *options, "--", *SMALL], capture_output=True, text=True, timeout=240, env=os.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_chains(root, "mini", "tiny", mini.DOMAINS).to_pylist()
    assert len({row["id"] for row in rows}) == 12
    assert 12 <= len(rows) <= 24
    for row in rows:
        assert row["model"] == "tiny"
        assert row["answer_tokens"] > 0 and row["prompt_tokens"] > 100 and row["cost"] == 0
        assert row["accepted"] == (row["reason"] is None)


SERVE = """
import sys, time
from rdmldg_ray.teacher.local_server import vllm_server
with vllm_server(sys.argv[1], "tiny", sys.argv[2:]) as server:
    print(server.base_url, flush=True)
    time.sleep(600)
"""


def test_a_server_does_not_outlive_one_that_was_killed():
    owner = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(TINY_BASE), *SMALL], stdout=subprocess.PIPE, text=True
    )
    url = owner.stdout.readline().strip()
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 120
    while _answers(url):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.5)


def _answers(url):
    try:
        urllib.request.urlopen(f"{url}/models", timeout=5)
    except urllib.error.HTTPError:
        return True  # it wants a key
    except TimeoutError:
        return True  # there, and busy
    except OSError:  # refused, or cut off while it ends
        return False


def test_a_server_that_cannot_start_says_why():
    server = vllm_server(str(TINY_BASE), "tiny", ["--no-such-argument"])
    with pytest.raises(ValueError, match=r"(?s)vllm serve ended with .*--no-such-argument"), server:
        pass


def test_a_server_answers_nobody_without_its_key_and_is_gone_afterwards():
    with vllm_server(str(TINY_BASE), "tiny", SMALL) as server:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.base_url}/models")
        assert refused.value.code == 401
        asked = urllib.request.Request(
            f"{server.base_url}/models", headers={"Authorization": f"Bearer {server.api_key}"}
        )
        assert b"tiny" in urllib.request.urlopen(asked).read()
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(asked)
