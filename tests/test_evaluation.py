"""Measurements against numbers worked out by hand, and what is drawn and shown of samples."""

import math

import pytest
import torch
from torch import nn

from zoo.evaluation import draw, grid, health, likelihood, options_in_force, save, write_png
from zoo.types import PAD, scored

LN2 = math.log(2)
IMAGES = {"name": "fake", "kind": "image", "shape": [1, 2, 2], "levels": 4, "unit": "bits/dim"}
TEXT = {"name": "fake", "kind": "text", "shape": [4], "levels": 9, "unit": "bits/char"}


class Known(nn.Module):
    """log p(x) is minus the sum of the symbols that are there, times `scale`; of images and of text."""

    kind = "exact"

    def __init__(self):
        super().__init__()
        self.seen = []

    def log_prob(self, x, y=None, *, scale=1.0, samples=3):
        self.seen.append(len(x))
        return -(x * scored(x)).flatten(1).sum(1) * scale


class Dice(nn.Module):
    """An estimate by chance, and samples by chance."""

    kind = "estimate"

    def log_prob(self, x, y=None):
        return -torch.rand(len(x))

    def sample(self, n, y=None, *, sides=6):
        x = torch.randint(sides, (n, 1, 2, 2))
        return x if y is None else x * 0 + y.view(-1, 1, 1, 1)


def batches(x, size):
    return [{"x": part} for part in x.split(size)]


def numbers(x, size=2, facts=IMAGES, model=None, **more):
    found = likelihood(model or Known(), batches(x, size), facts=facts, split="test", **more)
    return {number["name"]: number for number in found}


def test_what_is_told_given_a_label_says_so():
    model, x = Known(), torch.ones(4, 1, 2, 2)
    assert "given" not in numbers(x, model=model)["nats"]["protocol"]
    model.conditional = True
    assert numbers(x, model=model)["nats"]["protocol"]["given"] == "y"


def test_nats_and_bits_of_images_are_those_worked_out_by_hand():
    x = torch.tensor([[0, 1, 2, 3], [1, 1, 1, 1], [3, 3, 3, 3]]).view(3, 1, 2, 2)
    found = numbers(x)  # 6, 4 and 12 nats
    assert found["nats"]["value"] == pytest.approx(22 / 3)
    assert found["bits_per_dim"]["value"] == pytest.approx(22 / 3 / 4 / LN2)
    assert found["nats"]["unit"] == "nats/example"
    assert found["bits_per_dim"]["unit"] == "bits/dim"
    assert {number["count"] for number in found.values()} == {3}
    assert "perplexity" not in found


def test_units_of_text_are_those_worked_out_by_hand():
    x = torch.tensor([[1, 2, 3, 0], [4, 5, PAD, PAD]])  # 6 and 9 nats over 4 and 2 tokens
    counts = {"tokens": 6, "chars": 10, "bytes": 12, "words": 3}
    found = numbers(x, facts={**TEXT, "unit": "perplexity"}, counts=counts)
    expected = {
        "nats": 15 / 2,
        "nats_per_token": 15 / 6,
        "perplexity": math.exp(15 / 6),
        "word_perplexity": math.exp(15 / 3),
        "bits_per_char": 15 / 10 / LN2,
        "bits_per_byte": 15 / 12 / LN2,
    }
    assert {name: number["value"] for name, number in found.items()} == pytest.approx(expected)
    assert set(numbers(x, facts=TEXT, counts=counts)) == set(expected) - {"word_perplexity"}


def test_text_without_counts_has_units_of_its_tokens_only():
    found = numbers(torch.tensor([[1, 2, 3, 0]]), facts=TEXT)
    assert set(found) == {"nats", "nats_per_token", "perplexity"}


def test_padding_is_never_counted():
    x = torch.tensor([[1, 2, 3, PAD]])
    long = torch.cat([x, torch.full((1, 50), PAD)], 1)
    values = [{n: v["value"] for n, v in numbers(part, facts=TEXT).items()} for part in (x, long)]
    assert values[0] == values[1]
    assert values[0]["nats_per_token"] == pytest.approx(2.0)


