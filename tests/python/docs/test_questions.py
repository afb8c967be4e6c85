"""What newcomers look for is two clicks from the README; the README that a package index shows."""

from __future__ import annotations

import re
from email import message_from_string
from pathlib import Path

import pytest
from processes import python, succeed

ROOT = Path(__file__).parents[3]
GUIDES = ROOT / "docs" / "guides"
LINK = re.compile(r"\]\(([^)#\s]*)#?([^)\s]*)\)")
# What is asked for, as a pattern, and a word that its answer must have.
QUESTIONS = {
    "LoRA": "load_adapter",
    "Lightning": "FlashPackCheckpointIO",
    "Trainer": "FlashPackTrainerMixin",
    "timm": "pretrained_cfg_overlay",
    "sentence-transformers": "use_flashpack",
    "Docker": "eager=True",
    "Kubernetes": "the limit counts",
    "tmpfs": "medium: Memory",
    "init containers": "initContainers",
    "NFS": "ESTALE",
    "some layers": "include=",
    "safetensors are there": "revert",
    "NumPy": "flashpack.numpy",
    "Notebooks": "silent=False",
    "resume a training": "load_checkpoint",
    "dtype": 'dtype="model"',
    "verified": "verify=True",
}


def anchor(heading: str) -> str:
    """What Markdown viewers make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def sections(page: Path) -> dict[str, str]:
    """The text below each heading by its anchor, and the whole page by an empty one."""
    text = page.read_text()
    parts = re.split(r"^(#+ .*)$", text, flags=re.MULTILINE)[1:]
    found = {anchor(head.lstrip("#")): body for head, body in zip(parts[::2], parts[1::2], strict=True)}
    return {"": text, **found}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_two_clicks_away(question: str) -> None:
    assert "](docs/guides/questions.md)" in (ROOT / "README.md").read_text()
    rows = [
        row
        for row in (GUIDES / "questions.md").read_text().splitlines()
        if question in row.partition("| ")[2].partition(" |")[0]
    ]
    assert rows, f"no row asks for {question}"
    page, place = LINK.findall(rows[0])[-1]
    assert QUESTIONS[question] in sections(GUIDES / page)[place]


def test_links_lead_to_headings() -> None:
    broken = [
        (page.name, link, place)
        for page in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
        for link, place in LINK.findall(page.read_text())
        if place and "://" not in link and place not in sections(page.parent / link if link else page)
    ]
    assert not broken


def test_the_readme_of_the_package_has_no_links_into_the_repository() -> None:
    text = succeed(python("-c", "import setup; print(setup.package_readme())", cwd=ROOT))
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert "| Many ranks |" in text
    assert all(link.startswith("https://") for link in links)
    assert "<" not in re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    assert "pip install" in text
    assert "charts" not in text


def test_the_metadata_says_who_and_what(tmp_path: Path) -> None:
    code = "import setup; print(setup.prepare_metadata_for_build_wheel(__import__('sys').argv[1]))"
    folder = succeed(python("-c", code, tmp_path, cwd=ROOT)).splitlines()[-1]
    metadata = message_from_string((tmp_path / folder / "METADATA").read_text())
    assert metadata["Author"] == "The FlashPack authors"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"pytorch", "safetensors"} <= set(metadata["Keywords"].split(","))
    assert "Topic :: Scientific/Engineering :: Artificial Intelligence" in metadata.get_all("Classifier", [])
    assert "# FlashPack" in str(metadata.get_payload())
    assert "Project-URL" not in metadata  # until there is one
