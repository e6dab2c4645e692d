"""Segment a photo with an exported network: ``python onnx_predict.py best.onnx photo.jpg labels.png``.

Needs ``pip install onnxruntime numpy pillow``, and neither torch nor cityseg.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

file, photo, output = sys.argv[1:]
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["label_space"])
upright = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")  # as a viewer shows it, and predict.py takes it
pixels = np.asarray(upright).transpose(2, 0, 1)[None]  # (1, 3, H, W) uint8
train_ids, probabilities = session.run(None, {"photos": pixels})  # (1, H, W) uint8, (1, C, H, W) float32
for name, share in zip(classes["class_names"], probabilities.mean(axis=(0, 2, 3)), strict=True):
    print(f"{name}: {share:.1%}")
labels = Image.fromarray(train_ids[0])
labels.putpalette([value for color in classes["colors"] for value in color])
labels.save(output)
