"""Draws a share of a set of scenes; started once for each core by :func:`scenes_root`."""

import json
import sys
from pathlib import Path

import cv2

from cityseg.data.scenes.layouts import write_part

cv2.setNumThreads(1)  # there is a process for each core already
job = json.loads(sys.argv[1])
write_part(root=Path(job.pop("root")), **job)
