"""Seconds from the page's address to the first mask over a slow link, and the bytes of it.

    python benchmarks/page_load.py --params examples/sam/sam_models/sam_demo --output FILE

It prints the table of docs/server.md, too.

The page of a server on this machine, in a headless Chromium behind a link of 10 megabits a second.
Cold: a browser that has never been there. Warm: the same browser on the page again, with the same
picture. A click is made by a program as soon as the picture is ready.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from benchmarks.record import ROOT
from benchmarks.slow_link import SlowLink, slow_link
from samtrt.errors import SamtrtError
from samtrt.files import write_json
from samtrt.reports.benchmarking import environment

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1440,900")
PATIENCE = 180  # seconds


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--params", type=Path, required=True, help="parameter folder with an engine"
    )
    parser.add_argument("--picture", type=Path, default=ROOT / "examples/sam/images/demo.jpg")
    parser.add_argument("--megabits", type=float, default=10.0, help="a second (default: 10)")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds one way (default: 0.02)")
    parser.add_argument("--runs", type=int, default=3, help="browsers, one after the other")
    parser.add_argument("--output", type=Path, help="JSON file for the record")
    return parser.parse_args()


@contextmanager
def new_browser() -> Iterator[webdriver.Chrome]:
    """A Chromium that has seen nothing."""
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    program, service = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or service is None:
        raise SamtrtError("chromium or chromedriver is not installed; run tests/browser/install.sh")
    options.binary_location = program  # found here: selenium would ask a server for one
    driver = webdriver.Chrome(options, webdriver.ChromeService(service))
    try:
        yield driver
    finally:
        driver.quit()


def first_mask(driver: webdriver.Chrome, link: SlowLink) -> dict[str, float]:
    """Seconds from the address to the sample's first mask, the bytes in both directions until then,
    and milliseconds of a preview in the browser."""
    url = f"http://127.0.0.1:{link.port}/"
    driver.get("about:blank")
    # The page keeps a person's masks; here the picture is met again without them.
    kept = {"origin": url, "storageTypes": "indexeddb,local_storage"}
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", kept)
    link.reset()
    started = time.monotonic()
    driver.get(url)

    _wait(driver, "shown('try-sample')", "the page")
    driver.find_element(By.ID, "try-sample").click()
    _wait(driver, "shown('pointer') && !shown('progress')", "the picture")
    surface = driver.find_element(By.ID, "pointer")
    ActionChains(driver, duration=0).move_to_element(surface).click().perform()
    _wait(driver, "document.getElementById('count').textContent === '1'", "the mask")
    seconds = time.monotonic() - started
    found = {"seconds": round(seconds, 2), "down": link.down, "up": link.up}
    # What is under the pointer, as the page measures it by then.
    _wait(driver, "document.getElementById('previews').dataset.place", "the previews' time")
    line = driver.find_element(By.ID, "previews")
    return {**found, "preview_ms": float(line.get_attribute("data-browser") or "inf")}


# The page looks by itself: asking it again and again through the driver would take its time.
WAIT = """
const shown = (id) => document.getElementById(id)?.checkVisibility() ?? false;
const look = () => (%s ? arguments[0]() : setTimeout(look, 5));
look();
"""


def _wait(driver: webdriver.Chrome, condition: str, what: str) -> None:
    driver.set_script_timeout(PATIENCE)
    try:
        driver.execute_async_script(WAIT % condition)
    except TimeoutException:
        raise SamtrtError(f"waited {PATIENCE} s for {what}") from None


@contextmanager
def _server(params: Path, picture: Path) -> Iterator[int]:
    """The server as its users start it; yields its port."""
    command = [sys.executable, "-m", "samtrt.server", "--params", str(params), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--sample", str(picture)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready on " in line:
                yield int(line.split("ready on ")[1].split()[0].rpartition(":")[2])
                return
        raise RuntimeError(f"the server ended with status {process.wait()}")
    finally:
        process.terminate()
        process.wait(30)


def table(record: dict[str, Any]) -> list[str]:
    """The rows of docs/server.md: of each kind of visit the median of all runs."""
    rows = [
        "| visit | seconds to the first mask | MB down | MB up | a preview, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind in ("cold", "warm"):
        visits = [visit for visit in record["visits"] if visit["visit"] == kind]
        names = ("seconds", "down", "up", "preview_ms")
        seconds, down, up, preview = (
            statistics.median(visit[name] for visit in visits) for name in names
        )
        sizes = f"{down / 1e6:.1f} | {up / 1e6:.1f}"
        rows.append(f"| {kind} | {seconds:.1f} | {sizes} | {preview:.0f} |")
    return rows


def main() -> None:
    """Prints a line for each visit, and writes the record."""
    arguments = parse_arguments()
    rows = []
    with (
        _server(arguments.params, arguments.picture) as port,
        slow_link(port, arguments.megabits, arguments.delay) as link,
    ):
        for run in range(arguments.runs):
            with new_browser() as driver:
                for visit in ("cold", "warm"):
                    row = {"run": run, "visit": visit, **first_mask(driver, link)}
                    row["load_average"] = round(os.getloadavg()[0], 1)
                    rows.append(row)
                    print(row, flush=True)
    record = {
        "command": "python benchmarks/page_load.py --params PARAMS --output FILE",
        "picture": arguments.picture.name,
        "megabits": arguments.megabits,
        "delay": arguments.delay,
        "environment": environment(),
        # Before all else that the machine does, by `chrt --rr 1`: as if it were idle.
        "real_time": os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO),
        "visits": rows,
    }
    print(*table(record), sep="\n")
    if arguments.output:
        write_json(arguments.output, record)


if __name__ == "__main__":
    main()
