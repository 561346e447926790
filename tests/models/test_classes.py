"""Classes of frames: how copies are named and ordered, and which class frames are of."""

import pytest

from emdn_models import MODELS, ModelError, classes
from emdn_models.classes import CLASSES, class_of


def test_every_frame_of_a_known_mode_and_dose_is_of_one_class():
    for mode in ("stem", "tem"):
        for electrons in (0.0, 0.05, 1.999, 2.0, 1e5):
            fitting = [kind for kind in CLASSES.values() if kind.mode == mode]
            assert sum(kind.holds(electrons) for kind in fitting) == 1
    assert class_of("tem", 1.999) is CLASSES["tem-low"]
    assert class_of("tem", 2.0) is CLASSES["tem-high"]
    assert class_of("stem", 300.0) is CLASSES["stem"]


def test_what_is_unknown_has_no_class():
    assert class_of(None, 0.5) is None
    assert class_of("tem", None) is None
    # A scanned probe's class needs no dose.
    assert class_of("stem", None) is CLASSES["stem"]


def test_a_name_is_split_or_refused():
    assert classes.split("unet") == ("unet", None)
    assert classes.split("cafcn@tem-low") == ("cafcn", CLASSES["tem-low"])
    with pytest.raises(ModelError, match="no model is called 'resnet@stem'; there are cafcn"):
        classes.split("resnet@stem")
    for name in ("cafcn@sem", "cafcn@", "cafcn@auto"):
        with pytest.raises(ModelError, match=f"{name}: no class .* there are stem, tem-low"):
            classes.split(name)
        assert not classes.known(name)
    assert classes.known("msdnet@tem-high")


def test_copies_come_after_all_models():
    names = ["unet@stem", "cafcn@tem-high", "unet", "cafcn@stem", *reversed(MODELS)]
    assert classes.ordered(set(names)) == [
        *MODELS, "cafcn@stem", "cafcn@tem-high", "unet@stem"
    ]  # fmt: skip
