"""S3: where its server is, how objects get there whole, and what its refusals mean."""

import io
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

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


class Bucket(fs.S3FileSystem):
    """The file system of a bucket; pickled, it is opened anew where it arrives.

    So Ray Train can hand it to its workers, who have credentials of their own. What pyarrow pickles
    forgets besides how often to try again: https://github.com/apache/arrow/pull/47350
    """

    bucket: str

    def __reduce__(self) -> tuple[Any, ...]:
        return connect, (self.bucket,)


# Without a server of its own a bucket's region is asked for over the network: once is enough.
@lru_cache(maxsize=16)
def _connect(bucket: str, environment: frozenset[tuple[str, str]]) -> fs.FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    found = Bucket(
        endpoint_override=endpoint,
        region=None if endpoint else fs.resolve_s3_region(bucket),
        # Small objects are then written in one request instead of three.
        allow_delayed_open=True,
        # Waits 50 ms before the second retry and twice as long before each that follows.
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=_attempts()),
    )
    found.bucket = bucket
    return found


def _attempts() -> int:
    """How often a request is tried: boto3's own variable, and its default."""
    return int(os.environ.get("AWS_MAX_ATTEMPTS", "3"))


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


class RefusedError(Exception):
    """S3 did not take an object. ``code`` is its word for why, as ``explain`` takes it."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


def upload(bucket: str, key: str, chunks: Iterable[bytes]) -> None:
    """Put an object together from chunks; it is there when all of them are, and then at once.

    Until then, and when anything fails, what was there before is there. pyarrow cannot do this: closing
    is its only way to give an upload up, and that completes it: https://github.com/apache/arrow/issues/40502

    Raises:
        RefusedError: when the server does not take it. What the chunks' iteration raises passes through.
    """
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
    )

    try:
        # In parts when it is large, which a failure throws away.
        _client().upload_fileobj(io.BufferedReader(_ChunkStream(chunks)), bucket, key)
    except _ChunksFailedError as failed:
        raise failed.error from None
    # Their words may quote the request and with it a key, so only the code goes on.
    except ClientError as error:
        code = str(error.response["Error"]["Code"])
        raise RefusedError(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).upper()) from None
    except (ConnectionError, HTTPClientError):
        raise RefusedError("NETWORK_CONNECTION") from None
    except NoCredentialsError:
        raise RefusedError("MISSING_AUTHENTICATION_TOKEN") from None
    except BotoCoreError as error:
        raise RefusedError(type(error).__name__) from None


def _client() -> Any:
    return _make_client(frozenset((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


@lru_cache(maxsize=16)
def _make_client(environment: frozenset[tuple[str, str]]) -> Any:
    import boto3  # slow to import, and many commands write nothing

    return boto3.Session().client("s3")


class _ChunksFailedError(Exception):
    """What the chunks' iteration raised. An upload may wait for ever after what is no Exception."""

    def __init__(self, error: BaseException):
        super().__init__()
        self.error = error


class _ChunkStream(io.RawIOBase):
    """Chunks as a stream to read from."""

    def __init__(self, chunks: Iterable[bytes]):
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                chunk = next(self._chunks, None)
            except BaseException as error:
                raise _ChunksFailedError(error) from error
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


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
