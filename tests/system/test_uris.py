"""URIs: what a list may name, and how credentials are hidden wherever a URI is told or stored."""

import pytest

from mmray.system.errors import InputError
from mmray.system.locations import error_line
from mmray.system.uris import masked, masked_text, refusal, unmasked, without_mask

LOCAL, REMOTE = "/lists/l.txt", "s3://b/l.txt?endpoint_override=host:9000"

# What a list may name


@pytest.mark.parametrize(
    "name",
    [
        *("s3://b", "s3://b/x y#.jpg".replace("#", "%23"), "S3://b/x", "gs://b/x", "GCS://b/x"),
        *("s3://b/x.jpg?region=eu-west-1", "s3://b.c_d-e/a@2x.jpg", "a b#?.jpg", "../x", "s3:/x"),
        *("abfs:x", "s3%3A//b/x", "a://".replace("a", "\u00fc") + "x"),
    ],
)
@pytest.mark.parametrize("of_list", [LOCAL, REMOTE])
def test_a_list_may_name_files_beside_it_and_files_in_buckets(name, of_list):
    assert refusal(name, of_list=of_list) is None


@pytest.mark.parametrize("name", ["/x.jpg", "file:///x.jpg", "FILE://localhost/x.jpg"])
def test_only_a_local_list_may_name_local_files(name):
    assert refusal(name, of_list=LOCAL) is None
    assert refusal(name, of_list="file:///lists/l.txt") is None
    assert "a list in a bucket" in refusal(name, of_list=REMOTE)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("abfs://c@account.dfs.core.windows.net/x", "only local files"),
        ("ABFSS://x", "only local files"),
        ("hdfs://host/x", "only local files"),
        ("https://host/x.jpg", "only local files"),
        ("s3://b/x?endpoint_override=host", "options but a region"),
        ("s3://b/x?scheme=http", "options but a region"),
        ("s3://b/x?region=r&endpoint%5Foverride=host", "options but a region"),
        ("s3://b/x?region=x.host.org/", "options but a region"),
        ("s3://b/x?region=eu#", "%23"),
        ("s3://b?", "options but a region"),
        ("s3://key:secret@b/x", "credentials"),
        ("s3://key@b/x", "credentials"),
        ("s3://b\\@host/x", "credentials"),
        ("gs://anonymous@b/x", "credentials"),
        ("s3://b/x?access_key=k&secret_key=s", "credentials"),
        ("s3://b/x?session%5ftoken=t", "credentials"),
        ("s3://b/x?X-Amz-Signature=t", "credentials"),
        ("s3://b/x#1.jpg", "%23"),
        ("s3://[::1]/x", "not the name of a bucket"),
        ("s3://host:9000/x", "not the name of a bucket"),
        ("s3://b%40host/x", "not the name of a bucket"),
        ("s3:///x", "not the name of a bucket"),
        ("s3://b\\x/y", "not the name of a bucket"),
        ("s3://b c/y", "not the name of a bucket"),
        ("s3://b/a\tb", "control characters"),
        ("file://host/x", "of this machine"),
        ("file://user:password@/x", "of this machine"),
        ("a\0b", "NUL character"),
    ],
)
def test_a_list_may_name_nothing_else(name, why):
    assert why in refusal(name, of_list=LOCAL)
    assert refusal(name, of_list=REMOTE) is not None


# Credentials


@pytest.mark.parametrize(
    ("uri", "hidden"),
    [
        ("s3://KEY:SECRET@b/x/a@2x.jpg?region=r", "s3://***@b/x/a@2x.jpg?region=r"),
        ("s3://KEY@b", "s3://***@b"),
        ("s3://b/x?region=r&secret_key=SECRET&a=b", "s3://b/x?region=r&secret_key=***&a=b"),
        ("s3://b/x?session%5Ftoken=SECRET", "s3://b/x?session%5Ftoken=***"),
        ("s3://b/x?X-Amz-Signature=SECRET", "s3://b/x?X-Amz-Signature=***"),
        ("s3://KEY:SEC/RET@b/x", "s3://***@b/x"),  # as of one who forgot to encode it
        ("s3://KEY:SEC?RET@b/x", "s3://***@b/x"),
        ("s3://KEY:SECRET", "s3://***"),
        ("s3://KEY:12/SEC@b/x", "s3://***@b/x"),
        ("s3://b/x?endpoint_override=http://KEY:SEC@h", "s3://b/x?endpoint_override=***"),
        ("s3://b/x?endpoint_override=http%3A%2F%2FKEY%3ASEC%40h", "s3://b/x?endpoint_override=***"),
        ("http://user:SECRET@mlflow:5000/x", "http://***@mlflow:5000/x"),
        ("postgresql://user:SECRET@host/db", "postgresql://***@host/db"),
    ],
)
def test_credentials_are_hidden_in_uris_and_in_texts(uri, hidden):
    assert masked(uri) == hidden
    assert masked(hidden) == hidden
    for text in ("{}", "error: {}: no", "({}, 'a')", "('{}',)", "{},{}", "<a href='{}'>", "{}."):
        said = masked_text(text.format(uri, uri))
        assert "SEC" not in said
        assert "KEY" not in said
        assert "b/x" not in uri or "b/x" in said
        assert masked_text(said) == said
    for error in (InputError(f"--images {uri}: no"), InputError(f"{uri}\n")):
        assert "SEC" not in str(error)
    assert "SEC" not in error_line(OSError(f"{uri} is not there"))


def test_an_option_behind_a_blank_is_hidden_too():
    said = masked_text("s3://b/my photos?region=r&secret_key=SECRET: no such folder")
    assert said == "s3://b/my photos?region=r&secret_key=*** no such folder"
    assert masked_text("s3://b?secret_key=SECRET: gone") == "s3://b?secret_key=***: gone"


@pytest.mark.parametrize(
    "uri",
    [
        *("/a/b@c:d?key=1", "a b@c", "s3://b/x@y:z", "gs://anonymous@b/x?retry_limit_seconds=1"),
        *("http://mlflow:5000", "http://[::1]:5000/x", "sqlite:////data/mlflow.db", "s3://b:90/x"),
        *("s3://b/x?region=r&endpoint_override=host:9000", "file:///a@b"),
    ],
)
def test_what_has_no_credentials_is_left_as_it_is(uri):
    assert masked(uri) == uri
    assert masked_text(f"({uri})") == f"({uri})"


def test_a_stored_uri_gets_its_credentials_from_what_the_user_names_now():
    sources = [
        "s3://k:s@b/x?region=r",
        "s3://k2:s2@b/y?secret_key=t",
        "/photos",
        "gs://anonymous@b",
    ]
    for stored, whole in (
        ("s3://***@b/x/1.jpg?region=r", "s3://k:s@b/x/1.jpg?region=r"),
        ("s3://***@b/y/a@2x.jpg?secret_key=***", "s3://k2:s2@b/y/a@2x.jpg?secret_key=t"),
        ("s3://***@c/x", "s3://***@c/x"),
        ("s3://b/x", "s3://b/x"),
        ("/a/***@b", "/a/***@b"),
    ):
        assert unmasked(stored, sources) == whole
    assert without_mask("s3://***@c/x?a=1&secret_key=***") == "s3://c/x?a=1"
