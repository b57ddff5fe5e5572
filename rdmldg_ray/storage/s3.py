"""S3: where its server is, how objects get there whole, and what its refusals mean."""

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyarrow import fs

BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")
_REFUSALS = (
    "ACCESS_DENIED",
    "FORBIDDEN",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "INVALID_SIGNATURE",
    "INVALID_TOKEN",
    "MISSING_AUTHENTICATION_TOKEN",
    "NO_CREDENTIALS_ERROR",
    "PARTIAL_CREDENTIALS_ERROR",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
)
_EXPIRED = (
    "EXPIRED_TOKEN",
    "EXPIRED_TOKEN_EXCEPTION",
    "REQUEST_EXPIRED",
    "SSO_TOKEN_LOAD_ERROR",
    "TOKEN_REFRESH_REQUIRED",
    "TOKEN_RETRIEVAL_ERROR",
    "UNAUTHORIZED_SSO_TOKEN_ERROR",
)
# boto3's own, from before it asked the server.
_NO_CREDENTIALS = (
    "CONFIG_NOT_FOUND",
    "CREDENTIAL_RETRIEVAL_ERROR",
    "INFINITE_LOOP_CONFIG_ERROR",
    "INVALID_CONFIG_ERROR",
    "METADATA_RETRIEVAL_ERROR",
)
# Likewise, of what variables and files set.
_NO_SETTING = (
    "INVALID_ENDPOINT",
    "INVALID_MAX_RETRY_ATTEMPTS_ERROR",
    "INVALID_REGION_ERROR",
    "INVALID_RETRY_MODE_ERROR",
)
_OTHER_REGION = (
    "AUTHORIZATION_HEADER_MALFORMED",
    "ILLEGAL_LOCATION_CONSTRAINT_EXCEPTION",
    "PERMANENT_REDIRECT",
)
# What servers that do not know the checksums that boto3 adds to an upload answer.
_NO_CHECKSUMS = ("MISSING_CONTENT_LENGTH", "NOT_IMPLEMENTED", "X_AMZ_CONTENT_SHA256_MISMATCH")
# Of answers without content.
_BY_STATUS = {
    "401": "ACCESS_DENIED",
    "403": "ACCESS_DENIED",
    "404": "NO_SUCH_KEY",
    "412": "PRECONDITION_FAILED",
}


class RefusedError(Exception):
    """S3, or what was to give its credentials, refused. ``code`` is its word for why, for ``explain``."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what boto3 raises into a RefusedError: its words may quote the request and with it a key."""
    # As little of it as there is, for it is slow to import.
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    try:
        yield
    except ClientError as error:
        raise RefusedError(_code(error)) from None
    except (ConnectionError, HTTPClientError):
        raise RefusedError("NETWORK_CONNECTION") from None
    except BotoCoreError as error:
        raise RefusedError(_in_capitals(type(error).__name__)) from None
    except ValueError:
        raise RefusedError("INVALID_ENDPOINT") from None
    except OSError:
        # Of a program that is to give credentials.
        raise RefusedError("CREDENTIAL_RETRIEVAL_ERROR") from None
    except RecursionError:
        # It follows a redirection to another region without end, where that is not named.
        raise RefusedError("PERMANENT_REDIRECT") from None
    except RuntimeError:
        # Keys that have expired already when they are given.
        raise RefusedError("EXPIRED_TOKEN") from None


def _code(error: Any) -> str:
    code = str(error.response.get("Error", {}).get("Code", "no code"))
    return _BY_STATUS.get(code) or _in_capitals(code)


