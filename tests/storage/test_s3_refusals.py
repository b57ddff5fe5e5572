"""What servers of S3 may answer that the test server does not: each ends in one message with its remedy."""

import os
import re
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError

from rdmldg_ray import storage
from rdmldg_ray.storage import StorageError, join, s3
from tests.helpers.s3_counter import s3_counter
from tools import s3_server

OPERATIONS = {
    "exists": storage.exists,
    "list_files": storage.list_files,
    "list_folders": storage.list_folders,
    "read_bytes": storage.read_bytes,
    "read_if_there": storage.read_if_there,
    "read_table": lambda at: storage.read_table(at + ".parquet"),
    "write_bytes": lambda at: storage.write_bytes(at, b"x"),
    "write_if_unchanged": lambda at: storage.write_if_unchanged(at, b"x", None),
    "delete_file": storage.delete_file,
    "delete_folder": storage.delete_folder,
    "check_writable": storage.check_writable,
}


@contextmanager
def answering(status, content, kind="application/xml"):
    """A server that answers every request alike; yields its endpoint."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """An environment of AWS's without anything of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = {
        "AWS_ACCESS_KEY_ID": "somekey",
        "AWS_SECRET_ACCESS_KEY": "somesecret",
        "AWS_SESSION_TOKEN": "sometoken",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (400, "ExpiredToken", "credentials .* have expired .*; get new ones"),
        (400, "TokenRefreshRequired", "credentials .* have expired .*; get new ones"),
        (403, "AccessDenied", "refused the credentials .*; check AWS_ACCESS_KEY_ID"),
        (403, "InvalidAccessKeyId", "refused the credentials .*; check AWS_ACCESS_KEY_ID"),
        (400, "InvalidToken", "refused the credentials .*; check AWS_ACCESS_KEY_ID"),
        (403, "RequestTimeTooSkewed", "another time than this machine; set the clock"),
        (404, "NoSuchBucket", "has no bucket 'bucket'; create it, or correct the location"),
        (400, "AuthorizationHeaderMalformed", "in another region .*; set AWS_DEFAULT_REGION"),
        (501, "NotImplemented", "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
        (503, "SlowDown", "check the location and the server's log, and try again"),
        (500, "InternalError", "check the location and the server's log, and try again"),
        (418, "SomethingNew", "check the location and the server's log, and try again"),
    ],
)
def test_a_refusal_is_told_with_its_remedy(aws, status, code, told):
    content = f"<Error><Code>{code}</Code><Message>somekey sometoken</Message></Error>".encode()
    with answering(status, content) as endpoint:
        aws.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in OPERATIONS:
            if (name, code) == ("delete_file", "NoSuchBucket"):
                continue  # there is nothing to delete
            with pytest.raises(StorageError) as caught:
                OPERATIONS[name]("s3://bucket/a/b")
            assert re.search(rf"^s3://bucket/a/b.*: cannot be \w+: .*{told}", str(caught.value)), name
            assert not re.search("somekey|somesecret|sometoken", str(caught.value))


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (403, b""),
        (400, b""),
        (500, b""),
        (200, b"<html>a proxy's page</html>"),
        (502, b"<html>bad gateway</html>"),
    ],
)
def test_an_answer_that_is_not_s3s_ends_in_one_message(aws, status, content):
    with answering(status, content, "text/html") as endpoint:
        aws.setenv("AWS_ENDPOINT_URL", endpoint)
        for operation in OPERATIONS.values():
            with (
                suppress(StorageError)
                if status == 200
                else pytest.raises(StorageError, match=r"^s3://bucket/a/b")
            ):
                operation("s3://bucket/a/b")


@pytest.mark.parametrize("operation", [storage.exists, storage.list_files, storage.read_bytes])
def test_a_bucket_of_another_region_is_told(aws, operation):
    with answering(301, b"") as endpoint:
        aws.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(
            StorageError, match=r"^s3://bucket/a: .*in another region .*; set AWS_DEFAULT_REGION"
        ):
            operation("s3://bucket/a")


# Credentials.


def write_profiles(text):
    Path(os.environ["AWS_CONFIG_FILE"]).write_text(text)


@pytest.mark.parametrize("variable", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
@pytest.mark.parametrize("there", ["", "[default]\nregion = us-east-1\n", "[profile other]\n"])
def test_a_profile_that_is_missing_is_named(aws, variable, there):
    if there:
        write_profiles(there)
    aws.setenv("AWS_PROFILE", "unused")  # the other goes before it, and monkeypatch brings both back
    aws.setenv(variable, "nosuch")
    for operation in OPERATIONS.values():
        with pytest.raises(
            StorageError, match=r"^s3://bucket/a.*the profile 'nosuch' is in none .*unset AWS_PROFILE"
        ):
            operation("s3://bucket/a")


@pytest.mark.parametrize("text", ["[profile", "region = a\n", "[a]\n[a\n"])
def test_a_broken_settings_file_is_named(aws, text):
    write_profiles(text)
    for operation in OPERATIONS.values():
        with pytest.raises(
            StorageError, match=r"files of AWS's settings cannot be read \(.*config.*; correct it"
        ):
            operation("s3://bucket/a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_MAX_ATTEMPTS", "many"),
        ("AWS_MAX_ATTEMPTS", "0"),
        ("AWS_RETRY_MODE", "nonsense"),
        ("AWS_DEFAULT_REGION", "us east 1"),
        ("AWS_ENDPOINT_URL", "127.0.0.1:9"),
        ("AWS_ENDPOINT_URL_S3", "nonsense"),
    ],
)
def test_a_setting_that_means_nothing_is_told(aws, name, value):
    aws.setenv("AWS_PROFILE", "mine")  # then settings are looked for before anything is sent
    write_profiles("[profile mine]\n")
    aws.setenv(name, value)
    with pytest.raises(
        StorageError, match=rf"^s3://bucket/a: .*settings is not valid .*{name.removesuffix('_S3')}"
    ):
        storage.write_bytes("s3://bucket/a", b"x")


