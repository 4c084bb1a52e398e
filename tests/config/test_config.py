import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from soflow.cli.main import with_home
from soflow.config import Config, dump, read_recipe, recipe_names
from soflow.config.checks import narrow_tokens, small_ratio
from soflow.config.reading import fields, put, validate
from soflow.config.sections import section_of
from soflow.errors import InputError
from soflow.networks import NETWORKS


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_being_written_and_read(name, tmp_path):
    config = read_recipe(name)
    file = tmp_path / "copy.yaml"
    file.write_text(dump(config))
    assert read_recipe(str(file)) == config


def test_the_required_recipes_exist():
    paper = {f"imagenet256-{size}" for size in ("b4", "b2", "m2", "l2", "xl2")}
    assert {"digits", "moons", "checkerboard", "cifar10"} | paper <= set(recipe_names())


def test_recipes_have_the_papers_values():
    scale = {
        size: read_recipe(f"imagenet256-{size}").objective.guidance.scale
        for size in ("b4", "b2", "m2", "l2", "xl2")
    }
    assert scale == {"b4": 3.0, "b2": 2.5, "m2": 2.25, "l2": 2.0, "xl2": 2.0}
    cifar = read_recipe("cifar10")
    assert cifar.objective.middle.end == 1 / 3200
    assert (cifar.ema.every, cifar.ema.float64, cifar.optimizer.name, cifar.train.batch_size) == (
        16,
        True,
        "radam",
        1024,
    )


def test_an_override_keeps_other_values_of_its_section():
    times = read_recipe("digits", ["objective.times.t.std=2"]).objective.times
    assert (times.t.mean, times.t.std, times.s.mean) == (0.2, 2, -1)


def test_another_kind_of_network_starts_from_its_own_defaults():
    config = read_recipe(
        "digits",
        [
            "data.num_classes=0",
            "objective.guidance.scale=1",
            "network.name=unet",
            "network.blocks=1",
        ],
    )
    assert (config.network.name, config.network.blocks) == ("unet", 1)


def test_overrides_are_typed_and_dotted():
    config = read_recipe(
        "digits",
        [
            "objective.flow_matching_share=0.5",
            "train.steps=7",
            "optimizer.lr=1e-4",
            "train.trackers=[tensorboard]",
        ],
    )
    assert (config.objective.flow_matching_share, config.train.steps, config.optimizer.lr) == (
        0.5,
        7,
        1e-4,
    )
    assert config.train.trackers == ("tensorboard",)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.stepz=5", r"train\.stepz.* train\.steps"),
        ("flow_matching_share=0.5", r"objective\.flow_matching_share"),
        ("train.steps.deeper=5", r"train\.steps"),
        ("objective.flow_matching_share=1.5", r"objective\.flow_matching_share is 1\.5.* 1$"),
        ("objective.times.t.std=0", r"objective\.times\.t\.std is 0"),
        ("train.steps=0", r"train\.steps is 0"),
        ("train.steps=many", r"train\.steps is 'many'"),
        ("noising.name=spiral", r"noising\.name is 'spiral'.*'linear' or 'trig'"),
        ("network.name=resnet", r"network 'resnet'.* dit"),
        ("network.name=[1]", r"network \[1\].* dit"),
        ("network.depht=3", r"network\.depht.* network\.depth"),
        ("network.channel_mult=[2]", r"network\.channel_mult.*dit.*unet"),
        ("network.depth.deeper=3", r"network\.name=dit has no depth\.deeper.* network\.depth, "),
        ("network.batch_size=3", r"network\.name=dit has no batch_size.* train\.batch_size\?$"),
        ("objective.derivative=all", r"objective\.derivative.*jump_flow.*mean_flow"),
        (
            "objective.guidance.scal=2",
            r"has no guidance\.scal; its keys are objective\.guidance\.scale, ",
        ),
        (
            "network.name=mlp",
            r"network\.name=mlp.*data\.shape.* mlp for vectors.* dit or in_context_dit or unet for",
        ),
        ("data.shape=[64]", r"network\.name=dit .*data\.shape=\[64\].* mlp for vectors"),
        ("data.shape=[1,8,8,8]", r"network\.name=dit .*data\.shape=\[1, 8, 8, 8\]"),
        ("train.seed=99999999999999999999999", r"train\.seed is 9"),
        ("train.trackers=[numpy]", r"train\.trackers\.0 is 'numpy'.*'tensorboard'"),
        ("optimizer.betas=[1, 1]", r"optimizer\.betas\.0 is 1"),
        ("optimizer.lr=.inf", r"optimizer\.lr is inf"),
        ("data.num_classes=0", r"guidance\.scale.*data\.num_classes"),
        ("train.accumulate=3", r"train\.accumulate"),
        ("nonsense", r"'nonsense'.*key=value"),
        ("train.steps=[", r"train\.steps.*YAML"),
        ("path.name=trig", r"'path'.* noising"),
        ("objective.lambda_=0.5", r"objective\.lambda_.* objective\.flow_matching_share"),
        ("objective.velocity_share=0.5", r"objective\.flow_matching_share"),
        ("objective.step_share=0.5", r"objective\.flow_matching_share"),
    ],
)
def test_mistakes_in_overrides_are_one_clear_line(override, named):
    with pytest.raises(InputError, match=named) as error:
        read_recipe("digits", [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("- a\n- list\n", "list"),
        ("just words", "str"),
        ("", "NoneType"),
        ("data: {", "YAML"),
        ("network: {wide: 3}", r"network\.wide"),
        ("network: 3", "network is 3"),
        ("train: 3", "train is 3"),
        ("path: {name: trig}", "noising"),
        ("!!python/object/apply:os.system ['true']", "YAML"),
    ],
)
def test_mistakes_in_files_are_one_clear_line(text, named, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=named) as error:
        read_recipe(str(file))
    assert "\n" not in str(error.value)