@pytest.mark.parametrize(("unit", "first"), [("nats", "nats"), ("bits/dim", "bits_per_dim")])
def test_the_first_number_is_in_the_datas_own_unit(unit, first):
    assert next(iter(numbers(torch.ones(2, 1, 2, 2), facts={**IMAGES, "unit": unit}))) == first


@pytest.mark.parametrize("size", [1, 7, 100, 101, 500])
def test_101_examples_in_any_batches_are_what_they_are_in_one(size):
    torch.manual_seed(0)
    x = torch.randint(4, (101, 1, 2, 2))
    model = Known()
    nats = x.flatten(1).sum(1).double()
    found = numbers(x, size, model=model)["nats"]
    assert found["value"] == pytest.approx(nats.mean().item(), rel=1e-12)
    assert found["stderr"] == pytest.approx(nats.std().item() / 101**0.5, rel=1e-9)
    assert found["count"] == sum(model.seen) == 101


def test_the_standard_error_is_in_the_units_of_its_number():
    x = torch.randint(4, (50, 1, 2, 2), generator=torch.Generator().manual_seed(1))
    found = numbers(x)
    assert found["bits_per_dim"]["stderr"] == pytest.approx(found["nats"]["stderr"] / 4 / LN2)
    assert numbers(x[:1])["nats"]["stderr"] == 0.0


def test_a_sum_of_many_small_numbers_loses_no_digits():
    x = torch.full((3000, 1, 2, 2), 0.1)  # float32 sums of a tenth are off in the sixth digit
    assert numbers(x, 1000, model=Known())["nats"]["value"] == pytest.approx(
        float(torch.tensor(0.1)) * 4, rel=1e-7
    )


def test_the_protocol_has_every_option_in_force():
    x = torch.ones(2, 1, 2, 2)
    plain = numbers(x, protocol={"binarization": "static"})["nats"]
    assert plain["protocol"] == {"method": "log_prob", "scale": 1.0, "samples": 3, "binarization": "static"}
    given = numbers(x, options={"scale": 2.0})["nats"]
    assert given["protocol"] == {"method": "log_prob", "scale": 2.0, "samples": 3}
    assert given["value"] == 2 * plain["value"]
    assert (plain["kind"], plain["split"]) == ("exact", "test")


def test_densities_of_real_numbers_say_that_they_compare_with_no_probability():
    assert "density" in numbers(torch.ones(2, 1, 2, 2), facts={**IMAGES, "levels": None})["nats"]["protocol"]
    assert "density" not in numbers(torch.ones(2, 1, 2, 2))["nats"]["protocol"]


def test_an_option_that_a_method_has_not_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r"log_prob\.sample: .* it has: scale, samples"):
        numbers(torch.ones(2, 1, 2, 2), options={"sample": 9})
    with pytest.raises(ValueError, match=r"log_prob\.a: .* it has: none"):
        options_in_force(Dice().log_prob, {"a": 1}, "log_prob")


def test_a_split_without_examples_and_a_number_that_is_none_are_refused():
    with pytest.raises(ValueError, match="the test split is empty"):
        likelihood(Known(), [], facts=IMAGES, split="test")
    with pytest.raises(ValueError, match="not finite for 2 examples of test"):
        numbers(torch.ones(3, 1, 2, 2) * torch.tensor([1, math.inf, math.nan]).view(3, 1, 1, 1), 3)


def test_a_model_without_a_likelihood_is_refused_by_name():
    with pytest.raises(ValueError, match="Linear has no likelihood"):
        likelihood(nn.Linear(1, 1), [], facts=IMAGES, split="test")
    with pytest.raises(ValueError, match="Linear cannot sample"):
        draw(nn.Linear(1, 1), 1)


def test_estimates_by_chance_follow_from_the_seed_and_not_from_what_went_before():
    x = torch.zeros(10, 1, 2, 2)
    torch.manual_seed(1)
    first = numbers(x, model=Dice(), seed=0)["nats"]["value"]
    torch.manual_seed(2)
    assert numbers(x, model=Dice(), seed=0)["nats"]["value"] == first
    assert numbers(x, model=Dice(), seed=1)["nats"]["value"] != first


