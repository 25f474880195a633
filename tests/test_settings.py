"""Settings: every profile builds, every value that is not allowed is refused in one sentence that
names the setting and what is.
"""

import math
from dataclasses import FrozenInstanceError, fields

import pytest

from warp_lib.settings import PROFILES, Settings

FIELDS = fields(Settings)
ENDS = [
    (f.name, end, f.metadata[end])
    for f in FIELDS
    for end in ("least", "most")
    if f.metadata[end] is not None
]


def refused(says: str, **overrides) -> None:
    """Settings end at once, with a sentence that begins with `says`."""
    with pytest.raises(ValueError) as error:
        Settings.profile(**overrides)
    sentence = str(error.value)
    assert sentence.startswith(says), sentence
    assert sentence[-1] in ".?" and "\n" not in sentence


# --- Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("runs", 0, "a whole number of at least 1, not 0"),
        ("iterations", -1, "a whole number of at least 1, not -1"),
        ("steps", 0, "a whole number of at least 1, not 0"),
        ("steps", 2.5, "a whole number of at least 1, not 2.5"),
        ("steps", "50", "a whole number of at least 1, not '50'"),
        ("runs", True, "a whole number of at least 1, not True"),
        ("seed", -1, "a whole number of at least 0, not -1"),
        ("test_samples", [4], "a whole number of at least 1, not [4]"),
        ("front_points", 1, "a whole number of at least 2, not 1"),
        ("test_prompts", 1, "a whole number of at least 2, not 1"),
        ("batch_size", 1, "a whole number of at least 2, not 1"),
        ("max_new_tokens", math.inf, "a whole number of at least 1, not inf"),
        ("beta", 10**400, f"at most 10,000,000, not 1{'0' * 29}"),
        ("eta", 1.5, "a number from 0 to 1, not 1.5"),
        ("eta", -0.01, "a number from 0 to 1, not -0.01"),
        ("eta", math.nan, "a number from 0 to 1, not nan"),
        ("eta", "0.5", "a number from 0 to 1, not '0.5'"),
        ("eta", False, "a number from 0 to 1, not False"),
        ("mu", 1.01, "a number from 0 to 1, not 1.01"),
        ("beta", -0.1, "a number of at least 0, not -0.1"),
        ("beta", math.inf, "a number of at least 0, not inf"),
        ("temperature", 0, "a number from 0.01 to 10, not 0"),
        ("learning_rate", 0.0, "a number from 1e-08 to 1, not 0.0"),
        ("reward_learning_rate", -1e-4, "a number from 1e-08 to 1, not -0.0001"),
        ("merge", "spherical", "slerp or lerp, not 'spherical'"),
        ("slerp_per", "head", "layer or tensor or model, not 'head'"),
        ("baseline", True, "leave-one-out or none, not True"),
        ("policy", "", "a name, not ''"),
        ("reviews", 3, "a name, not 3"),
        ("encoder", ["minilm"], "a name, not ['minilm']"),
    ],
)
def test_invalid_value(name, value, allowed):
    """One sentence: the setting, what it must be, what it was."""
    refused(f"{name} must be {allowed}.", **{name: value})


@pytest.mark.parametrize(
    "name",
    ["a/b", "../x", "..", ".hidden", "a b", "", "x\n", "/tmp", "a\\b", 5, "store", "reviews"],
)
def test_bad_folder_name(name):
    """The name is a folder's under runs/, never a path out of it."""
    refused("name must be ", name=name)


def test_trained_layers_are_layers():
    """No more layers are trained than there are."""
    refused(
        "reward_trained must be at most reward_layers (2), not 3.",
        reward_layers=2,
        reward_trained=3,
    )


def test_batch_must_be_divisible():
    """k completions of each prompt fill the batch without a rest."""
    refused(
        "completions_per_prompt must divide batch_size (64), and 3 does not.",
        completions_per_prompt=3,
    )
    assert Settings(batch_size=12, completions_per_prompt=4).completions_per_prompt == 4


@pytest.mark.parametrize("name, end, value", ENDS)
def test_the_ends_are_allowed(name, end, value):
    """The least and the most that are named are themselves valid; what lies just beyond is not."""
    assert getattr(Settings(**{"reward_trained": 1, name: value}), name) == value
    refused(f"{name} must be ", **{name: value - 1 if end == "least" else value + 1})


def test_types_are_the_fields():
    """papermill may pass 3.0 or 1: whole numbers become int and the others float, so that the same
    settings have the same key.
    """
    given = Settings(steps=3.0, eta=1, beta=0)
    assert given == Settings(steps=3, eta=1.0, beta=0.0)
    assert [type(v) for v in (given.steps, given.eta, given.beta)] == [int, float, float]


def test_frozen():
    """Settings are not changed after they were checked."""
    with pytest.raises(FrozenInstanceError):
        Settings().eta = 2.0


# --- Profiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_builds(profile):
    """Each profile is valid, lies in its own folder, and what it does not set is the default."""
    settings = Settings.profile(profile)
    assert settings.name == profile
    assert settings.asdict() == Settings().asdict() | {"name": profile} | PROFILES[profile]


