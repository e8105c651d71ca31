"""The size rule equals the one the image processor applies."""

from hypothesis import given
from hypothesis import strategies as st
from transformers.models.glm46v.image_processing_pil_glm46v import smart_resize

from backends.glm.nano.resize import LONGEST_EDGE, SHORTEST_EDGE, image_tokens, model_size

side = st.integers(16, 3000)


@given(height=side, width=side)
def test_equal_to_the_processor(height, width):
    assert model_size(height, width) == smart_resize(
        2, height, width, min_pixels=SHORTEST_EDGE, max_pixels=LONGEST_EDGE
    )


@given(size=st.integers(16, 4000))
def test_every_square_becomes_112(size):
    assert model_size(size, size) == (112, 112)
    assert image_tokens(size, size) == 16


def test_photo_sizes_stay_near_sixteen_tokens():
    for width, height in ((1024, 768), (640, 480), (1920, 1080), (480, 640), (3000, 2000)):
        assert 14 <= image_tokens(height, width) <= 20
