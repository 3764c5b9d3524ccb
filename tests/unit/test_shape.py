"""The shape of the tree: modules that can be read, packages that say what they are, and a map that is true."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE, TESTS, MAP = REPOSITORY / "webhookd", REPOSITORY / "tests", REPOSITORY / "docs" / "architecture.md"
MOST_LINES = 350
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMED = sorted(set(re.findall(r"`([\w/]+(?:\.py|\.sql|/))`", MAP.read_text())) - {"webhookd/", "tests/"})


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_can_be_read_at_once(module: Path) -> None:
    lines = module.read_text().count("\n")
    assert lines <= MOST_LINES, f"{module} has {lines} lines: it holds more than one idea"


@pytest.mark.parametrize("package", sorted({module.parent for module in MODULES}), ids=lambda path: path.name)
def test_a_package_says_what_it_is_and_holds_no_code(package: Path) -> None:
    about, *more = ast.parse((package / "__init__.py").read_text()).body
    assert isinstance(about, ast.Expr)
    assert [ast.unparse(each).split(" = ")[0] for each in more] == (["__version__"] if package == PACKAGE else [])


@pytest.mark.parametrize("kind", ["unit", "integration"])
def test_tests_stand_in_packages_as_what_they_test_does(kind: str) -> None:
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    found = {path.parent.name for path in (TESTS / kind).glob("*/test_*.py")}
    assert found
    assert found <= packages


@pytest.mark.parametrize("name", NAMED)
def test_the_map_names_what_exists(name: str) -> None:
    if "/" in name:
        assert (PACKAGE / name).exists() or (TESTS / name).exists()
    else:
        assert list(PACKAGE.rglob(name)), "a module that another was named beside"


def test_the_map_names_tests_and_statements_that_exist() -> None:
    text = MAP.read_text()
    for test, module in re.findall(r"`(test_\w+)`(?: and `test_\w+`)? in `([\w/]+\.py)`", text):
        assert f"def {test}(" in (TESTS / module).read_text()
    tests = set(re.findall(r"`(test_\w+)`", text))
    written = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert tests
    assert tests <= written


def test_the_map_names_words_of_the_code_that_exist() -> None:
    """What stands in backticks and is no path is a name that the code or its SQL has."""
    texts = (path.read_text() for path in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.sql"), *TESTS.rglob("*.py")))
    words = set(re.findall(r"\w+", " ".join(texts)))
    named = re.findall(r"`([A-Za-z_]\w*(?:\.[a-z_]+)?)`", MAP.read_text())
    assert len(named) > 30
    assert [name for name in named if not set(name.split(".")) <= words] == []


def test_the_map_has_every_package() -> None:
    house = MAP.read_text().split("```")[1]
    for package in PACKAGE.iterdir():
        if (package / "__init__.py").exists():
            assert re.search(rf"^ *{package.name} ", house, re.MULTILINE), package.name