def test_profiles_are_the_promised_ones():
    """full has the student report's sizes, gpt2-imdb its models from the hub, smollm2 the
    pip-installed one; laptop is the default.
    """
    full, hub = Settings.profile("full"), Settings.profile("gpt2-imdb")
    assert list(PROFILES) == ["smoke", "laptop", "full", "gpt2-imdb", "smollm2", "smollm2-small"]
    assert (
        full.steps,
        full.batch_size,
        full.max_new_tokens,
        full.temperature,
        full.mu,
        full.eta,
    ) == (100, 64, 53, 0.7, 0.01, 0.5)
    assert (full.test_samples, full.front_points) == (10, 11)
    for profile in (full, Settings.profile("smollm2")):  # rewarded as laptop is
        assert {n: v for n, v in profile.asdict().items() if n.startswith(("reward", "judge"))} == {
            n: v for n, v in Settings().asdict().items() if n.startswith(("reward", "judge"))
        }
    assert (hub.policy, hub.encoder, hub.reviews) == (
        "lvwerra/gpt2-imdb",
        "distilbert/distilbert-base-cased",
        "stanfordnlp/imdb",
    )
    assert (hub.steps, hub.batch_size, hub.max_new_tokens) == (100, 64, 53)
    assert Settings.profile("smollm2").policy == "smollm2-imdb" and Settings.profile() == Settings()


def test_overrides():
    """Overrides win over the profile; None means the profile's own value."""
    settings = Settings.profile("smoke", steps=9, batch_size=None, name=None, eta=0.3)
    assert settings == Settings(**{"name": "smoke", **PROFILES["smoke"], "steps": 9, "eta": 0.3})


@pytest.mark.parametrize("profile", ["desktop", "", "SMOKE"])
def test_unknown_profile(profile):
    """An unknown profile is refused with the names of the known ones."""
    refused(
        "profile must be one of smoke, laptop, full, gpt2-imdb, smollm2, smollm2-small, not"
        f" {profile!r}.",
        profile=profile,
    )


def test_unknown_setting():
    """An unknown name is refused, with the one that was probably meant or with all."""
    refused(
        "there is no setting 'learning_rates'; did you mean 'learning_rate'?", learning_rates=1e-3
    )
    refused("there is no setting 'zzz'; there are name, seed, policy, ", zzz=None)


def test_documentation():
    """Every setting has a text of its own, and every number and choice says what is allowed."""
    assert (
        len({f.metadata["doc"] for f in FIELDS}) == len(FIELDS)
        and min(len(f.metadata["doc"]) for f in FIELDS) > 15
    )
    assert all(f.type in (str, int, float) for f in FIELDS)
    assert all(f.metadata["least"] is not None for f in FIELDS if f.type is not str)
    assert {f.name for f in FIELDS if f.metadata["among"]} == {
        "baseline",
        "merge",
        "slerp_per",
        "held_out",
        "precision",
    }


def test_shown_as_html():
    """The table shows every setting, and a name from outside is escaped."""
    page = Settings(policy="<script>alert(1)</script>")._repr_html_()
    assert (
        all(f"<code>{f.name}</code>" in page for f in FIELDS)
        and "&lt;script&gt;" in page
        and "<script" not in page
    )


# --- Notebooks ------------------------------------------------------------------------------------


def test_from_notebook():
    """A notebook's namespace gives its parameters; what else stands there is left alone; None is
    the profile's value.
    """
    namespace = {
        "profile": "smoke",
        "runs": 3,
        "eta": None,
        "policy": "some/folder",
        "np": math,
        "_": 1,
        "In": ["", "profile = 'laptop'"],
    }
    assert Settings.from_notebook(namespace) == Settings.profile(
        "smoke", runs=3, policy="some/folder"
    )
    assert Settings.from_notebook({}) == Settings()


def test_injected_parameters():
    """What papermill injects is a setting or is refused; other cells may define what they like."""
    In = [
        "",
        "profile = 'smoke'\nx = 1",
        "# Parameters\nruns = 2\niterations = 3\n",
        "whatever = 5",
    ]
    namespace = {"profile": "smoke", "x": 1, "whatever": 5, "runs": 2, "iterations": 3, "In": In}
    assert Settings.from_notebook(namespace) == Settings.profile("smoke", runs=2, iterations=3)
    for cell in ("# Parameters\nruns = 2\niteration = 3\n", "\n# Parameters\niteration = 3"):
        with pytest.raises(
            ValueError, match=r"^there is no setting 'iteration'; did you mean 'iterations'\?$"
        ):
            Settings.from_notebook(namespace | {"iteration": 3, "In": [*In, cell]})


def test_injected_invalid_value():
    """An injected value is checked like any other."""
    with pytest.raises(ValueError, match=r"^runs must be a whole number of at least 1, not 0\.$"):
        Settings.from_notebook({"profile": "smoke", "runs": 0, "In": ["# Parameters\nruns = 0"]})
