"""Small latents for several tests of data."""

import pytest

from support.small_data import make_vae, pixels, write_folder


@pytest.fixture(scope="session")
def vae(tmp_path_factory):
    """The folder of a random autoencoder that halves images."""
    return make_vae(tmp_path_factory.mktemp("vae") / "kl")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """40 images of 8x8 in two classes."""
    return write_folder(tmp_path_factory.mktemp("photos") / "pets", pixels(40, (8, 8, 3)))


@pytest.fixture(scope="session")
def latents(photos, vae, tmp_path_factory):
    """The photos, encoded to 40 latents of 4x4x4."""
    from soflow.data.encoding import encode

    out = tmp_path_factory.mktemp("latents") / "set"
    assert encode(str(photos), out, str(vae), 8)
    return out
