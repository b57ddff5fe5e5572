"""S3 through pyarrow: where its server is, and what its refusals mean. Used by ``storage`` alone."""

import os
import re
from functools import lru_cache
from pathlib import Path

from pyarrow import fs

BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")
_REFUSALS = (
    "ACCESS_DENIED",
    "EXPIRED_TOKEN",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "MISSING_AUTHENTICATION_TOKEN",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
)


def connect(bucket: str) -> fs.FileSystem:
    """The file system of a bucket, by the usual AWS environment variables and files.

    Raises:
        OSError: when the bucket's region cannot be found.
    """
    _adopt_endpoint()
    return _connect(bucket, frozenset((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


# Without a server of its own a bucket's region is asked for over the network: once is enough.
@lru_cache(maxsize=16)
def _connect(bucket: str, environment: frozenset[tuple[str, str]]) -> fs.FileSystem:
    # Small objects are then written in one request instead of three.
    return fs.FileSystem.from_uri(f"s3://{bucket}?allow_delayed_open=true")[0]


def _adopt_endpoint() -> None:
    """Make the endpoint known to pyarrow, which reads one variable and no file for it.

    It goes into the environment, since Ray's own uploads use pyarrow too and workers get these variables.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = os.path.expanduser(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"))
    endpoint = endpoint or _endpoint_of_file(config, os.environ.get("AWS_PROFILE"))
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint


@lru_cache(maxsize=16)
def _endpoint_of_file(config: str, profile: str | None) -> str | None:
    if not Path(config).is_file():
        return None  # spares most processes a slow import
    import botocore.session
    from botocore.config import Config

    # Unsigned, so that no credentials are looked for.
    client = botocore.session.Session(profile=profile).create_client(
        "s3", config=Config(signature_version=botocore.UNSIGNED)
    )
    endpoint = str(client.meta.endpoint_url)
    return None if ".amazonaws.com" in endpoint else endpoint


def explain(location: str, code: str) -> str:
    """What a code of S3 means for a location, and the remedy; repeats no credential."""
    bucket = location.removeprefix("s3://").split("/")[0]
    # An endpoint may carry a user and a password before an @.
    endpoint = re.sub(r"//[^/]*@", "//", os.environ.get("AWS_ENDPOINT_URL", "AWS"))
    if code == "NETWORK_CONNECTION":
        return f"no answer from {endpoint}; check that it runs, and AWS_ENDPOINT_URL"
    if code == "NO_SUCH_BUCKET":
        return f"{endpoint} has no bucket '{bucket}'; create it, or correct the location"
    if code in _REFUSALS:
        return (
            f"{endpoint} refused the credentials ({code}); check AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and their permissions for the bucket '{bucket}'"
        )
    return f"{endpoint} answered {code}; check the location and the server's log, and try again"
