"""Every property of this folder again, with many more examples."""

import importlib
from pathlib import Path

import pytest
from hypothesis import given, settings

EXAMPLES = 300
FEWER = 25  # for those that are slow already: they say themselves how few they are tried with


def properties():
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path != Path(__file__):
            found = vars(importlib.import_module(f"tests.properties.{path.stem}"))
            yield from (test for test in found.values() if hasattr(test, "hypothesis"))


@pytest.mark.slow
@pytest.mark.parametrize("test", list(properties()), ids=lambda test: test.__name__)
def test_with_many_examples(test):
    few = test._hypothesis_internal_use_settings.max_examples < settings().max_examples
    often = given(**test.hypothesis._given_kwargs)(test.hypothesis.inner_test)
    settings(max_examples=FEWER if few else EXAMPLES)(often)()