@pytest.mark.parametrize(
    "settings",
    [
        "credential_process = /no/such/program\n",
        "role_arn = arn:aws:iam::1:role/r\nsource_profile = missing\n",
        "role_arn = arn:aws:iam::1:role/r\nsource_profile = mine\n",
        "role_arn = arn:aws:iam::1:role/r\ncredential_source = Nowhere\n",
        "sso_session = s\nsso_account_id = 1\nsso_role_name = r\n[sso-session s]\nsso_region = us-east-1\n"
        "sso_start_url = https://example.com\nsso_registration_scopes = sso:account:access\n",
    ],
)
def test_a_profile_that_gives_no_credentials_ends_in_one_message(aws, settings):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        aws.delenv(name)
    aws.setenv("AWS_PROFILE", "mine")
    aws.setenv("HOME", os.path.dirname(os.environ["AWS_CONFIG_FILE"]))
    write_profiles(f"[profile mine]\n{settings}")
    with answering(403, b"<Error><Code>AccessDenied</Code></Error>") as endpoint:
        aws.setenv("AWS_ENDPOINT_URL", endpoint)
        for operation in OPERATIONS.values():
            with pytest.raises(StorageError, match=r"^s3://bucket/a.*(AWS_PROFILE|get new ones)"):
                operation("s3://bucket/a")


def test_a_profiles_role_is_taken_and_its_keys_are_renewed(aws, s3_environment):
    def grant(secret, expires):
        keys = f"<AccessKeyId>{s3_server.ACCESS_KEY}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
        rest = f"<SessionToken>t</SessionToken><Expiration>{expires}</Expiration>"
        result = f"<AssumeRoleResult><Credentials>{keys}{rest}</Credentials></AssumeRoleResult>"
        return f"<AssumeRoleResponse>{result}</AssumeRoleResponse>".encode()

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        aws.delenv(name)
    aws.setenv("AWS_PROFILE", "mine")
    soon = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def keys(expires):
        with answering(200, grant(s3_server.SECRET_KEY, expires), "text/xml") as sts:
            write_profiles(
                "[profile base]\naws_access_key_id = a\naws_secret_access_key = b\nregion = us-east-1\n"
                "[profile mine]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\n"
                f"region = us-east-1\nservices = local\n[services local]\nsts =\n  endpoint_url = {sts}\n"
            )
            aws.setenv("AWS_ENDPOINT_URL", s3_environment["AWS_ENDPOINT_URL"])
            aws.setenv("AWS_ENDPOINT_URL_STS", sts)  # another environment, so that nothing is remembered
            return s3._role_keys(s3._environment())

    for expires in ("2099-01-01T00:00:00Z", soon):
        assert keys(expires) == (s3_server.ACCESS_KEY, s3_server.SECRET_KEY, "t")
    with pytest.raises(s3.RefusedError, match="EXPIRED_TOKEN"):
        keys("2020-01-01T00:00:00Z")


def test_credentials_for_one_prefix_are_enough(s3_root, monkeypatch):
    """As S3 answers them: all that is outside is denied, and what is missing is not told apart from it."""
    server, own = boto3.client("s3"), "/" + s3_root.removeprefix("s3://")

    def refuse(command, path):
        parts = urlsplit(path)
        place = unquote(parts.path)
        if "list-type" in parts.query:
            return not f"{place}/{parse_qs(parts.query).get('prefix', [''])[0]}".startswith(own)
        if command == "POST" and parts.query.startswith("delete"):
            return False  # each key in it is judged
        if not place.startswith(own):
            return True
        if command not in ("HEAD", "GET"):
            return False
        try:
            bucket, key = place.lstrip("/").split("/", 1)
            server.head_object(Bucket=bucket, Key=key)
        except ClientError:
            return True
        return False

    with s3_counter(os.environ["AWS_ENDPOINT_URL"], refuse) as (endpoint, _), monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        for kind in ("missing", "deep/er/missing"):
            at = join(s3_root, kind)
            assert not storage.exists(at) and storage.read_if_there(at) is None
            assert storage.list_files(at) == [] and storage.list_folders(at) == []
            storage.delete_file(at)
            storage.delete_folder(at)
            with pytest.raises(StorageError, match="cannot be read"):
                storage.read_bytes(at)
        storage.check_writable(s3_root)
        storage.write_bytes(join(s3_root, "a/b c"), b"x")
        assert storage.write_if_unchanged(join(s3_root, "a/d"), b"1", None)
        assert not storage.write_if_unchanged(join(s3_root, "a/d"), b"2", None)
        assert storage.write_if_unchanged(join(s3_root, "a/d"), b"3", b"1")
        assert storage.is_file(join(s3_root, "a/b c")) and not storage.is_file(join(s3_root, "a"))
        assert storage.list_files(s3_root) == [join(s3_root, "a/b c"), join(s3_root, "a/d")]
        assert storage.list_folders(s3_root) == ["a"]
        storage.copy_folder(join(s3_root, "a"), join(s3_root, "to"))
        storage.delete_folder(join(s3_root, "a"))
        assert storage.list_files(s3_root) == [join(s3_root, "to/b c"), join(s3_root, "to/d")]
        outside = f"s3://{s3_server.BUCKET}/elsewhere"
        for operation in OPERATIONS.values():
            with pytest.raises(StorageError, match=f"^{outside}.*refused the credentials .ACCESS_DENIED"):
                operation(outside)
