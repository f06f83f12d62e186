"""Clients that are slow, broken, greedy or gone, signals and load: what becomes of a server.

usage: python benchmarks/serve_faults.py [--short | --table] [FAULT …]

A model with random weights is served as a process by `python -m gpt serve`, each of FAULTS is
injected (all unless some are named), and a row of docs/faults.md is printed for what came of it.
What counts: of all that was injected, how much ended as it has to; beside the slow ones, how many
healthy requests, streams back to back, were answered, and when their first token came. All faults
together take eight minutes, and a third of that with --short, which injects fewer. Without
it, rows in benchmarks/results/serve_faults.json are replaced; --table prints what stands there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.hostile_clients import (  # noqa: E402
    FIXED,
    LONG_TEXT,
    SHORT,
    SHORT_TEXT,
    Row,
    Scale,
    firsts,
    given_up,
    healthy,
    silent,
    stopped,
    told,
    watched,
)
from gpt.files import write_json  # noqa: E402
from gpt.machine.device import choose_machine  # noqa: E402
from tests.serve import hostile  # noqa: E402
from tests.serve.launched import (  # noqa: E402
    HEAD,
    Answer,
    Launched,
    ask,
    make_model,
    request_of,
    talk,
    until_idle,
)

RESULT = ROOT / "benchmarks" / "results" / "serve_faults.json"

async def slow(started: Launched, scale: Scale) -> list[Row]:
    """Sockets that send a byte a second, or nothing."""
    async with healthy(started.port) as answers:
        await asyncio.sleep(scale.alone)
    rows = [Row("none", 0, 0, told(answers), firsts(answers))]
    kinds = {"headers, a byte a second": (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ", b"a"),
             "bodies, a byte a second": (
                 HEAD % b"/v1/completions" + b"content-length: 1000\r\n\r\n{", b" "),
             "connections that send nothing": (b"", b"")}
    for kind, (begin, more) in kinds.items():
        async with healthy(started.port) as answers:
            ends = await asyncio.gather(*(given_up(started.port, begin, more)
                                          for _ in range(scale.sockets)))
        good = sum(status == 408 for status, _ in ends)
        last = max(seconds for _, seconds in ends)
        rows.append(Row(kind, len(ends), good, f"408 after at most {last:.1f} s; {told(answers)}",
                        firsts(answers) | {"last_s": last, "healthy": len(answers), "answered": sum(
                            each.is_whole for each in answers)}))
    return rows


async def large(started: Launched, scale: Scale) -> list[Row]:
    """100 MB in a body, and many large bodies at once."""
    rows = []
    for name, data in (("a body of 100 MB, announced", hostile.declared(10**8)),
                       ("a body of 100 MB, in chunks", hostile.chunked(10**8))):
        answer, grew = await watched(started, talk(started.port, data))
        rows.append(Row(name, 1, int(answer.status == 413 and grew < 64), f"{answer.status} after "
                        f"{answer.seconds:.1f} s; memory grew by {grew:.0f} MiB",
                        {"status": answer.status, "s": answer.seconds, "mib": grew}))
    data, count = request_of(model="tiny", prompt="a" * 7_000_000), 64

    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(*(talk(started.port, data) for _ in range(count)))

    async with healthy(started.port) as answers:
        ends, grew = await watched(started, all_at_once())
    good = sum(each.status in (400, 429) for each in ends)
    rows.append(Row("bodies of 7 MB at once", count, good,
                    f"400 or 429; memory grew by {grew:.0f} MiB; {told(answers)}", {"mib": grew}))
    return rows


async def bodies(started: Launched, scale: Scale) -> list[Row]:
    """JSON that is deep, huge, wrong or none."""
    return [await each_of("hostile bodies", started, {
        name: (request_of(path, data), statuses)
        for name, (path, data, statuses) in hostile.bodies().items()})]


async def requests(started: Launched, scale: Scale) -> list[Row]:
    """What is no HTTP, or hardly."""
    return [await each_of("hostile requests", started, hostile.requests())]


async def each_of(fault: str, started: Launched, kinds: dict[str, tuple[bytes, set[int]]]) -> Row:
    """One after the other, with the statuses that each may have."""
    found, good, before = {}, 0, started.tracebacks
    for name, (data, statuses) in kinds.items():
        answer, grew = await watched(started, talk(started.port, data, 60))
        found[name] = {"status": answer.status, "s": answer.seconds, "mib": grew}
        good += answer.status in statuses
        if answer.status not in statuses:
            print(f"  {name}: {answer.status}, {answer.body[:200]!r}")
    slowest = max(found, key=lambda name: found[name]["s"])
    largest = max(found, key=lambda name: found[name]["mib"])
    return Row(fault, len(found), good, f"the slowest, {slowest}: {found[slowest]['s']:.1f} s; "
               f"memory grew by at most {found[largest]['mib']:.0f} MiB ({largest}); "
               f"{started.tracebacks - before} tracebacks in the log", found)


async def load(started: Launched, scale: Scale, clients: int = 64) -> list[Row]:
    """Many at once, and one text among them that a seed decides."""
    alone = (await ask(started.port, **FIXED)).text
    end, answers, fixed = time.monotonic() + scale.load, list[Answer](), list[Answer]()

    async def client(number: int) -> None:
        while time.monotonic() < end:
            if number == 0:
                fixed.append(await ask(started.port, stream=len(fixed) % 2 == 0, **FIXED))
            else:
                answers.append(await ask(started.port, **LONG_TEXT | {
                    "stream": number % 2 == 0, "max_tokens": 32, "seed": number,
                    "n": 1 + number % 3}))
            if (fixed if number == 0 else answers)[-1].status == 429:
                await asyncio.sleep(1 if number else 0.1)  # Retry-After says 1

    begun = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(clients)))
    seconds = time.monotonic() - begun
    whole = [each for each in answers if each.is_whole]
    refused = [each for each in answers if each.status == 429 and b"retry-after" in each.headers]
    made = sum(32 * each.body.count(b'"finish_reason": "length"') for each in whole)
    same = sum(each.text == alone for each in fixed if each.status == 200)
    asked = sum(each.status == 200 for each in fixed)
    return [Row(f"{clients} clients at once for {scale.load} s", len(answers),
                len(whole) + len(refused), f"{len(whole):,} answered, {len(refused):,} refused "
                f"with 429 and Retry-After; first token after {firsts(whole)['p50']:.0f} ms (p99 "
                f"{firsts(whole)['p99']:.0f}); {made / seconds:,.0f} tokens/s",
                firsts(whole) | {"answered": len(whole), "refused": len(refused),
                                 "tokens_per_s": made / seconds}),
            Row("a seed among them", asked, same, "the text that it gives alone")]


async def disconnects(started: Launched, scale: Scale) -> list[Row]:
    """Clients that leave at random moments."""
    draw, freed = random.Random(0), list[float]()
    async with healthy(started.port) as answers:
        for _ in range(scale.disconnects // 8):
            await asyncio.gather(*(
                ask(started.port, seconds=draw.random() / 2, **LONG_TEXT | {"stream": i % 2 == 0})
                for i in range(8)))
    for _ in range(5):
        await ask(started.port, seconds=0.2, **LONG_TEXT)
        freed.append(await until_idle(started.port))
    count = scale.disconnects // 8 * 8 + len(freed)
    return [Row("clients that leave in mid-answer", count, count, f"no text is left after at most "
                f"{1e3 * max(freed):.0f} ms; {told(answers)}", {"freed_s": max(freed)})]


async def readers(started: Launched, scale: Scale) -> list[Row]:
    """Clients that read nothing of what they asked for, be it a stream or whole."""
    asks = {"streams": request_of(model="tiny", **LONG_TEXT | {
        "max_tokens": 1500, "logprobs": 20}),
            "whole answers": request_of("/tokenize", model="tiny", prompt="a" * 1_000_000)}
    rows = []
    for kind, data in asks.items():
        await asyncio.sleep(1)
        before, begun = started.descriptors, time.monotonic()
        clients = [silent(started.port, data) for _ in range(scale.readers)]
        async with healthy(started.port) as answers:
            await asyncio.sleep(5)
            while started.descriptors > before + 1 and time.monotonic() - begun < 240:
                await asyncio.sleep(0.1)
        left = started.descriptors - before - 1
        rows.append(Row(f"{kind} that nobody reads", len(clients), len(clients) - max(0, left),
                        f"left after {time.monotonic() - begun:.0f} s; {told(answers)}",
                        {"s": time.monotonic() - begun}))
        for client in clients:
            client.close()
    return rows


async def memory(started: Launched, scale: Scale) -> list[Row]:
    """Requests of all kinds, and what the server has grown by."""
    def kind(i: int) -> Awaitable[Answer]:
        chat = [{"role": "user", "content": f"a{i}"}]
        return [lambda: ask(started.port, **SHORT_TEXT | {"prompt": f"Once {i}"}),
                lambda: ask(started.port, prompt=f"a{i}", max_tokens=8, logprobs=5),
                lambda: ask(started.port, n=10**9),
                lambda: ask(started.port, "/v1/chat/completions", messages=chat, max_tokens=8),
                lambda: ask(started.port, "/v1/score", text=f"Once {i}"),
                lambda: ask(started.port, seconds=0.03, **LONG_TEXT)][i % 6]()

    sizes, good, waiting = list[tuple[float, int, int]](), 0, asyncio.Semaphore(8)

    async def one(i: int) -> bool:
        async with waiting:
            return (await kind(i)).status == {2: 400, 5: None}.get(i % 6, 200) or i % 6 == 5

    for start in range(0, scale.requests, scale.requests // 10):
        good += sum(await asyncio.gather(*map(one, range(start, start + scale.requests // 10))))
        await until_idle(started.port)
        sizes.append((started.mib, started.descriptors, started.threads))
    (first, files, threads), (last, files_then, threads_then) = sizes[0], sizes[-1]
    return [Row("requests of all kinds", scale.requests, good, f"memory {first:.0f} MiB after a "
                f"tenth of them, {last:.0f} at the end; {files} and {files_then} files open, "
                f"{threads} and {threads_then} threads", {"mib": [size for size, *_ in sizes]})]


async def signals(folder: Path, scale: Scale) -> list[Row]:
    """SIGTERM in mid-stream: the text is finished, or cut off by the deadline or another signal."""
    draw = random.Random(0)
    long, soon = LONG_TEXT | {"n": 100}, LONG_TEXT | {"max_tokens": 600}
    kinds = {"SIGTERM, a text that ends soon": (scale.signals, soon, 1, 0),
             "SIGTERM, texts that take long": (max(1, scale.signals // 2), long, 1, 75),
             "SIGTERM twice": (scale.signals, long, 2, 75)}
    rows = []
    for kind, (count, body, times, expected) in kinds.items():
        took, good = [], 0
        for _ in range(count):
            with Launched(folder, "--max-queue", 200) as started:
                answer, refused, seconds, code = await stopped(started, body, times, draw)
                took.append(seconds)
                right = (code == expected and answer.is_whole == (expected == 0) and refused
                         and answer.status == 200)
                good += right
                if not right:
                    print(f"  {kind}: code {code}, {answer.status}, refused: {refused}")
        rows.append(Row(kind, count, good, f"code {expected} after "
                        f"{statistics.median(took):.1f} s, at most {max(took):.1f} s", {"s": took}))
    return rows


SERVED: dict[str, Callable[[Launched, Scale], Awaitable[list[Row]]]] = {
    each.__name__: each for each in (slow, large, bodies, requests, load, disconnects, readers,
                                     memory)}
FAULTS = [*SERVED, "signals"]


async def inject(folder: Path, faults: Sequence[str], scale: Scale) -> dict[str, list[Row]]:
    """All of them, the served ones into one process."""
    rows = {}
    with Launched(folder) as started:
        for fault in faults:
            rows[fault] = await (signals(folder, scale) if fault == "signals"
                                 else SERVED[fault](started, scale))
            for row in rows[fault]:
                print(row, flush=True)
        if started.process.poll() is not None or started.tracebacks:
            print(f"  the server: {started.process.poll()}, {started.tracebacks} tracebacks")
    return rows


def main() -> None:
    """Inject, and print a row for each fault."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    if unknown := {*words} - {*FAULTS}:
        sys.exit(f"there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    if "--table" in sys.argv:
        for rows in json.loads(RESULT.read_text())["rows"].values():
            print(*(Row(**row) for row in rows), sep="\n")
        return
    begun, short = time.monotonic(), "--short" in sys.argv
    with tempfile.TemporaryDirectory() as name:
        folder = make_model(Path(name) / "tiny", n_layer=4, n_embd=64, block_size=4096)
        came = asyncio.run(inject(folder, words or FAULTS, SHORT if short else Scale()))
    print(f"{time.monotonic() - begun:.0f} s")
    if not short:
        before = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}
        found = before | {fault: [*map(dataclasses.asdict, each)] for fault, each in came.items()}
        write_json(RESULT, {"hardware": choose_machine("cpu").describe(), "rows": {
            fault: found[fault] for fault in FAULTS if fault in found}})


if __name__ == "__main__":
    main()
