"""Laws of the models, over manifests that are nearly right."""

import copy
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from poolfleet.api.base import explain
from tests.api_corpus import MODELS, SEEDS, Manifest, at, manifests, places


def read(manifest: Manifest) -> Any:
    """The model, or None if it is refused."""
    try:
        return MODELS[manifest["kind"]].model_validate(manifest)
    except ValidationError:
        return None


@settings(deadline=None)  # the machine is shared
@given(manifests())
def test_what_was_read_reads_the_same_again(manifest: Manifest) -> None:
    model = read(manifest)
    assume(model is not None)
    for options in ({"exclude_unset": True}, {"exclude_defaults": True}, {}):
        assert type(model).model_validate(model.model_dump(by_alias=True, **options)) == model


@settings(deadline=None)  # the machine is shared
@given(manifests())
def test_a_refusal_is_one_line_that_names_a_place(manifest: Manifest) -> None:
    try:
        MODELS[manifest["kind"]].model_validate(manifest)
    except ValidationError as error:
        text = explain(error)
        assert text.isprintable()
        assert ": " in text


@given(st.sampled_from(SEEDS), st.data())
@settings(max_examples=50, deadline=None)
def test_unknown_fields_change_nothing(seed: Manifest, data: st.DataObject) -> None:
    maps = {"template", "labels", "matchLabels", "annotations", "parameters"}  # any key is known there
    objects = [path for path in places(seed, ()) if isinstance(at(seed, path), dict) and not maps & set(path)]
    place = data.draw(st.sampled_from(objects))
    other = copy.deepcopy(seed)
    at(other, place)["unknownField"] = data.draw(st.sampled_from([None, 1, "x", {}, []]))
    assert read(other) == read(seed)
