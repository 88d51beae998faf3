"""The files around the package agree with each other."""

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import minibeit3

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA_NAMES = {"pytorch": "torch"}


def versions(requirements: list[str]) -> dict[str, str]:
    """Normalised name -> version specifier."""
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(one.name): str(one.specifier) for one in parsed}


def conda_problems(conda: list[object], pip: list[str]) -> list[str]:
    """Where the conda environment asks for something else than pyproject.toml."""
    texts = [text for text in conda if isinstance(text, str) and text != "pip"]
    found = {CONDA_NAMES.get(name, name): spec for name, spec in versions(texts).items()}
    wanted = versions(pip)
    return [
        f"{name}: {found.get(name)} in environment.yml, {wanted.get(name)} in pyproject.toml"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]


def test_the_conda_environment_asks_for_what_the_package_asks_for() -> None:
    wanted = [*PROJECT["dependencies"], "python >=3.11,<3.14"]
    assert conda_problems(CONDA["dependencies"], wanted) == []
    assert CONDA["dependencies"][-1] == {"pip": ["-e ."]}
    assert PROJECT["requires-python"] == ">=3.11"


@pytest.mark.parametrize("conda", [["pip", "pytorch >=2.10"], ["pip"], ["pytorch >=2.11", "timm"]])
def test_a_drifted_environment_is_found(conda: list[object]) -> None:
    assert len(conda_problems(conda, ["torch>=2.11"])) == 1


def pins() -> dict[str, str]:
    """Normalised name -> version of constraints.txt; a line of another form is an error."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_requirement_is_pinned_within_its_limits() -> None:
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert pins()[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert not [name for name, version in pins().items() if "+" in version]


def test_every_pin_installs_on_the_oldest_python() -> None:
    """A pin made on 3.11.7 may want 3.11.5, which Debian 12 does not have."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    pinned = pins()
    for dist in importlib.metadata.distributions():
        if dist.version.split("+")[0] == pinned.get(canonicalize_name(dist.name)):
            wanted = dist.metadata.json.get("requires_python", "")
            assert oldest in SpecifierSet(str(wanted)), dist.name


def test_the_changelog_has_the_version_of_the_package() -> None:
    assert f"## [{minibeit3.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_and_make_targets_of_a_document_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    targets = set(re.findall(r"\]\((?!\w+:|#)([^)#]+)", text))
    assert [target for target in targets if not (ROOT / target).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    for name in set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{''.join(name)}:", makefile, re.MULTILINE), name


def test_the_readme_names_every_notebook_and_no_file_that_is_absent() -> None:
    text = (ROOT / "README.md").read_text()
    assert [file for file in (ROOT / "notebooks").glob("*.ipynb") if file.stem not in text] == []
    listed = re.findall(r"^( *)([a-z_0-9]+(?:/|\.py))  ", text, re.MULTILINE)
    assert len(listed) > 20
    paths = [ROOT / ("minibeit3" if indent else "") / name for indent, name in listed]
    assert [path for path in paths if not path.exists()] == []


def test_the_ci_script_is_executable_and_parses() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