def test_health_is_measured_over_the_whole_split():
    class Counting(nn.Module):
        def statistics(self, x, y=None):
            return {"ones": (x == 1).sum(), "all": torch.tensor(x.numel())}

        def summarize(self, sums):
            return {"share": float(sums["ones"] / sums["all"])}

    x = torch.tensor([1, 1, 1, 0, 0]).view(5, 1)
    (number,) = health(Counting(), batches(x, 2), split="val", protocol={"order": "row"})
    assert number["value"] == pytest.approx(0.6)
    assert (number["name"], number["count"], number["split"]) == ("share", 5, "val")
    assert number["protocol"] == {"method": "statistics", "order": "row"}


def test_samples_follow_from_the_seed():
    torch.manual_seed(1)
    first, force = draw(Dice(), 5, seed=3)
    torch.manual_seed(2)
    assert torch.equal(draw(Dice(), 5, seed=3)[0], first)
    assert not torch.equal(draw(Dice(), 5, seed=4)[0], first)
    assert force == {"sides": 6}
    assert draw(Dice(), 5, options={"sides": 1})[0].sum() == 0


def test_whole_batches_of_samples_do_not_depend_on_how_many_follow():
    few, many = draw(Dice(), 8, batch=4)[0], draw(Dice(), 11, batch=4)[0]
    assert len(many) == 11
    assert torch.equal(few, many[:8])
    assert not torch.equal(many[:4], many[4:8])


def test_each_sample_gets_its_own_label():
    y = torch.arange(5)
    assert draw(Dice(), 5, y=y, batch=2)[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_each_sample_gets_its_own_prompt():
    class Echo(nn.Module):
        def sample(self, n, y=None, *, prompt=None):
            assert len(prompt) == n
            return prompt

    prompt = torch.arange(10).view(5, 2)
    assert torch.equal(draw(Echo(), 5, options={"prompt": prompt}, batch=2)[0], prompt)


def test_a_grid_shows_each_image_at_its_place_with_its_values():
    x = torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 3, 4)
    sheet = grid(x, levels=5)
    assert sheet.shape == (3, 2 + 2 * (3 + 2), 2 + 3 * (4 + 2))  # 2 rows of 3
    assert sheet.dtype == torch.uint8
    for i in range(5):
        top, left = 2 + i // 3 * 5, 2 + i % 3 * 6
        assert (sheet[:, top : top + 3, left : left + 4] == round(i / 4 * 255)).all()
    assert (sheet[:, :2] == 255).all()
    assert (sheet[:, 7:10, 14:18] == 255).all()  # the place of a sixth stays empty


def test_a_grid_keeps_colours_and_takes_real_numbers_from_minus_one_to_one():
    x = torch.tensor([0, 128, 255]).view(1, 3, 1, 1)
    assert grid(x, levels=256, gap=0)[:, 0, 0].tolist() == [0, 128, 255]
    assert grid(torch.tensor([-9.0, 0.0, 1.0]).view(1, 3, 1, 1), levels=None, gap=0)[:, 0, 0].tolist() == [
        0,
        128,
        255,
    ]


def test_pictures_and_texts_are_written(tmp_path):
    from PIL import Image

    path, shown = save(torch.zeros(4, 1, 2, 2), IMAGES, tmp_path / "new" / "a")
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        assert picture.width >= 300
        assert picture.width % shown.shape[-1] == 0
    path, texts = save(
        torch.tensor([[0, 1], [1, 1]]), TEXT, tmp_path / "b", decode=lambda x: "".join("ab"[i] for i in x)
    )
    assert texts == ["ab", "bb"]
    assert path.read_text() == "ab\n\n----\n\nbb\n"
    path, texts = save(torch.tensor([[0, 1]]), {"kind": "tokens"}, tmp_path / "c")
    assert texts == ["0 1"]


def test_a_picture_is_enlarged_pixel_by_pixel(tmp_path):
    import numpy as np
    from PIL import Image

    write_png(torch.arange(12, dtype=torch.uint8).view(3, 2, 2), tmp_path / "a.png", least=8)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.array(picture)
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, 0].tolist() == [0, 4, 8]
    assert pixels[7, 7].tolist() == [3, 7, 11]
