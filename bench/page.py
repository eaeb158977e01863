#!/usr/bin/env python3
"""Takes the pictures of the page that the documentation shows: a run of `denoising` on four workers, one of which is killed in
the middle.

    python3 bench/page.py

Writes docs/page.png (1280 pixels wide, light) and docs/page-dark-400.png (400 pixels, dark). Needs chromium, of Debian's package
`chromium`, and playwright from PyPI in the environment of this Python. TELAR_COORDINATOR names the program [default:
target/release/coordinator], TELAR_DATA the data [default: fashion-mnist].
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
COORDINATOR = Path(os.environ.get("TELAR_COORDINATOR", ROOT / "target/release/coordinator")).resolve()
DATA = os.environ.get("TELAR_DATA", "fashion-mnist")
EPOCHS = 10
KILL_IN_EPOCH = 5
# The pictures are taken in this epoch, while the run goes on.
LOOK_IN_EPOCH = 7
DEADLINE_SECONDS = 600
WIDE, NARROW = 1280, 400
# File, the colours, the width, and the last part that is in the picture.
PICTURES = (("page.png", "light", WIDE, "#timeline"), ("page-dark-400.png", "dark", NARROW, "#pictures"))

EPOCH = "() => +(document.querySelector('#state .progress-text')?.textContent.match(/epoch (\\d+)/)?.[1] ?? 0)"
PROCESS = "() => +document.querySelector('#workers tbody tr:not(.is-gone)').cells[3].textContent"
BOTTOM = "part => Math.ceil(document.querySelector(part).getBoundingClientRect().bottom + scrollY) + 10"


def wait_for_epoch(page, epoch):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while page.evaluate(EPOCH) < epoch:
        if time.monotonic() > deadline:
            raise SystemExit(f"epoch {epoch} has not begun after {DEADLINE_SECONDS} s")
        page.wait_for_timeout(200)


def take(pages):
    for (file, _, width, last), page in zip(PICTURES, pages):
        height = page.evaluate(BOTTOM, last)
        page.screenshot(path=ROOT / "docs" / file, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
        print(f"docs/{file}: {width} x {height}, {(ROOT / 'docs' / file).stat().st_size / 1e3:.0f} kB")


def main():
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        command = [COORDINATOR, "--json", "--workers=4", "--arch=denoising", f"--epochs={EPOCHS}", f"--data={DATA}",
                   "--http=127.0.0.1:0"]
        run = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
        try:
            url = json.loads(run.stdout.readline())["http"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            pages = []
            for _, scheme, width, _ in PICTURES:
                pages.append(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme))
                pages[-1].goto(url)
            wait_for_epoch(pages[0], KILL_IN_EPOCH)
            os.kill(pages[0].evaluate(PROCESS), signal.SIGKILL)
            wait_for_epoch(pages[0], LOOK_IN_EPOCH)
            pages[0].wait_for_timeout(1500)
            take(pages)
        finally:
            run.send_signal(signal.SIGINT)
            run.wait()


if __name__ == "__main__":
    main()
