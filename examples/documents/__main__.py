"""`python -m examples.documents`: one instance, beside the sidecar of its region."""

import argparse
import logging
from pathlib import Path

from aiohttp import web

from examples.documents.app import application


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.documents", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="where this instance listens")
    parser.add_argument("--sidecar", required=True, help="http://HOST:PORT of the app listener")
    parser.add_argument("--shelf", type=Path, required=True, help="the file with the documents")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    instance = application(options.sidecar, options.shelf)
    # Loopback only: this example takes X-User at its word.
    web.run_app(instance, host="127.0.0.1", port=options.port, access_log=None)


main()
