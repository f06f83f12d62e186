"""python -m gpt serve: models, spoken to by clients of OpenAI's API."""

from __future__ import annotations

import argparse
import re
import ssl
from pathlib import Path

from gpt.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN …, where to listen, and how much to take."""
    parser.add_argument("runs", metavar="RUN", nargs="+",
                        help="run, checkpoint, Hugging Face folder or GGUF file; NAME=RUN "
                             "gives it a name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--api-key", metavar="KEY", help="what clients have to give")
    key.add_argument("--api-key-file", metavar="FILE", help="a file that holds it")
    parser.add_argument("--insecure", action="store_true",
                        help="listen beyond this machine without a key")
    parser.add_argument("--cors", metavar="ORIGIN", action="append", default=[],
                        help="pages that may ask, such as https://example.org; * is all")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate, for https")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument("--watch", action="store_true",
                        help="of a run in training, serve each new checkpoint once it is there")
    parser.add_argument("--served-model-name", metavar="NAME", action="append", default=[],
                        help="another name of the first model")
    parser.add_argument("--any-model-name", action="store_true",
                        help="requests for unknown models go to the first one")
    parser.add_argument("--rows", type=int, default=16, metavar="N",
                        help="texts at once, for each model (%(default)s)")
    parser.add_argument("--max-queue", type=int, default=64, metavar="N",
                        help="texts that may wait, before others are refused (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=8192, metavar="N",
                        help="of a text, prompt included, up to the model's context (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto",
                        help="auto, float32, bfloat16, float16 or int8 (weights alone)")
    parser.add_argument("--draft", metavar="RUN", help="guess tokens ahead, as sample.py does")


def run(options: argparse.Namespace) -> None:
    """Load, listen, answer until a signal comes."""
    try:
        from gpt.serve import Limits, Opening, Place, mark_runs, serve_models
        from gpt.serve import run as serve
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(f"serving needs the package {package}: pip install "
                        "'gpt-toolkit[serve]'") from error
    for name in ("rows", "max_queue", "max_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    place = Place(options.host, options.port, _key(options), tuple(options.cors), options.tls_cert,
                  options.tls_key, tuple(options.served_model_name), options.any_model_name)
    if place.key is None and not place.is_loopback and not options.insecure:
        raise UserError(f"--host {options.host} can be reached from elsewhere: give --api-key, or "
                        "--insecure to let everybody in")
    _check_tls(options.tls_cert, options.tls_key)
    for origin in place.origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise UserError(f"--cors {origin}: give an origin as browsers name it, such as "
                            "https://example.org")
    limits = Limits(options.rows, options.max_queue, options.max_tokens)
    how = Opening(options.device, options.dtype, options.draft)
    models = serve_models(options.runs, limits, how)
    if taken := sorted({*models}.intersection(place.aliases)):
        raise UserError(f"--served-model-name {taken[0]}: a model is called so already")
    if options.watch:
        mark_runs(models)
    serve(models, place, how if options.watch else None)


def _check_tls(certificate: str | None, key: str | None) -> None:
    """Before anything is loaded. Raises UserError."""
    if bool(certificate) != bool(key):
        raise UserError("--tls-cert and --tls-key go together")
    if certificate:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        except OSError as error:  # ssl.SSLError is one
            raise UserError(f"--tls-cert {certificate}, --tls-key {key}: "
                            f"{error.strerror or error}; give a certificate and its key as PEM "
                            "files") from error


def _key(options: argparse.Namespace) -> str | None:
    key: str | None = options.api_key
    if options.api_key_file:
        try:
            key = Path(options.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise UserError(f"cannot read --api-key-file: {error}") from error
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise UserError("the key is empty, or has characters that a header cannot hold")
    return key
