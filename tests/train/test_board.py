"""Load of experts as numbers and as a picture."""

import numpy as np
import pytest

from megaswitch.model.record import LayerRecord
from megaswitch.train.board import load_entropy, load_picture, load_shares


def layer(load: list[float]) -> LayerRecord:
    return LayerRecord(aux=1.0, z=0.0, dropped=0.0, routed=sum(load), entropy=0.0, load=load)


def test_shares():
    assert load_shares(layer([1.0, 3.0, 0.0])).tolist() == [0.25, 0.75, 0.0]
    assert load_shares(layer([0.0, 0.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("shares", "entropy"),
    [([0.25] * 4, 1.0), ([1.0, 0.0, 0.0, 0.0], 0.0), ([0.5, 0.5, 0.0, 0.0], 0.5), ([1.0], 1.0), ([0.0, 0.0], 0.0)],
)
def test_entropy_of_the_load(shares, entropy):
    assert load_entropy(np.array(shares)) == pytest.approx(entropy)


@pytest.mark.parametrize(("layers", "experts"), [(1, 2), (3, 8), (2, 256), (2, 2048)])
def test_a_picture_has_a_row_a_layer_and_a_column_an_expert(layers, experts):
    picture = load_picture({f"encoder.{i}": layer([1.0] * experts) for i in range(layers)})
    height, width, colours = picture.shape
    assert picture.dtype == np.uint8 and colours == 3
    assert height % layers == 0 and width % experts == 0 and width >= experts
    assert width <= 2048 and len(np.unique(picture.reshape(-1, 3), axis=0)) == 1, "all are wanted alike"


def test_more_load_is_brighter_where_the_expert_stands():
    picture = load_picture({"encoder.1": layer([0.0, 1.0, 7.0]), "decoder.1": layer([8.0, 0.0, 0.0])})
    height, width, _ = picture.shape
    brightness = picture.sum(2).reshape(2, height // 2, 3, width // 3).mean((1, 3))
    assert brightness[0, 0] < brightness[0, 1] < brightness[0, 2]
    assert brightness[1, 0] > brightness[1, 1] == brightness[1, 2] == brightness[0, 0]