def _in_capitals(word: str) -> str:
    """A word such as ``NoSuchKey`` as pyarrow writes it: ``NO_SUCH_KEY``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|-", "_", word).upper()


def connect(bucket: str) -> fs.FileSystem:
    """The file system of a bucket, by the usual AWS environment variables and files.

    Raises:
        RefusedError: when the profile that is named is missing, its file is broken, or its role refused.
        OSError: when the bucket's region cannot be found.
    """
    _adopt_profile()
    return _connect(bucket, _environment(), _role_keys(_environment()))


def _environment() -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))


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
def _connect(
    bucket: str, environment: frozenset[tuple[str, str]], role_keys: tuple[str, str, str] | None
) -> fs.FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    access_key, secret_key, session_token = role_keys or (None, None, None)
    found = Bucket(
        access_key=access_key,
        secret_key=secret_key,
        session_token=session_token,
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
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", "3")
    if not attempts.isdecimal() or int(attempts) < 1:
        raise RefusedError("INVALID_MAX_RETRY_ATTEMPTS_ERROR")
    return int(attempts)


def _adopt_profile() -> None:
    """Make profile and endpoint known to pyarrow, which reads a variable for each.

    They go into the environment, since Ray's own uploads use pyarrow too and workers get these variables.
    """
    if "AWS_DEFAULT_PROFILE" in os.environ:  # which goes before the other
        os.environ["AWS_PROFILE"] = os.environ["AWS_DEFAULT_PROFILE"]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or _endpoint_of_profile(_environment())
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint


def _has_profile() -> bool:
    """Whether there may be a profile; without one a process is spared a slow import."""
    config = os.path.expanduser(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"))
    return bool(os.environ.get("AWS_PROFILE")) or Path(config).is_file()


@lru_cache(maxsize=16)
def _endpoint_of_profile(environment: frozenset[tuple[str, str]]) -> str | None:
    if not _has_profile():
        return None
    import botocore.session
    from botocore.config import Config

    # Unsigned, so that no credentials are looked for.
    with _refusals():
        client = botocore.session.Session().create_client(
            "s3", config=Config(signature_version=botocore.UNSIGNED)
        )
    endpoint = str(client.meta.endpoint_url)
    return None if ".amazonaws.com" in endpoint else endpoint


def _role_keys(environment: frozenset[tuple[str, str]]) -> tuple[str, str, str] | None:
    """The keys that a profile's role has now; None for a profile without one, which pyarrow reads itself."""
    credentials = _role(environment)
    if credentials is None:
        return None
    with _refusals():
        keys = credentials.get_frozen_credentials()  # new ones, where these are about to expire
    return keys.access_key, keys.secret_key, keys.token


@lru_cache(maxsize=16)
def _role(environment: frozenset[tuple[str, str]]) -> Any:
    if not _has_profile():
        return None
    import botocore.session

    with _refusals():
        session = botocore.session.Session()
        profile = session.get_scoped_config()
        # Keys in the environment go before a profile; a web identity's role is one that pyarrow assumes.
        if (
            "AWS_ACCESS_KEY_ID" in os.environ
            or "role_arn" not in profile
            or "web_identity_token_file" in profile
        ):
            return None
        return session.get_credentials()


def upload(bucket: str, key: str, chunks: Iterable[bytes]) -> None:
    """Put an object together from chunks; it is there when all of them are, and then at once.

    Until then, and when anything fails, what was there before is there. pyarrow cannot do this: closing
    is its only way to give an upload up, and that completes it: https://github.com/apache/arrow/issues/40502

    Raises:
        RefusedError: when the server does not take it. What the chunks' iteration raises passes through.
    """
    try:
        with _refusals():
            # In parts when it is large, which a failure throws away.
            _client().upload_fileobj(io.BufferedReader(_ChunkStream(chunks)), bucket, key)
    except _ChunksFailedError as failed:
        raise failed.error from None


