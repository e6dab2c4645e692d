"""The directive ``config-groups``: every group of conf/ with its options, keys, defaults and comments."""

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CONF = Path(__file__).resolve().parents[2] / "conf"


class ConfigGroups(SphinxDirective):
    """One section a group, one block an option: the YAML files are their own reference."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        lines = []
        for primary in sorted(CONF.glob("*.yaml")):
            lines += block(f"`{primary.stem}.py`", primary, level=2)
        for group in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"):
            lines += [f"## `{group.name}`", ""]
            for option in sorted(group.glob("*.yaml")):
                lines += block(f"`{group.name}={option.stem}`", option, level=3)
        for option in sorted(CONF.glob("hydra/*/*.yaml")):
            if option.parent.name in ("launcher", "sweeper"):
                lines += block(f"`hydra/{option.parent.name}={option.stem}`", option, level=2)
        section = nodes.section()
        section.document = self.state.document
        self.state.nested_parse(StringList(lines, str(CONF)), self.content_offset, section, match_titles=1)
        for path in CONF.rglob("*.yaml"):
            self.env.note_dependency(str(path))
        return section.children


def block(title: str, path: Path, level: int) -> list[str]:
    """A heading and the file below it."""
    return [f"{'#' * level} {title}", "", "```yaml", *path.read_text(encoding="utf-8").splitlines(), "```", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("config-groups", ConfigGroups)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
