"""What of a connection to Ray needs no cluster."""

import os
import socket
from contextlib import closing

import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.runtime import session


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "https://a/b", "localhost", "127.0.0.1:", ":6379", "a:b", "a:99999"]
)
def test_an_address_that_is_no_clusters_is_refused(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(
            ValueError, match=r"^RAY_ADDRESS=.*: is not of the form host:port.*correct RAY_ADDRESS"
        ),
        session.ray_session(load_config("demo")),
    ):
        pass


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_where_nothing_answers_is_told_at_once(monkeypatch, form):
    with closing(socket.socket()) as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", form.format(bound.getsockname()[1]))
        with (
            pytest.raises(ValueError, match=r"no cluster answers there .*; correct RAY_ADDRESS, or unset it"),
            session.ray_session(load_config("demo")),
        ):
            pass


def test_an_address_where_something_answers_is_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        session.check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_ray_is_not_to_unpickle_what_a_file_says(monkeypatch):
    name = "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA"
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {**os.environ, name: "1"})
        session._set_up_environment(own=False)
        assert os.environ[name] == "0"
        assert session._worker_environment(load_config("demo"))[name] == "0"