def put_if_unchanged(bucket: str, key: str, data: bytes, before: bytes | None) -> bool:
    """Put an object in the place of one that holds ``before``, or of none; False when that is not there.

    The server compares, so of several that write at once one succeeds. One that knows no conditions says so
    or ignores them: then what is written between the comparison here and the write is overwritten.

    Raises:
        RefusedError: when the server does not take it.
    """
    from botocore.exceptions import ClientError

    def content() -> tuple[bytes | None, str | None]:
        try:
            found = client.get_object(Bucket=bucket, Key=key)
        except ClientError as error:
            # To those who may not list a bucket, what is missing is denied.
            if _code(error) == "NO_SUCH_KEY" or (_code(error) == "ACCESS_DENIED" and before is None):
                return None, None
            raise
        return found["Body"].read(), found.get("ETag", "")

    with _refusals():
        client = _client()
        there, etag = content()
        if there != before:
            return False
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            if _code(error) in ("PRECONDITION_FAILED", "CONDITIONAL_REQUEST_CONFLICT", "NO_SUCH_KEY"):
                # By an earlier attempt, whose answer was lost, or by another.
                return content()[0] == data
            if _code(error) != "NOT_IMPLEMENTED":
                raise
            client.put_object(Bucket=bucket, Key=key, Body=data)
    return True


def find(bucket: str, key: str) -> fs.FileType:
    """What is at a key, by a listing alone: to those who may list no more than a part of a bucket, what is
    missing is denied when it is asked for by its name.

    Raises:
        RefusedError: when the listing is refused.
    """
    with _refusals():
        for prefix, wanted in ((key, fs.FileType.File), (f"{key}/", fs.FileType.Directory)):
            found = _client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
            # A key is the first of those that begin with it.
            if found and (wanted == fs.FileType.Directory or found[0]["Key"] == key):
                return wanted
    return fs.FileType.NotFound


def reason(bucket: str) -> str | None:
    """Why a bucket's server refuses, in its own word; None where it does not: answers to some requests have
    no content to tell it."""
    try:
        with _refusals():
            _client().list_objects_v2(Bucket=bucket, MaxKeys=1)
    except RefusedError as refused:
        return refused.code
    return None


def _client() -> Any:
    return _make_client(_environment())


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
    if code == "PROFILE_NOT_FOUND":
        return (
            f"the profile '{os.environ.get('AWS_PROFILE')}' is in none of the files of AWS's settings "
            f"({_profile_files()}); correct or unset AWS_PROFILE"
        )
    if code == "CONFIG_PARSE_ERROR":
        return f"one of the files of AWS's settings cannot be read ({_profile_files()}); correct it"
    if code in _NO_SETTING:
        return (
            f"one of AWS's settings is not valid ({code}); correct AWS_ENDPOINT_URL (as http://host:port), "
            f"AWS_DEFAULT_REGION, AWS_MAX_ATTEMPTS or AWS_RETRY_MODE, or what stands for it in "
            f"{_profile_files()}"
        )
    if code in _EXPIRED:
        return (
            f"the credentials for {endpoint} have expired ({code}); get new ones, as by aws sso login or "
            "with a new AWS_SESSION_TOKEN, and give the command again"
        )
    if code in _REFUSALS:
        return (
            f"{endpoint} refused the credentials ({code}); check AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and their permissions for the bucket '{bucket}'"
        )
    if code == "REQUEST_TIME_TOO_SKEWED":
        return f"{endpoint} has another time than this machine; set the clock"
    if code in _OTHER_REGION:
        return f"the bucket '{bucket}' is in another region ({code}); set AWS_DEFAULT_REGION to it"
    if code in _NO_CHECKSUMS:
        return (
            f"{endpoint} answered {code}, as servers do that do not know the checksums of newer clients; set "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required, or run a newer server"
        )
    if code in _NO_CREDENTIALS:
        return (
            f"no credentials for {endpoint} could be had ({code}); check AWS_PROFILE and its settings "
            f"({_profile_files()}), for which 'aws sts get-caller-identity' must work"
        )
    return f"{endpoint} answered {code}; check the location and the server's log, and try again"


def _profile_files() -> str:
    config = os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")
    return f"{config}, {os.environ.get('AWS_SHARED_CREDENTIALS_FILE', '~/.aws/credentials')}"
