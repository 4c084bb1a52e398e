"""Each public name has a docstring with parameters, shapes and a running example."""

import ast
import doctest
import inspect
import re
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import pytest
import torch

import soflow
from soflow.system.registry import Setting
from support.reference_checkpoint import write_reference
from support.settings import TINY_DIT

ROOT = Path(__file__).parents[1]
PUBLIC = {name: getattr(soflow, name) for name in soflow.__all__}
CLASSES = [name for name, thing in PUBLIC.items() if inspect.isclass(thing)]
FUNCTIONS = [name for name, thing in PUBLIC.items() if inspect.isfunction(thing)]
#: Objects with parameters other than a message.
CALLED = [x for x in (*CLASSES, *FUNCTIONS) if x not in ("InputError", "RunError")]
#: Slow: a comparison measures costs in separate processes.
SLOW = ("compare",)
EXAMPLES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PUBLIC]
ENTRY = re.compile(r"^ {4}\*{0,2}(\w+): ", re.M)
#: Shapes such as (B, C, H, W), (num, ...), (B,) or ().
SHAPE = re.compile(r"\((\w+( \+ \w+)?,( [\w./ +]+,?)*|\*?\w+, \.\.\.)?\)")
HEADINGS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example")


def sections(doc):
    """Returns the sections of a docstring by heading. The summary has the heading ''."""
    parts = re.split(rf"^({'|'.join(HEADINGS)}):\n", inspect.cleandoc(doc), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def own_doc(cls, name):
    """Returns the docstring of a method, possibly inherited from another class of soflow."""
    found = [vars(base)[name] for base in cls.__mro__ if name in vars(base)]
    ours = [one for one in found if (module_of(one) or "soflow").startswith("soflow")]
    return next((one.__doc__ for one in ours if one.__doc__), "")


def function_in(member):
    """Returns the function behind a method or property."""
    for name in ("fget", "func", "__func__"):
        member = getattr(member, name, None) or member
    return member


def module_of(member):
    return getattr(function_in(member), "__module__", None)


def methods(cls):
    """Returns the public methods and properties that a class defines, and `__call__`."""
    kinds = (property, cached_property, classmethod, staticmethod)
    return {
        name: member
        for name, member in vars(cls).items()
        if (not name.startswith("_") or name == "__call__")
        and name not in inspect.get_annotations(cls)
        and (inspect.isfunction(member) or isinstance(member, kinds))
    }


def annotations_of(function):
    """Returns the annotations of parameters and result as text, without module states."""
    signature = inspect.signature(function)
    values = [one.annotation for one in signature.parameters.values()]
    text = " ".join(map(str, [*values, signature.return_annotation]))
    return re.sub(r"(dict|Mapping)\[str, torch.Tensor\]", "", text)


def takes_tensors(function):
    """Whether parameters or the result are tensors."""
    return "Tensor" in annotations_of(function)


def takes_plain_tensors(function):
    """Whether tensor annotations lack a shape, unlike `Sample` and `Times`."""
    plain = re.sub(r"jaxtyping\.\w+\[.*?\]", "", annotations_of(function))
    return re.search(r"\bTensor\b", plain) is not None


def has_setting(parameter):
    """Whether the annotation of a parameter contains a `Setting`."""
    return any(isinstance(x, Setting) for x in getattr(parameter.annotation, "__metadata__", ()))


def undescribed(thing):
    """Returns parameters without an entry in the docstring and without a `Setting`."""
    parts, fields = sections(thing.__doc__), getattr(thing, "model_fields", {})
    entries = ENTRY.findall(parts.get("Args", "")) + ENTRY.findall(parts.get("Attributes", ""))
    return [
        name
        for name, parameter in inspect.signature(thing).parameters.items()
        if name not in entries
        and not has_setting(parameter)
        and not getattr(fields.get(name), "description", None)
    ]


def test_the_module_imports_exactly_the_names_it_lists():
    """Type checkers and programs see the same names."""
    tree = ast.parse(Path(soflow.__file__).read_text())
    (checking,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in checking.body:
        assert [one.name for one in node.names] == [one.asname for one in node.names]
        seen |= {one.name: node.module.removeprefix("soflow.") for one in node.names}
    assert seen == soflow._HOME
    assert list(soflow._HOME) == soflow.__all__


def test_names_are_in_reading_order():
    """Train and sample first, then custom loops, mathematics, networks and registration."""
    steps = ["train", "load", "load_data", "FlowModel", "SoFlow", "DiT", "OBJECTIVES"]
    places = [soflow.__all__.index(name) for name in steps]
    assert places == sorted(places)
    assert places[0] == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_the_docstring_starts_with_one_sentence(name):
    thing = PUBLIC[name]
    if name not in CLASSES + FUNCTIONS:
        assert thing.__doc__ != type(thing).__doc__, "its own, not that of its class"
    first, *rest = inspect.cleandoc(thing.__doc__).splitlines()
    assert first.endswith(".")
    assert first[0].isupper() or re.match(r"\w+[(.]", first)
    assert rest[0] == ""


@pytest.mark.parametrize("name", CALLED)
def test_each_parameter_is_described(name):
    thing = PUBLIC[name]
    assert undescribed(thing) == []


@pytest.mark.parametrize("name", CALLED)
def test_every_described_parameter_exists(name):
    thing = PUBLIC[name]
    args = ENTRY.findall(sections(thing.__doc__).get("Args", ""))
    assert set(args) <= set(inspect.signature(thing).parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_document_what_they_return(name):
    parts = sections(PUBLIC[name].__doc__)
    silent = inspect.signature(PUBLIC[name]).return_annotation is None
    assert silent != bool({"Returns", "Yields"} & set(parts))


@pytest.mark.parametrize("name", CLASSES)
def test_methods_and_properties_have_a_docstring(name):
    cls = PUBLIC[name]
    assert [method for method in methods(cls) if not own_doc(cls, method)] == []


@pytest.mark.parametrize("name", CALLED)
def test_shapes_are_documented_for_tensor_arguments_and_results(name):
    thing = PUBLIC[name]
    text = "".join(value for key, value in sections(thing.__doc__).items() if key != "Example")
    if takes_tensors(thing):
        assert SHAPE.search(text)
    if name in CLASSES:
        missing = [
            method
            for method, member in methods(thing).items()
            if takes_plain_tensors(function_in(member))
            and not SHAPE.search(text + own_doc(thing, method))
        ]
        assert missing == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that examples read, and trained runs of digits and moons."""
    folder = tmp_path_factory.mktemp("examples")
    short = ["train.steps=4", "train.batch_size=16", "optimizer.warmup=0"]
    quiet = {"progress": soflow.silent}
    soflow.train("digits", folder / "runs/digits", [*TINY_DIT, *short], **quiet)
    small = ["network.width=16", "network.depth=1"]
    soflow.train("moons", folder / "runs/moons", [*small, *short], **quiet)
    write_reference(folder)
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name, folder, tmp_path, monkeypatch):
    """The example needs only its imports and the trained runs."""
    for entry in folder.iterdir():
        shutil.copytree(entry, tmp_path / entry.name) if entry.is_dir() else shutil.copy(
            entry, tmp_path
        )
    for registry in (soflow.OBJECTIVES, soflow.NETWORKS, soflow.SOURCES):  # no changes
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (example,) = doctest.DocTestFinder(recurse=False).find(Documented(PUBLIC[name]), name, globs={})
    assert example.examples
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert "".join(said) == ""


class Documented:
    """Wraps a name for `doctest`, which only knows modules, classes and functions."""

    def __init__(self, thing):
        self.__doc__ = thing.__doc__


PAGES = ["README.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]
PROGRAMS = [f"examples/{file.name}" for file in sorted((ROOT / "examples").glob("*.py"))]


def programs_in(page):
    """Returns the Python code of a page, by blocks, or of a file."""
    text = (ROOT / page).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.S) if page.endswith(".md") else [text]


@pytest.mark.parametrize("page", [*PAGES, *PROGRAMS, "examples/notebook.ipynb"])
def test_pages_and_examples_use_public_names(page):
    text = (ROOT / page).read_text()
    text = re.sub(r"(from|import) soflow\.\S+|soflow\.(py\b|Lit)", "", text)
    used = set(re.findall(r"\bsoflow\.([A-Za-z]\w*)", text))
    assert used - set(PUBLIC) == set()


@pytest.mark.parametrize("page", [*PAGES, *PROGRAMS])
def test_calls_on_pages_and_in_examples_fit_the_signatures(page):
    """Calls use existing keywords and the right number of arguments."""
    for program in programs_in(page):
        for node in ast.walk(ast.parse(program)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            if not isinstance(owner, ast.Name) or owner.id != "soflow":
                continue
            if any(isinstance(one, ast.Starred) for one in node.args):
                continue
            signature = inspect.signature(PUBLIC[node.func.attr])
            keywords = {one.arg: None for one in node.keywords if one.arg is not None}
            signature.bind_partial(*node.args, **keywords)


def test_the_loop_of_the_page_runs(tmp_path, monkeypatch):
    """The loop in docs/python.md runs for two steps."""
    monkeypatch.chdir(tmp_path)
    (loop,) = [block for block in programs_in("docs/python.md") if "objective.draw(" in block]
    assert "steps = 2000" in loop
    names: dict = {}
    exec(loop.replace("steps = 2000", "steps = 2"), names)
    assert names["images"].shape == (64, 1, 8, 8)


def test_the_objective_of_the_page_trains(tmp_path, monkeypatch):
    """The objective in docs/python.md, with guidance, trains for two steps."""
    monkeypatch.chdir(tmp_path)
    (program,) = [block for block in programs_in("docs/python.md") if "class TwoJumps" in block]
    assert "train.steps=1000" in program
    fewer = program.replace("train.steps=1000", "train.steps=2")
    module = ModuleType("two_jumps")  # dataclasses look up the module of a class
    monkeypatch.setitem(sys.modules, "two_jumps", module)
    exec(fewer, module.__dict__)
    assert soflow.load("runs/two-jumps").sample(2, nfe=1).shape == (2, 1, 8, 8)


def test_the_added_term_of_the_page_trains(tmp_path, monkeypatch):
    """The objective in docs/python.md that adds a term leaves the other terms as they are."""
    (program,) = [block for block in programs_in("docs/python.md") if "class Penalized" in block]
    module = ModuleType("penalized")
    module.__dict__.update(soflow=soflow, dataclass=dataclass)
    monkeypatch.setitem(sys.modules, "penalized", module)
    exec(program, module.__dict__)
    settings = [*TINY_DIT, "train.steps=2", "train.batch_size=16", "train.log_every=1"]
    run = soflow.train("digits", tmp_path, settings, objective=module.Penalized())
    assert {"penalty", "flow_matching_mse", "consistency_mse"} <= set(run.read_metrics()[-1])
