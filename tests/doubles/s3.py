"""An S3 server in this process that enforces conditional requests."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Thread
from uuid import uuid4

import pytest


@contextmanager
def bucket():
    """An empty bucket, with the server's address in the environment: gives s3://NAME."""
    import s3fs
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    # One request at a time, because moto checks a condition and writes in two steps.
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
    thread = Thread(target=server.serve_forever)
    thread.start()
    name = f"evaluations-{uuid4()}"  # the servers of a process share their buckets
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().mkdir(name)
            yield f"s3://{name}"
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def upload(folder, url):
    """Write the files of a folder to a URL, and return it."""
    from halos_eval.storage import filesystem

    for path in folder.iterdir():
        filesystem.write_bytes(f"{url}/{path.name}", path.read_bytes())
    return url
