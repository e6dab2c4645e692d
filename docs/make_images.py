"""Makes the pictures of the documentation from what the commands leave.

python train.py name=docs
python train.py -m model=unet,manet fold=0,1,2,3,4 name=docs trainer.max_epochs=2
python train.py model=gan_fpn_aspp name=docs-gan trainer.max_epochs=3
python docs/make_images.py outputs/docs/TIMESTAMP outputs/docs/multirun outputs/docs-gan/TIMESTAMP
"""

import io
import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
PORT = 6017


def main(run: Path, sweep: Path, adversarial: Path) -> None:
    """Write the pictures into docs/images."""
    panels = [Image.open(path) for path in sorted((run / "predictions").glob("*.png"))[:3]]
    first = Image.new("RGB", (panels[0].width, sum(panel.height for panel in panels)))
    for index, panel in enumerate(panels):
        first.paste(panel, (0, index * panel.height))
    first.save(IMAGES / "first_run.jpg", quality=88)
    board = subprocess.Popen(["tensorboard", "--logdir", adversarial, "--port", str(PORT)], stderr=subprocess.DEVNULL)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            for name, report in (("report", run / "report.html"), ("folds", sweep / "cv/report.html")):
                page.goto(report.absolute().as_uri())
                _keep(page, name)
            time.sleep(10)  # until it has read the run
            page.goto(f"http://localhost:{PORT}/#images")
            page.wait_for_timeout(8000)
            _keep(page, "tensorboard")
    finally:
        board.terminate()


def _keep(page: Page, name: str) -> None:
    page.wait_for_timeout(1000)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(IMAGES / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