def test_a_section_without_a_name_has_the_defaults_of_the_default_component(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("network: {width: 64}\nobjective: {times: {t: {mean: 0}}}")
    config = read_recipe(str(file))
    assert (config.network.name, config.network.width, config.network.patch) == ("dit", 64, 2)
    times = config.objective.times
    assert (times.t.mean, times.t.std, times.s.mean) == (0, 0.8, -1)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="digits"):
        read_recipe("digit")
    with pytest.raises(InputError, match=r"none\.yaml"):
        read_recipe("none.yaml")


KEYS = sorted({key for key, _ in fields()})
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(KEYS) | st.text("abc.", min_size=1, max_size=6), VALUES, max_size=4
    )
)
def test_any_value_gives_a_configuration_or_a_one_line_error(changes):
    values = {"network": {"name": "dit"}}
    try:
        for key, value in changes.items():
            put(values, key, value)
        assert isinstance(validate(values), Config)
    except InputError as error:
        assert str(error)
        assert "\n" not in str(error)


def test_every_key_has_a_description():
    assert [key for key, field in fields() if not field.description] == []


def test_an_unknown_network_key_lists_valid_keys_nearest_first():
    with pytest.raises(InputError) as error:
        read_recipe("digits", ["network.name=unet", "network.width=64"])
    said, _, has = str(error.value).partition("; its keys are ")
    assert "network.name=unet has no width" in said
    assert {"dit", "mlp"} <= set(said.replace(",", " ").split())
    settings = section_of(NETWORKS["unet"], "unet").model_fields.keys() - {"name"}
    assert set(has.split(", ")) == {f"network.{setting}" for setting in settings}
    with pytest.raises(InputError, match=r"; its keys are network\.model_channels, "):
        read_recipe("digits", ["network.name=unet", "network.model_chanels=64"])


def test_every_data_shape_has_a_network():
    read_recipe("digits", ["data.shape=[2,64]"])
    read_recipe("digits", ["data.shape=[5,8,16]", "network.name=unet"])
    read_recipe("digits", ["data.shape=[1]", "network.name=mlp"])
    for flag in ("data.flip=true", "data.augment=0.1"):
        with pytest.raises(InputError, match=rf"{flag.partition('=')[0]} needs images"):
            read_recipe("digits", ["data.shape=[2,64]", flag])


def test_a_network_without_labels_is_rejected_with_classes(monkeypatch):
    class Plain(nn.Module):
        takes_labels = False

        def __init__(self, shape):
            super().__init__()

    monkeypatch.setitem(NETWORKS.entries, "plain", Plain)
    with pytest.raises(InputError, match=r"plain.*data\.num_classes=0"):
        read_recipe("digits", ["network.name=plain"])


def test_component_names_are_applied_before_their_settings():
    """Settings of the new objective are kept and unknown ones are errors, in any order."""
    config = read_recipe("moons", ["objective.derivative=jumps", "objective.name=mean_flow"])
    assert config.objective.derivative == "jumps"
    with pytest.raises(InputError, match=r"objective\.flow_matching_share"):
        read_recipe("digits", ["objective.flow_matching_share=0.5", "objective.name=consistency"])


@pytest.mark.parametrize("path", ["set #2", "2024", "true", "a: b", "[x", "'q'", "null", "1e3", ""])
def test_the_value_of_a_path_is_literal(path):
    config = read_recipe("images", [f"data.path={path}", f"data.label_column={path}"])
    assert (config.data.path, config.data.label_column) == (path, path)


def test_the_home_folder_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    config = read_recipe("images", ["data.path=~/photos", "init_from=~/run"])
    assert (config.data.path, config.init_from) == ("/home/ada/photos", "/home/ada/run")
    assert [with_home(x) for x in ("~/a", "--out=~/b", "data.path=~/c", "--labels", "a=b~c")] == [
        "/home/ada/a",
        "--out=/home/ada/b",
        "data.path=/home/ada/c",
        "--labels",
        "a=b~c",
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_the_tokens_of_recipes_are_wide_enough(name):
    assert not narrow_tokens(read_recipe(name))
    assert not small_ratio(read_recipe(name))


@pytest.mark.parametrize(
    ("shape", "width", "warned"),
    [
        ("[3,32,32]", 191, True),
        ("[3,32,32]", 192, False),
        ("[3,32]", 23, True),
        ("[3,32]", 24, False),
    ],
)
def test_tokens_narrower_than_a_patch_are_warned_of(shape, width, warned):
    settings = [f"data.shape={shape}", "network.patch=8", "network.heads=1"]
    settings += [f"network.width={width}", "data.flip=false", "data.source=arrays"]
    assert bool(narrow_tokens(read_recipe("images", settings))) == warned


@pytest.mark.parametrize(
    ("name", "end", "warned"),
    [("jump_flow", "0.0009", True), ("jump_flow", "0.001", False), ("soflow", "0.0009", False)],
)
def test_a_middle_time_of_jump_flow_close_to_t_is_warned_about(name, end, warned):
    settings = [f"objective.name={name}", f"objective.middle.end={end}"]
    assert ("objective.middle.end" in small_ratio(read_recipe("moons", settings))) == warned
