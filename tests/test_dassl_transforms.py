"""Image transforms: the pixels, the printed lines, the names."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F

from dassl.config import get_cfg_default
from dassl.data.transforms import IMAGE_TRANSFORM_REGISTRY, TENSOR_TRANSFORM_REGISTRY, build_transform
from dassl.data.transforms.fused import Compose
from dassl.data.transforms.transforms import INTERPOLATION_MODES

NAMES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
]


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (24, 24)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.INPUT.PIXEL_MEAN = [0.48145466, 0.4578275, 0.40821073]
    cfg.INPUT.PIXEL_STD = [0.26862954, 0.26130258, 0.27577711]
    return cfg


def image(width=61, height=40):
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


def normalised(pil_image, cfg):
    pixels = torch.from_numpy(np.array(pil_image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    return (pixels - mean) / std


@pytest.mark.parametrize(("name", "resample"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
def test_test_transform_gives_the_pixels_of_pil(cfg, name, resample):
    cfg.INPUT.INTERPOLATION = name
    # 61 × 40: the shorter edge becomes 24, the longer int(24 * 61 / 40) = 36, of which the middle 24 stay.
    expected = image().resize((36, 24), resample).crop((6, 0, 30, 24))
    assert torch.equal(build_transform(cfg, is_train=False)(image()), normalised(expected, cfg))


def test_train_transform_gives_the_pixels_of_pil(cfg):
    torch.manual_seed(2)
    got = [build_transform(cfg)(image()) for _ in range(8)]
    torch.manual_seed(2)
    flips = 0
    for tensor in got:
        width, height = 99, 99
        while width > 61 or height > 40:  # until it fits into the image
            area = 61 * 40 * torch.empty(1).uniform_(0.08, 1.0).item()
            ratio = torch.exp(
                torch.empty(1).uniform_(*torch.log(torch.tensor([3 / 4, 4 / 3])).tolist())
            ).item()
            width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        top = torch.randint(0, 40 - height + 1, size=(1,)).item()
        left = torch.randint(0, 61 - width + 1, size=(1,)).item()
        expected = image().crop((left, top, left + width, top + height)).resize((24, 24), Image.BICUBIC)
        if torch.rand(1) < 0.5:
            expected = expected.transpose(Image.FLIP_LEFT_RIGHT)
            flips += 1
        assert torch.equal(tensor, normalised(expected, cfg))
    assert 0 < flips < 8


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_upstream_gives_an_image_of_the_right_size(cfg, name):
    cfg.INPUT.SIZE = (32, 24)
    cfg.INPUT.GB_K = 5
    torch.manual_seed(0)
    transform = build_transform(cfg, choices=[name])
    for _ in range(4):
        tensor = transform(image(64, 64))
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
        # Resizing alone, to (height, width), gives the same whatever the name.
        assert tensor.shape == (3, 32, 24)
    assert build_transform(cfg, is_train=False, choices=[name])(image()).shape == (3, 32, 24)


def test_training_without_a_crop_resizes(cfg, capsys):
    tensor = build_transform(cfg, choices=["center_crop"])(image())
    assert torch.equal(tensor, F.to_tensor(image().resize((24, 24), Image.BICUBIC)))
    assert capsys.readouterr().out == (
        "Building transform_train\n+ resize to 24x24\n+ to torch tensor of range [0, 1]\n"
    )


def test_cutout_blackens_a_square(cfg):
    cfg.INPUT.CUTOUT_LEN = 6
    transform = build_transform(cfg, choices=["cutout"])
    white = Image.new("RGB", (24, 24), "white")
    torch.manual_seed(0)
    holes = [(transform(white) == 0).all(0) for _ in range(300)]
    assert max(int(hole.sum()) for hole in holes) == 36
    assert min(int(hole.sum()) for hole in holes) >= 9  # at a corner, a quarter is inside
    assert torch.stack(holes).any(0).all()  # every pixel can be hit


def test_noise_goes_beyond_the_range_and_instance_norm_brings_back(cfg):
    cfg.INPUT.GN_STD = 10.0
    transform = build_transform(cfg, choices=["gaussian_noise"])
    torch.manual_seed(0)
    spreads = [float(transform(image()).std()) for _ in range(20)]
    assert any(spread > 5 for spread in spreads)
    assert any(spread < 1 for spread in spreads)  # one image in two stays as it is
    tensor = build_transform(cfg, choices=["instance_norm"])(image())
    torch.testing.assert_close(tensor.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(tensor.std((1, 2)), torch.ones(3))


def test_order_of_names_does_not_matter(cfg):
    for choices in (["normalize", "random_flip"], ["random_flip", "normalize"]):
        torch.manual_seed(1)
        tensor = build_transform(cfg, choices=choices)(image())
    torch.manual_seed(1)
    assert torch.equal(tensor, build_transform(cfg, choices=["normalize", "random_flip"])(image()))


def test_unknown_names_are_refused_before_anything_is_printed(cfg, capsys):
    with pytest.raises(ValueError, match=r"INPUT.TRANSFORMS has 'random_flop'.*did you mean 'random_flip'"):
        build_transform(cfg, choices=["random_flop"])
    cfg.INPUT.INTERPOLATION = "cubic"
    with pytest.raises(ValueError, match=r"INTERPOLATION is 'cubic'; choose from bilinear, bicubic, nearest"):
        build_transform(cfg)
    assert capsys.readouterr().out == ""
    assert set(INTERPOLATION_MODES) == {"bilinear", "bicubic", "nearest"}


def test_no_transform(cfg, capsys):
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None
    assert capsys.readouterr().out == "Note: no transform is applied!\n"


def test_transforms_from_outside_come_last_on_image_or_tensor(cfg):
    @IMAGE_TRANSFORM_REGISTRY.register()
    def to_white(cfg):
        return lambda image: Image.new("RGB", image.size, "white")

    @TENSOR_TRANSFORM_REGISTRY.register()
    def doubled(cfg):
        return lambda tensor: tensor * 2

    tensor = build_transform(cfg, choices=["doubled", "to_white"])(image())
    assert torch.equal(tensor, torch.full((3, 24, 24), 2.0))


# Both last steps at once


@pytest.mark.parametrize("size", [(256, 1), (7, 5), (224, 224)])
def test_conversion_and_normalisation_at_once_have_the_same_bits(cfg, size):
    values = np.arange(256, dtype=np.uint8)
    pixels = np.resize(np.stack([values, values[::-1], np.roll(values, 99)], axis=1), (*size[::-1], 3))
    picture = Image.fromarray(pixels)
    steps = [T.ToTensor(), T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)]
    expected = T.Compose(steps)(picture)
    given = Compose(steps)(picture)
    assert torch.equal(given, expected)
    assert (given.dtype, given.stride()) == (expected.dtype, expected.stride())
    assert picture.tobytes() == pixels.tobytes()


@pytest.mark.parametrize("is_train", [True, False])
def test_transforms_have_the_bits_and_random_numbers_of_torchvision_s(cfg, is_train):
    transform = build_transform(cfg, is_train=is_train)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = T.Compose(transform.transforms)(image())
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        assert torch.equal(transform(image()), expected)
        assert torch.equal(torch.get_rng_state(), state)


def test_what_is_no_rgb_image_goes_through_each_step(cfg):
    ones = T.Normalize([0.5], [0.25])
    for picture in (image().convert("L"), np.asarray(image())[..., :1].copy()):
        assert torch.equal(Compose([T.ToTensor(), ones])(picture), T.Compose([T.ToTensor(), ones])(picture))
    with pytest.raises(ValueError, match="std evaluated to zero"):
        Compose([T.ToTensor(), T.Normalize([0.5] * 3, [0.0] * 3)])(image())


def test_steps_that_are_changed_later_are_obeyed(cfg):
    transform = build_transform(cfg, is_train=False)
    plain = transform.transforms.pop()
    assert isinstance(plain, T.Normalize)
    assert 0 <= transform(image()).min() <= transform(image()).max() <= 1
    transform.transforms += [plain, lambda img: img + 100]
    assert transform(image()).min() > 50
