"""A local S3 server for the tests: moto's, one request at a time, because its conditional put is not atomic."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "caches"


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a server with one empty bucket, BUCKET."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *unused: object) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=False, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.port}"
    try:
        boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.shutdown()
        thread.join()
