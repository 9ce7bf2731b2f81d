"""The registry: types by their entry points, and plain words about plugins that are broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raybatch.errors import SpecError
from raybatch.registry import config_class, known_types


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "broken_plugin")


def test_types_of_raybatch_and_of_plugins_are_known() -> None:
    assert set(known_types("stage")) >= {"generate", "embed", "python", "toy", "opaque"}
    assert set(known_types("source")) >= {"files", "toy", "stream"}
    assert set(known_types("sink")) >= {"parquet", "toy"}


def test_only_what_is_named_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("toy_components", "raybatch.stages.generate"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    config_class("stage", "toy")
    assert "toy_components" in sys.modules
    assert "raybatch.stages.generate" not in sys.modules


def test_an_unknown_type_names_the_nearest_and_the_known() -> None:
    with pytest.raises(
        SpecError, match=r"^unknown sink type 'parket' \(did you mean 'parquet'\?\); known: .*toy"
    ):
        config_class("sink", "parket")


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "needs_more",
            "stage type 'needs_more' (broken_needs_more:Stage of broken-components 2.0) cannot be loaded: "
            "ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
        ),
        (
            "no_config",
            "stage type 'no_config' (broken_components:NotAConfig of broken-components 2.0) "
            "is not a subclass of raybatch.config.Config",
        ),
        (
            "other_type",
            "stage type 'other_type' (broken_components:OtherType of broken-components 2.0) "
            'must have the field `type: Literal["other_type"]`',
        ),
        (
            "half",
            "stage type 'half' (broken_components:Half of broken-components 2.0) "
            "has no method writes, engines, build, resources, fingerprint",
        ),
    ],
)
def test_a_broken_plugin_is_named_with_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        config_class("stage", name)
    assert str(caught.value) == message


@pytest.mark.usefixtures("broken")
def test_a_type_that_two_distributions_register_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"^stage type 'generate' is registered twice, by broken_components:Half of"
    ):
        config_class("stage", "generate")


@pytest.mark.usefixtures("broken")
def test_broken_plugins_do_not_matter_to_pipelines_that_use_others() -> None:
    assert config_class("stage", "toy").__name__ == "ToyStage"
