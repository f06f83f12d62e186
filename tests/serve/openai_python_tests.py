"""openai-python's own tests of its endpoints, against a server of a tiny model.

usage: python tests/serve/openai_python_tests.py [--write]

The source of the version that is installed is fetched with pip and kept in build/. Its tests were
written for a made-up server that takes every field and knows every address, so most cannot pass
here; what counts is why. How many pass is printed by file, and of what does not, what the server
said first; --write puts both into docs/clients.md.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import openai

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from gpt.chat import FORMATS  # noqa: E402
from gpt.runs import checkpoint  # noqa: E402
from gpt.tokenizer import build_tokenizer  # noqa: E402
from tests.tiny import script_environment, tiny_gpt  # noqa: E402

PAGE = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- openai-python: begin -->", "<!-- openai-python: end -->"
FILES = ["test_completions.py", "test_models.py", "test_responses.py", "responses", "chat"]
BUILDING = ["hatchling", "hatch-fancy-pypi-readme"]  # by which its source is packed
PLUGINS = ["pytest-asyncio", "httpx-aiohttp"]


def main(argv: list[str]) -> None:
    """Print, or write."""
    if argv not in ([], ["--write"]):
        sys.exit(f"unknown: {' '.join(argv)}; give --write, or nothing")
    source, plugins = fetched(ROOT / "build" / f"openai-{openai.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        run_tests(source, plugins, Path(scratch) / "tiny", report)
        told = tables(ElementTree.parse(report))
    print(told)
    if argv:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{told}\n\n{END}{rest.split(END)[1]}",
                        encoding="utf-8")


def fetched(folder: Path) -> tuple[Path, Path]:
    """(the source, the plugins that its tests need)."""
    source, plugins = folder / f"openai-{openai.__version__}", folder / "plugins"
    if not source.is_dir():
        pip("install", "--target", folder / "building", *BUILDING)
        pip("install", "--target", plugins, "--no-deps", *PLUGINS)
        pip("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
            "--dest", folder, f"openai=={openai.__version__}", path=folder / "building")
        with tarfile.open(folder / f"openai-{openai.__version__}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return source, plugins


def pip(*words: object, path: Path | None = None) -> None:
    """Without a word, if all goes well."""
    environment = script_environment(**({} if path is None else {"PYTHONPATH": str(path)}))
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check",
                    *map(str, words)], check=True, env=environment)


def run_tests(source: Path, plugins: Path, model: Path, report: Path) -> None:
    """All of FILES, once; what comes of each is in the report."""
    tokenizer = build_tokenizer("byte")
    tokenizer.chat_format = FORMATS["turns"].model_dump_json()
    checkpoint.save_model(model, tiny_gpt(vocab_size=257, block_size=1024), tokenizer, "random")
    server = subprocess.Popen(
        [sys.executable, "-m", "gpt", "serve", str(model), "--port", "0", "--any-model-name"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=script_environment())
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-o", "addopts=", "-q",
             "--tb=no", "-p", "no:schemathesis", "-p", "no:langsmith_plugin", "-p", "no:warnings",
             f"--junitxml={report}", *(f"tests/api_resources/{name}" for name in FILES)],
            cwd=source, stdout=subprocess.DEVNULL,
            env=script_environment(TEST_API_BASE_URL=address, PYTHONPATH=str(plugins)))
    finally:
        server.terminate()
        server.wait()


def tables(report: ElementTree.ElementTree) -> str:
    """What passes by file, and what was said where a test does not, the most frequent first."""
    total: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    said: Counter[tuple[str, str]] = Counter()
    for case in report.iter("testcase"):
        name = case.get("classname", "").rpartition(".")[0].removeprefix("tests.api_resources.")
        file = name.replace(".", "/").replace("test_", "")
        total[file] += 1
        problem = next((each for each in case if each.tag in ("failure", "error")), None)
        passed[file] += problem is None
        if problem is not None:
            said[file, reason(problem.get("message", ""))] += 1
    lines = ["| tests of | pass | of |", "| --- | --- | --- |"]
    lines += [f"| {file} | {passed[file]} | {total[file]} |" for file in sorted(total)]
    lines += [f"| together | {passed.total()} | {total.total()} |", "",
              "| the others of | | are told |", "| --- | --- | --- |"]
    lines += [f"| {file} | {count} | {why} |"
              for (file, why), count in sorted(said.items(), key=lambda each: (each[0], each[1]))]
    return "\n".join(lines)


def reason(message: str) -> str:
    """What a server said, without the names of one test."""
    found = re.search(r"Error code: (\d+) - ([^;\n]*)", message)
    if found is None:
        return message.partition("\n")[0][:80].replace("|", "/")
    told = re.sub(r"/(resp_\w+|response_id|completion_id|ft:[^/;]+)", "/ID", found[2])
    return f"{found[1]}: {re.sub(r' [(]given.*', '', told)}".replace("|", "/")


if __name__ == "__main__":
    main(sys.argv[1:])
