"""The built-in synthetic street scenes, for when there is no data at hand."""

from cityseg.data.scenes.layouts import SCENE_CLASSES, SCENES_VERSION, scenes_root
from cityseg.data.scenes.scene import render_scene

__all__ = ["SCENES_VERSION", "SCENE_CLASSES", "render_scene", "scenes_root"]
