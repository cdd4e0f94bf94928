"""An S3 server in this process that enforces conditional requests."""

from __future__ import annotations

from contextlib import contextmanager
from uuid import uuid4

import pytest


@contextmanager
def bucket():
    """An empty bucket, with the server's address in the environment: gives its URL. All servers share their buckets."""
    name = f"bucket-{uuid4().hex}"
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().mkdir(name)
            yield f"s3://{name}"
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.stop()


def upload(folder, url):
    """Write the files of a folder to a URL, and return it."""
    from halos_eval.storage import filesystem

    for path in folder.iterdir():
        filesystem.write_bytes(f"{url}/{path.name}", path.read_bytes())
    return url
